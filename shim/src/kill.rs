//! Kill: a signal to a process or to all of the container, and what is done where SIGKILL does not end it.
//!
//! ```text
//! SIGKILL by pidfd --(not ended in time)--> cgroup.kill, thaw --(not ended in time)--> report: which task hangs in the
//!    `- ended: done                           `- ended: done                            kernel, where, and for what
//! ```
//!
//! The caller is answered in bounded time, with the report as the error; what hangs ends when what it waits for does, and
//! is then told as any exit. A process without a PID namespace of its own is not all of its container, so that SIGKILL
//! goes to the whole cgroup there. SIGKILL to all of an exec ends what that has started, too.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, SIGKILL, SIGSTOP};
use nix::unistd::Pid;
use rtc_runtime::cgroup::Cgroup;
use rtc_runtime::sys::process::pidfd_send_signal;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::process::{Phase, Process, Verb};
use crate::{descendants, log, reaper, stuck};

/// How long a process is given to end of SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is given once more, after the whole cgroup was killed.
const LAST_PATIENCE: Duration = Duration::from_secs(3);

/// Sends a signal to a process, or to all of the container.
///
/// # Errors
///
/// `NotFound` for what has ended, `InvalidArgument` for no signal, `DeadlineExceeded` with a report where it does not end.
pub(crate) async fn kill(container: &Container, exec_id: &str, signal: u32, all: bool) -> Result<()> {
    let signal = checked(signal)?;
    let process = container.process(exec_id)?;
    let is_init = exec_id.is_empty();
    let phase = process.phase();
    if all && is_init && matches!(phase, Phase::Stopped(_)) {
        // What init has left; nothing is fine.
        return container.runtime.kill_all(&container.id, signal).await;
    }
    phase.allows(Verb::Kill)?;
    if all && is_init {
        container.runtime.kill_all(&container.id, signal).await?;
    } else {
        if all && signal == SIGKILL {
            kill_started_by(container, &process);
        }
        send(&process, signal)?;
    }
    if signal != SIGKILL {
        return Ok(());
    }
    if is_init && !all && !container.owns_pids() {
        container.runtime.kill_all(&container.id, signal).await?;
    }
    ensure_end(container, &process, is_init).await
}

/// Kills what a process of exec has started.
fn kill_started_by(container: &Container, process: &Process) {
    if process
        .own_cgroup()
        .is_some_and(|name| container.kill_exec_cgroup(&name))
    {
        return;
    }
    let Some(pidfd) = process.pidfd() else { return };
    // Stopped, it does not end, and its pid stays its own.
    if pidfd_send_signal(&pidfd, SIGSTOP).is_ok() {
        descendants::kill(Pid::from_raw(process.pid().cast_signed()));
    }
}

/// # Errors
///
/// `InvalidArgument`.
fn checked(signal: u32) -> Result<i32> {
    let signal = i32::try_from(signal).ok();
    let known = signal.filter(|signal| (0..=libc::SIGRTMAX()).contains(signal));
    known.ok_or_else(|| Error::text(Kind::InvalidArgument, "signal: must be a number from 1 to 64"))
}

fn send(process: &Process, signal: i32) -> Result<()> {
    let gone = || Error::text(Kind::NotFound, "process already finished");
    let Some(pidfd) = process.pidfd() else {
        // A start of an exec that has made no process yet, or one that was just collected.
        return Err(match process.phase() {
            Phase::Starting => Error::text(Kind::FailedPrecondition, "process not created"),
            _ => gone(),
        });
    };
    match pidfd_send_signal(&pidfd, signal) {
        Err(error) if error.errno == Errno::ESRCH => Err(gone()),
        sent => sent.map_err(|error| Error::new(Kind::Unknown, error)),
    }
}

/// Sees to it that a process ends that was sent SIGKILL.
async fn ensure_end(container: &Container, process: &Process, is_init: bool) -> Result<()> {
    let Some(pidfd) = process.pidfd() else {
        return Ok(());
    };
    // The reaper waits with the original.
    let pidfd = pidfd.try_clone().map_err(anyhow::Error::from)?;
    if is_frozen(container) {
        // On cgroup v1 a frozen process dies when it is thawed.
        let _ = container.with_cgroup(Cgroup::thaw);
    }
    if has_ended(&pidfd, PATIENCE).await {
        return Ok(());
    }
    if is_init {
        container.runtime.kill_all(&container.id, SIGKILL).await?;
        let _ = container.with_cgroup(Cgroup::thaw);
    }
    if has_ended(&pidfd, LAST_PATIENCE).await {
        return Ok(());
    }
    let mut pids = vec![process.pid()];
    if is_init {
        // It may have ended but for those that it waits for.
        let others = container.with_cgroup(Cgroup::processes).unwrap_or_default();
        pids.extend(others.into_iter().map(|pid| pid.as_raw().cast_unsigned()));
        pids.dedup();
    }
    let report = stuck::report(pids).await;
    let text = format!("process {} does not end of SIGKILL: {report}", process.pid());
    log::warn(format_args!("container {}: {text}", container.id));
    Err(Error::text(Kind::DeadlineExceeded, text))
}

fn is_frozen(container: &Container) -> bool {
    container.with_cgroup(Cgroup::is_frozen).unwrap_or(false)
}

async fn has_ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    matches!(
        tokio::time::timeout(patience, reaper::ended(pidfd)).await,
        Ok(Ok(()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_signal_is_one() {
        assert_eq!(checked(9).unwrap(), 9);
        assert_eq!(checked(64).unwrap(), 64);
        assert_eq!(checked(65).unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(checked(u32::MAX).unwrap_err().kind, Kind::InvalidArgument);
    }
}
