//! `rtc pause` and `rtc resume`: stop and go on with all processes of a container.

use rtc_runtime::container;

use super::{Command, ON_ONE_CONTAINER};

pub(super) static PAUSE: Command = Command {
    name: "pause",
    summary: "pause suspends all processes inside the container",
    run: |global, parsed| container::pause(&global.state_root(), &super::id(parsed)?).map(|()| 0),
    ..ON_ONE_CONTAINER
};

pub(super) static RESUME: Command = Command {
    name: "resume",
    summary: "resumes all processes that have been previously paused",
    run: |global, parsed| container::resume(&global.state_root(), &super::id(parsed)?).map(|()| 0),
    ..ON_ONE_CONTAINER
};
