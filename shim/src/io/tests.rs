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
pub(super) const LONG: Duration = Duration::from_secs(20);

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

    pub(super) fn fifo(&self, name: &str) -> String {
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

pub(super) fn end(path: &str, flag: OFlag) -> OwnedFd {
    open(path, flag | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

pub(super) fn reader(path: &str) -> OwnedFd {
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

/// Its process starts at once.
pub(super) async fn opened(request: &Request) -> (Io, ChildEnds) {
    let (io, ends) = created(request).await;
    io.starting().unwrap();
    (io, ends)
}

/// Its process waits for Start.
pub(super) async fn created(request: &Request) -> (Io, ChildEnds) {
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
fn the_exit_waits_for_a_reader_that_reads_and_not_for_one_that_is_not_there() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdout: dir.fifo("out"),
            ..Request::default()
        };
        let (io, ends) = opened(&request).await;
        let out = reader(&request.stdout);
        write(&ends.stdout, b"the last words");
        drop(ends);
        let began = std::time::Instant::now();
        let reading = async {
            sleep(Duration::from_millis(50)).await;
            assert_eq!(read(&out).unwrap(), b"the last words");
            std::time::Instant::now()
        };
        let (read_at, ()) = tokio::join!(reading, async {
            io.drain(LONG).await;
            assert!(
                began.elapsed() >= Duration::from_millis(50),
                "not before it was read"
            );
        });
        assert!(read_at.elapsed() < LONG / 2);

        let (io, ends) = opened(&request).await;
        write(&ends.stdout, b"for nobody");
        let began = std::time::Instant::now();
        io.drain(LONG).await;
        assert!(began.elapsed() < LONG / 2, "silence is not waited for");
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
fn input_that_was_written_and_closed_before_the_start_is_complete() {
    run(async {
        let dir = Dir::new();
        for pipes in [false, true] {
            let request = Request {
                stdin: dir.fifo(&format!("in{pipes}")),
                pipes,
                ..Request::default()
            };
            let (io, ends) = created(&request).await;
            let client = end(&request.stdin, OFlag::O_WRONLY);
            write(&client, b"all of it");
            drop(client);
            io.starting().unwrap();
            io.starting().unwrap();
            assert_eq!(read_to_end(&ends.stdin).await, b"all of it");
        }
    });
}

#[test]
fn input_whose_client_is_there_or_yet_to_come_at_the_start_goes_on() {
    run(async {
        let dir = Dir::new();
        for pipes in [false, true] {
            for early in [false, true] {
                let request = Request {
                    stdin: dir.fifo(&format!("in{pipes}{early}")),
                    pipes,
                    ..Request::default()
                };
                let (io, ends) = created(&request).await;
                let client = early.then(|| end(&request.stdin, OFlag::O_WRONLY));
                io.starting().unwrap();
                sleep(Duration::from_millis(10)).await;
                assert_eq!(read(&ends.stdin), None);
                let client = client.unwrap_or_else(|| end(&request.stdin, OFlag::O_WRONLY));
                write(&client, b"x");
                drop(client);
                assert_eq!(read_until(&ends.stdin, "x").await, "x");
                sleep(Duration::from_millis(10)).await;
                assert_eq!(read(&ends.stdin), None, "only CloseIO ends it");
                io.close_stdin();
                assert_eq!(read_to_end(&ends.stdin).await, b"");
            }
        }
    });
}

#[test]
fn closeio_before_the_start_ends_the_input_with_its_client() {
    run(async {
        let dir = Dir::new();
        let request = Request {
            stdin: dir.fifo("in"),
            ..Request::default()
        };
        let (io, ends) = created(&request).await;
        let client = end(&request.stdin, OFlag::O_WRONLY);
        io.close_stdin();
        io.starting().unwrap();
        write(&client, b"rest");
        drop(client);
        assert_eq!(read_to_end(&ends.stdin).await, b"rest");
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
