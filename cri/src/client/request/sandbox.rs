//! RunPodSandbox.

use std::collections::HashMap;

use rtc_cri::proto::security_profile::ProfileType;
use rtc_cri::proto::{
    DnsConfig, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, SecurityProfile,
};

use super::{DATA, LOGS, Place, labels};
use crate::client::manifest::Pod;

/// A pod's name may be longer than a host's.
const HOSTNAME_MAX: usize = 63;

/// A pod's configuration.
pub(in crate::client) fn sandbox(pod: &Pod, place: &Place) -> PodSandboxConfig {
    let mut all: HashMap<String, String> = pod.labels.clone().into_iter().collect();
    all.extend(labels(pod, place));
    let mut annotations: HashMap<String, String> = pod.annotations.clone().into_iter().collect();
    annotations.insert(DATA.into(), place.data.display().to_string());
    annotations.insert(LOGS.into(), place.logs.display().to_string());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: place.uid.clone(),
            attempt: 0,
        }),
        hostname: hostname(pod),
        log_directory: place.logs.display().to_string(),
        dns_config: dns(pod, place),
        port_mappings: ports(pod),
        labels: all,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: place.cgroup_parent.clone(),
            security_context: Some(security(pod)),
            sysctls: pod.security.sysctls.clone().into_iter().collect(),
            ..LinuxPodSandboxConfig::default()
        }),
        windows: None,
    }
}

/// The host's, where the pod is in its network; else the pod's name, cut to a label.
fn hostname(pod: &Pod) -> String {
    if pod.host_network {
        return String::new();
    }
    let name = pod.hostname.as_ref().unwrap_or(&pod.name);
    let cut = &name[..name.len().min(HOSTNAME_MAX)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Nothing: the host's resolv.conf as it is.
fn dns(pod: &Pod, place: &Place) -> Option<DnsConfig> {
    let asked = &pod.dns;
    let mut dns = if asked.alone {
        DnsConfig::default()
    } else {
        place.dns.clone()
    };
    if !asked.alone && asked.servers.is_empty() && asked.searches.is_empty() && asked.options.is_empty() {
        return None;
    }
    for (all, more) in [
        (&mut dns.servers, &asked.servers),
        (&mut dns.searches, &asked.searches),
        (&mut dns.options, &asked.options),
    ] {
        let new: Vec<String> = more.iter().filter(|word| !all.contains(word)).cloned().collect();
        all.extend(new);
    }
    Some(dns)
}

/// Those of a port of the host: the network plugins need know no others.
fn ports(pod: &Pod) -> Vec<PortMapping> {
    if pod.host_network {
        return Vec::new();
    }
    let all = pod.containers.iter().flat_map(|container| &container.ports);
    all.filter(|port| port.host_port > 0).cloned().collect()
}

/// Which namespaces are whose.
pub(super) fn namespaces(pod: &Pod) -> NamespaceOption {
    let mode = |host: bool| {
        if host {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let pid = match (pod.host_pid, pod.share_process_namespace) {
        (true, _) => NamespaceMode::Node,
        (false, true) => NamespaceMode::Pod,
        (false, false) => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(pod.host_network).into(),
        pid: pid.into(),
        ipc: mode(pod.host_ipc).into(),
        ..NamespaceOption::default()
    }
}

/// The groups of all its containers.
pub(super) fn groups(pod: &Pod) -> Vec<i64> {
    let mut groups = pod.security.supplemental_groups.clone();
    groups.extend(pod.security.fs_group.filter(|group| !groups.contains(group)));
    groups
}

/// An id as CRI has it.
pub(super) fn id(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn security(pod: &Pod) -> LinuxSandboxSecurityContext {
    let common = &pod.security.common;
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: common.selinux.clone(),
        run_as_user: id(common.run_as_user),
        // A group alone is the containers' business.
        run_as_group: id(common.run_as_group.filter(|_| common.run_as_user.is_some())),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: pod.security.groups_policy,
        privileged: pod
            .containers
            .iter()
            .any(|container| container.security.privileged),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        apparmor: common.apparmor.clone(),
        ..LinuxSandboxSecurityContext::default()
    }
}
