//! Extended attributes of an open file (xattr(7)), which nix does not have.
//!
//! Results are bare errnos: a caller knows the path, and often expects the failure (`ENODATA`, `ENOTSUP`).
#![expect(unsafe_code, reason = "fsetxattr, setxattr, fgetxattr, flistxattr")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// The most that the kernel keeps as one value, or as one list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX: usize = 64 << 10;

/// Sets an attribute, whether it is there or not. `file` is no `O_PATH` descriptor.
///
/// # Errors
///
/// As fsetxattr(2).
pub fn set(file: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    // SAFETY: the name ends in NUL, the value is as long as is said; the kernel only reads both.
    let returned = unsafe {
        libc::fsetxattr(
            file.as_fd().as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(returned).map(drop)
}

/// As [`set`], of whatever an `O_PATH` descriptor is of, which need not be openable: a link, a socket, a device. Needs `/proc`.
///
/// # Errors
///
/// As setxattr(2).
pub fn set_by_path_descriptor(file: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let path =
        CString::new(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    // SAFETY: path and name end in NUL, the value is as long as is said; the kernel only reads them. The last component
    // of the path leads to what the descriptor is of, and not on where that is a link.
    let returned = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(returned).map(drop)
}

/// The value of an attribute; `None` where it is not there, or the file system has none.
///
/// # Errors
///
/// As fgetxattr(2).
pub fn get(file: impl AsFd, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 256];
    loop {
        // SAFETY: the name ends in NUL; the kernel writes at most as much as there is room for.
        let returned = unsafe {
            libc::fgetxattr(
                file.as_fd().as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        match Errno::result(returned) {
            Ok(length) => {
                value.truncate(usize::try_from(length).unwrap_or(0));
                return Ok(Some(value));
            }
            Err(Errno::ENODATA | Errno::ENOTSUP) => return Ok(None),
            Err(Errno::ERANGE) if value.len() < MAX => value.resize(MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// The names of all attributes; none where the file system has none.
///
/// # Errors
///
/// As flistxattr(2).
pub fn list(file: impl AsFd) -> nix::Result<Vec<CString>> {
    let mut names = vec![0u8; 1024];
    loop {
        // SAFETY: the kernel writes at most as much as there is room for.
        let returned =
            unsafe { libc::flistxattr(file.as_fd().as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
        match Errno::result(returned) {
            Ok(length) => {
                names.truncate(usize::try_from(length).unwrap_or(0));
                let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                return Ok(names.filter_map(|name| CString::new(name).ok()).collect());
            }
            Err(Errno::ENOTSUP) => return Ok(Vec::new()),
            Err(Errno::ERANGE) if names.len() < MAX => names.resize(MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_got_and_listed() {
        let path = std::env::temp_dir().join(format!("rtc-xattr-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let value = vec![7u8; 3000];
        if set(&file, c"user.rtc", &value) == Err(Errno::ENOTSUP) {
            return;
        }
        assert_eq!(get(&file, c"user.rtc"), Ok(Some(value)));
        assert_eq!(get(&file, c"user.other"), Ok(None));
        assert_eq!(list(&file).unwrap(), [c"user.rtc".to_owned()]);
        let by_path = nix::fcntl::open(
            format!("/proc/self/fd/{}", file.as_raw_fd()).as_str(),
            nix::fcntl::OFlag::O_PATH,
            nix::sys::stat::Mode::empty(),
        )
        .unwrap();
        set_by_path_descriptor(&by_path, c"user.rtc", b"8").unwrap();
        assert_eq!(get(&file, c"user.rtc"), Ok(Some(b"8".to_vec())));
    }
}
