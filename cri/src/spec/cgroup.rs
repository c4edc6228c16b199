//! Where a container's cgroup is: always below its pod's (CVE-2025-47291).

use super::{Asked, Facts};
use crate::config::CgroupDriver;
use crate::error::{Error, Result};

/// The parent of containers whose pod has none.
const CGROUPFS_DEFAULT: &str = "/rtc";
const SYSTEMD_DEFAULT: &str = "rtc.slice";

/// A container's cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `linux.cgroupsPath`: a path, or `slice:prefix:name` for systemd.
    pub(super) oci: String,
    /// Below the mount point of each hierarchy.
    pub(super) path: String,
}

impl Place {
    /// By the pod's `cgroup_parent`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: no parent for this driver.
    pub(super) fn of(facts: &Facts, asked: &Asked<'_>) -> Result<Self> {
        let parent = asked.pod.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
        place(facts.driver, parent, asked.id)
    }
}

fn place(driver: CgroupDriver, parent: &str, id: &str) -> Result<Place> {
    let refuse = |what: &str| {
        Err(Error::invalid(format_args!(
            "sandbox_config.linux.cgroup_parent: {parent:?}: {what}"
        )))
    };
    if parent.split('/').any(|part| part == "..") || parent.contains(['\0', ':']) {
        return refuse("must have no \"..\" and no colon");
    }
    match driver {
        CgroupDriver::Cgroupfs => {
            if parent.ends_with(".slice") && !parent.contains('/') {
                return refuse(
                    "is a slice of systemd: the kubelet's cgroupDriver is systemd, and ours cgroupfs; set both alike",
                );
            }
            let parent = match parent.trim_matches('/') {
                "" => CGROUPFS_DEFAULT.to_owned(),
                parent => format!("/{parent}"),
            };
            let path = format!("{parent}/{id}");
            Ok(Place {
                oci: path.clone(),
                path,
            })
        }
        CgroupDriver::Systemd => {
            let slice = parent
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default();
            let slice = if slice.is_empty() { SYSTEMD_DEFAULT } else { slice };
            let Some(name) = slice.strip_suffix(".slice").filter(|name| !name.is_empty()) else {
                return refuse(
                    "is no slice: the kubelet's cgroupDriver is cgroupfs, and ours systemd; set both alike",
                );
            };
            Ok(Place {
                oci: format!("{slice}:rtc:{id}"),
                path: format!("{}/rtc-{id}.scope", slice_path(name)),
            })
        }
    }
}

/// A slice is below those that its name tells, from left to right (systemd.slice(5)).
fn slice_path(name: &str) -> String {
    if name == "-" {
        return String::new();
    }
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_below_its_pod_with_both_drivers() {
        let path = place(CgroupDriver::Cgroupfs, "/kubepods/burstable/pod1", "abc").unwrap();
        assert_eq!(path.oci, "/kubepods/burstable/pod1/abc");
        assert_eq!(path.path, path.oci);
        let scope = place(CgroupDriver::Systemd, "kubepods-burstable-pod1.slice", "abc").unwrap();
        assert_eq!(scope.oci, "kubepods-burstable-pod1.slice:rtc:abc");
        assert_eq!(
            scope.path,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/rtc-abc.scope"
        );
        let whole = place(
            CgroupDriver::Systemd,
            "/kubepods.slice/kubepods-pod1.slice",
            "abc",
        )
        .unwrap();
        assert_eq!(whole.path, "/kubepods.slice/kubepods-pod1.slice/rtc-abc.scope");
    }

    #[test]
    fn a_pod_without_a_parent_has_ours() {
        assert_eq!(place(CgroupDriver::Cgroupfs, "", "abc").unwrap().oci, "/rtc/abc");
        assert_eq!(place(CgroupDriver::Cgroupfs, "/", "abc").unwrap().oci, "/rtc/abc");
        assert_eq!(
            place(CgroupDriver::Systemd, "", "abc").unwrap().oci,
            "rtc.slice:rtc:abc"
        );
    }

    #[test]
    fn cve_2025_47291_no_parent_leads_out_of_the_pod() {
        for parent in ["/kubepods/../..", "..", "a:b"] {
            assert!(place(CgroupDriver::Cgroupfs, parent, "abc").is_err());
            assert!(place(CgroupDriver::Systemd, parent, "abc").is_err());
        }
    }

    #[test]
    fn a_kubelet_with_the_other_driver_is_told() {
        let error = place(CgroupDriver::Cgroupfs, "kubepods-pod1.slice", "abc").unwrap_err();
        assert!(error.to_string().contains("cgroupDriver"), "{error}");
        let error = place(CgroupDriver::Systemd, "/kubepods/pod1", "abc").unwrap_err();
        assert!(error.to_string().contains("cgroupDriver"), "{error}");
    }
}
