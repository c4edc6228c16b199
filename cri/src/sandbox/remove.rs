//! RemovePodSandbox.

use std::sync::Arc;

use super::{end, stop};
use crate::container;
use crate::error::{Kind, Result};
use crate::events;
use crate::node::Node;
use crate::proto::*;

/// RemovePodSandbox: with all of its containers, be they running. One that nobody knows is what is wanted.
pub(crate) async fn remove(
    node: &Arc<Node>,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse> {
    let sandbox = match node.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => sandbox,
        Err(error) if error.kind == Kind::NotFound => return Ok(RemovePodSandboxResponse {}),
        Err(error) => return Err(error),
    };
    let _turn = sandbox.turn.lock().await;
    stop::stop_sandbox(node, &sandbox).await?;
    for container in node.containers_of(&sandbox.id) {
        container::remove::remove_container(node, &container).await?;
    }
    end::forget(node, &sandbox).await?;
    let kind = ContainerEventType::ContainerDeletedEvent;
    events::send(node, &sandbox.id, &sandbox.id, kind).await;
    Ok(RemovePodSandboxResponse {})
}
