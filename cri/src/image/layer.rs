//! A layer on its way in.

use crate::error::{Error, Kind, Result};

/// A layer of an image that is being pulled.
#[derive(Debug)]
pub(crate) struct Wanted {}

impl Wanted {
    /// Whether it is here already, or a pull of another image brings it: there is nothing to download yet.
    pub(crate) fn is_here(&self) -> bool {
        false
    }

    /// Starts to unpack it. `None`: it is here, or another pull has just brought it (waited for).
    ///
    /// # Errors
    ///
    /// A media type that is no layer's, by name; no room; no process.
    pub(crate) async fn begin(&self, _media_type: &str) -> Result<Option<Writer>> {
        Err(Error::text(Kind::Unimplemented, "layers: not yet"))
    }
}

/// Takes a layer as it is downloaded: compressed, from the first byte to the last. Dropped: nothing is left of it.
#[derive(Debug)]
pub(crate) struct Writer {}

impl Writer {
    /// The next bytes; waits for the unpacker to take them.
    ///
    /// # Errors
    ///
    /// The layer can't be unpacked: it is bad (`finish` is not needed), or there is no room.
    pub(crate) async fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        Err(Error::text(Kind::Unimplemented, "layers: not yet"))
    }

    /// All was written, and its digest is right. Checks the diff id, waits for the layers below.
    ///
    /// # Errors
    ///
    /// It is bad: nothing is left of it.
    pub(crate) async fn finish(self) -> Result<()> {
        Err(Error::text(Kind::Unimplemented, "layers: not yet"))
    }
}
