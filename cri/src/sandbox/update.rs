//! UpdatePodSandboxResources.

use std::sync::Arc;

use super::State;
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// UpdatePodSandboxResources: what the kubelet tells of a pod's cgroup, which is the kubelet's own. It is recorded, and shown
/// by PodSandboxStatus.
pub(crate) async fn update(
    node: &Arc<Node>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let _turn = sandbox.turn.lock().await;
    if sandbox.record().state != State::Ready {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("sandbox {} is not ready", sandbox.id),
        ));
    }
    sandbox.change(|record| {
        let linux = record.config.linux.get_or_insert_default();
        linux.overhead = request.overhead.or(linux.overhead.take());
        linux.resources = request.resources.or(linux.resources.take());
    });
    node.record_sandbox(&sandbox).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
