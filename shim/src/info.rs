//! `-v` and `-info`: what this shim is, and what its runtime can do.

use std::io::Write;

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::options::Options;
use crate::start;

/// The name containerd knows this runtime by (its `runtime_type`).
pub(crate) const RUNTIME: &str = "io.containerd.rtc.v2";

/// Prints the version.
pub(crate) fn version() -> Result<()> {
    let text = format!(
        "containerd-shim-rtc-v2:\n  Version:  {}\n\n",
        env!("CARGO_PKG_VERSION")
    );
    print(text.as_bytes())
}

/// Prints a `RuntimeInfo` for the options on standard input.
pub(crate) fn info() -> Result<()> {
    let input = start::read_input()?;
    let options = match input.as_slice() {
        [] => None,
        input => Some(Any::parse_from_bytes(input).context("standard input: options (google.protobuf.Any)")?),
    };
    Options::parse(options.as_ref())?;
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..RuntimeVersion::default()
        }),
        options: options.into(),
        ..RuntimeInfo::default()
    };
    print(&info.write_to_bytes()?)
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .context("write to standard output")
}
