//! Copies what is in a directory of an image: owners, modes, times of files, attributes, hard links among them, holes.
//!
//! A stranger made it: no link is followed, nothing is gone down into but by descriptors, a file of holes stays one. Devices
//! and sockets are left out.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, fchownat, linkat, lseek, symlinkat};
use rtc_runtime::sys::xattr;

use super::{beneath, removal};

/// The most bytes of names that are remembered at once.
const NAMES: usize = 64 << 20;
/// Those of overlayfs are its own, a label is given by whoever needs it.
const NOT_COPIED: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];

struct Copy<'a> {
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    /// Directories that wait for their turn.
    waiting: Vec<Vec<u8>>,
    /// Where files are that have more than one name: by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    names: usize,
}

/// Copies what is in `source` into `target`, which becomes like it. Nobody else changes either meanwhile.
///
/// # Errors
///
/// What can't be copied, with its path.
pub(super) fn tree(source: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let mut copy = Copy {
        source,
        target,
        waiting: vec![Vec::new()],
        linked: HashMap::new(),
        names: 0,
    };
    while let Some(path) = copy.waiting.pop() {
        copy.names -= path.len();
        copy.directory(&path)
            .with_context(|| String::from_utf8_lossy(&path).into_owned())?;
    }
    Ok(())
}

impl Copy<'_> {
    /// One that is in the target already: its own properties, and what is in it.
    fn directory(&mut self, path: &[u8]) -> Result<()> {
        let from = beneath::directory(self.source, path)?.context("is not there")?;
        let to = beneath::directory(self.target, path)?.context("is not there")?;
        let mut entries = Dir::from_fd(from)?;
        let from = entries.as_fd().try_clone_to_owned()?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(path, &from, &to, name)
                    .with_context(|| name.to_string_lossy().into_owned())?;
            }
        }
        properties(&from, &to, &fstat(&from)?)
    }

    fn entry(&mut self, path: &[u8], from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
        let Some(stat) = removal::stat(from, name.to_bytes())? else {
            return Ok(());
        };
        let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
        let whole = [path, separator, name.to_bytes()].concat();
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            mkdirat(to, name, Mode::S_IRWXU)?;
            self.remember(whole.len())?;
            self.waiting.push(whole);
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&inode) {
                return Ok(linkat(self.target, first.as_slice(), to, name, AtFlags::empty())?);
            }
            if matches!(kind, SFlag::S_IFREG | SFlag::S_IFLNK | SFlag::S_IFIFO) {
                self.remember(whole.len())?;
                self.linked.insert(inode, whole);
            }
        }
        match kind {
            SFlag::S_IFREG => file(from, to, name),
            SFlag::S_IFLNK => {
                symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
                owner(to, name, &stat)?;
                let (accessed, modified) = times(&stat);
                Ok(utimensat(
                    to,
                    name,
                    &accessed,
                    &modified,
                    UtimensatFlags::NoFollowSymlink,
                )?)
            }
            SFlag::S_IFIFO => {
                mknodat(to, name, SFlag::S_IFIFO, mode(&stat), 0)?;
                owner(to, name, &stat)
            }
            _ => Ok(()),
        }
    }

    fn remember(&mut self, length: usize) -> Result<()> {
        self.names += length;
        ensure!(self.names <= NAMES, "has too many directories and links");
        Ok(())
    }
}

fn file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let from = openat(from, name, flags, Mode::empty())?;
    let stat = fstat(&from)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let to = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let length = u64::try_from(stat.st_size)?;
    to.set_len(length)?;
    let from = File::from(from);
    content(&from, &to, length)?;
    properties(&from.into(), &to.into(), &stat)
}

/// What is between the holes.
fn content(from: &File, to: &File, length: u64) -> Result<()> {
    let mut at = 0;
    while at < length {
        let data = match lseek(from, i64::try_from(at)?, Whence::SeekData) {
            Ok(data) => data,
            // Nothing but a hole.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = lseek(from, data, Whence::SeekHole)?;
        lseek(from, data, Whence::SeekSet)?;
        lseek(to, data, Whence::SeekSet)?;
        // The kernel copies, or shares, where it can.
        let copied = std::io::copy(&mut from.take(u64::try_from(hole - data)?), &mut &*to)?;
        ensure!(copied == u64::try_from(hole - data)?, "it is shorter than it was");
        at = u64::try_from(hole)?;
    }
    (&*to).flush()?;
    Ok(())
}

/// Owner before mode and attributes: a change of owner takes set-uid bits and capabilities away.
fn properties(from: &OwnedFd, to: &OwnedFd, stat: &FileStat) -> Result<()> {
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(to, mode(stat))?;
    for name in xattr::list(from)? {
        if NOT_COPIED.iter().any(|own| name.to_bytes().starts_with(own)) {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            match xattr::set(to, &name, &value) {
                // The file system of containers has none.
                Ok(()) | Err(Errno::ENOTSUP) => {}
                Err(errno) => return Err(errno).with_context(|| name.to_string_lossy().into_owned()),
            }
        }
    }
    let (accessed, modified) = times(stat);
    Ok(futimens(to, &accessed, &modified)?)
}

fn owner(directory: &OwnedFd, name: &CStr, stat: &FileStat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(fchownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?)
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::{Path, PathBuf};

    fn copied(name: &str, fill: impl FnOnce(&Path)) -> (PathBuf, Result<()>) {
        let path = std::env::temp_dir().join(format!("rtc-copy-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        for name in ["from", "to"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fill(&path.join("from"));
        let open = |name: &str| OwnedFd::from(File::open(path.join(name)).unwrap());
        let result = tree(&open("from"), &open("to"));
        (path, result)
    }

    #[test]
    fn a_copy_is_as_the_image_has_it() {
        let (path, result) = copied("whole", |from| {
            fs::create_dir_all(from.join("a/b")).unwrap();
            fs::write(from.join("a/b/file"), "text").unwrap();
            fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4750)).unwrap();
            fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
            fs::set_permissions(from, fs::Permissions::from_mode(0o2770)).unwrap();
            fs::hard_link(from.join("a/b/file"), from.join("same")).unwrap();
            symlink("/etc/shadow", from.join("link")).unwrap();
            nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
            let old = File::open(from.join("same")).unwrap();
            let _ = xattr::set(&old, c"user.note", b"kept");
            old.set_modified(std::time::UNIX_EPOCH).unwrap();
        });
        result.unwrap();
        let to = path.join("to");
        let mode = |name: &str| fs::symlink_metadata(to.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode(""), mode("a"), mode("same")), (0o2770, 0o1777, 0o4750));
        let (one, other) = (
            fs::metadata(to.join("same")).unwrap(),
            fs::metadata(to.join("a/b/file")).unwrap(),
        );
        assert_eq!(one.ino(), other.ino());
        assert_eq!(one.mtime(), 0);
        assert_eq!(fs::read_to_string(to.join("same")).unwrap(), "text");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/shadow"));
        assert!(to.join("fifo").exists() && !to.join("socket").exists());
        let note = |name: &str| xattr::get(File::open(path.join(name)).unwrap(), c"user.note").unwrap();
        assert_eq!(note("to/same"), note("from/same"));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_terabyte_of_holes_stays_one() {
        let (path, result) = copied("holes", |from| {
            let file = File::create(from.join("huge")).unwrap();
            file.set_len(1 << 40).unwrap();
            file.write_all_at(b"end", (1 << 40) - 3).unwrap();
        });
        result.unwrap();
        let file = fs::metadata(path.join("to/huge")).unwrap();
        assert_eq!(file.len(), 1 << 40);
        assert!(file.blocks() < 1 << 12, "{} blocks", file.blocks());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn however_deep_it_goes_two_descriptors_are_enough() {
        let (path, result) = copied("deep", |from| {
            let deep: PathBuf = std::iter::repeat_n("d", 1500).collect();
            fs::create_dir_all(from.join(deep)).unwrap();
        });
        result.unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 1500).collect();
        assert!(path.join("to").join(deep).exists());
        fs::remove_dir_all(path).unwrap();
    }
}
