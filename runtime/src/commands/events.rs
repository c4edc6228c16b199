//! `rtc events`: statistics of a container and its out-of-memory events, one JSON object per line.

use anyhow::{Result, bail};
use rtc_runtime::container;

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "events",
    summary: "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    flags: &[
        Flag::value(
            "interval",
            "time between statistics, such as 5s or 500ms (default: 5s)",
        ),
        Flag::switch("stats", "display the container's stats then exit"),
    ],
    run,
    ..ON_ONE_CONTAINER
};

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let report = container::state(&global.state_root(), &super::id(parsed)?)?;
    bail!("container {:?}: events: not there yet", report.id);
}
