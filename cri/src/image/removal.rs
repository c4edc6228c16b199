//! Removes directories whose content a stranger made: however deep, with few descriptors and little memory, never outside.
//!
//! Directories are not gone down into. What is in one, and has something in it, is moved up to its top; so nothing is ever
//! more than two levels below.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Whether it is a directory, and no link to one.
pub(super) fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Removes what is at the path, if anything is.
///
/// # Errors
///
/// The first call that failed.
pub(super) fn remove(path: &Path) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL);
    };
    match nix::fcntl::open(parent, DIRECTORY, Mode::empty()) {
        Ok(parent) => remove_at(parent, std::os::unix::ffi::OsStrExt::as_bytes(name)),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes what has this name in a directory, if anything has.
///
/// # Errors
///
/// The first call that failed.
pub(super) fn remove_at(parent: impl AsFd, name: &[u8]) -> nix::Result<()> {
    if is_removed(&parent, name)? {
        return Ok(());
    }
    let top = openat(&parent, name, DIRECTORY, Mode::empty())?;
    let mut next = 0;
    while !empty(&top, &top, &mut next)? {}
    unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
}

/// Removes a directory that has nothing in it.
fn is_empty_now(parent: impl AsFd, name: &[u8]) -> nix::Result<bool> {
    match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes what is in a directory; directories in directories of it are moved to the top. Whether nothing was in it.
fn empty(directory: &OwnedFd, top: &OwnedFd, next: &mut u64) -> nix::Result<bool> {
    let mut was_empty = true;
    each(directory, |name| {
        // What was moved up from it, and what a directory that changes did not show, is seen in the next round.
        was_empty = false;
        if is_removed(directory, name)? {
            return Ok(());
        }
        let inner = openat(directory, name, DIRECTORY, Mode::empty())?;
        flatten(&inner, top, next)?;
        is_empty_now(directory, name).map(drop)
    })?;
    Ok(was_empty)
}

/// Removes the files of a directory, and moves its directories up to the top.
fn flatten(directory: &OwnedFd, top: &OwnedFd, next: &mut u64) -> nix::Result<()> {
    each(directory, |name| {
        if is_removed(directory, name)? {
            return Ok(());
        }
        loop {
            let free = format!(".rtc-{next}");
            *next += 1;
            match renameat(directory, name, top, free.as_str()) {
                Ok(()) => return Ok(()),
                // The stranger has one of that name.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
    })
}

/// Removes what is no directory, or an empty one.
fn is_removed(parent: impl AsFd, name: &[u8]) -> nix::Result<bool> {
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => is_empty_now(parent, name),
        Err(errno) => Err(errno),
    }
}

/// Does it with each name in a directory, as it is read: a stranger's directory may have any number.
fn each(directory: &OwnedFd, mut what: impl FnMut(&[u8]) -> nix::Result<()>) -> nix::Result<()> {
    let own = openat(directory, ".", DIRECTORY, Mode::empty())?;
    for entry in Dir::from_fd(own)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            what(name)?;
        }
    }
    Ok(())
}

/// What is there, links not followed.
pub(super) fn stat(parent: impl AsFd, name: &[u8]) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
