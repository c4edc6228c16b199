//! Images as volumes: mounted read-only at a path of ours for as long as a container is there, to be bound into it.
//!
//! ```text
//! <root>/containers/<id>/volumes/<n>     the mount
//! <root>/containers/<id>/volume-layers   the numbers of their layers, which stay meanwhile (snapshot.rs)
//! ```

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result as Anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use rtc_runtime::rootfs::make_mapping_namespace;
use rtc_runtime::sys::mount::{self as tree, MountAttr, attr};
use rtc_runtime::sys::open::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2};

use super::{Image, Images, Users, snapshot};
use crate::error::{Error, Result};

/// What mount(2) takes as options, in bytes: a page, with its end.
const OPTIONS_MAX: usize = 4000;

/// An image that is mounted for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// To be bound, read-only, into the container: a directory or a file.
    pub(crate) path: PathBuf,
}

impl Images {
    /// An image as a read-only volume of a container (`Mount.image`), mounted until its `discard`: the path to bind. Owners
    /// are mapped as `users` says, below the overlay, which itself can't be mapped.
    ///
    /// # Errors
    ///
    /// `sub_path` is not in the image.
    pub(crate) async fn mount_volume(
        &self,
        container: &str,
        image: &Image,
        sub_path: &str,
        users: Option<Users>,
    ) -> Result<Volume> {
        snapshot::check(container)?;
        if Path::new(sub_path)
            .components()
            .any(|part| part == Component::ParentDir)
        {
            return Err(Error::invalid(format_args!(
                "image_sub_path: {sub_path:?}: must have no \"..\""
            )));
        }
        let numbers = self.hold_layers(image)?;
        let directory = self.snapshots.directory(container);
        let all = self.snapshots.add_volume(container, &numbers);
        let (layers, sub_path) = (image.layers.clone(), sub_path.to_owned());
        let mounted = tokio::task::spawn_blocking(move || {
            snapshot::make_directory(&directory, 0o700)?;
            snapshot::write_numbers(&directory.join("volume-layers"), &all)?;
            let target = next(&directory.join("volumes"))?;
            attach(&layers, &target, users.as_ref())
                .with_context(|| format!("mount {}", target.display()))?;
            // What is left of it here goes with the container.
            resolve(&target, &sub_path).with_context(|| format!("image_sub_path: {sub_path:?}"))
        });
        let path = mounted.await.context("mount an image")??;
        Ok(Volume { path })
    }

    pub(super) async fn unmount_volumes(&self, container: &str) -> Result<()> {
        let directory = self.snapshots.directory(container).join("volumes");
        let unmounted = tokio::task::spawn_blocking(move || detach(&directory));
        Ok(unmounted.await.context("unmount images")??)
    }
}

/// A directory of its own for the next one.
pub(super) fn next(volumes: &Path) -> Anyhow<PathBuf> {
    snapshot::make_directory(volumes, 0o700)?;
    for number in 0..u32::MAX {
        let path = volumes.join(number.to_string());
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("mkdir {}", path.display())),
        }
    }
    bail!("{}: is full", volumes.display())
}

/// Mounts layers, the lowest first, read-only.
pub(super) fn attach(layers: &[PathBuf], target: &Path, users: Option<&Users>) -> Anyhow<()> {
    match (layers, users) {
        // Nothing is in it.
        ([], _) => bind(target, target, users),
        // overlayfs wants two.
        ([one], _) => bind(one, target, users),
        (_, None) => overlay(layers, target),
        (_, Some(_)) => mapped(layers, target, users),
    }
}

/// The layers, their owners mapped, are mounted beside for as long as the overlay is made.
fn mapped(layers: &[PathBuf], target: &Path, users: Option<&Users>) -> Anyhow<()> {
    let all = layers[0].ancestors().find(|parent| {
        layers
            .iter()
            .all(|layer| layer.starts_with(parent) && layer != parent)
    });
    let all = all.context("the layers have no directory in common")?;
    let beside = next(target.parent().context("has no parent")?)?;
    let made = bind(all, &beside, users).and_then(|()| {
        let there: std::result::Result<Vec<PathBuf>, _> = layers
            .iter()
            .map(|layer| layer.strip_prefix(all).map(|name| beside.join(name)))
            .collect();
        overlay(&there?, target)
    });
    // Nothing is mounted there where that failed; what stays goes with the container.
    let _ = umount2(&beside, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let _ = fs::remove_dir(&beside);
    made
}

fn bind(source: &Path, target: &Path, users: Option<&Users>) -> Anyhow<()> {
    let own = tree::open_tree(tree::cwd(), &c_string(source)?, 0).context("open_tree")?;
    let mut change = MountAttr {
        set: attr::RDONLY | attr::NODEV,
        ..MountAttr::default()
    };
    let namespace = users
        .map(|users| make_mapping_namespace(&lines(&users.uids), &lines(&users.gids)))
        .transpose()
        .context("map owners")?;
    if let Some(namespace) = &namespace {
        change.set |= attr::IDMAP;
        change.userns_fd = u64::try_from(namespace.as_raw_fd())?;
    }
    tree::mount_setattr(&own, 0, &change).context("mount_setattr")?;
    tree::move_mount_to(&own, &c_string(target)?).context("move_mount")
}

/// As `/proc/<pid>/uid_map` takes them.
fn lines(maps: &[(u32, u32, u32)]) -> String {
    maps.iter()
        .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
        .collect()
}

fn overlay(layers: &[PathBuf], target: &Path) -> Anyhow<()> {
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|path| path.display().to_string())
        .collect();
    let options = format!("index=off,lowerdir={}", lower.join(":"));
    if options.len() < OPTIONS_MAX {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
        return mount(
            Some("overlay"),
            target,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )
        .context("overlay");
    }
    let context = tree::fsopen(c"overlay").context("fsopen(overlay)")?;
    for layer in layers.iter().rev() {
        tree::fsconfig(&context, c"lowerdir+", Some(&c_string(layer)?))
            .context("overlay: so many layers need Linux 6.5 (lowerdir+)")?;
    }
    tree::fsconfig_create(&context).context("overlay")?;
    let own = tree::fsmount(&context, attr::RDONLY | attr::NODEV).context("fsmount")?;
    tree::move_mount_to(&own, &c_string(target)?).context("move_mount")
}

fn c_string(path: &Path) -> Anyhow<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{}", path.display()))
}

/// The real path of what is at `sub_path`: links lead nowhere but into the image, which nobody changes.
fn resolve(mounted: &Path, sub_path: &str) -> Anyhow<PathBuf> {
    if sub_path.is_empty() {
        return Ok(mounted.to_owned());
    }
    let root = open(
        mounted,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("open {}", mounted.display()))?;
    let path = CString::new(sub_path)?;
    let found = match openat2(
        &root,
        &path,
        libc::O_PATH,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    ) {
        Ok(found) => found,
        Err(errno) => bail!("the image has no such file or directory: {}", errno.desc()),
    };
    let real = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).context("readlink")?;
    let base = fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).context("readlink")?;
    ensure!(real.starts_with(&base), "{}: is not in the image", real.display());
    Ok(real)
}

/// Unmounts all that is mounted below a directory of volumes.
fn detach(volumes: &Path) -> Anyhow<()> {
    let entries = match fs::read_dir(volumes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{}", volumes.display())),
    };
    for entry in entries.flatten() {
        match umount2(&entry.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It is mounted no more.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("umount {}", entry.path().display())),
        }
    }
    Ok(())
}
