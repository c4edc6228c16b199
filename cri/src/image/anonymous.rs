//! Volumes that an image defines (image-spec, `config.md`, `Volumes`): a directory for each of a container, with what the
//! image has there copied into it, as for Docker and containerd. It goes with the container.
//!
//! ```text
//! <root>/containers/<id>/anonymous/<n>
//! ```
//!
//! The image is mounted for the time of the copy only, and nowhere but behind a descriptor.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result as Anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use rtc_runtime::sys::open::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2};

use super::{Image, Images, copy, snapshot, volume};
use crate::error::{Error, Kind, Result};

/// Of a container, in its directory.
pub(super) const DIRECTORY: &str = "anonymous";

impl Images {
    /// Makes a directory for each of these paths in a container of the image, with what the image has there: there until the
    /// container's `discard`. Paths are absolute, without `..`.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the image has a file there, or what can't be copied.
    pub(crate) async fn anonymous_volumes(
        &self,
        container: &str,
        image: &Image,
        paths: Vec<PathBuf>,
    ) -> Result<Vec<PathBuf>> {
        snapshot::check(container)?;
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let numbers = self.hold_layers(image)?;
        let directory = self.snapshots.directory(container);
        let held = self.snapshots.add_volume(container, &numbers);
        let layers = image.layers.clone();
        let making = tokio::task::spawn_blocking(move || {
            snapshot::make_directory(&directory, 0o700)?;
            snapshot::write_numbers(&directory.join("volume-layers"), &held)?;
            make(&layers, &directory, &paths)
        });
        let made = making.await.context("copy an image's volumes")?;
        made.map_err(|error| {
            Error::text(
                Kind::FailedPrecondition,
                format_args!("the image's Volumes: {error:#}"),
            )
        })
    }
}

fn make(layers: &[PathBuf], directory: &Path, paths: &[PathBuf]) -> Anyhow<Vec<PathBuf>> {
    let image = mounted(layers, directory)?;
    let anonymous = directory.join(DIRECTORY);
    snapshot::make_directory(&anonymous, 0o700)?;
    let mut made = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let volume = anonymous.join(number.to_string());
        // One of a create that is repeated has what the image has, and nothing else.
        if volume.exists() {
            super::removal::remove(&volume).with_context(|| volume.display().to_string())?;
        }
        snapshot::make_directory(&volume, 0o755)?;
        if let Some(content) = content(&image, path).with_context(|| path.display().to_string())? {
            let target = open(
                &volume,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            copy::tree(&content, &target).with_context(|| path.display().to_string())?;
        }
        made.push(volume);
    }
    Ok(made)
}

/// The root of the image, which is mounted as long as the descriptor is there.
fn mounted(layers: &[PathBuf], directory: &Path) -> Anyhow<OwnedFd> {
    // Where it would be found if we died now.
    let target = volume::next(&directory.join("volumes"))?;
    volume::attach(layers, &target, None).with_context(|| format!("mount {}", target.display()))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&target, flags, Mode::empty());
    umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .with_context(|| format!("umount {}", target.display()))?;
    fs::remove_dir(&target).with_context(|| format!("rmdir {}", target.display()))?;
    root.with_context(|| format!("open {}", target.display()))
}

/// What the image has at a path, links followed as in a container of it; `None`: nothing.
fn content(image: &OwnedFd, path: &Path) -> Anyhow<Option<OwnedFd>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    match openat2(image, &path, libc::O_RDONLY | libc::O_DIRECTORY, resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ENOENT | Errno::ELOOP) => Ok(None),
        Err(Errno::ENOTDIR) => bail!("is no directory in the image"),
        Err(errno) => Err(errno.into()),
    }
}
