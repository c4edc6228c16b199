//! A layer's blob: it goes on where a broken connection left it, from whichever host, and its digest tells in the end.

use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName};
use hyper::{Method, Response, StatusCode};
use oci_spec::image::Descriptor;

use super::Failure;
use super::digest::Verifier;
use super::fetch::Served;
use crate::error::{Error, Kind, Result};
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::{Wanted, Writer};

/// A layer that several hosts give parts of, of which some are wrong, is begun anew so often.
const MAX_RESTARTS: u32 = 4;

/// A layer on its way.
pub(super) struct Blob<'a> {
    path: String,
    /// Bytes, as the manifest says.
    size: u64,
    /// Bytes that the unpacker has.
    pub(super) taken: u64,
    fresh: Verifier,
    /// Of what was taken.
    verifier: Option<Verifier>,
    /// The host that the last bytes are from.
    source: Option<String>,
    /// The bytes are from several hosts.
    mixed: bool,
    /// Bytes from several were wrong: they are never mixed again, ...
    unmixed: bool,
    /// ... which began it anew so often.
    restarts: u32,
    layer: &'a Wanted,
    progress: &'a Progress,
    kind: &'a str,
    /// None: another pull has brought it, or it was refused.
    pub(super) writer: Option<Writer>,
    /// The unpacker can't take it. Whose fault that is, its digest tells.
    refused: Option<Error>,
}

impl<'a> Blob<'a> {
    /// # Errors
    ///
    /// A digest that can't be verified.
    pub(super) fn new(
        descriptor: &'a Descriptor,
        layer: &'a Wanted,
        progress: &'a Progress,
        writer: Writer,
    ) -> std::result::Result<Self, Failure> {
        Ok(Self {
            path: format!("blobs/{}", descriptor.digest()),
            size: descriptor.size(),
            taken: 0,
            fresh: Verifier::new(descriptor.digest())?,
            verifier: None,
            source: None,
            mixed: false,
            unmixed: false,
            restarts: 0,
            layer,
            progress,
            kind: descriptor.media_type().as_ref(),
            writer: Some(writer),
            refused: None,
        })
    }

    /// Goes on with it from a host, to its end.
    pub(super) async fn fetch(
        &mut self,
        served: &Served,
        reference: &Reference,
    ) -> std::result::Result<(), Failure> {
        if self.taken < self.size || self.size == 0 {
            let source = Some(served.client.base());
            let anew = self.unmixed && self.taken > 0 && self.source != source;
            if anew && self.restarts == MAX_RESTARTS {
                let why = format_args!("{}: no host gives all of it", self.path);
                return Err(Failure::wrong(why));
            }
            let from = if anew { 0 } else { self.taken };
            let response = served.ask(reference, Method::GET, &self.path, from).await?;
            if anew {
                self.restarts += 1;
                if !self.restart().await? {
                    return Ok(());
                }
            }
            let mut skip = self.begin(&response)?;
            let mut body = response.into_body();
            self.mixed |= self.taken > 0 && self.source != source;
            self.source = source;
            while let Some(bytes) = served.client.next(&mut body).await? {
                self.take(&bytes, &mut skip).await?;
            }
        }
        if self.taken < self.size {
            let why = format!("{}: ended after {} of {} bytes", self.path, self.taken, self.size);
            return Err(Failure::Broken(why));
        }
        let verifier = self.verifier.take().unwrap_or_else(|| self.fresh.clone());
        let Err(failure) = verifier.finish() else {
            return self.refused.take().map_or(Ok(()), |error| Err(error.into()));
        };
        // The unpacker has wrong bytes: another host has to begin at the beginning.
        let mixed = std::mem::take(&mut self.mixed);
        self.unmixed |= mixed;
        if !self.restart().await? {
            return Ok(());
        }
        // Which of several was wrong is not known.
        Err(if mixed {
            Failure::Broken(failure.to_string())
        } else {
            failure
        })
    }

    /// It comes again, from its first byte. `false`: another pull has brought it.
    async fn restart(&mut self) -> Result<bool> {
        self.progress.lost(self.taken);
        self.taken = 0;
        (self.verifier, self.refused) = (None, None);
        // The old one is gone before there is another.
        self.writer = None;
        self.writer = self.layer.begin(self.kind).await?;
        Ok(self.writer.is_some())
    }

    /// How many bytes of the answer the unpacker has already.
    fn begin<B>(&self, response: &Response<B>) -> std::result::Result<u64, Failure> {
        let first = if response.status() == StatusCode::PARTIAL_CONTENT {
            // `bytes 100-199/200`
            let range = header(response, CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
            let range = range.and_then(|range| range.split('-').next()?.parse().ok());
            range.ok_or_else(|| Failure::wrong("206 Partial Content without a range"))?
        } else {
            0
        };
        if first > self.taken {
            let why = format_args!("asked for bytes from {}, got those from {first}", self.taken);
            return Err(Failure::wrong(why));
        }
        let length = header(response, CONTENT_LENGTH)
            .and_then(|length| length.parse().ok())
            .unwrap_or_default();
        if first.saturating_add(length) > self.size {
            let why = format_args!("{}: more than the {} bytes of the manifest", self.path, self.size);
            return Err(Failure::wrong(why));
        }
        Ok(self.taken - first)
    }

    async fn take(&mut self, bytes: &[u8], skip: &mut u64) -> std::result::Result<(), Failure> {
        let known = usize::try_from(*skip).unwrap_or(usize::MAX).min(bytes.len());
        *skip -= known as u64;
        let bytes = &bytes[known..];
        if self.taken + bytes.len() as u64 > self.size {
            let why = format_args!("{}: more than the {} bytes of the manifest", self.path, self.size);
            return Err(Failure::wrong(why));
        }
        self.verifier
            .get_or_insert_with(|| self.fresh.clone())
            .update(bytes);
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.write(bytes).await
        {
            if error.kind == Kind::ResourceExhausted {
                return Err(error.into());
            }
            self.writer = None;
            self.refused = Some(error);
        }
        self.taken += bytes.len() as u64;
        self.progress.came(bytes.len() as u64);
        Ok(())
    }
}

fn header<B>(response: &Response<B>, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}
