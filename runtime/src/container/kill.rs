//! `kill`: a signal to init, by its pidfd, or to all processes of the container.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::unistd::Pid;

use crate::container::id::ContainerId;
use crate::container::state::{Operation, Record, StateRoot, Status, process_stat};
use crate::container::without_cgroup;
use crate::sys::process::{has_ended, pidfd_open, pidfd_send_signal};
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
        if status == Status::Stopped && record.processes().map_or(true, |pids| pids.is_empty()) {
            status.allows(Operation::Kill, id)?;
        }
        return record.kill_all();
    }
    if all {
        if status == Status::Stopped && record.processes().map_or(true, |pids| pids.is_empty()) {
            return Ok(());
        }
        return signal_all(&record, signal);
    }
    status.allows(Operation::Kill, id)?;
    record.signal(signal)?;
    // A frozen process would get SIGKILL only after its thaw (cgroup v1).
    if signal == libc::SIGKILL && status == Status::Paused {
        // One that is being deleted meanwhile needs no thaw.
        let _ = record.cgroup.thaw();
    }
    Ok(())
}

fn signal_all(record: &Record, signal: i32) -> Result<()> {
    // Processes outside of our PID namespace are listed as 0.
    for pid in record.processes()?.into_iter().filter(|pid| pid.as_raw() > 0) {
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
    /// All processes of the container.
    ///
    /// # Errors
    ///
    /// Its cgroup can't be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        if self.cgroup.is_absent() {
            return without_cgroup::processes(self);
        }
        self.cgroup.processes()
    }

    /// Kills all of them; does not wait for their end.
    ///
    /// # Errors
    ///
    /// Its cgroup can't be read or written.
    pub(super) fn kill_all(&self) -> Result<()> {
        if self.cgroup.is_absent() {
            return without_cgroup::kill(self);
        }
        self.cgroup.kill()
    }

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
    pub fn pidfd(&self) -> Result<Option<OwnedFd>> {
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
            .is_some_and(|(_, start)| start == self.start_time)
            .then_some(pidfd))
    }

    /// Waits until init has ended, be it collected or not.
    ///
    /// # Errors
    ///
    /// It has not after `patience`: it waits in the kernel for a disk or a server, or is frozen from outside.
    pub fn wait_for_end(&self, patience: Duration) -> Result<()> {
        match self.pidfd()? {
            Some(pidfd) if !has_ended(&pidfd, patience)? => Err(anyhow!(
                "init, process {}, has not ended {} s after SIGKILL: see /proc/{0}/stack, then delete again",
                self.pid,
                patience.as_secs()
            )),
            _ => Ok(()),
        }
    }
}
