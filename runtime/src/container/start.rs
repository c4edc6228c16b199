//! `start`: opens the gate.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, anyhow};

use crate::bundle;
use crate::container::create::CGROUP_DEADLINE;
use crate::container::delete::remove_killed;
use crate::container::id::ContainerId;
use crate::container::notify::Notify;
use crate::container::state::{Locked, NotFound, Operation, Record, StateRoot};
use crate::process::gate::{self, Opening};
use crate::{hooks, log};

/// Lets the init of a created container run its program; returns once it does, and once it has reported READY=1 where a
/// service manager waits for that.
///
/// # Errors
///
/// The container is not created, or its program can't be run: then it ends, in runc's words.
pub fn start(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = startable(&directory)?;
    let notify = Notify::bind(&directory)?;
    let init = record
        .pidfd()?
        .ok_or_else(|| anyhow!("the container's init has ended"))?;
    if let Err(error) = gate::open(&directory) {
        // Whoever sees the error may look at the container at once: its process must have ended by then.
        if let Err(error) = record.wait_for_end(CGROUP_DEADLINE) {
            log::warn(format_args!("{error:#}"));
        }
        return Err(error);
    }
    run_poststart_hooks(root, directory, &record)?;
    match notify {
        Some(notify) => notify.wait(&init, record.pid),
        None => Ok(()),
    }
}

/// The record of a container that can be started.
fn startable(directory: &Locked) -> Result<Record> {
    let record = directory.complete_record()?;
    directory
        .status(&record)?
        .allows(Operation::Start, directory.id())?;
    Ok(record)
}

/// A start for the shim, which waits for nothing: begin, [`Starting::look`] whenever it is readable, and where there are
/// hooks, [`run_poststart`] in a worker. Holds the container's lock until it is dropped.
#[derive(Debug)]
pub struct Starting {
    opening: Opening,
    has_hooks: bool,
    _directory: Locked,
}

impl AsFd for Starting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opening.as_fd()
    }
}

impl Starting {
    /// Lets init run its program. `None`: another verb changes the container just now; try again later.
    ///
    /// # Errors
    ///
    /// The container is not created.
    pub fn begin(root: &StateRoot, id: &ContainerId) -> Result<Option<Self>> {
        let Some(directory) = root.try_lock(id)? else {
            return Ok(None);
        };
        let record = startable(&directory)?;
        Ok(Some(Self {
            opening: Opening::begin(&directory)?,
            has_hooks: record.has_hooks,
            _directory: directory,
        }))
    }

    /// Whether the program runs by now.
    ///
    /// # Errors
    ///
    /// It never will, in init's words; init ends.
    pub fn look(&mut self) -> Result<bool> {
        self.opening.look()
    }

    /// Whether there may be poststart hooks.
    #[must_use]
    pub fn has_hooks(&self) -> bool {
        self.has_hooks
    }
}

/// Runs the poststart hooks of a container that was started by [`Starting`].
///
/// # Errors
///
/// A hook failed; then the container was ended and deleted.
pub fn run_poststart(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    run_poststart_hooks(root, directory, &record)
}

/// A failing poststart hook ends the container, as with runc. Gives up the lock before they run: they may use every verb.
pub(super) fn run_poststart_hooks(root: &StateRoot, directory: Locked, record: &Record) -> Result<()> {
    if !record.has_hooks {
        return Ok(());
    }
    let spec = bundle::parse_kept(&directory.config()?)?;
    let hooks = spec.hooks().as_ref();
    let Some(poststart) = hooks.and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let id = directory.id().clone();
    drop(directory);
    let state = record.hook_state(&id).json("running", record.pid);
    let run = |output: &hooks::Output| {
        let place = hooks::Place::Runtime {
            bundle: &record.bundle,
            init: None,
            output,
        };
        hooks::run("poststart", Some(poststart), &state, &place)
    };
    if let Err(error) = hooks::Output::open(record.annotations.iter()).and_then(|output| run(&output)) {
        if let Err(error) = remove_if_same(root, &id, record) {
            log::warn(format_args!("clean up: {error:#}"));
        }
        return Err(error).context("the container was ended");
    }
    Ok(())
}

/// Ends and deletes the container, unless somebody has deleted it meanwhile: another one may have its id.
pub(crate) fn remove_if_same(root: &StateRoot, id: &ContainerId, record: &Record) -> Result<()> {
    match root.lock(id) {
        Err(error) if error.is::<NotFound>() => Ok(()),
        Err(error) => Err(error),
        Ok(directory) if directory.record()?.is_some_and(|found| found.is_same(record)) => {
            remove_killed(directory, record)
        }
        Ok(_) => Ok(()),
    }
}
