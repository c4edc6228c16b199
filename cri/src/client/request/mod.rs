//! What a kubelet would ask of CRI for a Pod: pure (k8s.io/kubernetes, `pkg/kubelet/kuberuntime`).

mod container;
mod expand;
mod resources;
mod sandbox;

use std::path::PathBuf;

pub(super) use container::container;
pub(super) use sandbox::sandbox;

use rtc_cri::proto::DnsConfig;

use super::manifest::Pod;

/// Labels by which tools know a pod and its containers.
pub(super) const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// An annotation of the kubelet's on containers: seconds that they have for their end.
pub(super) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Ours, on containers: what they are in their pod, one of [`ROLES`].
pub(super) const ROLE: &str = "rtc-cri.client/role";
/// In the order of `manifest::Role`.
pub(super) const ROLES: [&str; 3] = ["init", "sidecar", "main"];
/// Ours, on pods: what `pod rm` removes with them.
pub(super) const DATA: &str = "rtc-cri.client/data";
pub(super) const LOGS: &str = "rtc-cri.client/logs";

/// Where a pod is to be, and what is true of this machine.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) uid: String,
    /// The pod's directory of volumes.
    pub(super) data: PathBuf,
    /// The pod's directory of logs.
    pub(super) logs: PathBuf,
    pub(super) cgroup_parent: String,
    /// cgroup v2 alone.
    pub(super) unified: bool,
    /// Bytes of this machine's memory.
    pub(super) memory: u64,
    /// This machine's resolver.
    pub(super) dns: DnsConfig,
}

impl Place {
    /// The name of a pod's directory of logs, as the kubelet's.
    pub(super) fn log_name(namespace: &str, name: &str, uid: &str) -> String {
        format!("{namespace}_{name}_{uid}")
    }
}

/// The labels of a pod, and of its containers.
fn labels(pod: &Pod, place: &Place) -> std::collections::HashMap<String, String> {
    [
        (POD_NAME, &pod.name),
        (POD_NAMESPACE, &pod.namespace),
        (POD_UID, &place.uid),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .collect()
}

#[cfg(test)]
mod tests;
