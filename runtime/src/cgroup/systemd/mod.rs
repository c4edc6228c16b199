//! The systemd driver.
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use super::{Cgroup, Layout};

pub(super) fn place(_path: Option<&Path>, _id: &str, _layout: &Layout) -> Result<Cgroup> {
    bail!("--systemd-cgroup: not in this version: leave the option out to use the cgroupfs driver")
}

pub(super) fn stop(_cgroup: &Cgroup, _deadline: Instant) -> Result<()> {
    Ok(())
}

pub(super) fn set(_cgroup: &Cgroup, _resources: &oci_spec::runtime::LinuxResources) -> Result<()> {
    Ok(())
}
