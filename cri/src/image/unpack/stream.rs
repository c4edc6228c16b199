//! The plain tar of a layer: decompressed, counted, and hashed as it is read.

use std::io::{self, BufReader, Read};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// So much is decompressed at a time: fits a processor's second cache with what it is made of.
const PIECE: usize = 128 << 10;

/// The most bytes that tell what it is compressed with.
const MAGIC: u64 = 6;

/// Headers, records and what fills blocks, of all entries; what is skipped, and what is behind the end.
const OVERHEAD_MAX: u64 = if cfg!(test) { 8 << 20 } else { 16 << 30 };

/// The largest window of zstd, as a power of two: what its command line takes too without being told.
const WINDOW: u32 = 27;

/// A plain tar.
pub(super) struct Plain<'r> {
    source: Box<dyn Read + 'r>,
    piece: Box<[u8]>,
    /// What of the piece is not taken yet.
    at: usize,
    end: usize,
    digest: Sha256,
    /// Bytes that were not handed out as a file's.
    overhead: u64,
}

impl<'r> Plain<'r> {
    /// What it is compressed with is told by its first bytes: media types are not always right, and peers do the same.
    pub(super) fn new(mut compressed: impl Read + 'r) -> Result<Self> {
        // They may come one by one.
        let mut start = Vec::with_capacity(MAGIC as usize);
        let read = compressed.by_ref().take(MAGIC).read_to_end(&mut start);
        read.context("read")?;
        let compressed = io::Cursor::new(start.clone()).chain(compressed);
        let compressed = BufReader::with_capacity(PIECE, compressed);
        let source: Box<dyn Read + 'r> = match &start[..] {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(compressed)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).context("zstd")?;
                decoder.window_log_max(WINDOW).context("zstd")?;
                Box::new(decoder)
            }
            [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                bail!("it is compressed with bzip2 or xz: layers are plain, gzip or zstd")
            }
            _ => Box::new(compressed),
        };
        Ok(Self {
            source,
            piece: vec![0; PIECE].into_boxed_slice(),
            at: 0,
            end: 0,
            digest: Sha256::new(),
            overhead: 0,
        })
    }

    /// Some of what comes next, at most `most` bytes; nothing at the end.
    pub(super) fn take(&mut self, most: u64) -> io::Result<&[u8]> {
        if self.at == self.end {
            self.fill()?;
        }
        let length = (self.end - self.at).min(usize::try_from(most).unwrap_or(usize::MAX));
        let start = self.at;
        self.at += length;
        Ok(&self.piece[start..self.at])
    }

    fn fill(&mut self) -> io::Result<()> {
        self.at = 0;
        self.end = 0;
        // Decoders give little at a time: a system call each is avoided.
        while self.end < self.piece.len() {
            match self.source.read(&mut self.piece[self.end..]) {
                Ok(0) => break,
                Ok(length) => self.end += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.digest.update(&self.piece[..self.end]);
        Ok(())
    }

    /// Some that is no file's: it takes no room, only time, and little of it is needed to make much.
    fn take_overhead(&mut self, most: u64) -> Result<&[u8]> {
        ensure!(
            self.overhead <= OVERHEAD_MAX,
            "more than {OVERHEAD_MAX} bytes of it are of no file"
        );
        if self.at == self.end {
            self.fill().context("read")?;
        }
        let length = (self.end - self.at) as u64;
        self.overhead += length.min(most);
        self.take(most).context("read")
    }

    /// Exactly so many bytes; `false` where it ends before the first one.
    pub(super) fn exact(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            let piece = self.take_overhead((buffer.len() - filled) as u64)?;
            if piece.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                bail!("it ends in the middle of an entry");
            }
            buffer[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(true)
    }

    /// Goes over so many bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let length = self.take_overhead(count)?.len() as u64;
            if length == 0 {
                bail!("it ends in the middle of an entry");
            }
            count -= length;
        }
        Ok(())
    }

    /// Reads to its end: `sha256:...` of all of it. What is behind the end of a tar belongs to the digest.
    pub(super) fn finish(mut self) -> Result<String> {
        while !self.take_overhead(u64::MAX)?.is_empty() {}
        Ok(format!("sha256:{:x}", self.digest.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_it_is_compressed_with_is_told_by_its_first_bytes() {
        let text = b"abc".repeat(100_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let expected = format!("sha256:{:x}", Sha256::digest(&text));
        for compressed in [
            text.clone(),
            gzip.finish().unwrap(),
            zstd::encode_all(&text[..], 1).unwrap(),
        ] {
            let mut plain = Plain::new(&compressed[..]).unwrap();
            let mut start = [0; 4];
            assert!(plain.exact(&mut start).unwrap());
            assert_eq!(&start, b"abca");
            assert_eq!(plain.finish().unwrap(), expected);
        }
    }

    #[test]
    fn its_first_bytes_may_come_one_by_one() {
        struct OneByOne<'b>(&'b [u8]);
        impl Read for OneByOne<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = buffer.len().min(1);
                self.0.read(&mut buffer[..length])
            }
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"abc").unwrap();
        let zstd = zstd::encode_all(&b"abc"[..], 1).unwrap();
        for compressed in [gzip.finish().unwrap(), zstd, b"abc".to_vec()] {
            let plain = Plain::new(OneByOne(&compressed)).unwrap();
            let expected = format!("sha256:{:x}", Sha256::digest(b"abc"));
            assert_eq!(plain.finish().unwrap(), expected);
        }
        assert!(Plain::new(OneByOne(b"\xfd7zXZ\0rest")).is_err());
    }

    #[test]
    fn a_compressed_stream_that_is_cut_is_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&b"abc".repeat(100_000)).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&b"abc".repeat(100_000)[..], 1).unwrap();
        for compressed in [gzip, zstd] {
            let plain = Plain::new(&compressed[..compressed.len() - 3]).unwrap();
            assert!(plain.finish().is_err());
        }
    }
}
