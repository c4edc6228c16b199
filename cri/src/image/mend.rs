//! Makes a layer, which was unpacked for itself, what it would be if it had been unpacked on those below it.
//!
//! The process that unpacks sees no other layer, and may not set overlayfs's marks. Here both are done, by names that it
//! reports: they are the image's, and looked up beneath the layer's directory, through no link.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::unistd::{Gid, Uid, fchown, linkat};
use rtc_runtime::sys::xattr;

use super::beneath;
use super::merged::{Found, Merged};
use super::relocate::relocate;
use super::unpack::Summary;

const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Mends the layer in `directory`. `below`: those below it, the uppermost first.
///
/// # Errors
///
/// A hard link to what no layer has; the disk.
pub(super) fn mend(directory: &Path, below: &[PathBuf], mut summary: Summary) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(directory, flags, Mode::empty()).with_context(|| format!("open {directory:?}"))?;
    let merged = Merged::open(below.iter().map(PathBuf::as_path)).context("open the layers below")?;
    if !summary.root_is_named && !below.is_empty() {
        implicit(&root, &merged, b"")?;
    }
    relocate(&root, &merged, &mut summary).context("directories that are links below")?;
    for path in &summary.implicit {
        implicit(&root, &merged, path).with_context(|| shown(path))?;
    }
    let with_itself = Merged::open(std::iter::once(directory).chain(below.iter().map(PathBuf::as_path)))?;
    for (name, target) in &summary.links {
        link(&root, &with_itself, name, target)
            .with_context(|| format!("{}: hard link to {}", shown(name), shown(target)))?;
    }
    // Last: what they hide was looked at.
    for path in &summary.opaque {
        // It may be something else by now.
        if let Some(directory) = beneath::directory(&root, path).with_context(|| shown(path))? {
            xattr::set(&directory, OPAQUE, b"y").with_context(|| format!("{}: {OPAQUE:?}", shown(path)))?;
        }
    }
    Ok(())
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// A directory that no entry names is what it is in the layers below.
fn implicit(root: &OwnedFd, merged: &Merged, path: &[u8]) -> Result<()> {
    let names: Vec<Vec<u8>> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    let Some(Found::Directory(found)) = merged.straight(&names).context("look it up below")? else {
        return Ok(());
    };
    let (Some(below), Some(here)) = (found.first(), beneath::directory(root, path)?) else {
        return Ok(());
    };
    let stat = fstat(below).context("stat")?;
    describe(&here, below, &stat)
}

/// Owner, mode, attributes and time of one for another; no mark of overlayfs.
fn describe(file: &OwnedFd, from: &OwnedFd, stat: &FileStat) -> Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(file, Some(owner.0), Some(owner.1)).context("chown")?;
    fchmod(file, Mode::from_bits_truncate(stat.st_mode)).context("chmod")?;
    for name in xattr::list(from).context("list xattrs")? {
        if name.to_bytes().starts_with(b"trusted.") || name.to_bytes() == b"security.selinux" {
            continue;
        }
        if let Some(value) = xattr::get(from, &name).context("get xattr")? {
            xattr::set(file, &name, &value).with_context(|| format!("xattr {name:?}"))?;
        }
    }
    let time = |seconds, nanos| TimeSpec::seconds(seconds) + TimeSpec::nanoseconds(nanos);
    futimens(
        file,
        &time(stat.st_atime, stat.st_atime_nsec),
        &time(stat.st_mtime, stat.st_mtime_nsec),
    )
    .context("futimens")
}

/// A hard link to a file of a layer below. It is one: all layers are on one file system, and nobody writes to a layer's files.
fn link(root: &OwnedFd, merged: &Merged, name: &[u8], target: &[u8]) -> Result<()> {
    let Some(Found::Other(found, _)) = merged.find(target, false).context("look it up")? else {
        bail!("no layer has such a file");
    };
    let (path, last) = match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (&b""[..], name),
    };
    let parent = beneath::directory(root, path)?.context("its directory is gone")?;
    let found = format!("/proc/self/fd/{}", found.as_raw_fd());
    linkat(
        AT_FDCWD,
        found.as_str(),
        &parent,
        last,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
    .context("link")
}
