//! Logs, with the processes that write them. A fork wants a process of one thread, so each of these runs as a process of its
//! own: the test executes itself.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::tests::{Dir, opened, read_to_end, read_until, refused, run, write};
use super::{ChildEnds, Io, Request};
use crate::error::Kind;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Runs the test called `name` alone in a process.
fn alone(name: &str, test: impl Future<Output = ()>) {
    const MARK: &str = "RTC_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        run(test);
        assert_eq!(children(), [], "a logger is left");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=1", "--nocapture"])
        .arg(format!("io::logger_tests::{name}"))
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
    let list = std::fs::read_to_string(path).unwrap();
    let own = list
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()));
    own.collect()
}

fn log(uri: String) -> Request {
    Request {
        stdout: uri.clone(),
        stderr: uri,
        id: "web".into(),
        namespace: "k8s.io".into(),
        ..Request::default()
    }
}

fn cri(path: &Path, options: &str) -> Request {
    log(format!("cri://{}{options}", path.display()))
}

/// The process has ended, with its output.
async fn end(io: Io, ends: ChildEnds) {
    drop(ends);
    let before = Instant::now();
    io.drain(LONG).await;
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "it ends with the pipes"
    );
    io.close();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Streams, tags and contents.
fn entries(path: &Path) -> Vec<String> {
    read(path)
        .lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

/// Writes all, as a process whose pipe may be full.
async fn print(fd: &OwnedFd, mut bytes: &[u8]) {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EAGAIN) => sleep(Duration::from_millis(1)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

/// A pipe for a client: what it reads, and what the log is given.
fn client() -> (OwnedFd, OwnedFd) {
    super::pipe().unwrap()
}

#[test]
fn a_file_gets_the_bytes_of_both_streams() {
    alone("a_file_gets_the_bytes_of_both_streams", async {
        let dir = Dir::new();
        let path = dir.path("made/for/it.log");
        let (io, ends) = opened(&log(format!("file://{}", path.display()))).await;
        write(&ends.stdout, b"no newline");
        sleep(Duration::from_millis(50)).await;
        write(&ends.stderr, b"\0\xff");
        end(io, ends).await;
        assert_eq!(std::fs::read(&path).unwrap(), b"no newline\0\xff");
    });
}

#[test]
fn a_log_of_cri_has_tags_and_an_unfinished_line() {
    alone("a_log_of_cri_has_tags_and_an_unfinished_line", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "?max-line=64")).await;
        write(&ends.stdout, b"out\nlast");
        sleep(Duration::from_millis(50)).await;
        write(&ends.stderr, &[b"e".repeat(64).as_slice(), b"E\n"].concat());
        sleep(Duration::from_millis(50)).await;
        end(io, ends).await;
        let cut = format!("stderr P {}", "e".repeat(64));
        assert_eq!(
            entries(&path),
            ["stdout F out", &cut, "stderr F E", "stdout P last"]
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    });
}

#[test]
fn a_terminal_is_logged_without_its_carriage_returns() {
    alone("a_terminal_is_logged_without_its_carriage_returns", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let request = Request {
            terminal: true,
            ..cri(&path, "")
        };
        let (io, ends) = opened(&request).await;
        drop(ends);
        let pty = nix::pty::openpty(None, None).unwrap();
        io.attach_terminal(pty.master).unwrap();
        let (reads, given) = client();
        io.attach(&given, true, true).await.unwrap();
        drop(given);
        sleep(Duration::from_millis(50)).await;
        write(&pty.slave, b"one\ntwo\n");
        drop(pty.slave);
        io.drain(LONG).await;
        io.close();
        assert_eq!(entries(&path), ["stdout F one", "stdout F two"]);
        assert_eq!(
            read_to_end(&reads).await,
            b"one\r\ntwo\r\n",
            "a client is a terminal itself"
        );
    });
}

#[test]
fn what_holds_a_terminal_open_does_not_hold_the_log_up() {
    alone("what_holds_a_terminal_open_does_not_hold_the_log_up", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let request = Request {
            terminal: true,
            ..cri(&path, "")
        };
        let (io, ends) = opened(&request).await;
        drop(ends);
        let pty = nix::pty::openpty(None, None).unwrap();
        io.attach_terminal(pty.master).unwrap();
        write(&pty.slave, b"bye\n");
        let before = Instant::now();
        io.drain(LONG).await;
        assert!(before.elapsed() < Duration::from_secs(5));
        assert_eq!(entries(&path), ["stdout F bye"]);
        drop(pty.slave);
    });
}

#[test]
fn nothing_is_lost_while_it_is_rotated_by_the_kubelet() {
    alone("nothing_is_lost_while_it_is_rotated_by_the_kubelet", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "")).await;
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let printing = tokio::spawn(async move {
            let mut lines = 0;
            while !stop.load(Ordering::Relaxed) {
                print(&ends.stdout, format!("{lines}\n").as_bytes()).await;
                lines += 1;
                tokio::task::yield_now().await;
            }
            (ends, lines)
        });
        let mut files = Vec::new();
        for n in 0..20 {
            let aside = dir.path(&format!("0.log.{n}"));
            std::fs::rename(&path, &aside).unwrap();
            io.reopen_log().await.unwrap();
            let size = std::fs::metadata(&aside).unwrap().len();
            sleep(Duration::from_millis(2)).await;
            let later = std::fs::metadata(&aside).unwrap().len();
            assert_eq!(size, later, "nothing goes into the old file after the answer");
            files.push(aside);
        }
        enough.store(true, Ordering::Relaxed);
        let (ends, printed) = printing.await.unwrap();
        end(io, ends).await;
        files.push(path);
        let lines: Vec<String> = files.iter().flat_map(|file| entries(file)).collect();
        assert_eq!(lines.len(), printed);
        assert!(
            lines
                .iter()
                .enumerate()
                .all(|(n, line)| *line == format!("stdout F {n}"))
        );
    });
}

#[test]
fn a_log_that_is_limited_is_rotated_between_entries_and_loses_nothing() {
    alone(
        "a_log_that_is_limited_is_rotated_between_entries_and_loses_nothing",
        async {
            let dir = Dir::new();
            let path = dir.path("0.log");
            let (io, ends) = opened(&cri(&path, "?max-size=50000&max-files=1000")).await;
            for line in 0..5000 {
                print(&ends.stdout, format!("{line}\n").as_bytes()).await;
            }
            end(io, ends).await;
            let mut names: Vec<_> = std::fs::read_dir(dir.path(""))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            names.sort_unstable();
            assert_eq!(names.remove(0), path);
            assert_eq!(names.len(), 4, "{names:?}");
            assert!(
                names
                    .iter()
                    .all(|name| std::fs::metadata(name).unwrap().len() <= 50_000)
            );
            names.push(path);
            let lines: Vec<String> = names.iter().flat_map(|file| entries(file)).collect();
            assert!(
                lines
                    .iter()
                    .enumerate()
                    .all(|(n, line)| *line == format!("stdout F {n}"))
            );
            assert_eq!(lines.len(), 5000);
        },
    );
}

#[test]
fn a_failed_reopen_is_told_and_the_old_file_goes_on() {
    alone("a_failed_reopen_is_told_and_the_old_file_goes_on", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "")).await;
        std::fs::rename(&path, dir.path("old")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let error = io.reopen_log().await.unwrap_err();
        assert_eq!(error.kind, Kind::FailedPrecondition);
        assert!(error.to_string().contains("symbolic link"), "{error}");
        write(&ends.stdout, b"x\n");
        end(io, ends).await;
        assert_eq!(entries(&dir.path("old")), ["stdout F x"]);
    });
}

#[test]
fn a_log_that_can_not_be_opened_refuses_the_process() {
    alone("a_log_that_can_not_be_opened_refuses_the_process", async {
        let dir = Dir::new();
        let (kind, text) = refused(cri(&dir.path("missing/0.log"), "")).await;
        assert_eq!(kind, Kind::FailedPrecondition);
        assert!(
            text.starts_with("stdout: ") && text.contains("No such file"),
            "{text}"
        );
        std::os::unix::fs::symlink("/etc/passwd", dir.path("link")).unwrap();
        let (_, text) = refused(cri(&dir.path("link"), "")).await;
        assert!(text.contains("symbolic link"), "{text}");
        gone().await;
    });
}

/// Waits until no child is left.
async fn gone() {
    while !children().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_client_gets_a_copy_of_its_streams_and_their_end() {
    alone("a_client_gets_a_copy_of_its_streams_and_their_end", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "")).await;
        write(&ends.stdout, b"before\n");
        sleep(Duration::from_millis(50)).await;
        let (both, into_both) = client();
        let (err, into_err) = client();
        io.attach(&into_both, true, true).await.unwrap();
        io.attach(&into_err, false, true).await.unwrap();
        drop((into_both, into_err));
        write(&ends.stdout, b"a prompt> ");
        assert_eq!(
            read_until(&both, "> ").await,
            "a prompt> ",
            "without waiting for the line's end"
        );
        write(&ends.stderr, b"oops\n");
        assert_eq!(read_until(&err, "\n").await, "oops\n");
        assert_eq!(read_until(&both, "\n").await, "oops\n");
        let (left, into_left) = client();
        io.attach(&into_left, true, false).await.unwrap();
        drop((left, into_left));
        write(&ends.stdout, b"go\n");
        end(io, ends).await;
        assert_eq!(read_to_end(&both).await, b"go\n");
        assert_eq!(read_to_end(&err).await, b"");
        assert_eq!(
            entries(&path),
            ["stdout F before", "stderr F oops", "stdout F a prompt> go"]
        );
    });
}

#[test]
fn a_slow_client_is_dropped_and_does_not_hold_the_log_up() {
    alone("a_slow_client_is_dropped_and_does_not_hold_the_log_up", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "")).await;
        let (slow, into_slow) = client();
        io.attach(&into_slow, true, true).await.unwrap();
        drop(into_slow);
        sleep(Duration::from_millis(50)).await;
        let line = [b"x".repeat(999).as_slice(), b"\n"].concat();
        for _ in 0..3000 {
            print(&ends.stdout, &line).await;
        }
        end(io, ends).await;
        assert_eq!(entries(&path).len(), 3000);
        let got = read_to_end(&slow).await.len();
        assert!(
            (1..2_000_000).contains(&got),
            "what fit into its pipe, and the end: {got}"
        );
    });
}

#[test]
fn what_holds_the_pipe_longer_than_patience_is_not_waited_for() {
    alone(
        "what_holds_the_pipe_longer_than_patience_is_not_waited_for",
        async {
            let dir = Dir::new();
            let path = dir.path("0.log");
            let (io, ends) = opened(&cri(&path, "")).await;
            write(&ends.stdout, b"x\n");
            let before = Instant::now();
            io.drain(Duration::from_millis(300)).await;
            assert!(
                (300..1500).contains(&before.elapsed().as_millis()),
                "{:?}",
                before.elapsed()
            );
            assert_eq!(entries(&path), ["stdout F x"]);
            gone().await;
            drop(ends);
        },
    );
}

#[test]
fn a_log_whose_shim_has_gone_is_written_to_its_end() {
    alone("a_log_whose_shim_has_gone_is_written_to_its_end", async {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let (io, ends) = opened(&cri(&path, "")).await;
        write(&ends.stdout, b"one\n");
        // The end of the socket is all that the writer sees of the shim's end.
        drop(io);
        sleep(Duration::from_millis(50)).await;
        write(&ends.stdout, b"two\n");
        drop(ends);
        gone().await;
        assert_eq!(entries(&path), ["stdout F one", "stdout F two"]);
    });
}

#[test]
fn a_log_that_hangs_is_told_in_time_and_hangs_alone() {
    alone("a_log_that_hangs_is_told_in_time_and_hangs_alone", async {
        let dir = Dir::new();
        let (stuck, ends) = opened(&cri(&dir.path("0.log"), "")).await;
        kill(children()[0], Signal::SIGSTOP).unwrap();
        let (other, other_ends) = opened(&cri(&dir.path("1.log"), "")).await;
        write(&ends.stdout, b"x\n");
        let error = stuck.reopen_log().await.unwrap_err();
        assert_eq!(error.kind, Kind::DeadlineExceeded);
        write(&other_ends.stdout, b"x\n");
        end(other, other_ends).await;
        assert_eq!(entries(&dir.path("1.log")), ["stdout F x"]);
        let before = Instant::now();
        stuck.drain(Duration::from_millis(100)).await;
        assert!(before.elapsed() < Duration::from_secs(2));
        stuck.close();
        gone().await;
        drop(ends);
    });
}

/// A logger that is a shell script.
fn script(dir: &Dir, text: &str, scheme: &str) -> Request {
    let path = dir.path("logger");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let out = dir.path("out").display().to_string();
    log(format!("{scheme}://{}?out={out}&a+b=%26", path.display()))
}

#[test]
fn a_program_gets_descriptors_arguments_and_environment() {
    alone("a_program_gets_descriptors_arguments_and_environment", async {
        let dir = Dir::new();
        let text = "echo \"$1 $3 $4 $# $CONTAINER_ID $CONTAINER_NAMESPACE\" > $2\n\
                    ls /proc/self/fd | tr '\\n' ' ' >> $2\n\
                    [ -z \"$HOME\" ] && exec 5>&-\n\
                    cat <&3 >> $2; cat <&4 >> $2";
        let (io, ends) = opened(&script(&dir, text, "binary")).await;
        write(&ends.stdout, b"out");
        write(&ends.stderr, b"err");
        let error = io.reopen_log().await.unwrap_err();
        assert_eq!(error.kind, Kind::Unimplemented);
        end(io, ends).await;
        // `ls` has the directory as one more.
        assert_eq!(
            read(&dir.path("out")),
            "out a b & 4 web k8s.io\n0 1 2 3 4 5 6 outerr"
        );
        gone().await;
    });
}

#[test]
fn a_program_that_can_not_be_executed_or_is_not_ready_refuses_the_process() {
    alone(
        "a_program_that_can_not_be_executed_or_is_not_ready_refuses_the_process",
        async {
            let (kind, text) = refused(log("binary:///no/such/logger".into())).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert!(
                text.contains("/no/such/logger") && text.contains("No such file"),
                "{text}"
            );
            let dir = Dir::new();
            let (kind, text) = refused(script(&dir, "exit 1", "binary-v2")).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert!(text.contains("descriptor 5"), "{text}");
            let (kind, _) = refused(script(&dir, "exec sleep 100", "binary")).await;
            assert_eq!(kind, Kind::DeadlineExceeded);
            gone().await;
        },
    );
}

#[test]
fn a_program_that_says_it_is_ready_runs_and_one_that_ignores_the_end_is_killed() {
    alone(
        "a_program_that_says_it_is_ready_runs_and_one_that_ignores_the_end_is_killed",
        async {
            let dir = Dir::new();
            let text = "trap '' TERM; printf x >&5; exec 5>&-; while :; do sleep 0.05; done";
            let (io, ends) = opened(&script(&dir, text, "binary-v2")).await;
            drop(ends);
            let before = Instant::now();
            io.drain(Duration::from_millis(100)).await;
            assert!(before.elapsed() < Duration::from_secs(1));
            io.close();
            gone().await;
        },
    );
}

#[test]
fn a_client_of_a_request_that_gives_up_leaves_no_logger() {
    alone("a_client_of_a_request_that_gives_up_leaves_no_logger", async {
        let dir = Dir::new();
        let request = script(&dir, "exec sleep 100", "binary");
        let opening = Io::open(&request);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), opening)
                .await
                .is_err()
        );
        assert_eq!(children().len(), 1);
        gone().await;
    });
}
