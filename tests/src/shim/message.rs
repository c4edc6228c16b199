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
