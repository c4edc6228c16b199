//! Mounts by file descriptor: a mount is made detached, gets its attributes, and is then attached to a directory that
//! is itself held by a descriptor, so that no path inside a container is ever resolved twice.
//!
//! ```text
//! fsopen -> fsconfig* -> fsmount --\
//!                                   +--> mount_setattr -> move_mount(mount, destination)
//! open_tree(OPEN_TREE_CLONE) ------/
//! ```
//!
//! Linux 5.2 has all of this except `mount_setattr` (5.12), whose absence callers handle.
//! Results are bare errnos ([`nix::Result`]): a caller knows the container's path, which the error has to show.
#![expect(
    unsafe_code,
    reason = "the mount system calls by descriptor have no safe wrappers"
)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null;

use nix::errno::Errno;

pub use libc::{
    MS_BIND, MS_DIRSYNC, MS_I_VERSION, MS_LAZYTIME, MS_MANDLOCK, MS_MOVE, MS_NOATIME, MS_NODEV,
    MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_NOSYMFOLLOW, MS_PRIVATE, MS_RDONLY, MS_REC, MS_RELATIME,
    MS_REMOUNT, MS_SHARED, MS_SILENT, MS_SLAVE, MS_STRICTATIME, MS_SYNCHRONOUS, MS_UNBINDABLE,
};

/// Mount attributes of `linux/mount.h`, for [`MountAttr`] and [`fsmount`].
pub mod attr {
    /// No writes.
    pub const RDONLY: u64 = 0x01;
    /// Set-user-ID, set-group-ID bits and file capabilities are not honoured.
    pub const NOSUID: u64 = 0x02;
    /// No access to devices.
    pub const NODEV: u64 = 0x04;
    /// No execution.
    pub const NOEXEC: u64 = 0x08;
    /// The bits of the access time mode: zero is `relatime`.
    pub const ATIME: u64 = 0x70;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Directories' access times are never updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Owners are mapped through the user namespace `userns_fd`.
    pub const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed (Linux 5.10; as a mount attribute 5.14).
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `struct mount_attr` of `linux/mount.h`: what [`mount_setattr`] changes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear; applied before `set`.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for no change.
    pub propagation: u64,
    /// The user namespace of `attr::IDMAP`.
    pub userns_fd: u64,
}

/// `mount_setattr`, `open_tree`: the whole tree of mounts.
pub const AT_RECURSIVE: libc::c_int = libc::AT_RECURSIVE;
/// `open_tree`: a detached copy, not just a descriptor.
const OPEN_TREE_CLONE: libc::c_int = 1;
const OPEN_TREE_CLOEXEC: libc::c_int = libc::O_CLOEXEC;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

fn done(returned: libc::c_long) -> nix::Result<()> {
    Errno::result(returned).map(drop)
}

fn descriptor(returned: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(returned)?;
    // SAFETY: the system call has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pointer(text: Option<&CStr>) -> *const libc::c_char {
    text.map_or(null(), CStr::as_ptr)
}

/// The working directory, for calls that take a directory.
#[must_use]
pub fn cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is not a descriptor that anybody can close.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

/// mount(2), the classic call: bind, remount and changes of propagation by path.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fs_type: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> nix::Result<()> {
    // SAFETY: every pointer is null or a string that ends in NUL, and the kernel only reads them.
    let returned = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(fs_type),
            flags,
            pointer(data).cast(),
        )
    };
    done(returned.into())
}

/// umount2(2) with `MNT_DETACH`: the mount is gone from the namespace now, and freed when nothing uses it any more.
pub fn detach(target: &CStr) -> nix::Result<()> {
    // SAFETY: the path ends in NUL.
    done(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }.into())
}

/// pivot_root(2) of the working directory onto itself: the old root is then mounted on top of the new one.
pub fn pivot_to_working_directory() -> nix::Result<()> {
    // SAFETY: both paths are constants that end in NUL.
    done(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })
}

/// A context for a new filesystem of the type (Linux 5.2). `ENODEV`: the kernel has no such type.
pub fn fsopen(fs_type: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the name ends in NUL.
    descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Sets one parameter of a filesystem context: `key`, or `key=value`.
pub fn fsconfig(context: impl AsFd, key: &CStr, value: Option<&CStr>) -> nix::Result<()> {
    let command = if value.is_some() {
        FSCONFIG_SET_STRING
    } else {
        FSCONFIG_SET_FLAG
    };
    let fd = context.as_fd().as_raw_fd();
    // SAFETY: the strings end in NUL; a flag takes no value, for which null is required.
    done(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key.as_ptr(), pointer(value), 0) })
}

/// Makes the superblock of a filesystem context, or finds the one that fits.
pub fn fsconfig_create(context: impl AsFd) -> nix::Result<()> {
    let fd = context.as_fd().as_raw_fd();
    // SAFETY: the command takes neither key nor value.
    done(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fd,
            FSCONFIG_CMD_CREATE,
            null::<u8>(),
            null::<u8>(),
            0,
        )
    })
}

/// A detached mount of the filesystem, with the attributes of [`attr`].
pub fn fsmount(context: impl AsFd, attributes: u64) -> nix::Result<OwnedFd> {
    let fd = context.as_fd().as_raw_fd();
    // SAFETY: takes no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as libc::c_uint) })
}

/// What the kernel says about a filesystem context: its oldest unread message, such as `e tmpfs: Unknown parameter 'x'`.
#[must_use]
pub fn fs_message(context: impl AsFd) -> Option<String> {
    let mut buffer = [0; 256];
    let length = nix::unistd::read(context, &mut buffer).ok()?;
    Some(String::from_utf8_lossy(buffer.get(2..length)?).trim().to_owned())
}

/// A detached copy of the mount at `path` (with `AT_RECURSIVE`, of all below it too); an empty path is `dir` itself.
/// `AT_SYMLINK_NOFOLLOW` copies a symbolic link.
///
/// # Errors
///
/// As open_tree(2): `EINVAL` for a mount of another mount namespace, for an unbindable mount, and in a user namespace
/// where a copy of just this mount would uncover what is locked below.
pub fn open_tree(dir: impl AsFd, path: &CStr, flags: libc::c_int) -> nix::Result<OwnedFd> {
    let empty = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let flags = flags | empty | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: the path ends in NUL.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, fd, path.as_ptr(), flags) })
}

/// Attaches the mount `tree` to the file or directory that `destination` refers to. `ENOTDIR`: only one is a directory.
pub fn move_mount(tree: impl AsFd, destination: impl AsFd) -> nix::Result<()> {
    let (from, to) = (tree.as_fd().as_raw_fd(), destination.as_fd().as_raw_fd());
    // SAFETY: both paths are empty constants.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from,
            c"".as_ptr(),
            to,
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
}

/// Attaches the mount `tree` at `name` in `dir`; a symbolic link of that name is not followed.
pub fn move_mount_at(tree: impl AsFd, dir: impl AsFd, name: &CStr) -> nix::Result<()> {
    let (from, to) = (tree.as_fd().as_raw_fd(), dir.as_fd().as_raw_fd());
    // SAFETY: both paths end in NUL.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from,
            c"".as_ptr(),
            to,
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

/// Attaches the mount `tree` to a path of the host, whose symbolic links are followed.
pub fn move_mount_to(tree: impl AsFd, path: &CStr) -> nix::Result<()> {
    let from = tree.as_fd().as_raw_fd();
    // SAFETY: both paths end in NUL.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    })
}

/// Changes a mount's attributes (with `AT_RECURSIVE`, of all below it too: all or none). Linux 5.12.
pub fn mount_setattr(mount: impl AsFd, flags: libc::c_int, change: &MountAttr) -> nix::Result<()> {
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is an empty constant, and `change` is valid for the size given.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags | libc::AT_EMPTY_PATH,
            std::ptr::from_ref(change),
            size_of::<MountAttr>(),
        )
    })
}
