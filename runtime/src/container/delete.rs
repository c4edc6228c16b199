//! `delete`: forgets a container, and all that is left of it in the kernel.

use std::time::Instant;

use anyhow::{Context, Result};
use oci_spec::runtime::Hook;

use crate::container::create::CGROUP_DEADLINE;
use crate::container::id::ContainerId;
use crate::container::state::{Locked, NotFound, Operation, Record, StateRoot, Status};
use crate::resctrl::Group;
use crate::{bundle, hooks, log};

/// Deletes a stopped container, or with `force` any: then its processes are killed first, and a missing one is fine.
///
/// # Errors
///
/// It is not stopped, or something of it can't be removed; then it can be deleted again.
pub fn delete(root: &StateRoot, id: &ContainerId, force: bool) -> Result<()> {
    let directory = match lock(root, id, force) {
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

/// Locks the container. Whoever holds the lock may wait for something of the container, a hook or a start that never
/// ends: with `force` that is killed first.
fn lock(root: &StateRoot, id: &ContainerId, force: bool) -> Result<Locked> {
    if force && root.try_lock(id)?.is_none() {
        let record = root.open(id)?.record();
        if let Ok(Some(record)) = record
            && record.pid != 0
        {
            // Those that have ended meanwhile are killed well enough.
            let _ = record.signal(libc::SIGKILL);
            let _ = record.cgroup.kill();
        }
    }
    root.lock(id)
}

/// Ends what runs, then removes the cgroup and the state, and runs the poststop hooks.
pub(crate) fn remove_killed(directory: Locked, record: &Record) -> Result<()> {
    if record.pid == 0 {
        // Its create died before there was an init, or before it could say so; then that ends by itself. The cgroup may
        // be another container's, which the create was about to find out: nothing in it is ours to kill.
        if let Err(error) = record.cgroup.remove(Instant::now() + CGROUP_DEADLINE) {
            log::warn(format_args!("its cgroup is left: {error:#}"));
        }
        if let Err(error) = record.intel_rdt.as_ref().map_or(Ok(()), Group::remove) {
            log::warn(format_args!("{error:#}"));
        }
        return directory.remove();
    }
    if directory.status(record)? != Status::Stopped {
        if record.cgroup.is_absent() {
            record.kill_all().ok();
        }
        record.signal(libc::SIGKILL).ok();
    }
    // Also what init left behind, where it did not own the PID namespace; and what is frozen.
    record.cgroup.kill().context("kill the container's processes")?;
    record.wait_for_end(CGROUP_DEADLINE)?;
    record.cgroup.remove(Instant::now() + CGROUP_DEADLINE)?;
    if let Some(group) = &record.intel_rdt {
        group.remove()?;
    }
    let poststop = poststop_hooks(&directory, record);
    let id = directory.id().clone();
    // The container is gone before its hooks run: they may look, and even make it again.
    directory.remove()?;
    run_poststop_hooks(&poststop, &id, record);
    Ok(())
}

fn poststop_hooks(directory: &Locked, record: &Record) -> Vec<Hook> {
    if !record.has_hooks {
        return Vec::new();
    }
    match directory.config().and_then(|config| bundle::parse_kept(&config)) {
        Ok(spec) => spec
            .hooks()
            .as_ref()
            .and_then(|hooks| hooks.poststop().clone())
            .unwrap_or_default(),
        Err(error) => {
            log::warn(format_args!("poststop hooks: {error:#}"));
            Vec::new()
        }
    }
}

/// All of them run, whatever the others do: the container is gone already.
pub(crate) fn run_poststop_hooks(hooks: &[Hook], id: &ContainerId, record: &Record) {
    if hooks.is_empty() {
        return;
    }
    let state = record.hook_state(id).json("stopped", 0);
    let output = hooks::Output::open(record.annotations.iter()).unwrap_or_else(|error| {
        log::warn(format_args!("{error:#}"));
        hooks::Output::default()
    });
    for hook in hooks {
        let place = hooks::Place::Runtime {
            bundle: &record.bundle,
            init: None,
            output: &output,
        };
        if let Err(error) = hooks::run("poststop", Some(&vec![hook.clone()]), &state, &place) {
            log::warn(format_args!("{error:#}"));
        }
    }
}
