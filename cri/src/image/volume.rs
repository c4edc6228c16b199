//! Images as volumes.

use std::path::PathBuf;

/// An image that is mounted for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// To be bound, read-only, into the container: a directory or a file.
    pub(crate) path: PathBuf,
}
