//! What this build can do, as the specification's `features.md` has it: `rtc features`, and the shim's `-info`.
//!
//! Only what is really done is named. What the kernel lacks is a matter of the container that asks for it, except for
//! seccomp's `supportedFlags`, which the specification wants probed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV};
use crate::sys::seccomp::flag_supported;

/// The newest version of the specification that this follows.
pub const OCI_VERSION: &str = "1.3.0";

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: &'static [&'static str],
    mount_options: Vec<&'static str>,
    linux: Linux,
    annotations: BTreeMap<&'static str, &'static str>,
    potentially_unsafe_config_annotations: &'static [&'static str],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: &'static [&'static str],
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: &'static [&'static str],
    known_flags: Vec<&'static str>,
    supported_flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Debug, Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Debug, Serialize)]
struct MemoryPolicy {
    modes: &'static [&'static str],
    flags: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

/// Flags of a seccomp filter. A filter of a process with one thread, which a container's begins as, is in sync by itself.
const SECCOMP_FLAGS: [(&str, Option<u32>); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", Some(FLAG_LOG)),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", Some(FLAG_SPEC_ALLOW)),
    ("SECCOMP_FILTER_FLAG_TSYNC", None),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        Some(FLAG_WAIT_KILLABLE_RECV),
    ),
];

/// What this build can do. Some of it is asked of the kernel.
#[must_use]
pub fn features() -> Features {
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: OCI_VERSION,
        hooks: &[
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ],
        mount_options: crate::rootfs::mount_options(),
        linux: Linux {
            namespaces: &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            capabilities: capabilities(),
            cgroup: Cgroup {
                v1: true,
                v2: true,
                systemd: true,
                systemd_user: false,
                rdma: true,
            },
            seccomp: seccomp(),
            apparmor: Enabled { enabled: true },
            selinux: Enabled { enabled: true },
            intel_rdt: IntelRdt {
                enabled: true,
                schemata: true,
                monitoring: true,
            },
            memory_policy: MemoryPolicy {
                modes: &[
                    "MPOL_BIND",
                    "MPOL_DEFAULT",
                    "MPOL_INTERLEAVE",
                    "MPOL_LOCAL",
                    "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY",
                    "MPOL_WEIGHTED_INTERLEAVE",
                ],
                flags: &[
                    "MPOL_F_NUMA_BALANCING",
                    "MPOL_F_RELATIVE_NODES",
                    "MPOL_F_STATIC_NODES",
                ],
            },
            mount_extensions: MountExtensions {
                idmap: Enabled { enabled: true },
            },
            net_devices: Enabled { enabled: true },
        },
        annotations: BTreeMap::from([
            ("org.rtc.commit", env!("RTC_COMMIT")),
            ("org.rtc.version", env!("CARGO_PKG_VERSION")),
        ]),
        // Prefixes. crun's make hooks write to files, keep the caller's groups, and choose how mounts are labelled.
        potentially_unsafe_config_annotations: &["org.systemd.property.", "run.oci."],
    }
}

/// All that Linux has so far, in the kernel's order.
fn capabilities() -> Vec<String> {
    let all = caps::all();
    let at = |index| all.iter().find(|capability| capability.index() == index);
    (0..64).filter_map(at).map(ToString::to_string).collect()
}

fn seccomp() -> Seccomp {
    let works = |flag: Option<u32>| flag.is_none_or(flag_supported);
    Seccomp {
        enabled: true,
        actions: &[
            "SCMP_ACT_ALLOW",
            "SCMP_ACT_ERRNO",
            "SCMP_ACT_KILL",
            "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_LOG",
            "SCMP_ACT_NOTIFY",
            "SCMP_ACT_TRACE",
            "SCMP_ACT_TRAP",
        ],
        operators: &[
            "SCMP_CMP_EQ",
            "SCMP_CMP_GE",
            "SCMP_CMP_GT",
            "SCMP_CMP_LE",
            "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE",
        ],
        archs: ARCHS,
        known_flags: SECCOMP_FLAGS.iter().map(|(name, _)| *name).collect(),
        supported_flags: SECCOMP_FLAGS
            .iter()
            .filter(|(_, flag)| works(*flag))
            .map(|(name, _)| *name)
            .collect(),
    }
}

/// What a profile may name; those that this machine never sees add nothing to the filter.
static ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_type_takes_it() {
        let text = serde_json::to_string(&features()).unwrap();
        let parsed: oci_spec::runtime::Features = serde_json::from_str(&text).unwrap();
        let linux = parsed.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
        let seccomp = linux.seccomp().as_ref().unwrap();
        assert_eq!(seccomp.archs().as_ref().unwrap().len(), ARCHS.len());
        assert_eq!(seccomp.actions().as_ref().unwrap().len(), 9);
    }

    #[test]
    fn what_seccomp_is_said_to_know_it_parses() {
        let known = seccomp();
        for (key, names) in [("architectures", known.archs), ("flags", &known.known_flags)] {
            let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", key: names});
            serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(profile).unwrap();
        }
    }

    #[test]
    fn memory_policies_are_those_that_are_parsed() {
        let MemoryPolicy { modes, flags } = features().linux.memory_policy;
        for mode in modes {
            let policy = serde_json::json!({"mode": mode, "flags": flags});
            serde_json::from_value::<oci_spec::runtime::LinuxMemoryPolicy>(policy).unwrap();
        }
    }

    #[test]
    fn capabilities_are_in_the_kernels_order() {
        let all = capabilities();
        assert_eq!(
            (all[0].as_str(), all[40].as_str()),
            ("CAP_CHOWN", "CAP_CHECKPOINT_RESTORE")
        );
        assert_eq!(all.len(), 41);
    }
}
