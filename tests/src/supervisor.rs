//! One process per test that is the subreaper of all the test starts: it holds the time limit, looks for leftovers
//! when the test is over, cleans up, and reports to the runner on standard output:
//!
//! ```text
//! line 1:  passed | failed | skipped
//! line 2:  why, on one line
//! rest:    what the test and its children printed
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::host::{cgroup::Cgroup, process};
use crate::leftovers::{Belongings, reap};
use crate::test::{SKIPPED, environment};

/// How the test process ended.
enum Ending {
    Passed,
    Failed(String),
    Skipped(String),
    Interrupted,
}

/// `rtc-tests supervise AREA/NAME`; the rest comes in the environment.
pub(crate) fn main(path: &str) -> Result<ExitCode> {
    prctl::set_child_subreaper(true).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
    // The runner's end, however it comes, must not leave containers behind.
    prctl::set_pdeathsig(Signal::SIGTERM).context("prctl(PR_SET_PDEATHSIG)")?;
    let directory = PathBuf::from(environment("RTC_TESTS_DIRECTORY")?);
    let timeout = Duration::from_secs(environment("RTC_TESTS_TIMEOUT")?.parse()?);
    let keep = environment("RTC_TESTS_KEEP").is_ok();
    let work = directory.join("t");
    let root = directory.join("root");
    for made in [&directory, &work, &root] {
        fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let log_path = directory.join("output");
    let ending = run_child(path, &directory, &log_path, timeout)?;

    let cgroup = Cgroup {
        path: environment("RTC_TESTS_CGROUP")?,
    };
    let belongings = Belongings {
        directory: &directory,
        root: &root,
        cgroup,
    };
    let leftovers = match ending {
        Ending::Passed | Ending::Skipped(_) => belongings.leftovers(),
        Ending::Failed(_) | Ending::Interrupted => Vec::new(),
    };
    let log = fs::read(&log_path).unwrap_or_default();
    let (word, mut why) = match ending {
        Ending::Passed | Ending::Skipped(_) if !leftovers.is_empty() => ("failed", left_behind(&leftovers)),
        Ending::Passed => ("passed", String::new()),
        Ending::Skipped(reason) => ("skipped", reason),
        Ending::Failed(why) => ("failed", why),
        Ending::Interrupted => ("failed", "interrupted".to_owned()),
    };
    let stuck = belongings.clean(keep && word == "failed");
    if !stuck.is_empty() {
        why = format!("{why} {}", left_behind(&stuck));
    }
    let word = if stuck.is_empty() { word } else { "failed" };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}\n{}", why.replace('\n', " "))?;
    out.write_all(&log)?;
    Ok(ExitCode::SUCCESS)
}

fn left_behind(leftovers: &[String]) -> String {
    format!("left behind: {}", leftovers.join("; "))
}

/// Starts the test and waits for its end or the time limit, collecting orphans meanwhile.
fn run_child(path: &str, directory: &Path, log_path: &Path, timeout: Duration) -> Result<Ending> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("sigprocmask")?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let log = File::options().create(true).append(true).open(log_path)?;
    let program = std::env::current_exe()?;
    // Never waited for through `Child`: the loop below collects every child.
    let child = Command::new(program)
        .args(["child", path])
        .current_dir(directory.join("t"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .context("start the test")?;
    let pid = child.id().cast_signed();
    let start = Instant::now();
    loop {
        if let Some(ending) = collect(pid, directory)? {
            return Ok(ending);
        }
        let Some(left) = timeout.checked_sub(start.elapsed()) else {
            return Ok(timed_out(log, timeout));
        };
        let mut fds = [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(left.min(Duration::from_secs(1)))?);
        while let Ok(Some(signal)) = signal_fd.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(Ending::Interrupted);
            }
        }
    }
}

/// Collects ended children; tells how the test ended once it has.
fn collect(test: i32, directory: &Path) -> Result<Option<Ending>> {
    loop {
        let status = waitpid(None, Some(WaitPidFlag::WNOHANG)).context("waitpid")?;
        match status {
            WaitStatus::StillAlive => return Ok(None),
            WaitStatus::Exited(pid, code) if pid.as_raw() == test => {
                return Ok(Some(match code {
                    0 => Ending::Passed,
                    SKIPPED => {
                        let reason = fs::read_to_string(directory.join("skipped")).unwrap_or_default();
                        Ending::Skipped(reason.trim().to_owned())
                    }
                    code => Ending::Failed(format!("exit status {code}")),
                }));
            }
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == test => {
                return Ok(Some(Ending::Failed(format!("killed by {signal}"))));
            }
            _ => {}
        }
    }
}

fn timed_out(mut log: File, timeout: Duration) -> Ending {
    reap();
    let _ = writeln!(log, "--- processes of the test at its time limit:");
    for pid in process::descendants(std::process::id().cast_signed()) {
        let _ = writeln!(log, "{}", process::describe(pid));
    }
    Ending::Failed(format!("took more than {} s", timeout.as_secs()))
}
