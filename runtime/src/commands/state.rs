//! `rtc state`: a container's state as the specification's JSON, with runc's further fields.

use rtc_runtime::container;

use super::{Command, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "state",
    summary: "output the state of a container",
    run: |global, parsed| {
        let report = container::state(&global.state_root(), &super::id(parsed)?)?;
        super::print(&(serde_json::to_string_pretty(&report)? + "\n")).map(|()| 0)
    },
    ..ON_ONE_CONTAINER
};
