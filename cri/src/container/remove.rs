//! RemoveContainer.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, clean, stop};
use crate::error::{Kind, Result};
use crate::events;
use crate::node::Node;
use crate::proto::{ContainerEventType, RemoveContainerRequest, RemoveContainerResponse};

/// RemoveContainer. What runs is killed; what is not there is what is wanted.
pub(crate) async fn remove(
    node: &Arc<Node>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse> {
    match node.container(&request.container_id) {
        Err(error) if error.kind == Kind::NotFound => {}
        found => remove_container(node, &found?).await?,
    }
    Ok(RemoveContainerResponse {})
}

/// Kills and removes it. Its log is the kubelet's.
///
/// # Errors
///
/// It is there still: call again.
pub(crate) async fn remove_container(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    stop::stop_container(node, container, Duration::ZERO).await?;
    let _turn = container.turn.lock().await;
    if node.container(&container.id).is_err() {
        // Somebody was faster.
        return Ok(());
    }
    let record = container.record();
    clean::clean(node, &record).await?;
    node.forget_container(container).await?;
    events::send(
        node,
        &container.id,
        &record.sandbox,
        ContainerEventType::ContainerDeletedEvent,
    )
    .await;
    Ok(())
}
