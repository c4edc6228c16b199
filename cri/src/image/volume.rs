//! Images as volumes.

use std::path::PathBuf;

use super::{Image, Images};
use crate::error::{Error, Kind, Result};

/// An image that is mounted for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// To be bound, read-only, into the container: a directory or a file.
    pub(crate) path: PathBuf,
}

impl Images {
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

    pub(super) async fn unmount_volumes(&self, _container: &str) -> Result<()> {
        Ok(())
    }
}
