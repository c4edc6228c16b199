//! `pause` and `resume`: freezes and thaws all processes of a container.

use anyhow::Result;

use crate::container::id::ContainerId;
use crate::container::state::{Operation, StateRoot};

/// Freezes the container.
///
/// # Errors
///
/// It is neither created nor running.
pub fn pause(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Pause, id)?;
    record.cgroup.freeze()
}

/// Thaws the container.
///
/// # Errors
///
/// It is not paused.
pub fn resume(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Resume, id)?;
    record.cgroup.thaw()
}
