//! `rtc delete`: removes a stopped container; with `--force` a running one too.

use rtc_runtime::container;

use super::arguments::Flag;
use super::{Command, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "delete",
    summary: "delete any resources held by the container often used with detached container",
    flags: &[
        Flag::switch(
            "force",
            "kill the container with SIGKILL if it still runs; no error if there is none",
        )
        .or('f'),
        super::REGEX,
    ],
    run: |global, parsed| {
        super::on_each(global, parsed, |root, id| {
            container::delete(root, id, parsed.is_on("force"))
        })
    },
    ..ON_ONE_CONTAINER
};
