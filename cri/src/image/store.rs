//! All images, their layers, and who uses them.

use std::path::Path;
use std::sync::Arc;

use super::{Image, Pulled, RootMount, Usage, Users, Volume, Wanted};
use crate::config::Config;
use crate::error::{Error, Kind, Result};

/// All images of the node.
#[derive(Debug)]
pub(crate) struct Images {}

impl Images {
    /// Opens what is kept in the root directory of the configuration.
    ///
    /// # Errors
    ///
    /// The directory can't be used.
    pub(crate) fn open(_config: &Config) -> Result<Self> {
        Ok(Self {})
    }

    /// By id (with or without `sha256:`), by tag or by digest, in the short forms that are usual, as `busybox`.
    pub(crate) fn find(&self, _name: &str) -> Option<Arc<Image>> {
        None
    }

    /// All images, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }

    /// What a pull has to bring: the layers of these diff ids, the lowest first. Keep them until `commit`.
    ///
    /// # Errors
    ///
    /// More layers than can be mounted.
    pub(crate) fn layers(&self, _diff_ids: &[String]) -> Result<Vec<Wanted>> {
        Err(Error::text(Kind::Unimplemented, "images: not yet"))
    }

    /// Makes a pulled image one of the node's: all its layers were finished. Durable when it returns. One that is here gets
    /// the tag and the digest.
    ///
    /// # Errors
    ///
    /// A layer was not brought; the disk.
    pub(crate) async fn commit(&self, _pulled: Pulled, _layers: Vec<Wanted>) -> Result<Arc<Image>> {
        Err(Error::text(Kind::Unimplemented, "images: not yet"))
    }

    /// The mounts that make the root of a container, for its shim; its upper layer is made. The image's layers stay, whatever
    /// becomes of the image, until `discard`.
    ///
    /// # Errors
    ///
    /// Nothing is left of it.
    pub(crate) async fn prepare(
        &self,
        _container: &str,
        _image: &Image,
        _users: Option<&Users>,
    ) -> Result<Vec<RootMount>> {
        Err(Error::text(Kind::Unimplemented, "snapshots: not yet"))
    }

    /// Removes the upper layer of a container, and its image volumes; one that is not there is what is wanted.
    ///
    /// # Errors
    ///
    /// It can't be removed.
    pub(crate) async fn discard(&self, _container: &str) -> Result<()> {
        Ok(())
    }

    /// At the start, when the containers are known: everything of others is removed, in the background.
    pub(crate) fn keep_only(self: &Arc<Self>, _containers: &[String]) {}

    /// What a container's upper layer takes; measured off the runtime's threads, at most so old as the interval of statistics.
    pub(crate) async fn usage(&self, _container: &str) -> Option<Usage> {
        None
    }

    /// A file of the image, as a container would read it (links lead nowhere but into the image). `None`: it has none, or it is
    /// no regular file.
    ///
    /// # Errors
    ///
    /// It has more bytes than `most`; the disk.
    pub(crate) async fn read_file(
        &self,
        _image: &Image,
        _path: &Path,
        _most: u64,
    ) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// An image as a read-only volume of a container (`Mount.image`), mounted until its `discard`: the path to bind.
    ///
    /// # Errors
    ///
    /// `sub_path` is not in the image.
    pub(crate) async fn mount_volume(
        &self,
        _container: &str,
        _image: &Image,
        _sub_path: &str,
    ) -> Result<Volume> {
        Err(Error::text(Kind::Unimplemented, "image volumes: not yet"))
    }
}
