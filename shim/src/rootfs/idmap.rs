//! Roots whose owners are mapped (Linux 5.12; layers of an overlay: 5.19), for pods with a user namespace.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use rtc_runtime::rootfs::make_mapping_namespace;
use rtc_runtime::sys::mount::{self, AT_RECURSIVE, MountAttr, attr};

use super::options::Options;

/// A user namespace with the mappings of users and groups.
pub(super) fn namespace(maps: &(String, String)) -> Result<OwnedFd> {
    make_mapping_namespace(&maps.0, &maps.1).context("options: uidmap, gidmap")
}

/// The parent of an overlay's lower directories, mapped, mounted beside the root for as long as the overlay is made.
pub(super) struct Layers(PathBuf);

impl Layers {
    /// Mounts it, and has the options name the layers there.
    pub(super) fn map(options: &mut Options, root: &Path, namespace: &OwnedFd) -> Result<Self> {
        let parent = options
            .parent_of_lower()
            .context("options: lowerdir: the layers have no directory in common, which could be mapped")?
            .to_owned();
        let place = place(root);
        let text = place.to_str().context("bundle: not UTF-8")?.to_owned();
        fs::create_dir_all(&place).with_context(|| format!("mkdir {place:?}"))?;
        // From here on it is undone.
        let layers = Self(place);
        attach(Path::new(&parent), &layers.0, namespace, attr::RDONLY, 0)?;
        options.move_lower(&parent, &text);
        Ok(layers)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn place(root: &Path) -> PathBuf {
    root.with_file_name("layers")
}

/// Where there is nothing mounted, and no directory, all is well.
fn remove(place: &Path) {
    let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let _ = fs::remove_dir(place);
}

/// Removes what a mount left that was killed.
pub(super) fn clean(root: &Path) {
    remove(&place(root));
}

/// Covers what is mounted with itself, mapped.
pub(super) fn cover(target: &Path, namespace: &OwnedFd) -> Result<()> {
    attach(target, target, namespace, 0, AT_RECURSIVE)
}

fn attach(source: &Path, target: &Path, namespace: &OwnedFd, set: u64, recursive: i32) -> Result<()> {
    let (from, to) = (c_string(source)?, c_string(target)?);
    let tree =
        mount::open_tree(mount::cwd(), &from, recursive).with_context(|| format!("open_tree({source:?})"))?;
    let change = MountAttr {
        set: attr::IDMAP | set,
        userns_fd: namespace.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    mount::mount_setattr(&tree, recursive, &change)
        .with_context(|| format!("mount_setattr({source:?}, IDMAP)"))?;
    mount::move_mount_to(&tree, &to).with_context(|| format!("move_mount({target:?})"))
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{path:?}"))
}
