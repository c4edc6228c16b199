//! Running a worker (`rtc_runtime::process::worker`) and hearing what it reports, without waiting for it with the thread.
//!
//! A worker makes the calls that may wait on a disk, a hook, D-Bus or a container. Whatever happens to it, nothing of it is
//! left: it and its helpers are collected, and where it failed, so is the process that it made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::unistd::Pid;
use rtc_runtime::process::worker::{self, Report, Reporter, Worker};
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process::{self, Exit};
use tokio::io::Interest;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind};
use crate::log;
use crate::pollable::wait_for;
use crate::reaper;

/// How many are at work, and whether one of them died without a word since there was none.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicBool = AtomicBool::new(false);

/// What a worker did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// A process of a container: a child of this one, to be collected. It is on the list of known children.
    pub(crate) born: Option<Child>,
    /// The master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// Namespaces of a pod, by their `CLONE_NEW*` flags.
    pub(crate) namespaces: Vec<(i32, OwnedFd)>,
    /// What the body returned.
    pub(crate) result: Vec<u8>,
}

/// Why there is no outcome.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The body failed, and undid what it had done.
    Failed(anyhow::Error),
    /// There was no last word: nothing was undone.
    Died(anyhow::Error),
    /// It took too long and was killed: nothing was undone either.
    Late(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed(error) | Failure::Died(error) | Failure::Late(error) => error,
        }
    }
}

/// How long what was killed may take to end before it is left to itself: it waits in the kernel.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// A worker at work. It is heard and collected whoever waits for it.
#[derive(Debug)]
pub(crate) struct Working {
    /// The worker, until it is collected.
    pub(crate) pid: Pid,
    following: JoinHandle<Result<Outcome, Failure>>,
}

/// Starts a worker that runs the body, with the given stdio and no descriptor but those of `keep`.
///
/// # Errors
///
/// As clone3(2).
pub(crate) fn start(
    stdio: Option<[BorrowedFd<'_>; 3]>,
    keep: &[RawFd],
    body: impl FnOnce(&Reporter) -> Result<Vec<u8>>,
) -> Result<Working> {
    start_for(None, stdio, keep, body)
}

/// As [`start`]; it is killed where it takes longer than `patience`, and so is the process that it made.
///
/// # Errors
///
/// As clone3(2).
pub(crate) fn start_for(
    patience: Option<Duration>,
    stdio: Option<[BorrowedFd<'_>; 3]>,
    keep: &[RawFd],
    body: impl FnOnce(&Reporter) -> Result<Vec<u8>>,
) -> Result<Working> {
    let worker = worker::fork(stdio, keep, body)?;
    let pid = worker.child.pid;
    reaper::adopt(pid);
    AT_WORK.fetch_add(1, Ordering::Relaxed);
    Ok(Working {
        pid,
        following: tokio::spawn(follow(worker, patience)),
    })
}

/// Waits for what a worker does.
///
/// # Errors
///
/// In the body's words. A process that it had made is killed by then.
pub(crate) async fn outcome(working: Working) -> Result<Outcome, Failure> {
    match working.following.await {
        Ok(outcome) => outcome,
        Err(error) => Err(Failure::Died(error.into())),
    }
}

/// As [`outcome`], but not for longer than `patience`. The worker goes on.
///
/// # Errors
///
/// `DeadlineExceeded` where it takes longer.
pub(crate) async fn patiently(working: Working, patience: Duration) -> Result<Outcome, Error> {
    match tokio::time::timeout(patience, outcome(working)).await {
        Ok(outcome) => outcome.map_err(|failure| anyhow::Error::from(failure).into()),
        Err(_) => Err(Error::text(
            Kind::DeadlineExceeded,
            format_args!("not done after {} s; it goes on", patience.as_secs()),
        )),
    }
}

async fn follow(worker: Worker, patience: Option<Duration>) -> Result<Outcome, Failure> {
    let mut heard = Heard::default();
    let listened = match patience {
        None => Some(heard.listen(&worker).await),
        Some(patience) => tokio::time::timeout(patience, heard.listen(&worker)).await.ok(),
    };
    if !matches!(listened, Some(Ok(()))) {
        let _ = process::pidfd_send_signal(&worker.child.pidfd, nix::libc::SIGKILL);
    }
    let late = listened.is_none();
    let listened = listened.unwrap_or_else(|| {
        let seconds = patience.unwrap_or_default().as_secs_f32();
        Err(anyhow!("was not done after {seconds} s, and is given up"))
    });
    let exit = if late {
        // It may hang in the kernel by itself.
        let collected = reaper::collect(worker.child.pid, &worker.child.pidfd);
        if tokio::time::timeout(LAST_PATIENCE, collected).await.is_err() {
            reaper::collect_behind(worker.child);
        }
        Ok(Exit::Signal(nix::libc::SIGKILL))
    } else {
        reaper::collect(worker.child.pid, &worker.child.pidfd).await
    };
    // They have ended before the worker, as a rule.
    for helper in std::mem::take(&mut heard.helpers) {
        reaper::collect_helper(helper);
    }
    if heard.last.is_none() {
        LOST.store(true, Ordering::Relaxed);
    }
    if AT_WORK.fetch_sub(1, Ordering::Relaxed) == 1 && LOST.swap(false, Ordering::Relaxed) {
        reaper::end_strays();
    }
    let failure = match (listened.and(exit), heard.last) {
        (_, Some(Ok(result))) => {
            return Ok(Outcome {
                born: heard.born,
                terminal: heard.terminal,
                namespaces: heard.namespaces,
                result,
            });
        }
        (_, Some(Err(error))) => Failure::Failed(error),
        (Ok(exit), None) => Failure::Died(anyhow!("the worker died: {exit}")),
        (Err(error), None) if late => Failure::Late(error),
        (Err(error), None) => Failure::Died(error),
    };
    if let Some(born) = heard.born {
        let _ = process::pidfd_send_signal(&born.pidfd, nix::libc::SIGKILL);
        reaper::collect_behind(born);
    }
    Err(failure)
}

#[derive(Default)]
struct Heard {
    born: Option<Child>,
    terminal: Option<OwnedFd>,
    namespaces: Vec<(i32, OwnedFd)>,
    /// Processes that end by themselves.
    helpers: Vec<OwnedFd>,
    last: Option<Result<Vec<u8>>>,
}

impl Heard {
    /// Hears everything, to the last word or until the worker's end of the channel is closed.
    async fn listen(&mut self, worker: &Worker) -> Result<()> {
        let channel = wait_for(worker.as_fd(), Interest::READABLE).context("hear a worker")?;
        loop {
            let mut ready = channel.readable().await?;
            while self.last.is_none() {
                match worker.receive() {
                    Ok(Some(report)) => self.note(report),
                    Ok(None) => return Ok(()),
                    Err(error) if error.errno == Errno::EAGAIN => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if self.last.is_some() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn note(&mut self, report: Report) {
        match report {
            Report::Born(child) => {
                reaper::adopt(child.pid);
                self.born = Some(child);
            }
            Report::Terminal(master) => self.terminal = Some(master),
            Report::Warning(text) => log::warn(text),
            Report::Failed(text) => self.last = Some(Err(anyhow!(text))),
            Report::Done(result) => self.last = Some(Ok(result)),
            other => self.note_rare(other),
        }
    }

    /// Helpers of exec, and what only a pod's own workers report.
    fn note_rare(&mut self, report: Report) {
        match report {
            Report::Helper(pidfd) => self.helpers.push(pidfd),
            Report::Namespace(flag, namespace) => self.namespaces.push((flag, namespace)),
            _ => {}
        }
    }
}
