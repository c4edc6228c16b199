//! The calls by which [`crate::sealed_exe`] looks at, copies and re-executes the running program.
//!
//! All of them are cheap, none needs a privilege except the mount calls (CAP_SYS_ADMIN), and every descriptor
//! they return is close-on-exec.
#![expect(unsafe_code, reason = "system calls that neither std nor nix wraps")]

use super::{Errno, Error, Named, Result, checked};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::FsFlags;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The running program's file, whatever it is called by now.
pub const SELF_EXE: &CStr = c"/proc/self/exe";

/// `STATX_ATTR_VERITY` of linux/stat.h (Linux 5.5).
pub(super) const STATX_ATTR_VERITY: u64 = 0x0010_0000;
/// `STATX_MNT_ID_UNIQUE` of linux/stat.h (Linux 6.8): an id that is never used twice in one boot.
pub(super) const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
/// `statmount(2)`, Linux 6.8; the same number on every architecture that uses the generic table.
const SYS_STATMOUNT: libc::c_long = 457;
const STATMOUNT_SB_BASIC: u64 = 1;
const MS_RDONLY: u32 = 1;
pub(super) const FSOPEN_CLOEXEC: libc::c_uint = 1;
pub(super) const FSCONFIG_SET_FLAG: libc::c_uint = 0;
pub(super) const FSCONFIG_SET_STRING: libc::c_uint = 1;
pub(super) const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
pub(super) const FSMOUNT_CLOEXEC: libc::c_uint = 1;
pub(super) const MOUNT_ATTR_RDONLY: libc::c_uint = 1;
pub(super) const MOUNT_ATTR_NODEV: libc::c_uint = 4;

/// Which file, on which mount. Shown as `mount:major:minor:inode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl FileId {
    /// The mount's id: unique in this boot since Linux 6.8, reusable before.
    pub fn mount(&self) -> u64 {
        self.mount
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}:{}",
            self.mount, self.device.0, self.device.1, self.inode
        )
    }
}

/// What tells one version of a file from another, and which an overlay passes through from its lower layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// The part of `statx(2)` that sealing needs.
#[derive(Debug, Clone, Copy)]
pub struct FileStatus {
    /// Which file it is.
    pub id: FileId,
    /// Which content it has.
    pub version: Version,
    /// Whether fs-verity protects it: nobody can write to it again, not even root.
    pub verity: bool,
}

/// `statx(2)` of `path`, relative to `dir` where one is given. Symbolic links are followed only without `dir`.
pub fn status(dir: Option<BorrowedFd<'_>>, path: &CStr) -> Result<FileStatus> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    let (at, flags) = dir.map_or((libc::AT_FDCWD, 0), |d| {
        (d.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW)
    });
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
    // SAFETY: `path` is NUL-terminated and `buffer` has room for one struct statx; both outlive the call.
    let result = unsafe { libc::statx(at, path.as_ptr(), flags, mask, buffer.as_mut_ptr()) };
    checked(result.into(), || format!("statx({path:?})"))?;
    // SAFETY: zeroed above and then filled by the kernel: every bit pattern is a valid struct statx.
    let s = unsafe { buffer.assume_init() };
    Ok(FileStatus {
        id: FileId {
            mount: s.stx_mnt_id,
            device: (s.stx_dev_major, s.stx_dev_minor),
            inode: s.stx_ino,
        },
        version: Version {
            size: s.stx_size,
            modified: (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec),
            changed: (s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec),
        },
        verity: s.stx_attributes & s.stx_attributes_mask & STATX_ATTR_VERITY != 0,
    })
}

/// What kind of file system a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// overlayfs.
    pub overlay: bool,
    /// tmpfs, which includes what `memfd_create(2)` makes.
    pub tmpfs: bool,
    /// Nothing can be written through this mount: the mount is read-only, or its superblock, or both.
    pub readonly: bool,
}

/// `statfs(2)` of `path`.
pub fn filesystem(path: &CStr) -> Result<Filesystem> {
    let status = statfs(path).call(|| format!("statfs({path:?})"))?;
    Ok(Filesystem {
        overlay: status.filesystem_type() == OVERLAYFS_SUPER_MAGIC,
        tmpfs: status.filesystem_type() == TMPFS_MAGIC,
        readonly: status.flags().contains(FsFlags::ST_RDONLY),
    })
}

/// Whether the *superblock* under a mount of our own mount namespace is read-only, by `statmount(2)`.
/// Before Linux 6.8, and for a mount of another namespace or of none, the call fails (ENOSYS, ENOENT).
pub fn superblock_is_readonly(mount: u64) -> Result<bool> {
    /// `struct mnt_id_req`, its first version.
    #[repr(C)]
    struct Request {
        size: u32,
        spare: u32,
        mount: u64,
        mask: u64,
    }
    /// The head of `struct statmount`; the kernel cuts its answer to the size given.
    #[repr(C)]
    #[derive(Default)]
    struct Answer {
        size: u32,
        options: u32,
        mask: u64,
        device: [u32; 2],
        magic: u64,
        flags: u32,
        fs_type: u32,
    }
    let request = Request {
        size: size_of::<Request>() as u32,
        spare: 0,
        mount,
        mask: STATMOUNT_SB_BASIC,
    };
    let mut answer = Answer::default();
    // SAFETY: both structures are laid out as the kernel's and outlive the call; the kernel writes at most the
    // size given.
    let result = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            &raw mut answer,
            size_of::<Answer>(),
            0,
        )
    };
    checked(result, || format!("statmount({mount})"))?;
    Ok(answer.mask & STATMOUNT_SB_BASIC != 0 && answer.flags & MS_RDONLY != 0)
}

/// The seals after which a memfd can never change again: against writing, growing, shrinking, and against taking
/// a seal off.
fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// Whether `file` is a memfd with all seals.
pub fn is_sealed(file: impl AsFd) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok_and(|seals| all_seals().bits() & !seals == 0)
}

/// Puts all seals on a memfd.
pub fn seal(file: impl AsFd) -> Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(all_seals()))
        .call(|| "fcntl(memfd, F_ADD_SEALS)".into())
        .map(drop)
}

/// An empty memfd that may be executed. Linux 6.3 and later must be asked for that (`MFD_EXEC`, else the sysctl
/// `vm.memfd_noexec` decides), earlier kernels don't know the flag.
pub fn executable_memfd(name: &CStr) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_EXEC)) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    }
    .call(|| format!("memfd_create({name:?})"))
}

/// A detached (nowhere attached) read-only mount of a new overlay with the given lower layers and no upper one:
/// its superblock is read-only and can't be made anything else. Needs CAP_SYS_ADMIN.
pub fn detached_overlay(lower: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let layers: Vec<String> = lower
        .iter()
        .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .collect();
    let layers = CString::new(layers.join(":")).unwrap_or_default();
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) };
    let fd = checked(fd, || r#"fsopen("overlay")"#.into())?;
    // SAFETY: the kernel has just opened it for us; nobody else owns it.
    let context = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let config = |command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>| {
        let pointer = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated, as each command wants them, and outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        };
        checked(result, || format!("fsconfig(overlay, {key:?}, {value:?})")).map(drop)
    };
    config(FSCONFIG_SET_STRING, Some(c"lowerdir"), Some(&layers))?;
    config(FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    config(FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV;
    // SAFETY: no pointers are passed; the context is open.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    };
    let fd = checked(fd, || "fsmount(overlay)".into())?;
    // SAFETY: the kernel has just opened it for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Executes `path` relative to `dir` (or `dir` itself where `path` is empty) with this process's own arguments,
/// and with its own environment, untouched, plus `variable` (`NAME=value`). Returns only on failure.
/// The process must have one thread.
pub fn execute_again(dir: impl AsFd, path: &CStr, variable: &CStr) -> Error {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let arguments: Vec<CString> = std::env::args_os()
        .map(|a| CString::new(a.as_bytes()).unwrap_or_default())
        .collect();
    let mut argv: Vec<_> = arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut envp = Vec::with_capacity(64);
    // SAFETY: glibc's list of pointers, null or ended by a null pointer, which nobody changes meanwhile: we are
    // the only thread.
    let mut next = unsafe { environ };
    // SAFETY: as above; `next` never passes the null that ends the list.
    while let Some(entry) = unsafe { next.as_ref() }.filter(|e| !e.is_null()) {
        envp.push(*entry);
        next = next.wrapping_add(1);
    }
    envp.push(variable.as_ptr());
    envp.push(std::ptr::null());
    let (fd, flags) = (
        dir.as_fd().as_raw_fd(),
        libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
    );
    // SAFETY: `path` and every entry of both lists are NUL-terminated, both lists end in null, and all of it
    // lives until the call either replaces this program or returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            path.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            flags,
        )
    };
    match checked(result, || format!("execveat({fd}, {path:?})")) {
        Err(error) => error,
        Ok(_) => unreachable!("a successful execveat doesn't return"),
    }
}

/// Removes a variable from this process's environment. The process must have one thread.
pub fn remove_variable(name: &OsStr) {
    // SAFETY: single-threaded (this crate never starts a thread), so nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) }
}
