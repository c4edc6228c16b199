//! Entering the new root: pivot_root(2), or where the host's root can't be pivoted (an initramfs) `--no-pivot`.
//!
//! ```text
//! pivot:     chdir(root) -> pivot_root(".", ".") -> umount2(".", DETACH) -> chdir("/")
//! no pivot:  cover the host's proc and sysfs -> chdir(root) -> mount(".", "/", MOVE) -> chroot(".") -> chdir("/")
//! ```

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::unistd::{chdir, chroot, fchdir};

use super::path::Root;
use super::path::c_string;
use crate::sys::Named;
use crate::sys::mount as sys;
use crate::sys::open::openat2;

/// Makes the root the process's, and the host's tree unreachable. `may_propagate`: mounts of the host's tree may be
/// shared with the host, where the unmounting must not show.
pub(crate) fn pivot(root: &Root, may_propagate: bool) -> Result<()> {
    let old = may_propagate
        .then(|| openat2(sys::cwd(), c"/", libc::O_PATH, 0).call(|| "openat2(\"/\")".into()))
        .transpose()?;
    fchdir(root).call(|| "fchdir(rootfs)".into())?;
    sys::pivot_to_working_directory().call(|| "pivot_root(\".\", \".\")".into())?;
    // The old root is now mounted on top of the new one. Only umount2 takes "." for the upper of them.
    if let Some(old) = old {
        fchdir(old).call(|| "fchdir(old root)".into())?;
        sys::mount(None, c".", None, sys::MS_SLAVE | sys::MS_REC, None)
            .call(|| "mount(\".\", SLAVE|REC)".into())?;
    }
    sys::detach(c".").call(|| "umount2(\".\", DETACH)".into())?;
    chdir(c"/").call(|| "chdir(\"/\")".into())?;
    Ok(())
}

/// As [`pivot`], without pivot_root(2). The host's tree stays in the mount namespace, below the new root.
#[expect(clippy::disallowed_methods, reason = "the host's /proc, which is left here")]
pub(crate) fn move_root(root: &Root, rootfs: &Path) -> Result<()> {
    // With a full proc or sysfs of the host anywhere in the namespace, the kernel would let the container mount another
    // one, free of what is masked in its own. So none is left.
    for mount in full_mounts(&fs::read("/proc/self/mountinfo")?, rootfs) {
        let path = c_string(&mount)?;
        if sys::mount(None, &path, None, sys::MS_PRIVATE | sys::MS_REC, None).is_err() {
            continue;
        }
        if sys::detach(&path).is_err() {
            // Locked by a user namespace: covered instead.
            sys::mount(Some(c"tmpfs"), &path, Some(c"tmpfs"), sys::MS_RDONLY, None)
                .call(|| format!("mount(\"tmpfs\", {path:?})"))?;
        }
    }
    fchdir(root).call(|| "fchdir(rootfs)".into())?;
    sys::mount(Some(c"."), c"/", None, sys::MS_MOVE, None).call(|| "mount(\".\", \"/\", MOVE)".into())?;
    enter(root)
}

/// Only changes the process's root: for a container without a mount namespace of its own.
pub(crate) fn enter(root: &Root) -> Result<()> {
    fchdir(root).call(|| "fchdir(rootfs)".into())?;
    chroot(c".").call(|| "chroot(\".\")".into())?;
    chdir(c"/").call(|| "chdir(\"/\")".into())?;
    Ok(())
}

/// The mount points outside `rootfs` that show the whole of a proc or sysfs, deepest last mounted first.
fn full_mounts(mountinfo: &[u8], rootfs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        // proc_pid_mountinfo(5): ... root, mount point, options, optional fields, "-", type, source, options
        let Some(dash) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let (Some(root), Some(point), Some(fs_type)) = (fields.get(3), fields.get(4), fields.get(dash + 1))
        else {
            continue;
        };
        let point = PathBuf::from(unescape(point));
        if *root == b"/" && matches!(*fs_type, b"proc" | b"sysfs") && !point.starts_with(rootfs) {
            found.push(point);
        }
    }
    found.reverse();
    found
}

/// Undoes mountinfo's octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let (mut text, mut at) = (Vec::with_capacity(field.len()), 0);
    while at < field.len() {
        let octal = field
            .get(at + 1..at + 4)
            .filter(|_| field[at] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => text.push(byte),
            None => text.push(field[at]),
        }
        at += if octal.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(text)
}

/// Makes the mount that the directory is on private, as pivot_root(2) and a move of the root require. Only a mount point
/// can be changed, so the path is climbed until one is found.
pub(crate) fn make_parent_private(rootfs: &Path) -> Result<()> {
    for path in rootfs.ancestors() {
        let target = CString::new(path.as_os_str().as_bytes())?;
        match sys::mount(None, &target, None, sys::MS_PRIVATE, None) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EINVAL) if path.parent().is_some() => {}
            Err(errno) => return Err(errno).call(|| format!("mount({target:?}, PRIVATE)"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_procs_and_sysfses_outside_the_rootfs_are_found() {
        let mountinfo = b"22 27 0:21 / /proc rw - proc proc rw\n\
            23 27 0:22 / /sys rw shared:3 - sysfs sysfs rw\n\
            24 27 0:22 /kernel /srv/part rw - sysfs sysfs rw\n\
            25 27 0:22 / /srv/a\\040b rw - proc proc rw\n\
            26 27 0:22 / /b/rootfs/proc rw - proc proc rw\n\
            27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        let found = full_mounts(mountinfo, Path::new("/b/rootfs"));
        assert_eq!(
            found,
            [Path::new("/srv/a b"), Path::new("/sys"), Path::new("/proc")]
        );
    }
}
