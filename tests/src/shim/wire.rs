//! Protobuf by hand, for messages that no crate here has: a field is its number and wire type, then its value.

use anyhow::{Context, Result, bail};

/// A message in the making.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    /// With no field yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A number.
    pub(crate) fn number(mut self, field: u64, value: u64) -> Self {
        put(&mut self.0, field << 3);
        put(&mut self.0, value);
        self
    }

    /// Bytes.
    pub(crate) fn data(mut self, field: u64, value: &[u8]) -> Self {
        put(&mut self.0, field << 3 | 2);
        put(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A string.
    pub(crate) fn text(self, field: u64, value: &str) -> Self {
        self.data(field, value.as_bytes())
    }

    /// A message.
    pub(crate) fn message(self, field: u64, value: Self) -> Self {
        self.data(field, &value.0)
    }

    /// What goes over the wire.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A number, or a truth value.
    Number(u64),
    /// A string, bytes or a message.
    Data(Vec<u8>),
}

/// The fields of a message, in the order they came.
pub(crate) fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Value)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = take(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(take(&mut bytes)?),
            2 => {
                let length = take(&mut bytes)? as usize;
                let (data, rest) = bytes
                    .split_at_checked(length)
                    .context("a message that ends too early")?;
                bytes = rest;
                Value::Data(data.to_vec())
            }
            other => bail!("wire type {other}"),
        };
        found.push((key >> 3, value));
    }
    Ok(found)
}

fn take(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a message that ends too early")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number that does not end")
}
