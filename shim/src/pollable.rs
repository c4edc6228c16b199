//! Descriptors that tokio waits for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What owns or borrows a descriptor, for tokio, which wants its number.
#[derive(Debug)]
pub(crate) struct Pollable<T>(pub(crate) T);

impl<T: AsFd> AsRawFd for Pollable<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits for this descriptor from now on. A descriptor must not be waited for twice at a time.
///
/// # Errors
///
/// As epoll_ctl(2): `EPERM` for a regular file.
#[expect(
    deprecated,
    reason = "sound for what implements AsFd; the replacement is unsafe, which this crate forbids"
)]
pub(crate) fn wait_for<T: AsFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<Pollable<T>>> {
    AsyncFd::with_interest(Pollable(inner), interest)
}
