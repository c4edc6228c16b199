//! A cgroup directory held open, and the few things done with the files in it.
//!
//! Every access is relative to the directory's descriptor: one path walk serves all of its files, and a limit costs
//! one `openat` and one `write`.

use std::fmt::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::{Errno, Error, Named as _, Result};

/// What a value may weigh in an error text; cpu lists of large machines are longer than a line.
const SHOWN_VALUE: usize = 80;

/// The links to a directory without directories: its name, and its own `.`.
const CHILDLESS: libc::nlink_t = 2;

/// A cgroup directory, open with `O_PATH`: enough for `openat`, `mkdirat` and `CLONE_INTO_CGROUP`.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens a directory by its path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens a directory in this one; `name` is one component.
    pub(crate) fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).call(|| format!("open({path:?})"))?;
        Ok(Self { fd, path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a cgroup in this one. `false`: it was there already.
    pub(crate) fn make(&self, name: &str) -> Result<bool> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno).call(|| format!("mkdir({:?})", self.path.join(name))),
        }
    }

    /// Removes a cgroup in this one.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)
            .call(|| format!("rmdir({:?})", self.path.join(name)))
    }

    /// Opens one of its files.
    pub(crate) fn file(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        openat(&self.fd, name, flags | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open({:?})", self.path.join(name)))
    }

    /// Sets a file to a value, with one `write`: the kernel takes a value whole or not at all.
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<()> {
        let written = openat(&self.fd, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(|file| nix::unistd::write(&file, value.as_bytes()));
        written.map(|_| ()).call(|| write_call(name, value))
    }

    /// The content of a file that the kernel writes in one piece (all but the lists of processes), as text.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        // What comes in one piece ends where a read falls short: no second read to see the end.
        self.read_while(name, |length, room| length == room)
    }

    /// The content of a file that comes in pieces, one record each.
    pub(crate) fn read_list(&self, name: &str) -> Result<String> {
        self.read_while(name, |length, _| length > 0)
    }

    fn read_while(&self, name: &str, more: impl Fn(usize, usize) -> bool) -> Result<String> {
        read_while(&self.file(name, OFlag::O_RDONLY)?, more, || self.path.join(name))
    }

    /// A file that holds one number; `max` is `u64::MAX`.
    pub(crate) fn read_number(&self, name: &str) -> Result<u64> {
        let content = self.read(name)?;
        let content = content.trim();
        if content == "max" {
            return Ok(u64::MAX);
        }
        content.parse().map_err(|_| Error {
            call: format!("read({:?}): {content:?} is no number", self.path.join(name)),
            errno: Errno::EINVAL,
        })
    }

    /// The names of the cgroups in this one.
    pub(crate) fn children(&self) -> Result<Vec<String>> {
        let status = nix::sys::stat::fstat(&self.fd).call(|| format!("fstat({:?})", self.path))?;
        if status.st_nlink == CHILDLESS {
            return Ok(Vec::new());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty())
            .call(|| format!("open({:?})", self.path))?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.call(|| format!("getdents({:?})", self.path))?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == Some(nix::dir::Type::Directory) && name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The content of a file that is needed once, by its path; as [`Dir::read`].
pub(crate) fn read(path: &Path) -> Result<String> {
    let file = open_file(path, OFlag::O_RDONLY)?;
    read_while(&file, |length, room| length == room, || path.to_owned())
}

/// Opens a file by its path.
pub(crate) fn open_file(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))
}

/// Makes a cgroup. `false`: it was there already.
pub(crate) fn make(path: &Path) -> Result<bool> {
    match nix::unistd::mkdir(path, Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno).call(|| format!("mkdir({path:?})")),
    }
}

/// Removes a cgroup. One that is gone already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).call(|| format!("rmdir({path:?})")),
    }
}

fn read_while(
    file: &OwnedFd,
    more: impl Fn(usize, usize) -> bool,
    path: impl FnOnce() -> PathBuf,
) -> Result<String> {
    let mut content = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = match nix::unistd::read(file, &mut buffer) {
            Ok(length) => length,
            Err(errno) => return Err(errno).call(|| format!("read({:?})", path())),
        };
        content.extend_from_slice(&buffer[..length]);
        if !more(length, buffer.len()) {
            break;
        }
    }
    // The kernel writes ASCII here, except names of devices and the like: nothing we look for.
    Ok(String::from_utf8(content)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// How a write is named in an error.
pub(crate) fn write_call(name: &str, value: &str) -> String {
    let mut call = format!("write {name} ");
    match value.char_indices().nth(SHOWN_VALUE) {
        Some((end, _)) => write!(call, "{:?}...", &value[..end]),
        None => write!(call, "{value:?}"),
    }
    .unwrap_or_else(|fmt::Error| unreachable!("writing to a String does not fail"));
    call
}
