//! `openat2(2)`: opening a path without leaving a directory, whatever the path's components are.
//!
//! Results are bare errnos ([`nix::Result`]): a caller knows the container's path, which the error has to show, and
//! often expects the failure.
#![expect(
    unsafe_code,
    reason = "nix's openat2 copies the path and does not repeat interrupted look-ups"
)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

pub use libc::{
    RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV,
};

/// `struct open_how` of `linux/openat2.h`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// How often a look-up that raced with a rename or a mount is tried again before `EAGAIN` is an error.
const ATTEMPTS: u32 = 128;

/// Opens `path` relative to `dir` with `O_CLOEXEC`, resolved under the `RESOLVE_*` bits of `resolve` (Linux 5.6).
///
/// # Errors
///
/// As openat2(2); `EAGAIN` only where something renames directories all the time; `ENOSYS` before Linux 5.6.
pub fn openat2(dir: impl AsFd, path: &CStr, flags: libc::c_int, resolve: u64) -> nix::Result<OwnedFd> {
    let how = OpenHow {
        flags: u64::from((flags | libc::O_CLOEXEC).cast_unsigned()),
        mode: 0,
        resolve,
    };
    let dir = dir.as_fd().as_raw_fd();
    let mut attempt = 0;
    loop {
        // SAFETY: `path` ends in NUL and `how` is valid for the size given; the kernel only reads both.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir,
                path.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            )
        };
        if fd >= 0 {
            // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        match Errno::last() {
            Errno::EAGAIN | Errno::EINTR if attempt < ATTEMPTS => attempt += 1,
            errno => return Err(errno),
        }
    }
}
