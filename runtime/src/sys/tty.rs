//! Pseudo-terminals: ptmx(4), ioctl_tty(2).
#![expect(unsafe_code, reason = "terminal ioctls have no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{Result, checked};

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Unlocks a master (`TIOCSPTLCK`) and opens its other end by descriptor, not by a path that a container controls
/// (`TIOCGPTPEER`, Linux 4.13; CVE-2025-52565).
pub fn open_peer(master: impl AsFd) -> Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let returned = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    checked(returned.into(), || "ioctl(TIOCSPTLCK)".into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags of open(2) as a number.
    let returned = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let fd = checked(returned.into(), || "ioctl(TIOCGPTPEER)".into())?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The size of the terminal.
pub fn size(terminal: impl AsFd) -> Result<Size> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills the struct, which outlives the call.
    let returned = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    checked(returned.into(), || "ioctl(TIOCGWINSZ)".into())?;
    Ok(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Sets the size of the terminal; its foreground processes get `SIGWINCH`.
pub fn set_size(terminal: impl AsFd, size: Size) -> Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads the struct, which outlives the call.
    let returned = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    checked(returned.into(), || "ioctl(TIOCSWINSZ)".into()).map(drop)
}

/// Makes the terminal the controlling one of this session, whose leader the caller must be.
pub fn set_controlling(terminal: impl AsFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    let returned = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    checked(returned.into(), || "ioctl(TIOCSCTTY)".into()).map(drop)
}
