//! Moves what a layer has below a symbolic link of lower layers to where that link leads.
//!
//! ```text
//! below: lib -> usr/lib      layer: lib/x.so, and no entry for lib      unpacked for itself: lib/x.so hides the link
//!                                                                       on those below:      usr/lib/x.so
//! ```
//!
//! Only directories that no entry names are such: an entry takes the place of the link. Looked up beneath the layer's
//! directory, through no link, as in mend.rs.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, futimens, mkdirat};
use nix::sys::time::{TimeSpec, TimeValLike as _};

use super::beneath;
use super::merged::{Found, Merged};
use super::removal;
use super::unpack::Summary;

/// So many of one layer are moved: each is looked for in all that was reported.
const MOVES_MAX: usize = 1000;

/// Moves them in the layer whose directory `root` is, and changes what was reported accordingly.
///
/// # Errors
///
/// Too many; the disk.
pub(super) fn relocate(root: &OwnedFd, below: &Merged, summary: &mut Summary) -> Result<()> {
    let opaque: HashSet<Vec<u8>> = summary.opaque.iter().cloned().collect();
    let (mut at, mut moves) = (0, 0);
    while let Some(from) = summary.implicit.get(at).cloned() {
        at += 1;
        // What is below is hidden.
        if above(&from).any(|path| opaque.contains(path)) {
            continue;
        }
        let Some(to) = destination(below, &from)? else {
            continue;
        };
        let Some(made) = make(root, &to)? else {
            continue;
        };
        moves += 1;
        ensure!(
            moves <= MOVES_MAX,
            "more than {MOVES_MAX} directories that are links below"
        );
        let to = to.join(&b'/');
        move_content(root, &from, &to)?;
        at -= 1;
        summary.implicit.remove(at);
        let names = summary.links.iter_mut().map(|(name, _)| name);
        for path in names.chain(&mut summary.implicit).chain(&mut summary.opaque) {
            rebase(path, &from, &to);
        }
        summary.implicit.extend(made);
    }
    Ok(())
}

/// The directories that one is in, without the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    ends.map(|(end, _)| &path[..end])
}

/// Where a link of the layers below leads, if it is one to a directory.
fn destination(below: &Merged, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
    let names: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    let Some(Found::Other(..)) = below.straight(&names).context("look it up below")? else {
        return Ok(None);
    };
    match below.directory(path) {
        // Links that go round lead nowhere, and those into what is to be moved are none that an image has.
        Ok(real) => Ok(real.filter(|real| !real.starts_with(&names))),
        Err(Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno).context("follow a link below"),
    }
}

/// Makes a directory, with those above it: the new ones. `None`: the layer has something else there.
fn make(root: &OwnedFd, names: &[Vec<u8>]) -> Result<Option<Vec<Vec<u8>>>> {
    let mut made = Vec::new();
    let mut path = Vec::new();
    for name in names {
        let Some(parent) = beneath::directory(root, &path)? else {
            return Ok(None);
        };
        path = join(&path, name);
        let result = in_time(&parent, || {
            mkdirat(&parent, &name[..], Mode::from_bits_truncate(0o755))
        })?;
        match result {
            Ok(()) => made.push(path.clone()),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).context("mkdir"),
        }
    }
    Ok(beneath::directory(root, &path)?.map(|_| made))
}

/// Moves all that is in one directory into another, and removes it. Of what both have, directories are merged, and anything else
/// stays what it is there.
fn move_content(root: &OwnedFd, from: &[u8], to: &[u8]) -> Result<()> {
    let aside = put_aside(root, from)?;
    let mut todo = vec![(aside.clone(), to.to_vec())];
    while let Some((from, to)) = todo.pop() {
        let open = |path| beneath::directory(root, path)?.context("a directory is gone");
        let (source, target) = (open(&from)?, open(&to)?);
        in_time(&target, || -> Result<()> {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            for entry in Dir::from_fd(openat(&source, ".", flags, Mode::empty())?)?.iter() {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let there = removal::stat(&target, name)?;
                let is_directory = |stat| removal::is_directory(&stat);
                if there.is_none() {
                    renameat(&source, name, &target, name).context("rename")?;
                } else if there.is_some_and(is_directory)
                    && removal::stat(&source, name)?.is_some_and(is_directory)
                {
                    todo.push((join(&from, name), join(&to, name)));
                }
            }
            Ok(())
        })??;
    }
    in_time(root, || removal::remove_at(root, &aside))?.context("remove what is left")
}

/// Gives a directory a name that the layer's root has not: it may have to come to where something of its own name is
/// (`bin/X11 -> .`).
fn put_aside(root: &OwnedFd, from: &[u8]) -> Result<Vec<u8>> {
    let (parent, name) = match from.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&from[..at], &from[at + 1..]),
        None => (&b""[..], from),
    };
    let parent = beneath::directory(root, parent)?.context("its directory is gone")?;
    let mut number = 0;
    let aside = loop {
        let free = format!(".rtc-{number}").into_bytes();
        if removal::stat(root, &free)?.is_none() {
            break free;
        }
        number += 1;
    };
    let moved = in_time(root, || {
        in_time(&parent, || renameat(&parent, name, root, &aside[..]))
    });
    moved??.context("rename")?;
    Ok(aside)
}

/// Does it, and sets the times of a directory to what they were before.
fn in_time<T>(directory: &OwnedFd, what: impl FnOnce() -> T) -> Result<T> {
    let stat = fstat(directory).context("stat")?;
    let done = what();
    let time = |seconds, nanos| TimeSpec::seconds(seconds) + TimeSpec::nanoseconds(nanos);
    futimens(
        directory,
        &time(stat.st_atime, stat.st_atime_nsec),
        &time(stat.st_mtime, stat.st_mtime_nsec),
    )
    .context("futimens")?;
    Ok(done)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

/// A path in a directory that was moved.
fn rebase(path: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    if let Some(rest) = path.strip_prefix(from)
        && (rest.is_empty() || rest.starts_with(b"/"))
    {
        *path = [to, rest].concat();
        // To the root.
        if to.is_empty() && !path.is_empty() {
            path.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_in_it_is_elsewhere() {
        for (path, to, expected) in [
            ("lib/x/y", "usr/lib", "usr/lib/x/y"),
            ("lib", "usr/lib", "usr/lib"),
            ("lib64/x", "usr/lib", "lib64/x"),
            ("lib/x", "", "x"),
            ("lib", "", ""),
        ] {
            let mut path = path.as_bytes().to_vec();
            rebase(&mut path, b"lib", to.as_bytes());
            assert_eq!(path, expected.as_bytes());
        }
    }

    #[test]
    fn what_is_above_is_without_the_root() {
        assert_eq!(above(b"a/b/c").collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
        assert_eq!(above(b"a").count(), 0);
    }
}
