//! `start`: opens the gate.

use anyhow::{Context, Result, anyhow};

use crate::bundle;
use crate::container::delete::remove_killed;
use crate::container::id::ContainerId;
use crate::container::notify::Notify;
use crate::container::state::{Locked, Operation, Record, StateRoot};
use crate::process::gate;
use crate::{hooks, log};

/// Lets the init of a created container run its program; returns once it does, and once it has reported READY=1 where a
/// service manager waits for that.
///
/// # Errors
///
/// The container is not created, or its program can't be run: then it ends, in runc's words.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Start, id)?;
    let notify = Notify::bind(&directory)?;
    let init = record
        .pidfd()?
        .ok_or_else(|| anyhow!("the container's init has ended"))?;
    if let Err(error) = gate::open(&directory) {
        // Whoever sees the error may look at the container at once: its process must have ended by then.
        record.wait_for_end();
        return Err(error);
    }
    run_poststart_hooks(directory, &record)?;
    match notify {
        Some(notify) => notify.wait(&init, record.pid),
        None => Ok(()),
    }
}

/// A failing poststart hook ends the container, as with runc. Gives up the lock.
pub(super) fn run_poststart_hooks(directory: Locked, record: &Record) -> Result<()> {
    if !record.has_hooks {
        return Ok(());
    }
    let spec = bundle::parse_kept(&directory.config()?)?;
    let hooks = spec.hooks().as_ref();
    let Some(poststart) = hooks.and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let state = record.hook_state(directory.id());
    if let Err(error) = hooks::run(
        "poststart",
        Some(poststart),
        &state.json("running", record.pid),
        &[],
    ) {
        if let Err(error) = remove_killed(directory, record) {
            log::warn(format_args!("clean up: {error:#}"));
        }
        return Err(error).context("the container was ended");
    }
    Ok(())
}
