//! Opens what is in a directory, through no link at all.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rtc_runtime::sys::open::{RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2};

const RESOLVE: u64 = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;

/// A directory at a path of names joined by `/` (empty: itself); `None` where there is none, or a link on the way.
///
/// # Errors
///
/// As openat2(2).
pub(super) fn directory(root: impl AsFd, path: &[u8]) -> nix::Result<Option<OwnedFd>> {
    open(root, path, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Anything at a path, as `directory`, with these flags.
///
/// # Errors
///
/// As openat2(2).
pub(super) fn open(root: impl AsFd, path: &[u8], flags: libc::c_int) -> nix::Result<Option<OwnedFd>> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    match openat2(root, &path, flags, RESOLVE) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno),
    }
}
