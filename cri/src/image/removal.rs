//! Removes directories whose content a stranger made: however deep, with no more than two descriptors, never outside.
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
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    if is_empty_now(&parent, name)? {
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

/// Removes what is in a directory; directories in directories of it are moved to the top. Whether nothing is left in it.
fn empty(directory: &OwnedFd, top: &OwnedFd, next: &mut u64) -> nix::Result<bool> {
    let mut done = true;
    for name in names(directory)? {
        match unlinkat(directory, name.as_slice(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        if is_empty_now(directory, &name)? {
            continue;
        }
        let inner = openat(directory, name.as_slice(), DIRECTORY, Mode::empty())?;
        flatten(&inner, top, next)?;
        // What was moved up from it is seen in the next round.
        done = false;
        is_empty_now(directory, &name)?;
    }
    Ok(done)
}

/// Removes the files of a directory, and moves its directories up to the top.
fn flatten(directory: &OwnedFd, top: &OwnedFd, next: &mut u64) -> nix::Result<()> {
    for name in names(directory)? {
        match unlinkat(directory, name.as_slice(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        if is_empty_now(directory, &name)? {
            continue;
        }
        loop {
            let free = format!(".rtc-{next}");
            *next += 1;
            match renameat(directory, name.as_slice(), top, free.as_str()) {
                Ok(()) => break,
                // The stranger has one of that name.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn names(directory: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    let own = openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// What is there, links not followed.
pub(super) fn stat(parent: impl AsFd, name: &[u8]) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
