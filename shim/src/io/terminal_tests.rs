//! Terminals, with FIFOs as the client's ends.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::time::{Instant, sleep};

use super::tests::{Dir, LONG, created, end, opened, read_to_end, read_until, reader, run, write};
use super::{Io, Request};

/// A terminal as a process has it: the master is relayed, the slave is the process.
async fn terminal(request: &Request) -> (Io, OwnedFd) {
    // As for an init; an exec starts before its terminal is attached.
    let (io, ends) = created(request).await;
    drop(ends);
    let pty = nix::pty::openpty(None, None).unwrap();
    io.attach_terminal(pty.master).unwrap();
    io.starting().unwrap();
    // Not blocking, for the test's single thread.
    nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    (io, pty.slave)
}

fn with_terminal(dir: &Dir) -> Request {
    Request {
        stdin: dir.fifo("in"),
        stdout: dir.fifo("out"),
        terminal: true,
        ..Request::default()
    }
}

#[test]
fn a_terminal_is_relayed_and_resized() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, slave) = terminal(&request).await;
        let out = reader(&request.stdout);
        write(&slave, b"prompt$ ");
        assert_eq!(read_until(&out, "$ ").await, "prompt$ ");
        let client = end(&request.stdin, OFlag::O_WRONLY);
        write(&client, b"ls\n");
        assert_eq!(read_until(&slave, "\n").await, "ls\n");
        assert_eq!(read_until(&out, "\n").await, "ls\r\n", "the echo");
        io.resize(24, 80).unwrap();
        let size = rtc_runtime::sys::tty::size(&slave).unwrap();
        assert_eq!((size.rows, size.columns), (24, 80));
    });
}

#[test]
fn the_terminal_of_an_exec_is_attached_after_the_start() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, ends) = opened(&request).await;
        drop(ends);
        let client = end(&request.stdin, OFlag::O_WRONLY);
        write(&client, b"ls\n");
        let pty = nix::pty::openpty(None, None).unwrap();
        io.attach_terminal(pty.master).unwrap();
        assert_eq!(read_until(&pty.slave, "\n").await, "ls\n");
    });
}

#[test]
fn nothing_that_a_terminal_printed_is_lost_at_the_end() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, slave) = terminal(&request).await;
        let out = reader(&request.stdout);
        let process = tokio::spawn(async move {
            let (mut printed, mut line) = (0, 0);
            while line < 20_000 {
                let text = format!("{line:07}\n");
                match nix::unistd::write(&slave, &text.as_bytes()[printed..]) {
                    Ok(length) => printed += length,
                    Err(Errno::EAGAIN) => sleep(Duration::from_millis(1)).await,
                    Err(other) => panic!("{other}"),
                }
                if printed == text.len() {
                    (printed, line) = (0, line + 1);
                }
            }
        });
        let (_, seen) = tokio::join!(
            async {
                process.await.unwrap();
                io.drain(LONG).await;
                io.close();
            },
            read_to_end(&out)
        );
        let lines: Vec<_> = std::str::from_utf8(&seen).unwrap().lines().collect();
        assert_eq!(lines.len(), 20_000);
        assert!(lines.iter().enumerate().all(|(n, line)| line.parse() == Ok(n)));
    });
}

#[test]
fn the_reader_of_a_terminal_sees_its_end_without_close() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, slave) = terminal(&request).await;
        let out = reader(&request.stdout);
        write(&slave, b"bye");
        drop(slave);
        assert_eq!(read_to_end(&out).await, b"bye");
        io.drain(LONG).await;
    });
}

#[test]
fn a_terminal_whose_output_nobody_reads_waits_and_its_drain_does_not() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, slave) = terminal(&request).await;
        let mut written = 0;
        let mut refused = 0;
        while refused < 20 {
            match nix::unistd::write(&slave, &[b'x'; 4096]) {
                Ok(length) => (written, refused) = (written + length, 0),
                Err(_) => {
                    refused += 1;
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
        drop(slave);
        let before = Instant::now();
        io.drain(Duration::from_millis(200)).await;
        assert!(before.elapsed() < Duration::from_secs(2));
        // A reader that comes now still gets all of it.
        assert_eq!(read_to_end(&reader(&request.stdout)).await.len(), written);
    });
}

#[test]
fn the_end_of_its_input_is_told_to_the_terminal_which_is_hung_up_later() {
    run(async {
        let dir = Dir::new();
        let request = with_terminal(&dir);
        let (io, slave) = terminal(&request).await;
        let out = reader(&request.stdout);
        let client = end(&request.stdin, OFlag::O_WRONLY);
        write(&client, b"exit\n");
        drop(client);
        io.close_stdin();
        assert_eq!(read_until(&slave, "\n").await, "exit\n");
        // ^D at the start of a line: a read of nothing.
        loop {
            match nix::unistd::read(&slave, &mut [0; 16]) {
                Ok(0) => break,
                Err(Errno::EAGAIN) => sleep(Duration::from_millis(2)).await,
                other => panic!("{other:?}"),
            }
        }
        write(&slave, b"logout");
        assert_eq!(read_until(&out, "logout").await, "exit\r\nlogout");
        while nix::unistd::write(&slave, b"x") != Err(Errno::EIO) {
            sleep(Duration::from_millis(50)).await;
        }
        io.resize(1, 1).unwrap();
    });
}

#[test]
fn closing_hangs_a_terminal_up() {
    run(async {
        let dir = Dir::new();
        let (io, slave) = terminal(&with_terminal(&dir)).await;
        io.close();
        while nix::unistd::write(&slave, b"x") != Err(Errno::EIO) {
            sleep(Duration::from_millis(2)).await;
        }
    });
}

#[test]
fn a_terminal_that_nobody_reads_throws_its_output_away() {
    run(async {
        let request = Request {
            terminal: true,
            ..Request::default()
        };
        let (io, slave) = terminal(&request).await;
        let mut written = 0;
        while written < 1_000_000 {
            match nix::unistd::write(&slave, &[b'x'; 4096]) {
                Ok(length) => written += length,
                Err(Errno::EAGAIN) => sleep(Duration::from_millis(1)).await,
                Err(other) => panic!("{other}"),
            }
        }
        drop(slave);
        io.drain(LONG).await;
    });
}
