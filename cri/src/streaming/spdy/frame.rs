//! Layouts of SPDY/3.1's frames (section 2.2, and 2.6 for each). Pure: bytes in, bytes out.
//!
//! ```text
//! data     |0|       stream (31)        | flags (8) | length (24) | data
//! control  |1| version (15) | type (16) | flags (8) | length (24) | what the type says
//! ```

use std::fmt;

use crate::streaming::stream::Id;

/// What each frame begins with, in bytes.
pub(super) const HEAD: usize = 8;
/// The longest control frame that is taken, in bytes: a stream's headers are a few words. (The specification asks for 8 KiB.)
pub(super) const CONTROL_MAX: usize = 16 << 10;

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
/// No stream id, and no length, has more bits.
const ID: u32 = CONTROL - 1;
const LENGTH: u32 = (1 << 24) - 1;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

/// Types of control frames.
mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// What the client sent is not SPDY/3.1: its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streaming) struct Malformed(pub(super) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPDY: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// How a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// `length` bytes of a stream follow.
    Data { stream: Id, fin: bool, length: usize },
    /// `length` bytes follow, for [`control`].
    Control { kind: u16, flags: u8, length: usize },
}

/// What a control frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control<'a> {
    SynStream {
        stream: Id,
        fin: bool,
        /// The client wants nothing back.
        unidirectional: bool,
        block: &'a [u8],
    },
    /// SYN_REPLY or HEADERS: more about a stream.
    Headers {
        stream: Id,
        fin: bool,
        block: &'a [u8],
    },
    Reset {
        stream: Id,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Nothing to do: SETTINGS, WINDOW_UPDATE, and what we don't know ("must ignore", 2.2.1).
    Ignored,
}

/// Why a stream is reset (2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
}

/// Why a connection ends (2.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Away {
    Ok = 0,
    ProtocolError = 1,
}

/// Reads how a frame begins.
///
/// # Errors
///
/// Another version, or a control frame longer than [`CONTROL_MAX`].
pub(super) fn head(bytes: [u8; HEAD]) -> Result<Head, Malformed> {
    let [a, b, c, d, flags, e, f, g] = bytes;
    let first = u32::from_be_bytes([a, b, c, d]);
    let length = u32::from_be_bytes([0, e, f, g]) as usize;
    if first & CONTROL == 0 {
        if first == 0 {
            return Err(Malformed("data of stream 0"));
        }
        let fin = flags & FIN != 0;
        let stream = first;
        return Ok(Head::Data { stream, fin, length });
    }
    if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
        return Err(Malformed("a frame of another version than 3"));
    }
    if length > CONTROL_MAX {
        return Err(Malformed("a control frame of more than 16 KiB"));
    }
    let kind = u16::from_be_bytes([c, d]);
    Ok(Head::Control { kind, flags, length })
}

/// Reads what follows the head of a control frame.
///
/// # Errors
///
/// Its length is not one of its type's, or a stream is 0.
pub(super) fn control(kind: u16, flags: u8, payload: &[u8]) -> Result<Control<'_>, Malformed> {
    let fin = flags & FIN != 0;
    Ok(match kind {
        kind::SYN_STREAM => {
            let (stream, rest) = stream(payload)?;
            // The stream it belongs to, priority, slot: for pushing, which nobody does here.
            let (_, block) = rest
                .split_first_chunk::<6>()
                .ok_or(Malformed("a SYN_STREAM that is cut off"))?;
            Control::SynStream {
                stream,
                fin,
                unidirectional: flags & UNIDIRECTIONAL != 0,
                block,
            }
        }
        kind::SYN_REPLY | kind::HEADERS => {
            let (stream, block) = stream(payload)?;
            Control::Headers { stream, fin, block }
        }
        kind::RST_STREAM => {
            let (stream, _status) = two(payload, "a RST_STREAM that is not 8 bytes long")?;
            match stream & ID {
                0 => return Err(Malformed("a RST_STREAM of stream 0")),
                stream => Control::Reset { stream },
            }
        }
        kind::PING => {
            let id = *payload
                .as_array::<4>()
                .ok_or(Malformed("a PING that is not 4 bytes long"))?;
            Control::Ping {
                id: u32::from_be_bytes(id),
            }
        }
        kind::GOAWAY => {
            two(payload, "a GOAWAY that is not 8 bytes long")?;
            Control::GoAway
        }
        kind::SETTINGS => {
            let (count, entries) = word(payload).ok_or(Malformed("a SETTINGS that is cut off"))?;
            if (count as usize).checked_mul(8) != Some(entries.len()) {
                return Err(Malformed("a SETTINGS whose length is not that of its entries"));
            }
            Control::Ignored
        }
        kind::WINDOW_UPDATE => {
            two(payload, "a WINDOW_UPDATE that is not 8 bytes long")?;
            Control::Ignored
        }
        _ => Control::Ignored,
    })
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*word), rest))
}

fn two(bytes: &[u8], otherwise: &'static str) -> Result<(u32, u32), Malformed> {
    let found = word(bytes).and_then(|(first, rest)| Some((first, word(rest)?)));
    match found {
        Some((first, (second, []))) => Ok((first, second)),
        _ => Err(Malformed(otherwise)),
    }
}

fn stream(payload: &[u8]) -> Result<(Id, &[u8]), Malformed> {
    let (stream, rest) = word(payload).ok_or(Malformed("a frame that ends before its stream"))?;
    match stream & ID {
        0 => Err(Malformed("headers of stream 0")),
        stream => Ok((stream, rest)),
    }
}

/// The head of so many bytes of a stream: less than 16 MiB.
pub(super) fn data(stream: Id, fin: bool, length: usize) -> [u8; HEAD] {
    debug_assert!(length <= LENGTH as usize, "{length}");
    let length = u32::try_from(length).unwrap_or(LENGTH).min(LENGTH);
    whole(stream & ID, u32::from(fin) << 24 | length)
}

/// A SYN_REPLY with a block of headers.
pub(super) fn syn_reply(stream: Id, block: &[u8]) -> Vec<u8> {
    let length = u32::try_from(4 + block.len()).unwrap_or(LENGTH);
    let mut frame = whole(start(kind::SYN_REPLY), length).to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(block);
    frame
}

/// A RST_STREAM.
pub(super) fn rst_stream(stream: Id, status: Status) -> Vec<u8> {
    [
        whole(start(kind::RST_STREAM), 8),
        whole(stream & ID, status as u32),
    ]
    .concat()
}

/// A PING: the client's own, or one of ours, which is even.
pub(super) fn ping(id: u32) -> Vec<u8> {
    let mut frame = whole(start(kind::PING), 4).to_vec();
    frame.extend_from_slice(&id.to_be_bytes());
    frame
}

/// A GOAWAY: `last` is the last stream that was replied to, or 0.
pub(super) fn goaway(last: Id, status: Away) -> Vec<u8> {
    [whole(start(kind::GOAWAY), 8), whole(last & ID, status as u32)].concat()
}

fn start(kind: u16) -> u32 {
    CONTROL | u32::from(VERSION) << 16 | u32::from(kind)
}

fn whole(first: u32, second: u32) -> [u8; HEAD] {
    (u64::from(first) << 32 | u64::from(second)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_with_a_stream_or_a_type_and_a_length_of_24_bits() {
        let data = head([0x7f, 0xff, 0xff, 0xff, 0x01, 0xff, 0xff, 0xff]);
        let (stream, length) = (0x7fff_ffff, (1 << 24) - 1);
        let fin = true;
        assert_eq!(data, Ok(Head::Data { stream, fin, length }));
        let ping = head([0x80, 3, 0, 6, 0, 0, 0, 4]);
        assert_eq!(
            ping,
            Ok(Head::Control {
                kind: 6,
                flags: 0,
                length: 4
            })
        );
    }

    #[test]
    fn other_versions_data_of_no_stream_and_long_control_frames_are_refused() {
        assert!(head([0x80, 2, 0, 1, 0, 0, 0, 10]).is_err());
        assert!(head([0xff, 3, 0, 1, 0, 0, 0, 10]).is_err());
        assert!(head([0, 0, 0, 0, 0, 0, 0, 1]).is_err());
        assert!(head([0x80, 3, 0, 1, 0, 0, 0x40, 0]).is_ok());
        assert!(head([0x80, 3, 0, 1, 0, 0, 0x40, 1]).is_err());
        assert!(head(*b"GET / HT").is_ok(), "a long one of an unlikely stream");
    }

    #[test]
    fn control_frames_are_read_as_the_specification_draws_them() {
        let syn = [0, 0, 0, 5, 0, 0, 0, 0, 0x20, 0, b'x', b'y'];
        let expected = Control::SynStream {
            stream: 5,
            fin: true,
            unidirectional: false,
            block: b"xy",
        };
        assert_eq!(control(1, 1, &syn), Ok(expected));
        let (stream, fin, block) = (5, false, b"z".as_slice());
        let headers = Control::Headers { stream, fin, block };
        assert_eq!(control(2, 0, &[0, 0, 0, 5, b'z']), Ok(headers));
        assert_eq!(control(8, 0, &[0, 0, 0, 5, b'z']), Ok(headers));
        assert_eq!(
            control(3, 0, &[0x80, 0, 0, 7, 0, 0, 0, 5]),
            Ok(Control::Reset { stream: 7 }),
            "the first bit means nothing"
        );
        assert_eq!(control(6, 0, &[0, 0, 0, 9]), Ok(Control::Ping { id: 9 }));
        assert_eq!(control(7, 0, &[0; 8]), Ok(Control::GoAway));
        for (kind, payload) in [
            (4, [&[0, 0, 0, 1][..], &[1; 8]].concat()),
            (9, vec![0; 8]),
            (77, vec![]),
        ] {
            assert_eq!(control(kind, 0, &payload), Ok(Control::Ignored), "{kind}");
        }
    }

    #[test]
    fn control_frames_of_a_wrong_length_are_refused() {
        for (kind, length) in [
            (1, 9),
            (2, 3),
            (3, 7),
            (3, 9),
            (6, 3),
            (6, 5),
            (7, 4),
            (8, 0),
            (9, 9),
        ] {
            assert!(control(kind, 0, &vec![1; length]).is_err(), "{kind} {length}");
        }
        // As many entries as no memory holds.
        assert!(control(4, 0, &[0xff; 4]).is_err());
        assert!(control(4, 0, &[0, 0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 1]).is_err());
        for kind in [1, 2, 3, 8] {
            assert!(
                control(kind, 0, &[0; 10][..if kind == 3 { 8 } else { 10 }]).is_err(),
                "{kind}"
            );
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        assert_eq!(
            head(data(3, true, 0)),
            Ok(Head::Data {
                stream: 3,
                fin: true,
                length: 0
            })
        );
        assert_eq!(
            syn_reply(3, b"ab"),
            [0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 3, b'a', b'b']
        );
        assert_eq!(
            rst_stream(3, Status::RefusedStream),
            [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 3]
        );
        assert_eq!(ping(1), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        assert_eq!(
            goaway(9, Away::ProtocolError),
            [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 1]
        );
    }
}
