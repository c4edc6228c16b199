//! `rtc features`: what this build can do, as the specification's `features.md` has it.

use anyhow::Result;
use serde::Serialize;

use super::arguments::Parsed;
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "features",
    summary: "show the enabled features",
    arguments: "",
    count: (0, 0),
    run,
    ..ON_ONE_CONTAINER
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
}

fn run(_: &Global, _: &Parsed) -> Result<i32> {
    let features = Features {
        oci_version_min: "1.0.0",
        oci_version_max: super::OCI_VERSION,
    };
    super::print(&(serde_json::to_string_pretty(&features)? + "\n"))?;
    Ok(0)
}
