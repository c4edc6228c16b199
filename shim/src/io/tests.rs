//! With FIFOs in a directory of the test's own, under the shim's kind of runtime: one thread.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use tokio::time::{Instant, sleep, timeout};

use super::{ChildEnds, Io, Request};
use crate::error::Kind;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// A directory that goes with the test.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rtc-io-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a test as the shim runs: one thread, and none of it blocks.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { timeout(LONG, test).await.expect("it hangs") });
}

fn end(path: &str, flag: OFlag) -> OwnedFd {
    open(path, flag | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

fn reader(path: &str) -> OwnedFd {
    end(path, OFlag::O_RDONLY)
}

/// What is there; `None`: nothing yet; empty: the end.
fn read(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let mut waiting = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, PollTimeout::ZERO).unwrap() == 0 {
        return None;
    }
    match nix::unistd::read(fd, &mut buffer) {
        Ok(length) => Some(buffer[..length].to_vec()),
        Err(Errno::EAGAIN) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Reads until the text was seen, letting the shim's tasks run between.
pub(super) async fn read_until(fd: &OwnedFd, text: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        match read(fd) {
            Some(bytes) if bytes.is_empty() => panic!("the end, after {:?}", String::from_utf8_lossy(&seen)),
            Some(bytes) => seen.extend(bytes),
            None => sleep(Duration::from_millis(2)).await,
        }
    }
    String::from_utf8(seen).unwrap()
}

/// Reads to the end.
pub(super) async fn read_to_end(fd: &OwnedFd) -> Vec<u8> {
    let mut seen = Vec::new();
    loop {
        match read(fd) {
            Some(bytes) if bytes.is_empty() => return seen,
            Some(bytes) => seen.extend(bytes),
            None => sleep(Duration::from_millis(2)).await,
        }
    }
}

pub(super) fn write(fd: &OwnedFd, bytes: &[u8]) {
    assert_eq!(nix::unistd::write(fd, bytes).unwrap(), bytes.len());
}

pub(super) async fn opened(request: &Request) -> (Io, ChildEnds) {
    Io::open(request)
        .await
        .map_err(|error| error.to_string())
        .unwrap()
}

pub(super) async fn refused(request: Request) -> (Kind, String) {
    let error = Io::open(&request).await.map(drop).expect_err("it is refused");
    (error.kind, error.to_string())
}

#[test]
fn nothing_is_dev_null() {
    run(async {
        let (io, ends) = opened(&Request::default()).await;
        let ChildEnds {
            stdin,
            stdout,
            stderr,
        } = ends;
        assert_eq!(std::fs::File::from(stdin).read(&mut [0]).unwrap(), 0);
        for output in [stdout, stderr] {
            std::fs::File::from(output).write_all(b"x").unwrap();
        }
        io.resize(1, 1).unwrap();
        io.close_stdin();
        io.drain(LONG).await;
        io.close();
    });
}

#[test]
fn a_process_writes_to_the_fifo_itself_and_the_reader_sees_the_end_after_close() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            stderr: format!("fifo://{}", dir.fifo("err")),
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let out = reader(&request.stdout);
        write(&ends.stdout, b"one");
        write(&ends.stderr, b"two");
        assert_eq!(read(&out).unwrap(), b"one");
        assert_eq!(
            read(&reader(&dir.path("err").display().to_string())).unwrap(),
            b"two"
        );
        drop(ends);
        assert_eq!(read(&out), None, "the shim's hold is no end");
        io.drain(LONG).await;
        io.close();
        assert_eq!(read(&out).unwrap(), b"", "the end");
    });
}

#[test]
fn what_a_child_left_behind_holds_stays_open_for_the_reader() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let out = reader(&request.stdout);
        io.drain(LONG).await;
        io.close();
        assert_eq!(read(&out), None);
        write(&ends.stdout, b"late");
        assert_eq!(read(&out).unwrap(), b"late");
        drop(ends);
        assert_eq!(read(&out).unwrap(), b"");
    });
}

#[test]
fn a_reader_that_dies_and_comes_back_loses_nothing_and_kills_nobody() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            ..Request::default()
        };
        let (_io, ends) = opened(&request).await;
        write(&ends.stdout, b"before any reader ");
        let first = reader(&request.stdout);
        assert_eq!(read(&first).unwrap(), b"before any reader ");
        drop(first);
        write(&ends.stdout, b"between");
        assert_eq!(read(&reader(&request.stdout)).unwrap(), b"between");
    });
}

#[test]
fn the_same_fifo_may_take_both_outputs() {
    run(async {
        let dir = Dir::new();
        let path = dir.fifo("both");
        let request = Request {
            stdout: path.clone(),
            stderr: path.clone(),
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let both = reader(&path);
        write(&ends.stdout, b"a");
        write(&ends.stderr, b"b");
        assert_eq!(read(&both).unwrap(), b"ab");
        drop(ends);
        io.close();
        assert_eq!(read(&both).unwrap(), b"");
    });
}

#[test]
fn the_process_ends_are_blocking_of_one_direction_and_of_the_owner() {
    run(async {
        let dir = Dir::new();
        for pipes in [false, true] {
            let request = Request {
                stdin: dir.fifo(&format!("in{pipes}")),
                stdout: dir.fifo(&format!("out{pipes}")),
                owner: (1234, 5678),
                pipes,
                ..Request::default()
            };
            let (_io, ends) = opened(&request).await;
            for (end, access) in [(ends.stdin, OFlag::O_RDONLY), (ends.stdout, OFlag::O_WRONLY)] {
                let flags = nix::fcntl::fcntl(&end, nix::fcntl::FcntlArg::F_GETFL).unwrap();
                let flags = OFlag::from_bits_retain(flags);
                assert!(!flags.contains(OFlag::O_NONBLOCK));
                assert_eq!(flags & OFlag::O_ACCMODE, access);
                let metadata = std::fs::File::from(end).metadata().unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
            }
        }
    });
}

#[test]
fn what_is_no_fifo_is_refused_untouched() {
    run(async {
        let dir = Dir::new();
        let file = dir.path("file");
        std::fs::write(&file, "kept").unwrap();
        for path in [file.to_str().unwrap(), "/dev/null", "/"] {
            let (kind, text) = refused(Request {
                stdout: path.into(),
                ..Request::default()
            })
            .await;
            assert_eq!(kind, Kind::InvalidArgument, "{text}");
            assert!(
                text.starts_with(&format!("stdout: {path:?}: not a FIFO")),
                "{text}"
            );
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        let missing = dir.path("missing").display().to_string();
        for field in ["stdin", "stdout", "stderr"] {
            let mut request = Request::default();
            *(match field {
                "stdin" => &mut request.stdin,
                "stdout" => &mut request.stdout,
                _ => &mut request.stderr,
            }) = missing.clone();
            let (kind, text) = refused(request).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert!(
                text.starts_with(&format!("{field}: {missing:?}: no such FIFO")),
                "{text}"
            );
        }
        assert!(!Path::new(&missing).exists());
    });
}

#[test]
fn loggers_take_both_streams_and_give_no_input() {
    run(async {
        let request = |stdin: &str, stdout: &str, stderr: &str| Request {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ..Request::default()
        };
        for (request, field) in [
            (request("file:///x", "", ""), "stdin"),
            (request("", "cri:///a", "cri:///b"), "stderr"),
            (request("", "", "file:///a"), "stderr"),
            (request("", "ftp://x", ""), "stdout"),
        ] {
            let (kind, text) = refused(request).await;
            assert_eq!(kind, Kind::InvalidArgument);
            assert!(text.starts_with(field), "{text}");
        }
    });
}

#[test]
fn input_ends_when_the_client_and_the_shim_have_closed_it() {
    run(async {
        let dir = Dir::new();
        for pipes in [false, true] {
            let request = Request {
                stdin: dir.fifo(&format!("in{pipes}")),
                pipes,
                ..Request::default()
            };
            let (io, ends) = opened(&request).await;
            sleep(Duration::from_millis(10)).await;
            assert_eq!(read(&ends.stdin), None, "no client yet");
            let client = end(&request.stdin, OFlag::O_WRONLY);
            write(&client, b"one");
            assert_eq!(read_until(&ends.stdin, "one").await, "one");
            drop(client);
            sleep(Duration::from_millis(10)).await;
            assert_eq!(read(&ends.stdin), None, "a client that is back later goes on");
            let client = end(&request.stdin, OFlag::O_WRONLY);
            io.close_stdin();
            write(&client, b"last");
            drop(client);
            assert_eq!(read_to_end(&ends.stdin).await, b"last");
        }
    });
}

#[test]
fn input_that_nobody_ever_opens_ends_with_closeio_and_costs_no_turns() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdin: dir.fifo("in"),
            pipes: true,
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let before = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        sleep(Duration::from_millis(300)).await;
        let after = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let used = Duration::from(after) - Duration::from(before);
        assert!(used < Duration::from_millis(20), "{used:?}");
        io.close_stdin();
        assert_eq!(read_to_end(&ends.stdin).await, b"");
    });
}

#[test]
fn a_writer_of_input_that_nobody_reads_any_more_is_told() {
    run(async {
        let dir = Dir::new();
        for pipes in [false, true] {
            let request = Request {
                stdin: dir.fifo(&format!("in{pipes}")),
                pipes,
                ..Request::default()
            };
            let (_io, ends) = opened(&request).await;
            let client = end(&request.stdin, OFlag::O_WRONLY);
            drop(ends);
            // The copy notices when it has something to pass on.
            let deadline = Instant::now() + LONG;
            while nix::unistd::write(&client, b"x") != Err(Errno::EPIPE) {
                assert!(Instant::now() < deadline);
                sleep(Duration::from_millis(2)).await;
            }
        }
    });
}

#[test]
fn pipes_are_copied_in_both_directions_and_drained_at_the_end() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            stderr: dir.fifo("err"),
            pipes: true,
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let out = reader(&request.stdout);
        // More than a pipe takes: 64 KiB here, 64 KiB in the FIFO.
        let much: Vec<u8> = (0..60_000_u32).map(|n| n as u8).collect();
        write(&ends.stdout, &much);
        sleep(Duration::from_millis(20)).await;
        write(&ends.stdout, &much);
        drop(ends);
        let (_, seen) = tokio::join!(
            async {
                io.drain(LONG).await;
                io.close();
            },
            read_to_end(&out)
        );
        assert_eq!(seen, [much.clone(), much].concat());
    });
}

#[test]
fn a_reader_that_never_comes_costs_no_more_than_the_patience() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            pipes: true,
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let much = vec![b'x'; 60_000];
        write(&ends.stdout, &much);
        sleep(Duration::from_millis(20)).await;
        write(&ends.stdout, &much);
        drop(ends);
        let before = Instant::now();
        io.drain(Duration::from_millis(300)).await;
        assert!(before.elapsed() >= Duration::from_millis(300));
        assert!(before.elapsed() < Duration::from_secs(3));
        io.close();
    });
}

#[test]
fn what_holds_a_pipe_after_the_process_and_is_silent_does_not_hold_the_drain() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            pipes: true,
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let out = reader(&request.stdout);
        write(&ends.stdout, b"last words");
        let before = Instant::now();
        io.drain(LONG).await;
        assert!(before.elapsed() < Duration::from_secs(3));
        io.close();
        assert_eq!(read_to_end(&out).await, b"last words");
        drop(ends);
    });
}

/// A terminal as a process has it: the master is relayed, the slave is the process.
async fn terminal(request: &Request) -> (Io, OwnedFd) {
    let (io, ends) = opened(request).await;
    drop(ends);
    let pty = nix::pty::openpty(None, None).unwrap();
    io.attach_terminal(pty.master).unwrap();
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
