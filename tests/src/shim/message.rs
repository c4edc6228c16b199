//! `google.protobuf.Any` values as containerd makes them.

use anyhow::Result;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
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
