//! UpdateContainerResources.

use std::sync::Arc;

use super::State;
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use crate::spec;

/// UpdateContainerResources: in the cgroup at once, of a container that was not started too.
pub(crate) async fn update(
    node: &Arc<Node>,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse> {
    let container = node.container(&request.container_id)?;
    let Some(asked) = request.linux else {
        return Ok(UpdateContainerResourcesResponse {});
    };
    let _turn = container.turn.lock().await;
    let record = container.record();
    if !matches!(record.state, State::Created | State::Running { .. }) {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!(
                "container_id: {} must be created or running, and is {}",
                container.id,
                record.state.word()
            ),
        ));
    }
    let merged = spec::update::merge(record.resources.as_ref(), &asked);
    let resources = spec::update::resources(&node.facts, &merged)?;
    node.shim_of(&record.sandbox)?
        .update_task(&container.id, &resources)
        .await?;
    container.change(|record| record.resources = Some(merged));
    node.record_container(&container).await?;
    Ok(UpdateContainerResourcesResponse {})
}
