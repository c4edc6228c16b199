//! `update`: changes the limits of a container.

use anyhow::Result;
use oci_spec::runtime::LinuxResources;

use crate::container::id::ContainerId;
use crate::container::state::{Operation, StateRoot};

/// Sets the limits that `resources` names; the others stay.
///
/// # Errors
///
/// The container is stopped, or the kernel refuses a value.
pub fn update(root: &StateRoot, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Update, id)?;
    record.cgroup.apply(resources)?;
    match resources.devices().as_deref() {
        Some(devices) if !devices.is_empty() => record.cgroup.apply_devices(devices),
        _ => Ok(()),
    }
}
