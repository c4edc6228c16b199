//! CreateContainer.

use std::collections::{BTreeMap, HashMap};

use rtc_cri::proto::security_profile::ProfileType;
use rtc_cri::proto::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, Mount, SecurityProfile,
};

use super::expand::expand;
use super::resources::resources;
use super::sandbox::{groups, id, namespaces};
use super::{CONTAINER_NAME, GRACE, Place, ROLE, ROLES, labels};
use crate::client::manifest::{Container, Pod, Role};

/// What a container may not see of /proc and /sys (k8s.io/kubernetes, `pkg/securitycontext`).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What it may not change.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A container's configuration; `mounts` are its volumes, which are there.
pub(in crate::client) fn container(
    pod: &Pod,
    container: &Container,
    place: &Place,
    image: ImageSpec,
    mounts: Vec<Mount>,
) -> ContainerConfig {
    let mut labels = labels(pod, place);
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    let role = match container.role {
        Role::Init => ROLES[0],
        Role::Sidecar => ROLES[1],
        Role::Main => ROLES[2],
    };
    let annotations = HashMap::from([
        (GRACE.to_owned(), pod.grace.to_string()),
        (ROLE.to_owned(), role.to_owned()),
    ]);
    // A variable may name those before it, as the kubelet does.
    let mut variables = BTreeMap::new();
    let mut envs = Vec::new();
    for (name, value) in &container.env {
        let value = expand(value, &variables);
        envs.push(KeyValue {
            key: name.clone(),
            value: value.clone().into_bytes(),
        });
        variables.insert(name.as_str(), value);
    }
    let words = |words: &[String]| words.iter().map(|word| expand(word, &variables)).collect();
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt: 0,
        }),
        image: Some(image),
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone(),
        envs,
        mounts,
        labels,
        annotations,
        log_path: format!("{}/0.log", container.name),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(container, place)),
            security_context: Some(security(pod, container)),
        }),
        stop_signal: container.stop_signal,
        ..ContainerConfig::default()
    }
}

fn security(pod: &Pod, container: &Container) -> LinuxContainerSecurityContext {
    let asked = &container.security;
    let common = asked.own.or(&pod.security.common);
    let paths = |paths: &[&str]| {
        if asked.unmasked || asked.privileged {
            return Vec::new();
        }
        paths.iter().map(|&path| path.to_owned()).collect()
    };
    LinuxContainerSecurityContext {
        capabilities: Some(asked.capabilities.clone()),
        privileged: asked.privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: common.selinux,
        run_as_user: id(common.run_as_user),
        run_as_group: id(common.run_as_group),
        readonly_rootfs: asked.read_only_root,
        supplemental_groups: groups(pod),
        supplemental_groups_policy: pod.security.groups_policy,
        no_new_privs: asked.no_new_privileges,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        // As a kubelet with seccompDefault, which is how one should be.
        seccomp: Some(common.seccomp.unwrap_or(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        })),
        apparmor: common.apparmor,
        ..LinuxContainerSecurityContext::default()
    }
}
