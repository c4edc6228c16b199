//! D-Bus messages, as far as calls to systemd need them (D-Bus specification, "Message Protocol").
//!
//! ```text
//! fixed part 16 bytes:  'l' type flags version=1 | body length | serial | length of the header fields
//! header fields:        array of (code, variant), padded to 8
//! body:                 values, each aligned to its size from the body's start
//! ```

use std::fmt;

use anyhow::{Context as _, Result, bail};

/// A longer message is no answer of systemd to us (the specification allows 128 MiB).
const LONGEST: usize = 1 << 20;
const FIXED: usize = 16;
const CALL: u8 = 1;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// A value of a property.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int(i32),
    Uint(u32),
    Int64(i64),
    Uint64(u64),
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    Uints(Vec<u32>),
    /// `a(st)`: limits of devices.
    Limits(Vec<(String, u64)>),
    /// `a(ss)`.
    Pairs(Vec<(String, String)>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Uint(value) => value.fmt(f),
            Self::Int64(value) => value.fmt(f),
            Self::Uint64(u64::MAX) => f.write_str("max"),
            Self::Uint64(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
            Self::Texts(value) => value.fmt(f),
            Self::Bytes(value) => value.fmt(f),
            Self::Uints(value) => value.fmt(f),
            Self::Limits(value) => value.fmt(f),
            Self::Pairs(value) => value.fmt(f),
        }
    }
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Int(_) => "i",
            Self::Uint(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Bytes(_) => "ay",
            Self::Uints(_) => "au",
            Self::Limits(_) => "a(st)",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// A property of a unit.
pub(super) type Property = (&'static str, Value);

/// Values in their wire form.
#[derive(Debug, Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(super) fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array: its length in bytes is known when its elements are there; the padding before them does not count.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let size = length(self.0.len() - start);
        self.0[at..at + 4].copy_from_slice(&size.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::Int(value) => self.u32(value.cast_unsigned()),
            Value::Uint(value) => self.u32(*value),
            Value::Int64(value) => self.u64(value.cast_unsigned()),
            Value::Uint64(value) => self.u64(*value),
            Value::Text(value) => self.text(value),
            Value::Texts(values) => self.array(4, |list| values.iter().for_each(|value| list.text(value))),
            Value::Bytes(values) => self.array(1, |list| list.0.extend(values)),
            Value::Uints(values) => self.array(4, |list| values.iter().for_each(|value| list.u32(*value))),
            Value::Limits(values) => self.array(8, |list| {
                for (device, limit) in values {
                    list.align(8);
                    list.text(device);
                    list.u64(*limit);
                }
            }),
            Value::Pairs(values) => self.array(8, |list| {
                for (first, second) in values {
                    list.align(8);
                    list.text(first);
                    list.text(second);
                }
            }),
        }
    }

    /// `a(sv)`.
    pub(super) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |list| {
            for (name, value) in properties {
                list.align(8);
                list.text(name);
                list.variant(value);
            }
        });
    }

    /// `a(sa(sv))` without elements.
    pub(super) fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// Sizes here are far below 4 GiB.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A method call.
pub(super) struct Call<'a> {
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) signature: &'a str,
    pub(super) body: Encoder,
}

impl Call<'_> {
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut message = Encoder(vec![b'l', CALL, 0, 1]);
        message.u32(length(self.body.0.len()));
        message.u32(serial);
        message.array(8, |fields| {
            let mut field = |code: u8, signature: &str, value: &str| {
                fields.align(8);
                fields.0.push(code);
                fields.signature(signature);
                if signature == "g" {
                    fields.signature(value);
                } else {
                    fields.text(value);
                }
            };
            field(PATH, "o", self.path);
            field(INTERFACE, "s", self.interface);
            field(MEMBER, "s", self.member);
            if let Some(destination) = self.destination {
                field(DESTINATION, "s", destination);
            }
            if !self.signature.is_empty() {
                field(SIGNATURE, "g", self.signature);
            }
        });
        message.align(8);
        message.0.extend(&self.body.0);
        message.0
    }
}

/// What kind of message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Return,
    Error,
    Signal,
    Other,
}

/// A message that came.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) kind: Kind,
    pub(super) reply_to: u32,
    pub(super) sender: String,
    pub(super) member: String,
    pub(super) error: String,
    body: Vec<u8>,
}

/// What a peer sends, for tests: an answer of this type to a serial, or a signal.
#[cfg(test)]
pub(super) fn incoming(kind: u8, to: u32, name: &str, signature: &str, body: &Encoder) -> Vec<u8> {
    let mut message = Encoder(vec![b'l', kind, 0, 1]);
    message.u32(length(body.0.len()));
    message.u32(1);
    message.array(8, |fields| {
        fields.0.push(REPLY_SERIAL);
        fields.signature("u");
        fields.u32(to);
        for (code, value) in [
            (if kind == 3 { ERROR_NAME } else { MEMBER }, name),
            (SENDER, ":1.1"),
        ] {
            fields.align(8);
            fields.0.push(code);
            fields.signature("s");
            fields.text(value);
        }
        fields.align(8);
        fields.0.push(SIGNATURE);
        fields.signature("g");
        fields.signature(signature);
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// Reads values in their wire form; never past the end.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    fn take(&mut self, alignment: usize, size: usize) -> Result<&'a [u8]> {
        let start = self.at.next_multiple_of(alignment);
        let end = start.checked_add(size).context("D-Bus: a length is too large")?;
        let taken = self
            .bytes
            .get(start..end)
            .context("D-Bus: a message ends too early")?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1, 1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let size = self.u32()? as usize;
        self.characters(size)
    }

    pub(super) fn signature(&mut self) -> Result<String> {
        let size = self.byte()?.into();
        self.characters(size)
    }

    /// Characters and the zero after them.
    fn characters(&mut self, size: usize) -> Result<String> {
        let text = self.take(1, size)?.to_owned();
        self.take(1, 1)?;
        String::from_utf8(text).context("D-Bus: a text is not UTF-8")
    }
}

impl Incoming {
    /// Takes the first message from what was received: `None` where it is not complete yet.
    pub(super) fn take(received: &mut Vec<u8>) -> Result<Option<Self>> {
        let Some(fixed) = received.get(..FIXED) else {
            return Ok(None);
        };
        if fixed[0] != b'l' || fixed[3] != 1 {
            bail!("D-Bus: a message that is not little-endian, or not of version 1");
        }
        let mut sizes = Decoder { bytes: fixed, at: 4 };
        let body = sizes.u32()? as usize;
        sizes.u32()?;
        let fields = sizes.u32()? as usize;
        if body > LONGEST || fields > LONGEST {
            bail!(
                "D-Bus: a message of {} bytes: too long",
                body.saturating_add(fields)
            );
        }
        let start = (FIXED + fields).next_multiple_of(8);
        if received.len() < start + body {
            return Ok(None);
        }
        let message: Vec<u8> = received.drain(..start + body).collect();
        let mut incoming = Self {
            kind: match message[1] {
                2 => Kind::Return,
                3 => Kind::Error,
                4 => Kind::Signal,
                _ => Kind::Other,
            },
            reply_to: 0,
            sender: String::new(),
            member: String::new(),
            error: String::new(),
            body: message[start..].to_owned(),
        };
        let mut header = Decoder {
            bytes: &message[..FIXED + fields],
            at: FIXED,
        };
        while header.at < header.bytes.len() {
            incoming.field(&mut header)?;
        }
        Ok(Some(incoming))
    }

    fn field(&mut self, header: &mut Decoder<'_>) -> Result<()> {
        let code = header.take(8, 1)?[0];
        match header.signature()?.as_str() {
            "u" => {
                let value = header.u32()?;
                if code == REPLY_SERIAL {
                    self.reply_to = value;
                }
            }
            "s" | "o" => {
                let value = header.text()?;
                match code {
                    ERROR_NAME => self.error = value,
                    SENDER => self.sender = value,
                    MEMBER => self.member = value,
                    _ => {}
                }
            }
            "g" => drop(header.signature()?),
            other => bail!("D-Bus: a header field of type {other:?}"),
        }
        Ok(())
    }

    pub(super) fn body(&self) -> Decoder<'_> {
        Decoder {
            bytes: &self.body,
            at: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        let mut body = Encoder::default();
        body.text("web.scope");
        body.properties(&[
            ("MemoryMax", Value::Uint64(9)),
            ("PIDs", Value::Uints(vec![7])),
            ("Delegate", Value::Bool(true)),
        ]);
        let call = Call {
            destination: Some("d"),
            path: "/p",
            interface: "i.f",
            member: "M",
            signature: "sa(sv)",
            body,
        };
        call.encode(5)
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let message = call();
        assert_eq!(message[..4], [b'l', 1, 0, 1]);
        assert_eq!(message[8..12], [5, 0, 0, 0]);
        let fields = usize::from(message[12]);
        let start = (FIXED + fields).next_multiple_of(8);
        assert_eq!(message[16..24], [1, 1, b'o', 0, 2, 0, 0, 0]);
        let body = &message[start..];
        assert_eq!(usize::from(message[4]), body.len());
        assert_eq!(body[..16], *b"\x09\0\0\0web.scope\0\0\0");
        // The array's length does not count its padding to 8.
        assert_eq!(body[16..24], [body[16], 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(usize::from(body[16]), body.len() - 24);
        // "MemoryMax", its signature, then the number on a multiple of 8.
        assert_eq!(
            body[24..56],
            *b"\x09\0\0\0MemoryMax\0\x01t\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn what_is_sent_can_be_read_back() {
        let mut bytes = call();
        bytes.extend(call());
        for _ in 0..2 {
            let message = Incoming::take(&mut bytes).unwrap().unwrap();
            assert_eq!((message.member.as_str(), message.kind), ("M", Kind::Other));
            assert_eq!(message.body().text().unwrap(), "web.scope");
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_message_that_is_cut_off_or_damaged_does_no_harm() {
        let whole = call();
        for length in 0..whole.len() {
            assert!(Incoming::take(&mut whole[..length].to_owned()).unwrap().is_none());
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Ok(Some(message)) = Incoming::take(&mut damaged) {
                    let mut body = message.body();
                    while body.text().is_ok() {}
                }
            }
        }
    }
}
