//! `kill`: a signal to init, by its pidfd, or to all processes of the container.

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::container::id::ContainerId;
use crate::container::state::{Operation, Record, StateRoot, Status, process_stat};
use crate::sys::process::{pidfd_open, pidfd_send_signal};
use crate::sys::{self, Errno};

/// Sends a signal to the container's init, or to `all` its processes.
///
/// A container without a PID namespace of its own does not end with its init, so SIGKILL is for all of them.
///
/// # Errors
///
/// `container not running`, as runc says it.
pub fn kill(root: &StateRoot, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
    let directory = root.open(id)?;
    let record = directory.complete_record()?;
    let status = directory.status(&record)?;
    let whole = signal == libc::SIGKILL && (all || !record.owns_pids);
    if whole {
        if status == Status::Stopped && record.cgroup.processes().map_or(true, |pids| pids.is_empty()) {
            status.allows(Operation::Kill, id)?;
        }
        return record.cgroup.kill();
    }
    if all {
        if status == Status::Stopped && record.cgroup.processes().map_or(true, |pids| pids.is_empty()) {
            return Ok(());
        }
        return signal_all(&record, signal);
    }
    status.allows(Operation::Kill, id)?;
    record.signal(signal)?;
    // A frozen process would get SIGKILL only after its thaw (cgroup v1).
    if signal == libc::SIGKILL && status == Status::Paused {
        record.cgroup.thaw()?;
    }
    Ok(())
}

fn signal_all(record: &Record, signal: i32) -> Result<()> {
    for pid in record.cgroup.processes()? {
        match pidfd_open(pid).and_then(|pidfd| pidfd_send_signal(&pidfd, signal)) {
            Ok(())
            | Err(sys::Error {
                errno: Errno::ESRCH, ..
            }) => {}
            Err(error) => return Err(error).with_context(|| format!("signal process {pid}")),
        }
    }
    Ok(())
}

impl Record {
    /// Sends a signal to init, never to another process that got its pid.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let Some(pidfd) = self.pidfd()? else {
            anyhow::bail!("container not running")
        };
        match pidfd_send_signal(&pidfd, signal) {
            Err(sys::Error {
                errno: Errno::ESRCH, ..
            }) => anyhow::bail!("container not running"),
            sent => Ok(sent?),
        }
    }

    /// A descriptor of init; `None` where it has ended and was collected.
    pub fn pidfd(&self) -> Result<Option<std::os::fd::OwnedFd>> {
        if self.pid == 0 {
            return Ok(None);
        }
        let pid = Pid::from_raw(self.pid);
        let pidfd = match pidfd_open(pid) {
            Err(sys::Error {
                errno: Errno::ESRCH, ..
            }) => return Ok(None),
            opened => opened?,
        };
        // Looked at after the open: what has the start time now is what the descriptor holds.
        Ok(process_stat(pid)
            .is_ok_and(|(_, start)| start == self.start_time)
            .then_some(pidfd))
    }

    /// Waits until init has ended, be it collected or not.
    pub fn wait_for_end(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        if let Ok(Some(pidfd)) = self.pidfd() {
            while poll(
                &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            ) == Err(nix::Error::EINTR)
            {}
        }
    }
}
