//! `-v` and `-info`: what this shim is, and what its runtime can do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::options::Options;
use crate::start;

/// The name containerd knows this runtime by (its `runtime_type`).
pub(crate) const RUNTIME: &str = "io.containerd.rtc.v2";

/// The type that containerd looks for: JSON of the runtime specification's `features.md`.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

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
    let parsed = Options::parse(options.as_ref())?;
    let features = match parsed.binary_name {
        None => Some(serde_json::to_vec(&rtc_runtime::features::features())?),
        Some(runtime) => features_of(&runtime)?,
    };
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..RuntimeVersion::default()
        }),
        options: options.into(),
        features: features
            .map(|value| Any {
                type_url: FEATURES.into(),
                value,
                ..Any::default()
            })
            .into(),
        ..RuntimeInfo::default()
    };
    print(&info.write_to_bytes()?)
}

/// What a foreign runtime says; old ones don't know the question.
fn features_of(runtime: &Path) -> Result<Option<Vec<u8>>> {
    let output = Command::new(runtime)
        .arg("features")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("options: binary_name: run {runtime:?}"))?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_ok();
    Ok((output.status.success() && is_json).then_some(output.stdout))
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .context("write to standard output")
}
