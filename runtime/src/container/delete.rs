//! `delete`: forgets a container, and all that is left of it in the kernel.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::container::create::CGROUP_DEADLINE;
use crate::container::id::ContainerId;
use crate::container::state::{Locked, NotFound, Operation, Record, StateRoot, Status};
use crate::{bundle, hooks, log};

/// Deletes a stopped container, or with `force` any: then its processes are killed first, and a missing one is fine.
///
/// # Errors
///
/// It is not stopped, or something of it can't be removed; then it can be deleted again.
pub fn delete(root: &StateRoot, id: &ContainerId, force: bool) -> Result<()> {
    let directory = match root.lock(id) {
        Err(error) if force && error.is::<NotFound>() => return Ok(()),
        locked => locked?,
    };
    let record = match directory.record() {
        Ok(Some(record)) => record,
        // Its create died before it made anything else, or the record is broken: there is nothing more to find.
        Ok(None) | Err(_) if force => return directory.remove(),
        Ok(None) => return directory.complete_record().map(drop),
        Err(error) => return Err(error),
    };
    let status = directory.status(&record)?;
    if status != Status::Stopped && !force {
        status.allows(Operation::Delete, id)?;
    }
    remove_killed(directory, &record)
}

/// Ends what runs, then removes the cgroup, runs the poststop hooks and removes the state.
pub(super) fn remove_killed(directory: Locked, record: &Record) -> Result<()> {
    if directory.status(record)? != Status::Stopped {
        record.signal(libc::SIGKILL).ok();
    }
    // Also what init left behind, where it did not own the PID namespace; and what is frozen.
    record.cgroup.kill().context("kill the container's processes")?;
    record.wait_for_end();
    record.cgroup.remove(Instant::now() + CGROUP_DEADLINE)?;
    if record.has_hooks {
        run_poststop_hooks(&directory, record);
    }
    directory.remove()
}

/// All of them run, whatever the others do: the container is gone already.
pub(super) fn run_poststop_hooks(directory: &Locked, record: &Record) {
    let spec = match directory.config().and_then(|config| bundle::parse_kept(&config)) {
        Ok(spec) => spec,
        Err(error) => return log::warn(format_args!("poststop hooks: {error:#}")),
    };
    let Some(poststop) = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref()) else {
        return;
    };
    let state = record.hook_state(directory.id());
    for hook in poststop {
        if let Err(error) = hooks::run(
            "poststop",
            Some(&vec![hook.clone()]),
            &state.json("stopped", 0),
            &[],
        ) {
            log::warn(format_args!("{error:#}"));
        }
    }
}
