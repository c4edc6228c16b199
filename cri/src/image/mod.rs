//! Images: pulled, kept, listed, removed; a file for each verb.

pub(crate) mod fs_info;
pub(crate) mod list;
pub(crate) mod pull;
pub(crate) mod remove;
pub(crate) mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// An image that is here whole: every layer is unpacked and durable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    /// `sha256:...` of its configuration.
    pub(crate) id: String,
    /// `registry/name:tag`, as they were pulled.
    pub(crate) tags: Vec<String>,
    /// `registry/name@sha256:...` of the index or manifest that was pulled.
    pub(crate) digests: Vec<String>,
    /// Bytes: of its layers as they are downloaded, and its configuration.
    pub(crate) size: u64,
    pub(crate) pinned: bool,
    /// Directories of its layers, the lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// What the image says of itself. Of whoever made it: it can be a default, and never a policy.
    pub(crate) config: Untrusted,
}

/// The part of an image's configuration that a container takes defaults from (image-spec, `config.md`).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Untrusted {
    pub(crate) user: String,
    pub(crate) env: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) stop_signal: String,
    /// Paths, as `/data`.
    pub(crate) volumes: Vec<String>,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
}

/// All images of the node.
#[derive(Debug)]
pub(crate) struct Images {}

impl Images {
    /// Opens what is kept in `root` (`/var/lib/rtc-cri`).
    ///
    /// # Errors
    ///
    /// The directory can't be used.
    pub(crate) fn open(_root: &Path) -> Result<Self> {
        Ok(Self {})
    }

    /// By id (with or without `sha256:`), by tag or by digest, in the short forms that are usual, as `busybox`.
    pub(crate) fn find(&self, _name: &str) -> Option<Arc<Image>> {
        None
    }

    /// The mounts that make the root of a container, for its shim; its upper layer is made.
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

    /// Removes the upper layer of a container; one that is not there is what is wanted.
    ///
    /// # Errors
    ///
    /// It can't be removed.
    pub(crate) async fn discard(&self, _container: &str) -> Result<()> {
        Ok(())
    }
}

/// A mount of a root, as containerd's `types.Mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// The id maps of a pod with a user namespace: (container, host, length).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) uids: Vec<(u32, u32, u32)>,
    pub(crate) gids: Vec<(u32, u32, u32)>,
}
