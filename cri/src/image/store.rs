//! All images of the node: what is recorded of them, and by which names they are found.
//!
//! ```text
//! <root>/images.journal            one record for each image, durable: with it, the image is there
//! <root>/configurations/<digits>   its configuration, as it was pulled
//! <root>/layers/<number>/fs        a layer (layers.rs); one that no record names is removed at the start
//! <root>/containers/<id>           a container's upper layer (snapshot.rs)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::layers::{self, Layers};
use super::reference::Object;
use super::snapshot::Snapshots;
use super::{Configuration, Image, Pulled, Untrusted, Wanted, configuration, merged};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::journal::{Durability, Journal};
use crate::locked;
use crate::log;

/// overlayfs takes 500; the kernel's page of options, with a container's names in it, about 127 in containerd.
const LAYERS_MAX: usize = 127;

/// What is recorded of an image, by its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
    config: Untrusted,
    /// The lowest first.
    layers: Vec<layers::Record>,
}

/// An image, and the numbers of its layers.
#[derive(Debug, Clone)]
struct Kept {
    image: Arc<Image>,
    layers: Vec<u32>,
}

/// All images of the node.
#[derive(Debug)]
pub(crate) struct Images {
    pub(super) root: PathBuf,
    pub(super) layers: Arc<Layers>,
    pub(super) snapshots: Snapshots,
    pinned: Vec<String>,
    journal: Journal<Record>,
    /// The turn of who changes what images there are.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    images: HashMap<String, Kept>,
    /// Ids by tag and by digest.
    names: HashMap<String, String>,
}

impl Known {
    fn insert(&mut self, kept: Kept) {
        let image = &kept.image;
        for name in image.tags.iter().chain(&image.digests) {
            self.names.insert(name.clone(), image.id.clone());
        }
        self.images.insert(image.id.clone(), kept);
    }

    fn remove(&mut self, id: &str) -> Option<Kept> {
        self.names.retain(|_, named| named != id);
        self.images.remove(id)
    }
}

impl Images {
    /// Opens what is kept in the root directory of the configuration.
    ///
    /// # Errors
    ///
    /// The directory can't be used.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let root = &config.root;
        for name in ["layers", "containers", "configurations"] {
            let path = root.join(name);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("root: mkdir {}", path.display()))?;
        }
        let (journal, records) = Journal::open(&root.join("images.journal"), Durability::Durable)?;
        // Of an image that lost a layer too: its record stays, and would name whatever has the number next.
        let recorded = records.values().flat_map(|record: &Record| &record.layers);
        let numbers = numbers(&root.join("layers"))?.into_iter();
        let last = numbers.chain(recorded.map(|layer| layer.number)).max();
        let layers = Arc::new(Layers::new(root.join("layers"), last.unwrap_or(0)));
        let images = Self {
            root: root.clone(),
            snapshots: Snapshots::open(root)?,
            layers,
            pinned: config.images.pinned.clone(),
            journal,
            turn: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        };
        images.restore(records);
        images.snapshots.count(&images.layers);
        images.remove_left();
        Ok(images)
    }

    fn restore(&self, records: BTreeMap<String, Record>) {
        let mut known = self.known();
        for (id, record) in records {
            let missing = |layer: &&layers::Record| !self.layers.path(layer.number).is_dir();
            if let Some(missing) = record.layers.iter().find(missing) {
                log::warn(format_args!(
                    "image {id}: its layer {} is gone: the image is forgotten",
                    self.layers.path(missing.number).display()
                ));
                continue;
            }
            for layer in &record.layers {
                self.layers.restore(layer);
            }
            known.insert(self.kept(id, record));
        }
    }

    /// Removes the configurations, and in the background the layers, that nobody knows: of pulls and removals that a server
    /// did not end.
    fn remove_left(&self) {
        for entry in std::fs::read_dir(self.root.join("configurations"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let id = format!("sha256:{}", entry.file_name().display());
            if !self.known().images.contains_key(&id) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        for number in numbers(&self.root.join("layers")).unwrap_or_default() {
            if !self.layers.knows(number) {
                layers::remove_later(self.root.join("layers").join(number.to_string()));
            }
        }
    }

    fn kept(&self, id: String, record: Record) -> Kept {
        let pinned = self.is_pinned(&id, &record);
        let numbers: Vec<u32> = record.layers.iter().map(|layer| layer.number).collect();
        let image = Image {
            layers: numbers.iter().map(|number| self.layers.path(*number)).collect(),
            pinned,
            id,
            tags: record.tags,
            digests: record.digests,
            size: record.size,
            config: record.config,
        };
        Kept {
            image: Arc::new(image),
            layers: numbers,
        }
    }

    fn is_pinned(&self, id: &str, record: &Record) -> bool {
        let names = || record.tags.iter().chain(&record.digests).map(String::as_str);
        self.pinned.iter().any(|glob| {
            names()
                .chain([id])
                .any(|name| matches(glob.as_bytes(), name.as_bytes()))
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        locked(&self.known)
    }

    /// By id (with or without `sha256:`, or the beginning of one that is only one's), by tag or by digest, in the short forms
    /// that are usual, as `busybox`.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let known = self.known();
        let id = known.names.get(name).map_or(name, String::as_str);
        if let Some(kept) = known.images.get(id) {
            return Some(Arc::clone(&kept.image));
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if configuration::is_digits(digits) {
            let kept = known.images.get(&format!("sha256:{digits}"))?;
            return Some(Arc::clone(&kept.image));
        }
        if let Some(id) = whole_name(name).and_then(|name| known.names.get(&name)) {
            return known.images.get(id).map(|kept| Arc::clone(&kept.image));
        }
        // As crictl shows them.
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let begins = |kept: &&Kept| {
            let id = kept.image.id.strip_prefix("sha256:");
            id.is_some_and(|id| id.starts_with(digits))
        };
        let mut found = known.images.values().filter(begins);
        match (found.next(), found.next()) {
            (Some(one), None) => Some(Arc::clone(&one.image)),
            _ => None,
        }
    }

    /// All images, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.known()
            .images
            .values()
            .map(|kept| Arc::clone(&kept.image))
            .collect()
    }

    /// What a pull has to bring: the layers of these diff ids, the lowest first. Keep them until `commit`.
    ///
    /// # Errors
    ///
    /// More layers than can be mounted; a diff id that is none.
    pub(crate) fn layers(&self, diff_ids: &[String]) -> Result<Vec<Wanted>> {
        if diff_ids.len() > LAYERS_MAX {
            return Err(Error::invalid(format_args!(
                "an image of {} layers: at most {LAYERS_MAX} can be mounted",
                diff_ids.len()
            )));
        }
        if let Some(wrong) = diff_ids.iter().find(|id| !configuration::is_sha256(id)) {
            return Err(Error::invalid(format_args!(
                "rootfs.diff_ids: {wrong:?}: is no sha256 digest"
            )));
        }
        Ok(Wanted::all(&self.layers, diff_ids))
    }

    /// Makes a pulled image one of the node's: all its layers were finished. Durable when it returns. One that is here gets
    /// the tag and the digest.
    ///
    /// # Errors
    ///
    /// A layer was not brought; the disk.
    pub(crate) async fn commit(&self, pulled: Pulled, layers: Vec<Wanted>) -> Result<Arc<Image>> {
        let numbers: Option<Vec<u32>> = layers.iter().map(Wanted::number).collect();
        let numbers = numbers.ok_or_else(|| {
            Error::text(
                Kind::Unknown,
                format_args!("image {}: a layer was not brought", pulled.id),
            )
        })?;
        let config = Configuration::parse(&pulled.json)?.config;
        let _turn = self.turn.lock().await;
        let old = self.known().images.get(&pulled.id).cloned();
        let mut record = match old {
            Some(kept) => self.record_of(&kept),
            None => {
                self.sync(&pulled).await?;
                Record {
                    tags: Vec::new(),
                    digests: Vec::new(),
                    size: pulled.size,
                    config,
                    layers: self.layers.records(&numbers),
                }
            }
        };
        add(&mut record.tags, pulled.tag.as_ref());
        add(&mut record.digests, pulled.digest.as_ref());
        if let Some(tag) = &pulled.tag {
            self.take_tag(tag, &pulled.id).await?;
        }
        self.journal.put(&pulled.id, &record).await?;
        let mut known = self.known();
        if !known.images.contains_key(&pulled.id) {
            self.layers.hold(&numbers);
        }
        let kept = self.kept(pulled.id, record);
        let image = Arc::clone(&kept.image);
        known.insert(kept);
        Ok(image)
    }

    fn record_of(&self, kept: &Kept) -> Record {
        let image = &kept.image;
        Record {
            tags: image.tags.clone(),
            digests: image.digests.clone(),
            size: image.size,
            config: image.config.clone(),
            layers: self.layers.records(&kept.layers),
        }
    }

    /// Brings layers and configuration to the disk, before anything says that they are there.
    async fn sync(&self, pulled: &Pulled) -> Result<()> {
        let path = self.configuration(&pulled.id);
        let (root, json) = (self.root.clone(), pulled.json.clone());
        let written = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            std::fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
            let root = std::fs::File::open(&root).with_context(|| format!("open {}", root.display()))?;
            nix::unistd::syncfs(&root).context("syncfs")
        });
        written.await.context("sync an image")??;
        Ok(())
    }

    /// Where the configuration of an image is kept, as it was pulled.
    pub(super) fn configuration(&self, id: &str) -> PathBuf {
        let digits = id.strip_prefix("sha256:").unwrap_or(id);
        self.root.join("configurations").join(digits)
    }

    /// A tag has one image.
    async fn take_tag(&self, tag: &str, but: &str) -> Result<()> {
        let kept = {
            let known = self.known();
            let id = known.names.get(tag).filter(|id| *id != but);
            id.and_then(|id| known.images.get(id)).cloned()
        };
        let Some(kept) = kept else {
            return Ok(());
        };
        let id = kept.image.id.clone();
        let mut record = self.record_of(&kept);
        record.tags.retain(|other| other != tag);
        self.journal.put(&id, &record).await?;
        let mut known = self.known();
        known.names.remove(tag);
        known.insert(self.kept(id, record));
        Ok(())
    }

    /// Forgets an image, by whatever name: all its names go. Its layers go when nobody uses them any more. One that is not
    /// there is what is wanted.
    ///
    /// # Errors
    ///
    /// The disk: it is still there.
    pub(super) async fn forget(&self, name: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let Some(image) = self.find(name) else {
            return Ok(());
        };
        self.journal.remove(&image.id).await?;
        let removed = self.known().remove(&image.id);
        if let Some(kept) = removed {
            self.layers.release(&kept.layers);
        }
        // In this turn: a pull may write it anew in the next.
        let configuration = self.configuration(&image.id);
        let removed = tokio::fs::remove_file(&configuration).await;
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn(format_args!("remove {}: {error}", configuration.display()));
        }
        Ok(())
    }

    /// A file of the image, as a container would read it (links lead nowhere but into the image). `None`: it has none, or it is
    /// no regular file.
    ///
    /// # Errors
    ///
    /// It has more bytes than `most`; the disk.
    pub(crate) async fn read_file(&self, image: &Image, path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
        let layers = image.layers.clone();
        let owned = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let merged = merged::Merged::open(layers.iter().rev().map(PathBuf::as_path))?;
            let path = std::os::unix::ffi::OsStrExt::as_bytes(owned.as_os_str());
            merged::read_file(&merged, path, most)
        });
        match read.await.context("read a file of an image")? {
            Ok(content) => Ok(content),
            Err(nix::errno::Errno::EFBIG) => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!(
                    "the image's {}: it has more than {most} bytes: build the image with a smaller one",
                    path.display()
                ),
            )),
            Err(errno) => Err(anyhow::Error::from(errno).into()),
        }
    }
}

fn add(names: &mut Vec<String>, name: Option<&String>) {
    if let Some(name) = name
        && !names.contains(name)
    {
        names.push(name.clone());
    }
}

/// A name in its whole form.
fn whole_name(name: &str) -> Option<String> {
    let reference = super::reference::Reference::parse(name).ok()?;
    Some(match &reference.object {
        Object::Digest(digest) => reference.digested(digest),
        Object::Tag(_) => reference.tagged()?,
    })
}

/// The numbers that directories in it are named with.
fn numbers(directory: &Path) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("root: {}", directory.display()))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Whether a name is what a glob says: `*` is any text, `?` any character.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut at, mut star) = (0, None);
    let mut rest = 0;
    while rest < name.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, rest));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[rest] => {
                at += 1;
                rest += 1;
            }
            _ => {
                // The last star takes a character more.
                let Some((glob_at, taken)) = star else {
                    return false;
                };
                star = Some((glob_at, taken + 1));
                at = glob_at + 1;
                rest = taken + 1;
            }
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_has_stars_and_question_marks() {
        for (glob, name, expected) in [
            ("registry.k8s.io/pause:*", "registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/pause:*", "registry.k8s.io/pause2:3.10", false),
            ("*/pause*", "a/b/pause", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbxx", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(
                matches(glob.as_bytes(), name.as_bytes()),
                expected,
                "{glob} {name}"
            );
        }
    }
}
