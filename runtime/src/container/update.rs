//! `update`: changes the limits of a container.

use anyhow::{Context, Result};
use oci_spec::runtime::LinuxResources;

use crate::container::id::ContainerId;
use crate::container::state::{Locked, Operation, Record, StateRoot};
use crate::resctrl::{self, Group};

/// Sets the limits that `resources` names; the others stay.
///
/// # Errors
///
/// The container is stopped, or the kernel refuses a value.
pub fn update(root: &StateRoot, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
    update_with_rdt(root, id, resources, &resctrl::Update::default())
}

/// As [`update`], and changes the container's share of caches and memory bandwidth, for which it gets a resctrl group
/// where it has none.
///
/// # Errors
///
/// As [`update`]; there is no resctrl file system, or it refuses a value.
pub fn update_with_rdt(
    root: &StateRoot,
    id: &ContainerId,
    resources: &LinuxResources,
    rdt: &resctrl::Update,
) -> Result<()> {
    let directory = root.lock(id)?;
    let mut record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Update, id)?;
    if *rdt != resctrl::Update::default() {
        update_rdt(&directory, &mut record, rdt)?;
    }
    record.cgroup.apply(resources)?;
    match resources.devices().as_deref() {
        Some(devices) if !devices.is_empty() => record.cgroup.apply_devices(devices),
        _ => Ok(()),
    }
}

fn update_rdt(directory: &Locked, record: &mut Record, rdt: &resctrl::Update) -> Result<()> {
    if let Some(group) = &record.intel_rdt {
        return group.update(rdt);
    }
    let mut group = Group::for_running(directory.id().as_str())?;
    // From here on `delete` finds it.
    record.intel_rdt = Some(group.clone());
    directory.save(record)?;
    let made = group.take_in(rdt, || record.cgroup.processes());
    record.intel_rdt = Some(group.clone());
    if let Err(error) = made {
        group.remove().with_context(|| format!("{error:#}"))?;
        record.intel_rdt = None;
        directory.save(record)?;
        return Err(error);
    }
    directory.save(record)
}
