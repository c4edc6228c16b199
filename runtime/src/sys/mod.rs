//! System calls: the only module with `unsafe`.
//!
//! What nix wraps well is called through nix, here or by the callers; this module adds what it lacks (`clone3`,
//! `pidfd`, `seccomp`, the mount file descriptors, `bpf`, ...) and gives every failure the call that failed, so that
//! an error prints itself: `mount("proc", "/proc", "proc", NOSUID): Operation not permitted`.

pub mod bpf;
pub mod clone;
#[cfg(target_arch = "x86_64")]
mod early;
pub mod entry;
pub mod exe;
pub mod fd;
pub mod file;
pub mod memory;
pub mod mount;
pub mod open;
pub mod pause;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod tty;
pub mod xattr;

use std::fmt;

pub use nix::errno::Errno;

/// A system call that failed: what was called, with the arguments that matter, and why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The call as a reader would write it, e.g. `openat2("proc/self")`.
    pub call: String,
    /// What the kernel answered.
    pub errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno.desc())
    }
}

impl std::error::Error for Error {}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the call of a result of nix. The text is made only when the call failed.
pub trait Named<T> {
    /// Turns the bare errno into an [`Error`] that says what was called.
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for nix::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error { call: call(), errno })
    }
}

impl<T> Named<T> for std::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error {
            call: call(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)),
        })
    }
}

/// The result of `libc::syscall`: -1 with `errno`, or a value.
pub(crate) fn checked(returned: libc::c_long, call: impl FnOnce() -> String) -> Result<libc::c_long> {
    if returned != -1 {
        return Ok(returned);
    }
    // Before the text is made, which may itself make system calls.
    let errno = Errno::last();
    Err(Error { call: call(), errno })
}
