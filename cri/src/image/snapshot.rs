//! What a container has on disk: its upper layer, on those of its image.
//!
//! ```text
//! <root>/containers/<id>/fs      what it writes
//! <root>/containers/<id>/work    overlayfs's own
//! <root>/containers/<id>/layers  the numbers of its image's layers: they stay as long as this is there
//! <root>/containers/<id>/volumes the images that are its volumes (volume.rs)
//! <root>/containers/<id>/anonymous the volumes that its image defines (anonymous.rs)
//! <root>/containers/gone-*       being removed
//! ```

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result as Anyhow};

use super::layers::{self, Layers};
use super::usage::Measured;
use super::{Image, Images, RootMount, Usage, Users, anonymous};
use crate::error::{Error, Kind, Result};
use crate::locked;
use crate::log;

/// What containers use.
#[derive(Debug)]
pub(super) struct Snapshots {
    directory: PathBuf,
    known: Mutex<HashMap<String, Snapshot>>,
    gone: AtomicU64,
}

/// Of one container.
#[derive(Debug, Default)]
struct Snapshot {
    /// Numbers of layers.
    layers: Vec<u32>,
    /// Those of its volumes.
    volumes: Vec<u32>,
    measured: Arc<Measured>,
}

impl Snapshot {
    fn all(&self) -> Vec<u32> {
        [&self.layers[..], &self.volumes[..]].concat()
    }
}

impl Snapshots {
    /// Reads which containers there are.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let directory = root.join("containers");
        let mut known = HashMap::new();
        let entries = fs::read_dir(&directory).with_context(|| format!("root: {}", directory.display()))?;
        for entry in entries.flatten() {
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if id.starts_with("gone-") {
                layers::remove_later(entry.path());
                continue;
            }
            let snapshot = Snapshot {
                layers: read_numbers(&entry.path().join("layers")),
                volumes: read_numbers(&entry.path().join("volume-layers")),
                ..Snapshot::default()
            };
            known.insert(id, snapshot);
        }
        Ok(Self {
            directory,
            known: Mutex::new(known),
            gone: AtomicU64::new(u64::from(std::process::id()) << 32),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Snapshot>> {
        locked(&self.known)
    }

    /// Counts the uses of those that were there at the start.
    pub(super) fn count(&self, layers: &Layers) {
        for snapshot in self.known().values() {
            layers.adopt(&snapshot.all());
        }
    }

    /// Containers, in no order.
    fn containers(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Remembers the layers of a container's image, which are held: those that it had before, to be released.
    fn set_layers(&self, container: &str, numbers: Vec<u32>) -> Vec<u32> {
        let mut known = self.known();
        let snapshot = known.entry(container.to_owned()).or_default();
        std::mem::replace(&mut snapshot.layers, numbers)
    }

    /// Remembers the layers of a volume, which are held: those of all volumes.
    pub(super) fn add_volume(&self, container: &str, numbers: &[u32]) -> Vec<u32> {
        let mut known = self.known();
        let snapshot = known.entry(container.to_owned()).or_default();
        snapshot.volumes.extend(numbers);
        snapshot.volumes.clone()
    }

    pub(super) fn directory(&self, container: &str) -> PathBuf {
        self.directory.join(container)
    }

    /// Bytes and inodes of all, as they were last measured.
    pub(super) fn usage(&self) -> (u64, u64) {
        let known = self.known();
        let last = known.values().filter_map(|snapshot| snapshot.measured.last());
        last.fold((0, 0), |(bytes, inodes), usage| {
            (bytes + usage.bytes, inodes + usage.inodes)
        })
    }
}

impl Images {
    /// An image's layers, which stay until they are released.
    ///
    /// # Errors
    ///
    /// `NotFound`: the image was removed meanwhile.
    pub(super) fn hold_layers(&self, image: &Image) -> Result<Vec<u32>> {
        let numbers: Vec<u32> = image
            .layers
            .iter()
            .filter_map(|path| Layers::number(path))
            .collect();
        match self.layers.hold(&numbers) {
            true => Ok(numbers),
            false => Err(Error::not_found(format_args!("image {:?} was removed", image.id))),
        }
    }

    /// The mounts that make the root of a container, for its shim; its upper layer is made. The image's layers stay, whatever
    /// becomes of the image, until `discard`.
    ///
    /// # Errors
    ///
    /// Nothing is left of it.
    pub(crate) async fn prepare(
        &self,
        container: &str,
        image: &Image,
        users: Option<&Users>,
    ) -> Result<Vec<RootMount>> {
        check(container)?;
        let numbers = self.hold_layers(image)?;
        let old = self.snapshots.set_layers(container, numbers.clone());
        // Prepared once more: a create that is repeated.
        self.layers.release(&old);
        let directory = self.snapshots.directory(container);
        let (own, top, maps) = (directory.clone(), image.layers.last().cloned(), users.cloned());
        let made = tokio::task::spawn_blocking(move || make(&own, top.as_deref(), &numbers, maps.as_ref()));
        if let Err(error) = made.await.context("make an upper layer")? {
            if let Err(undo) = self.discard(container).await {
                log::warn(format_args!("clean up: {undo}"));
            }
            return Err(error
                .context(format!("container {container}: its upper layer"))
                .into());
        }
        Ok(mounts(&directory, image, users))
    }

    /// Removes the upper layer of a container, and its image volumes; one that is not there is what is wanted.
    ///
    /// # Errors
    ///
    /// It can't be removed.
    pub(crate) async fn discard(&self, container: &str) -> Result<()> {
        check(container)?;
        self.unmount_volumes(container).await?;
        let directory = self.snapshots.directory(container);
        // Out of the way at once: what is in it is removed in the background.
        let number = self.snapshots.gone.fetch_add(1, Ordering::Relaxed);
        let gone = self.snapshots.directory.join(format!("gone-{number:x}"));
        match fs::rename(&directory, &gone) {
            Ok(()) => layers::remove_later(gone),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(anyhow::Error::new(error)
                    .context(format!("container {container}: remove {}", directory.display()))
                    .into());
            }
        }
        let removed = self.snapshots.known().remove(container);
        if let Some(snapshot) = removed {
            self.layers.release(&snapshot.all());
        }
        Ok(())
    }

    /// At the start, when the containers are known: everything of others is removed.
    pub(crate) async fn keep_only(&self, containers: &[String]) {
        for container in self.snapshots.containers() {
            if containers.contains(&container) {
                continue;
            }
            if let Err(error) = self.discard(&container).await {
                log::warn(format_args!("clean up: {error}"));
            }
        }
    }

    /// What a container's upper layer and its image's volumes take. Measured off the runtime's threads: the first time it is
    /// waited for a moment, then it is what was measured last, and measured again where that is old. `None`: there is no such
    /// container, or it is not known yet.
    pub(crate) async fn usage(&self, container: &str) -> Option<Usage> {
        let measured = {
            let known = self.snapshots.known();
            Arc::clone(&known.get(container)?.measured)
        };
        let directory = self.snapshots.directory(container);
        measured
            .now([directory.join("fs"), directory.join(anonymous::DIRECTORY)])
            .await
    }
}

/// Ids are ours: names of one directory.
pub(super) fn check(container: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if container.is_empty() || !container.bytes().all(plain) || container.starts_with("gone-") {
        return Err(Error::text(
            Kind::InvalidArgument,
            format_args!("container id {container:?}: can't be the name of a directory"),
        ));
    }
    Ok(())
}

/// Makes a directory, or finds it.
pub(super) fn make_directory(path: &Path, mode: u32) -> Anyhow<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("mkdir {}", path.display()))
        }
        _ => Ok(()),
    }
}

pub(super) fn write_numbers(path: &Path, numbers: &[u32]) -> Anyhow<()> {
    let text: Vec<String> = numbers.iter().map(u32::to_string).collect();
    fs::write(path, text.join(" ")).with_context(|| format!("write {}", path.display()))
}

fn read_numbers(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn make(directory: &Path, top: Option<&Path>, numbers: &[u32], users: Option<&Users>) -> Anyhow<()> {
    make_directory(directory, 0o700)?;
    write_numbers(&directory.join("layers"), numbers)?;
    make_directory(&directory.join("work"), 0o700)?;
    let upper = directory.join("fs");
    make_directory(&upper, 0o755)?;
    // The root of a container is its upper layer's: it is to be what the image says.
    let (mut uid, mut gid, mut mode) = (0, 0, 0o755);
    if let Some(top) = top {
        let stat = fs::symlink_metadata(top).with_context(|| format!("stat {}", top.display()))?;
        (uid, gid, mode) = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
    }
    if let Some(users) = users {
        uid = outside(&users.uids, uid).with_context(|| format!("users: uid {uid} is not mapped"))?;
        gid = outside(&users.gids, gid).with_context(|| format!("users: gid {gid} is not mapped"))?;
    }
    std::os::unix::fs::chown(&upper, Some(uid), Some(gid))
        .with_context(|| format!("chown {}", upper.display()))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", upper.display()))
}

/// The id on the node.
fn outside(maps: &[(u32, u32, u32)], id: u32) -> Option<u32> {
    maps.iter().find_map(|(inside, outside, count)| {
        let offset = id.checked_sub(*inside).filter(|offset| offset < count)?;
        outside.checked_add(offset)
    })
}

/// As containerd's overlayfs snapshotter asks for them.
fn mounts(directory: &Path, image: &Image, users: Option<&Users>) -> Vec<RootMount> {
    let upper = directory.join("fs").display().to_string();
    let mut options = Vec::new();
    if let Some(users) = users {
        options.push(format!("uidmap={}", map(&users.uids)));
        options.push(format!("gidmap={}", map(&users.gids)));
    }
    if image.layers.is_empty() {
        options.extend(["rbind".to_owned(), "rw".to_owned()]);
        return vec![RootMount {
            kind: "bind".into(),
            source: upper,
            options,
        }];
    }
    let lower: Vec<String> = image
        .layers
        .iter()
        .rev()
        .map(|path| path.display().to_string())
        .collect();
    options.extend([
        "index=off".to_owned(),
        format!("workdir={}", directory.join("work").display()),
        format!("upperdir={upper}"),
        format!("lowerdir={}", lower.join(":")),
    ]);
    vec![RootMount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options,
    }]
}

fn map(maps: &[(u32, u32, u32)]) -> String {
    let texts: Vec<String> = maps
        .iter()
        .map(|(inside, outside, count)| format!("{inside}:{outside}:{count}"))
        .collect();
    texts.join(",")
}
