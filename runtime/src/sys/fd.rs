//! Descriptors: passing them over Unix sockets, and which of them survive an `execve`.
#![expect(
    unsafe_code,
    reason = "close_range has no safe wrapper, and received descriptors start as integers"
)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Named, Result, checked};

/// Standard input: rtc's `main` makes sure that 0, 1 and 2 are open before anything else runs (Rust's runtime does).
// SAFETY: open for the whole life of the process, see above.
pub const STDIN: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(0) };
/// Standard output, as [`STDIN`].
// SAFETY: as STDIN.
pub const STDOUT: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(1) };

/// The longest text a message carries, in bytes; longer ones are cut.
pub const TEXT_MAX: usize = 8192;

/// A message of its kind and a text.
#[must_use]
pub fn text_message(kind: u8, text: &str) -> Vec<u8> {
    let end = text.floor_char_boundary(TEXT_MAX);
    let mut bytes = Vec::with_capacity(end + 1);
    bytes.push(kind);
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes
}

/// Closes every descriptor from `first` on but those of `kept`, for a process that will end without running any
/// destructor: descriptors are closed under the feet of their owners (close_range(2), Linux 5.9).
pub fn close_all_but(first: RawFd, kept: &[RawFd]) -> Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut next = first.cast_unsigned();
    for end in kept.into_iter().map(RawFd::cast_unsigned).chain([u32::MAX]) {
        if next < end {
            // SAFETY: takes no pointers; the caller answers for the owners, see above.
            let returned = unsafe { libc::syscall(libc::SYS_close_range, next, end.saturating_sub(1), 0) };
            checked(returned, || format!("close_range({next}, {end})"))?;
        }
        next = end.saturating_add(1);
    }
    Ok(())
}

/// Whether this process was started with a descriptor of this number: ours are all close-on-exec, and none of those
/// could have come over the `execve`.
#[must_use]
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag and accepts any number.
    unsafe { libc::fcntl(fd, libc::F_GETFD) == 0 }
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
    receive_with(socket, buffer, MsgFlags::empty())
}

/// The length of the next message of a socket that keeps messages apart, without waiting for it (`EAGAIN`). 0: the peer
/// has closed.
pub fn next_length(socket: impl AsFd) -> Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    nix::sys::socket::recv(socket.as_fd().as_raw_fd(), &mut [], flags).call(|| "recv(MSG_PEEK)".into())
}

/// How many bytes of a pipe or FIFO nobody has read yet (`FIONREAD`, pipe(7)).
///
/// # Errors
///
/// As ioctl(2).
pub fn unread(pipe: impl AsFd) -> Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel stores an int there, which outlives the call.
    let returned = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    checked(returned.into(), || "ioctl(FIONREAD)".into())?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// As [`receive`], with flags of recvmsg(2).
pub fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC | flags,
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

/// The same open file by another number, `least` or more, close-on-exec (fcntl(2) `F_DUPFD_CLOEXEC`).
pub fn duplicate_above(fd: impl AsFd, least: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    let duplicate = checked(returned.into(), || format!("fcntl(F_DUPFD_CLOEXEC, {least})"))?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate as i32) })
}

/// Whether a descriptor that this process was started with may be written to.
///
/// # Errors
///
/// `EBADF`: there is none of this number.
pub fn is_writable(fd: RawFd) -> Result<bool> {
    // SAFETY: F_GETFL only reads flags and accepts any number.
    let returned = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let flags = checked(returned.into(), || format!("fcntl({fd}, F_GETFL)"))?;
    Ok(matches!(
        flags as libc::c_int & libc::O_ACCMODE,
        libc::O_WRONLY | libc::O_RDWR
    ))
}

/// Writes to a descriptor by its number, whatever that is by now.
pub fn write_raw(fd: RawFd, bytes: &[u8]) -> Result<()> {
    // SAFETY: the bytes are valid for their length; any number may be tried.
    let returned = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    checked(returned as libc::c_long, || format!("write({fd})")).map(drop)
}

/// Makes `number` another name of the open file behind `fd`, not close-on-exec, whatever it was before: for a process
/// that sets up its own stdio (dup2(2)).
pub fn duplicate_onto(fd: RawFd, number: RawFd) -> Result<()> {
    // SAFETY: takes no pointers; the caller answers for the owner of the number, as of stdio nobody is.
    let returned = unsafe { libc::dup2(fd, number) };
    checked(returned.into(), || format!("dup2({fd}, {number})")).map(drop)
}
