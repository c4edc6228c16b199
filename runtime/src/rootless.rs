//! Who runs the runtime, and what is excused of whom.
//!
//! ```text
//! caller                                user namespace of the container   ids         cgroup, device rules, OOM score
//! root of the machine                   as configured                     written     must work
//! root of a user namespace (Podman)     as configured                     written     where permitted
//! an ordinary user                      needed                            newuidmap   where permitted
//! ```
//!
//! Root of the machine pays nothing for this: whether a uid of 0 is that of a user namespace is asked only where the
//! kernel has refused something, or where the environment says so.

use std::path::Path;

use nix::unistd::Uid;

use crate::sys::{Errno, process};

/// The inode of the machine's own user namespace (`PROC_USER_INIT_INO` of the kernel, since Linux 3.8).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// `--rootless`: whether a cgroup that the caller may not make is done without, where nothing was asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rootless {
    /// Where the caller is not root of the machine.
    #[default]
    Auto,
    /// `true`.
    Always,
    /// `false`.
    Never,
}

impl Rootless {
    /// Whether the lack of a permission is excused. Costs system calls: ask only where one is lacking.
    #[must_use]
    pub fn excuses(self) -> bool {
        match self {
            Self::Auto => is_unprivileged(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// The caller's uid where it is not 0, be that root of the machine or of a user namespace. A child in a container is told
/// the same as its parent.
#[must_use]
pub fn ordinary_user() -> Option<Uid> {
    Some(process::caller()).filter(|user| !user.is_root())
}

/// Whether this process is in a user namespace that is not the machine's own. Not known without `/proc`: then it is not.
#[must_use]
pub fn in_user_namespace() -> bool {
    nix::sys::stat::stat(Path::new("/proc/self/ns/user"))
        .is_ok_and(|found| found.st_ino != INITIAL_USER_NAMESPACE)
}

/// Whether the caller is not root of the machine.
#[must_use]
pub fn is_unprivileged() -> bool {
    ordinary_user().is_some() || in_user_namespace()
}

/// Whether a call failed for want of a permission. (A read-only file system is one that an ordinary user can't change.)
#[must_use]
pub fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::EROFS)
}

/// Whether a system call in the chain of an error failed for want of a permission.
#[must_use]
pub fn was_refused(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let ours = cause.downcast_ref::<crate::sys::Error>().map(|error| error.errno);
        let std = cause.downcast_ref::<std::io::Error>();
        let std = std.and_then(std::io::Error::raw_os_error).map(Errno::from_raw);
        ours.or(std).is_some_and(is_refusal)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_refusal_is_found_behind_its_contexts() {
        let of = |errno| {
            let failed: crate::sys::Result<()> = Err(crate::sys::Error {
                call: "mkdir".into(),
                errno,
            });
            failed.context("cgroup").context("create").unwrap_err()
        };
        assert!(was_refused(&of(Errno::EACCES)) && was_refused(&of(Errno::EROFS)));
        assert!(!was_refused(&of(Errno::ENOENT)));
        let std: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(libc::EPERM));
        assert!(was_refused(&std.context("write").unwrap_err()));
        assert!(!was_refused(&anyhow::anyhow!("EACCES in words")));
    }

    #[test]
    fn the_flag_wins_over_who_calls() {
        assert!(Rootless::Always.excuses());
        assert!(!Rootless::Never.excuses());
        assert_eq!(Rootless::default().excuses(), is_unprivileged());
    }
}
