//! `rtc features`: what this build can do, as JSON.

use anyhow::Result;

use super::arguments::Parsed;
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "features",
    summary: "show the enabled features",
    arguments: "",
    description: "The result is JSON, described in features.md of the OCI runtime specification.",
    count: (0, 0),
    run,
    ..ON_ONE_CONTAINER
};

fn run(_: &Global, _: &Parsed) -> Result<i32> {
    let features = rtc_runtime::features::features();
    super::print(&(serde_json::to_string_pretty(&features)? + "\n"))?;
    Ok(0)
}
