//! `rtc start`: lets a created container's process begin.

use rtc_runtime::container;

use super::{Command, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "start",
    summary: "executes the user defined process in a created container",
    run: |global, parsed| container::start(&global.state_root(), &super::id(parsed)?).map(|()| 0),
    ..ON_ONE_CONTAINER
};
