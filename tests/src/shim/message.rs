//! Messages as containerd makes them, and what is read of those a shim makes.

use anyhow::Result;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::{cgroups, cgroups_v2};
use serde_json::Value;

/// Type of the runtime's options (containerd's `api/types/runc/options`).
pub(crate) const OPTIONS_URL: &str = "containerd.runc.v1.Options";
/// Type of an exec's process: JSON of the runtime specification.
pub(crate) const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// JSON in an Any, as containerd's typeurl packs types that are not protobuf.
pub(crate) fn any(url: &str, value: &Value) -> Any {
    raw(url, value.to_string().into_bytes())
}

/// A message in an Any.
pub(crate) fn any_message(url: &str, message: &impl Message) -> Result<Any> {
    Ok(raw(url, message.write_to_bytes()?))
}

fn raw(url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: url.to_owned(),
        value,
        ..Any::default()
    }
}

/// A message's bytes.
pub(crate) fn bytes(message: &impl Message) -> Result<Vec<u8>> {
    Ok(message.write_to_bytes()?)
}

/// A mount of a rootfs.
pub(crate) fn mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.to_vec(),
        ..Mount::default()
    }
}

/// How many processes the statistics of a container count.
pub(crate) fn process_count(stats: &Any) -> Result<u64> {
    Ok(if stats.type_url.contains("v2") {
        let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&stats.value)?;
        metrics.pids.current
    } else {
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&stats.value)?;
        metrics.pids.current
    })
}

/// A field of a message that is made or read by hand, by its number in the .proto file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// A number.
    Number(u32, u64),
    /// A string, bytes, or a message.
    Bytes(u32, Vec<u8>),
}

impl Field {
    /// A string.
    pub(crate) fn text(number: u32, text: &str) -> Self {
        Self::Bytes(number, text.as_bytes().to_vec())
    }

    /// A message.
    pub(crate) fn message(number: u32, fields: &[Self]) -> Self {
        Self::Bytes(number, by_hand(fields))
    }
}

/// A message of these fields.
pub(crate) fn by_hand(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Number(number, value) => {
                varint(&mut bytes, u64::from(*number) << 3);
                varint(&mut bytes, *value);
            }
            Field::Bytes(number, value) => {
                varint(&mut bytes, u64::from(*number) << 3 | 2);
                varint(&mut bytes, value.len() as u64);
                bytes.extend(value);
            }
        }
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The fields of a message; `None` where it is none, or has fields of other kinds.
pub(crate) fn fields(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = read_varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => found.push(Field::Number(number, read_varint(&mut bytes)?)),
            2 => {
                let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                found.push(Field::Bytes(number, value.to_vec()));
            }
            _ => return None,
        }
    }
    Some(found)
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
