//! A message of the channel protocols: its first byte is the channel. Pure; also built into a fuzz target.
//!
//! ```text
//! binary:  <channel> <bytes>            0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; or 2n data, 2n+1 error of port n
//! base64:  <'0' + channel> <base64>
//! v5:      255 <channel>                the client sends no more on it
//! ```

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The signal of v5, in place of a channel.
const CLOSE: u8 = 255;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Binary,
    Base64,
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    Data(u8, Cow<'a, [u8]>),
    /// It sends no more on this channel.
    End(u8),
    /// An empty message, or one for a channel that there is not: kubelets drop them.
    Nothing,
}

/// What breaks the protocol, for the close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

/// Reads a message.
///
/// # Errors
///
/// A close signal of a wrong length or for a channel that there is not; base64 that is none.
pub(super) fn parse(
    message: &[u8],
    codec: Codec,
    closes: bool,
    channels: u8,
) -> Result<Incoming<'_>, Violation> {
    let Some((&first, rest)) = message.split_first() else {
        return Ok(Incoming::Nothing);
    };
    if closes && first == CLOSE {
        return match rest {
            [channel] if *channel < channels => Ok(Incoming::End(*channel)),
            [_] => Err(Violation("a close signal for a channel that there is not")),
            _ => Err(Violation("a close signal without the one byte of its channel")),
        };
    }
    let channel = match codec {
        Codec::Binary => first,
        Codec::Base64 => first.wrapping_sub(b'0'),
    };
    if channel >= channels {
        return Ok(Incoming::Nothing);
    }
    let data = match codec {
        Codec::Binary => Cow::Borrowed(rest),
        Codec::Base64 => Cow::Owned(
            STANDARD
                .decode(rest)
                .map_err(|_| Violation("a message that is not base64"))?,
        ),
    };
    Ok(Incoming::Data(channel, data))
}

/// Writes one.
pub(super) fn message(channel: u8, data: &[u8], codec: Codec) -> Vec<u8> {
    match codec {
        Codec::Binary => {
            let mut message = Vec::with_capacity(1 + data.len());
            message.push(channel);
            message.extend_from_slice(data);
            message
        }
        Codec::Base64 => {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0'.wrapping_add(channel)));
            STANDARD.encode_string(data, &mut text);
            text.into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(channel: u8, data: &[u8]) -> Incoming<'_> {
        Incoming::Data(channel, Cow::Borrowed(data))
    }

    #[test]
    fn the_first_byte_is_the_channel() {
        let parse = |message| parse(message, Codec::Binary, false, 5);
        assert_eq!(parse(b"\x00ls\n"), Ok(data(0, b"ls\n")));
        assert_eq!(parse(b"\x04"), Ok(data(4, b"")));
        assert_eq!(parse(b"\x05x"), Ok(Incoming::Nothing));
        assert_eq!(parse(b"\xff\x00"), Ok(Incoming::Nothing), "before v5");
        assert_eq!(parse(b""), Ok(Incoming::Nothing));
    }

    #[test]
    fn v5_closes_one_channel() {
        let parse = |message| parse(message, Codec::Binary, true, 5);
        assert_eq!(parse(b"\xff\x00"), Ok(Incoming::End(0)));
        assert!(parse(b"\xff\x05").is_err());
        assert!(parse(b"\xff").is_err());
        assert!(parse(b"\xff\x00\x00").is_err());
        assert_eq!(parse(b"\x00\xff"), Ok(data(0, b"\xff")));
    }

    #[test]
    fn base64_is_read_as_it_is_written() {
        let written = message(1, b"\xff\x00hello", Codec::Base64);
        assert_eq!(written, b"1/wBoZWxsbw==");
        let read = parse(&written, Codec::Base64, false, 5).unwrap();
        assert_eq!(read, data(1, b"\xff\x00hello"));
        assert!(parse(b"0?", Codec::Base64, false, 5).is_err());
        assert_eq!(parse(b"/", Codec::Base64, false, 5), Ok(Incoming::Nothing));
        assert_eq!(message(2, b"x", Codec::Binary), b"\x02x");
    }
}
