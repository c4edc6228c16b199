//! The parent's half of making a process: one `clone3`, or a helper's where namespaces force it.
//!
//! ```text
//! usual            runtime --clone3--> child
//! exec, or a user  runtime --clone3--> helper: joins the cgroup, drops what is the host's, enters the namespaces
//! namespace joined                       `--clone3(CLONE_PARENT)--> child (of the runtime); the helper exits
//! ```
//!
//! The runtime could not come back from a user namespace. And a child that is born in a container's PID namespace with
//! the host's root or a descriptor of the host shows them, for an instant, to whoever has CAP_SYS_PTRACE there: so
//! whoever clones it has already entered all the rest, and has nothing to show. The helper itself is in no PID
//! namespace of the container; it is in its cgroup, since only from there the child is in it without a descriptor.
//!
//! In a worker of the shim ([`crate::process::worker`]) every clone is with `CLONE_PARENT`: child and helper are the
//! shim's children. They are reported, and nothing here waits for them.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Pid;

use crate::log;
use crate::namespace::Namespaces;
use crate::process::channel::{Channel, Message};
use crate::process::worker::Reporter;
use crate::sys::clone::{CLONE_PARENT, Child, Cloned, clone3};
use crate::sys::{Named, fd, process};

/// How the child starts: in which namespaces, and in which cgroup (v2) it is born.
pub struct Birth<'a> {
    /// Made by the clone, or entered by its helper.
    pub namespaces: &'a Namespaces,
    /// A cgroup v2 directory.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` of cgroup v1, written by the process itself: its own move costs microseconds, a move by another
    /// process an RCU grace period.
    pub cgroup_procs: &'a [OwnedFd],
    /// What a helper does while it still sees the host's `/proc`; the child inherits it.
    pub before_entering: &'a dyn Fn() -> Result<()>,
    /// Descriptors that the child must not share: a lock on an open file lives as long as the last copy of it.
    pub not_shared: &'a [RawFd],
    /// Whether a helper closes all descriptors but stdio and so many behind it. Not for an init: it needs the host's to
    /// mount its root.
    pub keep_only: Option<u32>,
    /// In a worker of the shim, where the child is reported.
    pub reporter: Option<&'a Reporter>,
}

/// A child that is being set up.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub child: Child,
    /// To it.
    pub channel: Channel,
}

/// Makes the child, which runs `body` and tells the parent why it failed, if it does.
///
/// `body` gets its end of the channel; it returns only with an error.
///
/// # Errors
///
/// As clone3(2) and setns(2). The child's failures arrive on the channel.
pub fn spawn(birth: &Birth<'_>, body: impl FnOnce(&Channel) -> Result<Infallible>) -> Result<Spawned> {
    let (ours, theirs) = Channel::pair()?;
    if birth.namespaces.need_helper() {
        let child = spawn_by_helper(birth, &ours, &theirs, body)?;
        return Ok(Spawned { child, channel: ours });
    }
    let way_back = birth.namespaces.way_back()?;
    birth.namespaces.enter_for_children()?;
    let cloned = clone3(birth.namespaces.clone_flags() | birth.parent_flag(), birth.cgroup);
    match cloned {
        Ok(Cloned::Child) => {
            drop((ours, way_back));
            birth.leave_parent();
            live(&theirs, || {
                join_cgroup(birth.cgroup_procs)?;
                birth.namespaces.enter()?;
                body(&theirs)
            })
        }
        cloned => {
            if let (Ok(Cloned::Parent(child)), Some(reporter)) = (&cloned, birth.reporter) {
                reporter.born(child).context("report the container's process")?;
            }
            for (namespace, flag) in way_back {
                process::setns(namespace, flag).context("return to the runtime's own namespace")?;
            }
            match cloned.context("make the container's process")? {
                Cloned::Parent(child) => Ok(Spawned { child, channel: ours }),
                Cloned::Child => unreachable!("handled above"),
            }
        }
    }
}

impl Birth<'_> {
    fn parent_flag(&self) -> libc::c_int {
        self.reporter.map_or(0, |_| CLONE_PARENT)
    }

    /// In the new process: closes what it must not share with the one that cloned it.
    fn leave_parent(&self) {
        close(self.not_shared);
        if let Some(reporter) = self.reporter {
            // The shim takes the end of this channel for the end of the worker.
            log::disable();
            close(&[reporter.as_fd().as_raw_fd()]);
        }
    }

    /// What the helper needs after it has closed all that is the host's.
    fn kept_by_helper(&self, tell: &Channel, theirs: &Channel) -> Vec<RawFd> {
        let mut kept = vec![tell.as_fd().as_raw_fd(), theirs.as_fd().as_raw_fd()];
        kept.extend(
            self.namespaces
                .descriptors()
                .map(|namespace| namespace.as_raw_fd()),
        );
        kept
    }
}

fn spawn_by_helper(
    birth: &Birth<'_>,
    ours: &Channel,
    theirs: &Channel,
    body: impl FnOnce(&Channel) -> Result<Infallible>,
) -> Result<Child> {
    let (hear, tell) = Channel::pair()?;
    match clone3(birth.parent_flag(), birth.cgroup).context("make the helper that enters the namespaces")? {
        Cloned::Child => live(&tell, || {
            // With a copy of the parent's end the child would never hear that the parent has gone.
            close(&[ours.as_fd().as_raw_fd(), hear.as_fd().as_raw_fd()]);
            birth.leave_parent();
            join_cgroup(birth.cgroup_procs)?;
            (birth.before_entering)()?;
            birth.namespaces.enter_for_children()?;
            if let Some(preserved) = birth.keep_only {
                fd::close_all_but(3 + preserved.cast_signed(), &birth.kept_by_helper(&tell, theirs))?;
            }
            birth.namespaces.enter()?;
            match clone3(birth.namespaces.clone_flags() | CLONE_PARENT, None)? {
                Cloned::Child => {
                    close(&[tell.as_fd().as_raw_fd()]);
                    live(theirs, || body(theirs))
                }
                Cloned::Parent(child) => {
                    tell_of_child(&tell, child)?;
                    process::exit(0)
                }
            }
        }),
        Cloned::Parent(helper) => {
            drop(tell);
            let Some(reporter) = birth.reporter else {
                let child = hear_of_child(&hear);
                process::wait(&helper.pidfd)?;
                return child;
            };
            // Both reports at once wake the shim once. Should this process die before, the shim looks for what it made.
            let child = hear_of_child(&hear);
            reporter.helper(&helper.pidfd).context("report the helper")?;
            let child = child?;
            reporter.born(&child).context("report the container's process")?;
            Ok(child)
        }
    }
}

/// A helper's report. The pid arrives as text beside its descriptor.
pub(crate) fn tell_of_child(tell: &Channel, child: Child) -> Result<()> {
    tell.send(&Message::Warning(child.pid.to_string()))?;
    Ok(tell.send(&Message::Terminal(child.pidfd))?)
}

/// The helper's report: the child, or why there is none.
pub(crate) fn hear_of_child(hear: &Channel) -> Result<Child> {
    let mut pid = None;
    loop {
        match hear.receive()? {
            Some(Message::Warning(text)) => pid = text.parse().ok().map(Pid::from_raw),
            Some(Message::Terminal(pidfd)) => {
                let pid = pid.ok_or_else(|| anyhow!("the helper told no pid"))?;
                return Ok(Child { pid, pidfd });
            }
            Some(Message::Failed(text)) => bail!(text),
            Some(other) => bail!("an unexpected message from the helper: {other:?}"),
            None => bail!("the helper that enters the namespaces died"),
        }
    }
}

/// Closes descriptors under the feet of their owners: this process ends without destructors.
pub(crate) fn close(descriptors: &[RawFd]) {
    for descriptor in descriptors {
        // One that is closed already is what is wanted.
        let _ = nix::unistd::close(*descriptor);
    }
}

fn join_cgroup(cgroup_procs: &[OwnedFd]) -> Result<()> {
    for procs in cgroup_procs {
        nix::unistd::write(procs, b"0")
            .call(|| "write(cgroup.procs, 0)".into())
            .context("join the cgroup")?;
    }
    Ok(())
}

/// Runs the child's body to its end, which is an `execve` or a failure.
pub(crate) fn live(channel: &Channel, body: impl FnOnce() -> Result<Infallible>) -> ! {
    let Err(error) = body();
    // A parent that is gone can't be told.
    let _ = channel.send(&Message::Failed(format!("{error:#}")));
    process::exit(1)
}
