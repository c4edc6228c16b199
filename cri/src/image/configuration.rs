//! An image's configuration (image-spec, `config.md`), read once.

use super::Untrusted;
use crate::error::{Error, Kind, Result};

/// What is used of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Configuration {
    pub(crate) config: Untrusted,
    /// `sha256:...` of each layer's plain tar, the lowest first.
    pub(crate) diff_ids: Vec<String>,
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: String,
}

impl Configuration {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// It is not one, or has a diff id that is no sha256 digest.
    pub(crate) fn parse(_json: &[u8]) -> Result<Self> {
        Err(Error::text(Kind::Unimplemented, "images: not yet"))
    }
}
