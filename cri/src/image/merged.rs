//! What there is at a path of several layers, as overlayfs shows them: without a mount, and never outside of them.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use rtc_runtime::sys::xattr;

use super::removal::is_directory;
use super::unpack::is_whiteout;

/// As many symbolic links as the kernel follows.
const LINKS_MAX: usize = 40;
const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Layers, the uppermost first.
pub(super) struct Merged {
    roots: Vec<OwnedFd>,
}

/// What is at a path.
pub(super) enum Found {
    /// The directories that are merged into one, the uppermost first.
    Directory(Vec<OwnedFd>),
    /// Anything else (`O_PATH`).
    Other(OwnedFd, FileStat),
}

impl Merged {
    /// # Errors
    ///
    /// A layer's directory can't be opened.
    pub(super) fn open<'p>(uppermost_first: impl IntoIterator<Item = &'p Path>) -> nix::Result<Self> {
        let roots = uppermost_first
            .into_iter()
            .map(|path| open(path, DIRECTORY, Mode::empty()))
            .collect::<nix::Result<_>>()?;
        Ok(Self { roots })
    }

    /// Follows symbolic links in the path, and at its end only where `last` says so. `None`: there is nothing.
    ///
    /// # Errors
    ///
    /// `ELOOP`; the disk.
    pub(super) fn find(&self, path: &[u8], last: bool) -> nix::Result<Option<Found>> {
        Ok(self.resolve(path, last)?.map(|(_, found)| found))
    }

    /// The path, through no link, of the directory that a path leads to. `None`: it leads to none.
    ///
    /// # Errors
    ///
    /// `ELOOP`; the disk.
    pub(super) fn directory(&self, path: &[u8]) -> nix::Result<Option<Vec<Vec<u8>>>> {
        let resolved = self.resolve(path, true)?;
        Ok(resolved.and_then(|(real, found)| matches!(found, Found::Directory(_)).then_some(real)))
    }

    fn resolve(&self, path: &[u8], last: bool) -> nix::Result<Option<(Vec<Vec<u8>>, Found)>> {
        let mut todo: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut here = self.root()?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                real.pop();
                let Some(Found::Directory(above)) = self.straight(&real)? else {
                    return Ok(None);
                };
                here = above;
                continue;
            }
            match step(&here, &name)? {
                None => return Ok(None),
                Some(Found::Directory(next)) => {
                    real.push(name);
                    here = next;
                }
                Some(Found::Other(file, stat)) => {
                    let is_last = todo.is_empty();
                    if is_link(&stat) && (!is_last || last) {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err(Errno::ELOOP);
                        }
                        let target = readlinkat(&file, "")?.into_vec();
                        if target.starts_with(b"/") {
                            real.clear();
                            here = self.root()?;
                        }
                        todo.extend(names(&target).rev().map(<[u8]>::to_vec));
                    } else if is_last {
                        return Ok(Some((real, Found::Other(file, stat))));
                    } else {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some((real, Found::Directory(here))))
    }

    /// Through no link at all.
    ///
    /// # Errors
    ///
    /// The disk.
    pub(super) fn straight(&self, path: &[Vec<u8>]) -> nix::Result<Option<Found>> {
        let mut here = self.root()?;
        for (at, name) in path.iter().enumerate() {
            match step(&here, name)? {
                Some(Found::Directory(next)) => here = next,
                Some(other) if at + 1 == path.len() => return Ok(Some(other)),
                _ => return Ok(None),
            }
        }
        Ok(Some(Found::Directory(here)))
    }

    fn root(&self) -> nix::Result<Vec<OwnedFd>> {
        self.roots
            .iter()
            .map(|root| openat(root, ".", DIRECTORY, Mode::empty()))
            .collect()
    }
}

/// A regular file of these layers, as who lives in them reads it. `None`: there is none.
///
/// # Errors
///
/// `EFBIG`: it has more than `most` bytes. The disk.
pub(super) fn read_file(merged: &Merged, path: &[u8], most: u64) -> nix::Result<Option<Vec<u8>>> {
    let (file, stat) = match merged.find(path, true) {
        Ok(Some(Found::Other(file, stat))) => (file, stat),
        // Links that go round lead to nothing.
        Ok(_) | Err(Errno::ELOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if !is_regular(&stat) {
        return Ok(None);
    }
    let mut content = Vec::new();
    readable(&file)?
        .take(most.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if content.len() as u64 > most {
        return Err(Errno::EFBIG);
    }
    Ok(Some(content))
}

/// Opens what is known to be a regular file, to be read.
fn readable(file: &OwnedFd) -> nix::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).map(File::from)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// What has this name in a merged directory.
fn step(directories: &[OwnedFd], name: &[u8]) -> nix::Result<Option<Found>> {
    let mut merged = Vec::new();
    for directory in directories {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        let stat = fstat(&file)?;
        if is_directory(&stat) {
            let inner = openat(directory, name, DIRECTORY, Mode::empty())?;
            let opaque = xattr::get(&inner, OPAQUE)?.is_some_and(|value| value == b"y");
            merged.push(inner);
            if opaque {
                break;
            }
        } else if merged.is_empty() && !is_whiteout(stat.st_mode, stat.st_rdev) {
            return Ok(Some(Found::Other(file, stat)));
        } else {
            // It hides what is below it, and is hidden, or is a mark.
            break;
        }
    }
    Ok((!merged.is_empty()).then_some(Found::Directory(merged)))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn is_link(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFLNK
}

fn is_regular(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFREG
}
