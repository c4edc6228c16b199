//! Images: pulled, kept, listed, removed; a file for each verb.
//!
//! ```text
//! pull.rs: manifest, configuration      Configuration::parse -> diff ids
//!          Images::layers(diff ids)     one Wanted each, the lowest first; what is here is held
//!            Wanted::begin -> Writer    for each, in parallel: another pull brings it (waited for, but not for ever), or else
//!                                       a process that unpacks what is written (unpack/)
//!            Writer::write .. finish    diff id checked, what hangs on lower layers mended (mend.rs)
//!          Images::commit               syncfs, then one durable record: from here on the image is there
//! ```
//!
//! A `Writer` or `Wanted` that is dropped before the commit leaves nothing.

mod anonymous;
mod beneath;
mod configuration;
mod copy;
pub(crate) mod explain;
pub(crate) mod fs_info;
mod layer;
mod layers;
pub(crate) mod list;
mod mend;
mod merged;
pub(crate) mod progress;
pub(crate) mod pull;
pub(crate) mod pulls;
pub(crate) mod reference;
pub(crate) mod registry;
mod relocate;
mod removal;
pub(crate) mod remove;
mod snapshot;
pub(crate) mod status;
mod store;
pub(crate) mod unpack;
mod usage;
mod volume;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use configuration::Configuration;
pub(crate) use layer::{Wanted, Writer};
pub(crate) use store::Images;
pub(crate) use usage::Usage;

/// An image that is here whole: every layer is unpacked and durable.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// An image whose layers were brought, to be committed.
#[derive(Debug, Clone)]
pub(crate) struct Pulled {
    /// `sha256:...` of `json`.
    pub(crate) id: String,
    /// The configuration, its digest verified.
    pub(crate) json: Vec<u8>,
    /// `registry/name:tag`, where it was pulled by a tag. Another image that has it loses it.
    pub(crate) tag: Option<String>,
    /// `registry/name@sha256:...`.
    pub(crate) digest: Option<String>,
    /// As `Image::size`.
    pub(crate) size: u64,
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
