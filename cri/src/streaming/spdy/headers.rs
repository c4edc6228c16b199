//! Names and values of a stream (SPDY/3.1, section 2.6.10): a zlib stream of its own in each direction, as long as the
//! connection, which begins with a dictionary that both know.
//!
//! ```text
//! | number of pairs (32) | length (32) | name | length (32) | value, or several with a 0 between | length (32) | name | ...
//! ```
//!
//! Replies of ours have no headers, so nothing is compressed here: `NONE` is sent as it is.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress};

use super::frame::Malformed;

/// The longest block that is taken, in bytes before compression: what unpacks to more is a bomb.
const BLOCK_MAX: usize = 64 << 10;
/// Most pairs of one block.
const PAIRS_MAX: usize = 64;
/// What is made room for at a time, in bytes.
const STEP: usize = 1 << 10;

/// No headers, at the beginning of a connection: zlib's header (RFC 1950: deflate, 32 KiB window, dictionary), the
/// dictionary's checksum, and [`NONE`].
pub(super) const FIRST_NONE: [u8; 6 + NONE.len()] = {
    let mut block = [
        0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut at = 0;
    while at < NONE.len() {
        block[6 + at] = NONE[at];
        at += 1;
    }
    block
};

/// No headers: a stored block (RFC 1951, 3.2.4) with a number of pairs of 0, and an empty one, where readers flush.
pub(super) const NONE: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// A stream's headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::streaming) struct Headers(BTreeMap<String, String>);

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It can't be unpacked, and so no later one: the connection's end.
    Lost(Malformed),
    /// It unpacks, to nonsense: the stream's end.
    Nonsense,
}

/// Reads the blocks of a connection, in order.
#[derive(Debug)]
pub(super) struct Decoder(Decompress);

impl Headers {
    /// The first value of a header; its name in lower case.
    pub(in crate::streaming) fn get(&self, name: &str) -> Option<&str> {
        let values = self.0.get(name)?;
        values.split('\0').next()
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads a block. Every one must go through here, that of a stream that nobody wants too.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Fault> {
        let plain = self.unpack(block).map_err(Fault::Lost)?;
        pairs(&plain).ok_or(Fault::Nonsense)
    }

    fn unpack(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (begin, mut plain) = (self.0.total_in(), Vec::new());
        loop {
            if plain.len() == plain.capacity() {
                plain.reserve(STEP);
            }
            let done = usize::try_from(self.0.total_in() - begin).unwrap_or(usize::MAX);
            let rest = block.get(done..).unwrap_or_default();
            let before = plain.len();
            match self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(flate2::Status::StreamEnd) => {
                    return Err(Malformed("the stream of compressed headers has an end"));
                }
                Ok(_) => {}
                // Only once: the dictionary's checksum is compared.
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary());
                    set.map_err(|_| Malformed("headers that are compressed with another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Malformed("headers that can't be uncompressed")),
            }
            if plain.len() > BLOCK_MAX {
                return Err(Malformed("headers of more than 64 KiB"));
            }
            let now = usize::try_from(self.0.total_in() - begin).unwrap_or(usize::MAX);
            if now >= block.len() && plain.len() < plain.capacity() {
                return Ok(plain);
            }
            if now == done && plain.len() == before {
                return Err(Malformed("headers that can't be uncompressed"));
            }
        }
    }
}

/// `None`: a length that is not true, an empty name, one in upper case or twice (all of them errors of a stream), or text that
/// is none.
fn pairs(plain: &[u8]) -> Option<Headers> {
    let (count, mut rest) = length(plain)?;
    if count > PAIRS_MAX {
        return None;
    }
    let mut headers = BTreeMap::new();
    for _ in 0..count {
        let (name, value);
        (name, rest) = text(rest)?;
        (value, rest) = text(rest)?;
        if name.is_empty() || name.contains(|letter: char| letter.is_ascii_uppercase() || letter == '\0') {
            return None;
        }
        if headers.insert(name.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    rest.is_empty().then_some(Headers(headers))
}

fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*length) as usize, rest))
}

fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = length(bytes)?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// What both ends' compression begins with (section 2.6.10.1): words with their lengths, and then some text.
pub(super) fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::new();
    for word in WORDS.split('|') {
        dictionary.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
}

const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|\
    age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|\
    content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|\
    if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|\
    proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|\
    www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|origin";

const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
    charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::spdy::client::{Encoder, plain};

    fn text(headers: &Headers) -> Vec<(&str, &str)> {
        headers
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    #[test]
    fn blocks_share_one_compression_and_its_dictionary() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for port in ["80", "8080", ""] {
            let pairs = [("port", port), ("streamtype", "data")];
            let read = decoder.read(&encoder.block(&plain(&pairs))).unwrap();
            assert_eq!(text(&read), pairs);
        }
        // Without the ones before, it can't be read.
        let block = encoder.block(&plain(&[]));
        assert!(matches!(Decoder::new().read(&block), Err(Fault::Lost(_))));
    }

    #[test]
    fn the_dictionary_is_the_specification_s() {
        assert_eq!(dictionary().len(), 1423);
        let mut checked = Encoder::new();
        assert_eq!(checked.block(&[])[2..6], FIRST_NONE[2..6], "its checksum");
    }

    #[test]
    fn no_headers_are_read_by_zlib_as_often_as_they_come() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.read(&FIRST_NONE), Ok(Headers::default()));
        for _ in 0..3 {
            assert_eq!(decoder.read(&NONE), Ok(Headers::default()));
        }
    }

    #[test]
    fn the_first_of_several_values_is_taken() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let block = encoder.block(&plain(&[("port", "80\x0081"), ("none", "")]));
        let read = decoder.read(&block).unwrap();
        assert_eq!(read.get("port"), Some("80"));
        assert_eq!(read.get("none"), Some(""));
        assert_eq!(read.get("Port"), None);
    }

    #[test]
    fn nonsense_ends_a_stream_and_the_next_block_is_read_as_ever() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut cut = plain(&[("port", "80")]);
        cut.pop();
        let mut long = plain(&[("port", "80")]);
        long.push(0);
        let many: Vec<_> = (0..65).map(|i| (format!("n{i}"), String::new())).collect();
        let many: Vec<_> = many
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        for nonsense in [
            cut,
            long,
            vec![],
            vec![0xff; 4],
            vec![0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            vec![0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0],
            plain(&[("Port", "80")]),
            plain(&[("", "80")]),
            plain(&[("a\0b", "80")]),
            plain(&[("port", "80"), ("port", "81")]),
            plain(&many),
        ] {
            assert_eq!(
                decoder.read(&encoder.block(&nonsense)),
                Err(Fault::Nonsense),
                "{nonsense:?}"
            );
        }
        assert!(decoder.read(&encoder.block(&plain(&[("port", "80")]))).is_ok());
    }

    #[test]
    fn what_unpacks_to_too_much_or_not_at_all_ends_the_connection() {
        let lost = |block: &[u8]| matches!(Decoder::new().read(block), Err(Fault::Lost(_)));
        let bomb = Encoder::new().block(&vec![0; 1 << 20]);
        assert!(bomb.len() < 2048);
        assert!(lost(&bomb));
        assert!(matches!(
            Decoder::new().read(&Encoder::new().block(&vec![0; BLOCK_MAX])),
            Err(Fault::Nonsense)
        ));
        assert!(lost(b"GET /"));
        // Another dictionary, or none of zlib's headers.
        assert!(lost(&[0x78, 0xbb, 1, 2, 3, 4, 0, 0, 0, 0xff, 0xff]));
        let mut end = FIRST_NONE;
        end[6] = 1;
        assert!(lost(&end));
    }
}
