//! The only place of these tests with `unsafe`: what `nix` gives as bare numbers or not at all.
#![expect(
    unsafe_code,
    reason = "descriptors received over a socket, terminal sizes and calls by number"
)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Receives a message with descriptors (SCM_RIGHTS, unix(7)): its bytes and the descriptors.
pub(crate) fn receive_descriptors(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 65536];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).context("recvmsg")?;
    let length = message.bytes;
    let mut received = Vec::new();
    for control in message.cmsgs().context("control messages")? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else has their numbers.
            received.extend(
                numbers
                    .into_iter()
                    .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
            );
        }
    }
    bytes.truncate(length);
    Ok((bytes, received))
}

/// Sets the window size of a terminal (TIOCSWINSZ, ioctl_tty(2)).
pub(crate) fn set_window_size(terminal: &impl AsRawFd, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads one `winsize` through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    ensure!(
        result == 0,
        "ioctl(TIOCSWINSZ): {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Makes a system call by number, all arguments 0; returns the error number, 0 if it succeeded.
pub(crate) fn call_by_number(number: i64) -> i32 {
    // SAFETY: the numbers that tests use are of calls which do not exist or which take no pointer.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    if result == -1 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    } else {
        0
    }
}

/// Serial number of the session keyring (keyctl(2), KEYCTL_GET_KEYRING_ID); `None` where the kernel has no keyrings.
pub(crate) fn session_keyring() -> Option<i64> {
    const GET_KEYRING_ID: i64 = 0;
    const SESSION_KEYRING: i64 = -3;
    // SAFETY: this operation takes numbers only.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0_i64) };
    (id > 0).then_some(id)
}

/// What an agent says to a notified call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// The kernel makes the call.
    Continue,
    /// The call is not made and fails with this error number.
    Fail(i32),
    /// The call is not made and returns this.
    Return(i64),
}

/// Receives a notified call and answers it (seccomp_unotify(2)); returns its number and the caller's pid.
pub(crate) fn answer_notification(listener: &impl AsRawFd, answer: Answer) -> Result<(i32, u32)> {
    // SAFETY: all fields are integers, and the kernel wants them zero.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let number = listener.as_raw_fd();
    // SAFETY: the request writes one `seccomp_notif` through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(number, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    let failed = |request: &str| format!("ioctl({request}): {}", std::io::Error::last_os_error());
    ensure!(result == 0, failed("SECCOMP_IOCTL_NOTIF_RECV"));
    let (val, error, flags) = match answer {
        Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Fail(errno) => (0, -errno, 0),
        Answer::Return(value) => (value, 0, 0),
    };
    let mut response = libc::seccomp_notif_resp {
        id: call.id,
        val,
        error,
        flags,
    };
    // SAFETY: the request reads one `seccomp_notif_resp` through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(number, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    ensure!(result == 0, failed("SECCOMP_IOCTL_NOTIF_SEND"));
    Ok((call.data.nr, call.pid))
}
