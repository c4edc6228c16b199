//! A pod's cgroup: the one that the kubelet makes above those of its containers.

use std::path::PathBuf;

use rtc_runtime::cgroup::{Cgroup, Driver, Layout};

use crate::error::{Error, Kind, Result};

/// The cgroup by the name that CRI gives it: a path, or with systemd the name of a slice.
///
/// # Errors
///
/// `FailedPrecondition` where the pod has none, or it is not there.
pub(crate) fn of_pod(parent: &str, id: &str) -> Result<Cgroup> {
    let none = |why: &str| {
        Error::text(
            Kind::FailedPrecondition,
            format_args!("linux.cgroup_parent: {parent:?}: {why}"),
        )
    };
    if parent.is_empty() {
        return Err(none("the pod was given no cgroup"));
    }
    let path = path_of(parent);
    let layout = Layout::detect()?;
    let cgroup = Cgroup::place(Some(&path), id, &layout, Driver::Cgroupfs)?;
    if !cgroup.exists() {
        return Err(none("there is no such cgroup"));
    }
    Ok(cgroup)
}

/// A slice is below those that its name tells, from left to right (systemd.slice(5)).
fn path_of(parent: &str) -> PathBuf {
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return parent.into();
    };
    let mut path = PathBuf::from("/");
    let dashes = name.match_indices('-').map(|(end, _)| end);
    for end in dashes.chain([name.len()]) {
        path.push(format!("{}.slice", name.get(..end).unwrap_or_default()));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_slice_is_below_those_of_its_name() {
        assert_eq!(
            path_of("kubepods-burstable-pod1.slice"),
            Path::new("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice")
        );
        assert_eq!(path_of("/kubepods/pod1"), Path::new("/kubepods/pod1"));
        assert_eq!(path_of("/x/a-b.slice"), Path::new("/x/a-b.slice"));
    }

    #[test]
    fn a_pod_without_a_cgroup_has_no_metrics() {
        let error = of_pod("", "p").unwrap_err();
        assert_eq!(error.kind, Kind::FailedPrecondition);
        let error = of_pod("/no/such/cgroup", "p").unwrap_err();
        assert!(error.to_string().contains("no such cgroup"), "{error}");
    }
}
