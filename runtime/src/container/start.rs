//! `start`: opens the gate.

use anyhow::{Context, Result};

use crate::bundle;
use crate::container::create::state_text;
use crate::container::delete::remove_killed;
use crate::container::id::ContainerId;
use crate::container::state::{Locked, Operation, Record, StateRoot};
use crate::process::gate;
use crate::{hooks, log};

/// Lets the init of a created container run its program; returns once it does.
///
/// # Errors
///
/// The container is not created, or its program can't be run: then it ends, in runc's words.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Start, id)?;
    if let Err(error) = gate::open(&directory) {
        // Whoever sees the error may look at the container at once: its process must have ended by then.
        record.wait_for_end();
        return Err(error);
    }
    run_poststart_hooks(directory, &record)
}

/// A failing poststart hook ends the container, as with runc.
pub(super) fn run_poststart_hooks(directory: Locked, record: &Record) -> Result<()> {
    if !record.has_hooks {
        return Ok(());
    }
    let spec = bundle::parse_kept(&directory.config()?)?;
    let Some(poststart) = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let state = state_text(
        directory.id(),
        &record.oci_version,
        &record.bundle,
        record.annotations.iter(),
    );
    if let Err(error) = hooks::run(
        "poststart",
        Some(poststart),
        &state.json("running", record.pid),
        &[],
    ) {
        remove_killed(directory, record)
            .unwrap_or_else(|error| log::warn(format_args!("clean up: {error:#}")));
        return Err(error).context("the container was ended");
    }
    Ok(())
}
