//! What a configuration depends on, of the node: looked at once.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context as _;
use oci_spec::runtime::Capability;
use rtc_runtime::cgroup::Layout;

use super::{apparmor, selinux};
use crate::config::{CgroupDriver, Config};
use crate::error::Result;

/// Numbers of capabilities (linux/capability.h) to names, in their order.
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What the node is.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Who makes cgroups.
    pub(crate) driver: CgroupDriver,
    /// Whether all controllers are of cgroup v2.
    pub(crate) cgroup2: bool,
    /// Whether swap is counted and limited.
    pub(crate) swap: bool,
    /// Whether huge pages are limited.
    pub(crate) hugetlb: bool,
    /// What this process may give to others: its bounding set.
    pub(crate) capabilities: HashSet<Capability>,
    /// The least adjustment of the OOM score that it may give.
    pub(crate) least_oom_score_adj: i32,
    pub(crate) seccomp: bool,
    /// In the kernel, with the tool that loads profiles.
    pub(crate) apparmor: bool,
    /// `None`: it is off.
    pub(crate) selinux: Option<selinux::Contexts>,
    /// The name of the node, for pods that have none.
    pub(crate) hostname: String,
}

impl Facts {
    /// Looks.
    ///
    /// # Errors
    ///
    /// `/proc` can't be read, or the machine has no cgroups.
    pub(crate) fn detect(config: &Config) -> Result<Self> {
        let systemd = Path::new("/run/systemd/system").is_dir();
        let default = if systemd {
            CgroupDriver::Systemd
        } else {
            CgroupDriver::Cgroupfs
        };
        let status = read("/proc/self/status")?;
        let capabilities = bounding(&status);
        let own_score: i32 = read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
        let least_oom_score_adj = if capabilities.contains(&Capability::SysResource) {
            -1000
        } else {
            own_score
        };
        let layout = Layout::detect()?;
        Ok(Self {
            driver: config.cgroup_driver.unwrap_or(default),
            cgroup2: layout == Layout::V2,
            swap: swap(&layout),
            hugetlb: hugetlb(&layout),
            capabilities,
            least_oom_score_adj,
            seccomp: status
                .lines()
                .any(|line| line.starts_with("Seccomp_filters:") || line.starts_with("Seccomp:")),
            apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|on| on.starts_with(b"Y"))
                && apparmor::has_parser(),
            selinux: selinux::Contexts::detect(),
            hostname: read("/proc/sys/kernel/hostname")?.trim().to_owned(),
        })
    }

    /// Of a machine that has everything.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            driver: CgroupDriver::Cgroupfs,
            cgroup2: true,
            swap: true,
            hugetlb: true,
            capabilities: CAPABILITIES.into(),
            least_oom_score_adj: -1000,
            seccomp: true,
            apparmor: true,
            selinux: None,
            hostname: "node-1".into(),
        }
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn bounding(status: &str) -> HashSet<Capability> {
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    (0..)
        .zip(CAPABILITIES)
        .filter(|(number, _)| bits & 1 << number != 0)
        .map(|(_, capability)| capability)
        .collect()
}

fn swap(layout: &Layout) -> bool {
    match layout {
        // The root has no such file.
        Layout::V2 => std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists()),
        Layout::V1(trees) => trees
            .iter()
            .any(|tree| tree.has("memory") && tree.mount.join("memory.memsw.limit_in_bytes").exists()),
    }
}

fn hugetlb(layout: &Layout) -> bool {
    match layout {
        Layout::V2 => std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|all| all.split_whitespace().any(|name| name == "hugetlb")),
        Layout::V1(trees) => trees.iter().any(|tree| tree.has("hugetlb")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_read_by_numbers() {
        let status = "Name:\tx\nCapBnd:\t0000000000000021\nSeccomp:\t0\n";
        assert_eq!(
            bounding(status),
            HashSet::from([Capability::Chown, Capability::Kill])
        );
        assert_eq!(bounding("CapBnd:\t000001ffffffffff\n").len(), CAPABILITIES.len());
        assert_eq!(bounding(""), HashSet::new());
    }
}
