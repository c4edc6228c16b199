//! `rtc checkpoint` and `rtc restore`: not there yet; refused by name, with whatever flags a caller gives.

use anyhow::bail;

use super::arguments::Order;
use super::{Command, ON_ONE_CONTAINER};

pub(super) static CHECKPOINT: Command = Command {
    name: "checkpoint",
    summary: "checkpoint a running container (not supported yet)",
    run: |_, _| bail!("checkpoint: is not supported by rtc yet"),
    ..NOT_YET
};

pub(super) static RESTORE: Command = Command {
    name: "restore",
    summary: "restore a container from a previous checkpoint (not supported yet)",
    run: |_, _| bail!("restore: is not supported by rtc yet"),
    ..NOT_YET
};

const NOT_YET: Command = Command {
    order: Order::Unparsed,
    count: (0, usize::MAX),
    ..ON_ONE_CONTAINER
};
