//! `clone3`: one call that makes a process, its namespaces, its pidfd and its place in the cgroup tree.
#![expect(unsafe_code, reason = "clone3 has no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::unistd::Pid;

use super::{Result, checked};

pub use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
    CLONE_PARENT,
};

/// A time namespace of its own (Linux 5.6). It shares its bit with a byte of `clone`'s exit signal, hence not in `libc`.
pub const CLONE_NEWTIME: libc::c_int = 0x80;

/// Flags of `clone3` alone: they don't fit the 32 bits of `clone`.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `linux/sched.h`, version 2 (Linux 5.7: `cgroup`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which of the two processes returned from [`clone3`].
#[derive(Debug)]
pub enum Cloned {
    /// The caller.
    Parent(Child),
    /// The new process: a copy of the caller.
    Child,
}

/// A process made by [`clone3`].
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's PID namespace.
    pub pid: Pid,
    /// Refers to the process, never to another that got its id (Linux 5.2).
    pub pidfd: OwnedFd,
}

/// Makes a copy of the calling process, in the new namespaces of `flags` (`CLONE_NEW*`, `CLONE_PARENT`), born in
/// `cgroup` where given (cgroup v2, Linux 5.7). Handled signals are back to their defaults in the child (Linux 5.5).
///
/// The memory is copied on write, as by `fork`, so the child may allocate. Neither it nor its parent may have more than
/// one thread; rtc never starts one.
///
/// # Errors
///
/// As clone3(2): `EPERM` without the privilege for a namespace, `ENOSPC` at a limit of nested or counted namespaces,
/// `EAGAIN` at a limit of processes, `EBUSY` or `EOPNOTSUPP` for a cgroup that takes no processes.
pub fn clone3(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        // With CLONE_PARENT the signal is the caller's own, and clone3 wants none named.
        exit_signal: if flags & CLONE_PARENT == 0 {
            libc::SIGCHLD as u64
        } else {
            0
        },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is valid for its size and `pidfd` outlives the call. Without CLONE_VM the child gets its own copy
    // of memory and stack, and with a single thread no lock can be held by another one.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match checked(returned, || {
        format!("clone3({})", describe(flags, cgroup.is_some()))
    })? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor there, which nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(Child {
                pid: Pid::from_raw(pid as i32),
                pidfd,
            }))
        }
    }
}

/// The flags as a reader would write them.
fn describe(flags: libc::c_int, into_cgroup: bool) -> String {
    const NAMES: [(libc::c_int, &str); 9] = [
        (CLONE_NEWUSER, "NEWUSER"),
        (CLONE_NEWNS, "NEWNS"),
        (CLONE_NEWPID, "NEWPID"),
        (CLONE_NEWNET, "NEWNET"),
        (CLONE_NEWIPC, "NEWIPC"),
        (CLONE_NEWUTS, "NEWUTS"),
        (CLONE_NEWCGROUP, "NEWCGROUP"),
        (CLONE_NEWTIME, "NEWTIME"),
        (CLONE_PARENT, "PARENT"),
    ];
    let mut names: Vec<&str> = NAMES
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if into_cgroup {
        names.push("INTO_CGROUP");
    }
    names.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_clone_names_its_flags() {
        assert_eq!(
            describe(CLONE_NEWPID | CLONE_NEWNS, true),
            "NEWNS|NEWPID|INTO_CGROUP"
        );
    }
}
