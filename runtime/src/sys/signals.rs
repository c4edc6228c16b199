//! Signals as something to read: a handler that writes their numbers into a pipe.
//!
//! Not signalfd(2): the signals would have to be blocked, and a mask is inherited by every process that is made. A handler is
//! gone in the processes that `clone3` makes (`CLONE_CLEAR_SIGHAND`), and at `execve`.
#![expect(unsafe_code, reason = "a signal handler")]

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;

use nix::fcntl::OFlag;

use super::{Errno, Named, Result, checked};

static PIPE: AtomicI32 = AtomicI32::new(-1);

/// From now on each of these signals is a byte, its number, to be read from the descriptor that is returned, which does not
/// block. Once in a process.
///
/// # Errors
///
/// As pipe2(2) and sigaction(2).
pub fn to_pipe(signals: &[libc::c_int]) -> Result<OwnedFd> {
    let (read, write) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).call(|| "pipe2".to_owned())?;
    PIPE.store(write.into_raw_fd(), Relaxed);
    for signal in signals {
        // SAFETY: zeroes are a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = pass_on;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler only makes a system call that is safe in one, and keeps errno; the old action is not asked for.
        let returned = unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) };
        checked(returned.into(), || format!("sigaction({signal})"))?;
    }
    Ok(read)
}

extern "C" fn pass_on(signal: libc::c_int) {
    let errno = Errno::last();
    let number = signal as u8;
    // SAFETY: one byte of this frame. A full pipe has news enough.
    unsafe { libc::write(PIPE.load(Relaxed), (&raw const number).cast(), 1) };
    errno.set();
}
