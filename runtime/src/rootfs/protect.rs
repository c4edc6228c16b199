//! maskedPaths and readonlyPaths: what the container may not see, and may not change.
//!
//! - A file is covered by /dev/null, which is checked to be it on the descriptor that is then bound (CVE-2025-31133).
//! - A directory is covered by an empty read-only tmpfs, one for all of them: a kubelet masks a directory for each CPU.
//! - A path that leads to nothing is left out. What it is, is asked before a mount is tried: the kernel takes
//!   milliseconds to give up a failed one.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, makedev};

use super::options::Change;
use super::path::{InsidePath, Links, Root, open_error};
use super::tree::{self, Filesystem, is_directory};
use crate::sys::Named;
use crate::sys::mount::{self as sys, AT_RECURSIVE, attr};

const READ_ONLY: Change = Change {
    set: attr::RDONLY,
    clear: 0,
};

/// The paths, cleaned.
#[derive(Debug, Default)]
pub(crate) struct Protection {
    masked: Vec<InsidePath>,
    read_only: Vec<InsidePath>,
}

impl Protection {
    /// Plans `linux.maskedPaths` and `linux.readonlyPaths`.
    pub(crate) fn plan(masked: Option<&Vec<String>>, read_only: Option<&Vec<String>>) -> Result<Protection> {
        let clean = |field: &str, paths: Option<&Vec<String>>| {
            paths
                .into_iter()
                .flatten()
                .map(|path| {
                    let path = InsidePath::new(Path::new(path)).with_context(|| field.to_owned())?;
                    if path.is_root() {
                        bail!("{field}: /: the whole root filesystem: use root.readonly");
                    }
                    Ok(path)
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok(Protection {
            masked: clean("linux.maskedPaths", masked)?,
            read_only: clean("linux.readonlyPaths", read_only)?,
        })
    }

    /// Protects all of them. Read-only paths come first: a mask may lie within one.
    pub(crate) fn execute(&self, root: &Root) -> Result<()> {
        for path in &self.read_only {
            make_read_only(root, path).with_context(|| format!("make {path} read-only"))?;
        }
        let mut mask = Mask::default();
        for path in &self.masked {
            mask.cover(root, path).with_context(|| format!("mask {path}"))?;
        }
        Ok(())
    }
}

/// Opens what the path leads to, if anything.
fn find(root: &Root, path: &InsidePath) -> Result<Option<OwnedFd>> {
    match root.open(path, 0, Links::Follow) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(open_error(path, errno).into()),
    }
}

fn make_read_only(root: &Root, path: &InsidePath) -> Result<()> {
    let Some(covered) = find(root, path)? else {
        return Ok(());
    };
    let tree = sys::open_tree(&covered, c"", AT_RECURSIVE).call(|| "open_tree(CLONE|RECURSIVE)".into())?;
    let pending = match sys::mount_setattr(&tree, AT_RECURSIVE, &READ_ONLY.as_attr()) {
        Ok(()) => false,
        Err(Errno::ENOSYS) => true,
        Err(errno) => return Err(errno).call(|| "mount_setattr(RECURSIVE, RDONLY)".into())?,
    };
    sys::move_mount(&tree, &covered).call(|| "move_mount".into())?;
    if pending {
        // Before Linux 5.12 only this mount, not those below it, as other runtimes do on every kernel.
        tree::change_attached(&tree, READ_ONLY)?;
    }
    Ok(())
}

/// What covers the masked paths, made when it is first needed.
#[derive(Default)]
struct Mask {
    directory: Option<OwnedFd>,
    null: Option<OwnedFd>,
}

impl Mask {
    fn cover(&mut self, root: &Root, path: &InsidePath) -> Result<()> {
        let Some(covered) = find(root, path)? else {
            return Ok(());
        };
        let directory = is_directory(&covered)?;
        let cover = if directory {
            &mut self.directory
        } else {
            &mut self.null
        };
        let tree = match cover {
            Some(first) => sys::open_tree(&*first, c"", 0).call(|| "open_tree(CLONE)".into())?,
            None if directory => empty_directory()?,
            None => {
                let null = open_null(root)?;
                sys::open_tree(&null, c"", 0).call(|| "open_tree(\"/dev/null\", CLONE)".into())?
            }
        };
        sys::move_mount(&tree, &covered).call(|| "move_mount".into())?;
        if cover.is_none() {
            *cover = Some(tree);
        }
        Ok(())
    }
}

/// A detached, empty, read-only tmpfs.
fn empty_directory() -> Result<OwnedFd> {
    let filesystem = Filesystem::new(c"tmpfs", Some(c"tmpfs".into()), Vec::new(), attr::RDONLY);
    filesystem.create(None)
}

/// The container's /dev/null, if it is that: the image or a mount could have put anything there.
fn open_null(root: &Root) -> Result<OwnedFd> {
    let path = InsidePath::new(Path::new("/dev/null"))?;
    let null = root
        .open(&path, 0, Links::NotLast)
        .map_err(|errno| open_error(&path, errno))?;
    let found = fstat(&null).call(|| "fstat(\"/dev/null\")".into())?;
    if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() || found.st_rdev != makedev(1, 3) {
        bail!("/dev/null is not the null device (c 1:3)");
    }
    Ok(null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_are_below_the_root() {
        let masked = vec!["proc/kcore".to_owned(), "/sys//firmware/".to_owned()];
        let protection = Protection::plan(Some(&masked), None).unwrap();
        let paths: Vec<String> = protection.masked.iter().map(ToString::to_string).collect();
        assert_eq!(paths, ["/proc/kcore", "/sys/firmware"]);
    }

    #[test]
    fn the_root_can_neither_be_masked_nor_protected() {
        for path in ["/", "/..", ""] {
            let error = Protection::plan(None, Some(&vec![path.to_owned()])).unwrap_err();
            assert!(
                format!("{error:#}").starts_with("linux.readonlyPaths: /"),
                "{error:#}"
            );
        }
    }
}
