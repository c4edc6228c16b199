//! Collecting children: each by its pidfd, never a sweep that takes another's status.
//!
//! The list of known children is for one case: a worker that was killed before it could report what it made. What is
//! then a child of this process and on no list is killed and collected (`rtc_runtime::process::worker::strays`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rtc_runtime::process::worker;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process::{self, Exit};
use tokio::io::Interest;

use crate::log;
use crate::pollable::wait_for;

/// Whether this process is the parent of all orphans below it: then a child that nobody knows may be a container's.
static ORPHANS: AtomicBool = AtomicBool::new(false);
static KNOWN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn known() -> MutexGuard<'static, Vec<Pid>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that somebody waits for this child.
pub(crate) fn adopt(pid: Pid) {
    known().push(pid);
}

/// Waits for the end of a child and collects it. The descriptor must not be waited with elsewhere at the same time.
///
/// # Errors
///
/// It is no child, or was collected already.
pub(crate) async fn collect(pid: Pid, pidfd: impl AsFd) -> Result<Exit> {
    ended(&pidfd).await?;
    let exit = process::wait(&pidfd).with_context(|| format!("collect process {pid}"));
    known().retain(|known| *known != pid);
    exit
}

/// Waits for the end of any process, without collecting it.
///
/// # Errors
///
/// As epoll_ctl(2).
pub(crate) async fn ended(pidfd: impl AsFd) -> Result<()> {
    let end = wait_for(pidfd.as_fd(), Interest::READABLE).context("wait for a process")?;
    // The guard is of no use: what has ended stays so.
    end.readable().await?.retain_ready();
    Ok(())
}

/// Collects a known child whenever it ends, and forgets how.
pub(crate) fn collect_behind(child: Child) {
    tokio::spawn(async move {
        if let Err(error) = collect(child.pid, &child.pidfd).await {
            log::warn(format_args!("{error:#}"));
        }
    });
}

/// Collects a child that ends by itself: at once where it has ended, else whenever it does.
pub(crate) fn collect_helper(pidfd: OwnedFd) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    if matches!(
        waitid(Id::PIDFd(pidfd.as_fd()), flags),
        Ok(WaitStatus::StillAlive)
    ) {
        tokio::spawn(async move {
            if ended(&pidfd).await.is_ok() {
                let _ = process::wait(&pidfd);
            }
        });
    }
}

/// Kills and collects the children that nobody knows. To be called while no worker is at work: it may just have made one.
pub(crate) fn end_strays() {
    if ORPHANS.load(Ordering::Relaxed) {
        return collect_orphans();
    }
    let strays = match worker::strays(&known()) {
        Ok(strays) => strays,
        Err(error) => {
            log::warn(format_args!("look for lost children: {error:#}"));
            return;
        }
    };
    for stray in strays {
        log::warn(format_args!("process {} of a killed worker is ended", stray.pid));
        // One that has ended is what is wanted.
        let _ = process::pidfd_send_signal(&stray.pidfd, nix::libc::SIGKILL);
        adopt(stray.pid);
        collect_behind(stray);
    }
}

/// From now on children come that nobody here has made; they are only collected. False: it was so already.
pub(crate) fn live_with_orphans() -> bool {
    !ORPHANS.swap(true, Ordering::Relaxed)
}

/// Collects the children that nobody knows and that have ended.
pub(crate) fn collect_orphans() {
    for stray in worker::strays(&known()).unwrap_or_default() {
        // It still runs, or it was collected in the meantime.
        let _ = waitid(
            Id::PIDFd(stray.pidfd.as_fd()),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
        );
    }
}
