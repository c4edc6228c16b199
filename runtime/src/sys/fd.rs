//! Descriptors: passing them over Unix sockets, and which of them survive an `execve`.
#![expect(
    unsafe_code,
    reason = "close_range has no safe wrapper, and received descriptors start as integers"
)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Named, Result, checked};

/// Marks every descriptor from `first` on close-on-exec (close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: takes no pointers; descriptors stay open, so no owner loses one.
    let returned =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(returned, || format!("close_range({first}, CLOEXEC)")).map(drop)
}

/// Whether the number names an open descriptor of this process.
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag and accepts any number.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Lets the descriptor with this number survive an `execve`.
pub fn keep_on_exec(fd: RawFd) -> Result<()> {
    // SAFETY: F_SETFD changes only a flag and accepts any number.
    let returned = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    checked(returned.into(), || format!("fcntl({fd}, F_SETFD)")).map(drop)
}

/// Sends bytes (at least one) with descriptors (`SCM_RIGHTS`, unix(7)). A peer that is gone is an error, no signal.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .call(|| "sendmsg".into())
    .map(drop)
}

/// Receives bytes and at most one descriptor, close-on-exec. No bytes: the peer has closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::Error::EINTR) => {}
            other => break other.call(|| "recvmsg".into())?,
        }
    };
    let mut received = None;
    for control in message.cmsgs().call(|| "recvmsg: control message".into())? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us; nothing else owns it.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// Takes over a descriptor that this process was started with, by its number; it is made close-on-exec.
/// `None` where no descriptor has that number.
#[must_use]
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    if !is_open(fd) {
        return None;
    }
    // SAFETY: the number is open, and the caller says that it was inherited for this use, so nothing else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: F_SETFD changes only a flag of a descriptor we own.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    Some(owned)
}
