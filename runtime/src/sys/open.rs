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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

    use super::*;

    /// The kernel gives up a `..` below a root while anything is renamed (`EAGAIN`).
    #[test]
    fn a_look_up_among_renames_ends_and_stays_inside() {
        let base = std::env::temp_dir().join(format!("rtc-open-{}", std::process::id()));
        fs::create_dir_all(base.join("root/a/b")).unwrap();
        fs::create_dir_all(base.join("outside")).unwrap();
        symlink(base.join("outside"), base.join("root/link")).unwrap();
        let root = File::open(base.join("root")).unwrap();
        let (one, other) = (base.join("root/a"), base.join("root/link"));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            let rounds = std::env::var("RTC_RACE_ROUNDS")
                .map_or(20_000, |rounds| 100 * rounds.parse::<u32>().unwrap());
            let mut found = 0;
            for _ in 0..rounds {
                match openat2(&root, c"a/b/../../a/b/..", libc::O_PATH, RESOLVE_IN_ROOT) {
                    Ok(fd) => {
                        found += 1;
                        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
                        assert!(path.starts_with(base.join("root")), "{path:?}");
                    }
                    Err(Errno::EAGAIN | Errno::ENOENT) => {}
                    Err(errno) => panic!("{errno}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(found > 0);
        });
        fs::remove_dir_all(base).unwrap();
    }
}
