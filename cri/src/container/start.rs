//! StartContainer.

use std::sync::Arc;

use super::{Container, State, exit};
use crate::error::{Error, Kind, Result};
use crate::events;
use crate::log;
use crate::node::Node;
use crate::proto::{ContainerEventType, StartContainerRequest, StartContainerResponse};
use crate::shim::Shim;

/// As containerd has it: the exit code of what could not be started.
const NOT_STARTED: i32 = 128;

/// StartContainer.
pub(crate) async fn start(
    node: &Arc<Node>,
    request: StartContainerRequest,
) -> Result<StartContainerResponse> {
    let container = node.container(&request.container_id)?;
    let _turn = container.turn.lock().await;
    let record = container.record();
    if record.state != State::Created {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!(
                "container_id: {} can't be started: it is {}",
                container.id,
                record.state.word()
            ),
        ));
    }
    let shim = node.shim_of(&record.sandbox)?;
    // Before it: what ends at once is not to have ended before it started.
    let started_at = events::now();
    match shim.start_task(&container.id).await {
        Ok(pid) => {
            container.change(|record| record.state = State::Running { pid, started_at });
            let recorded = node.record_container(&container).await;
            events::send(
                node,
                &container.id,
                &record.sandbox,
                ContainerEventType::ContainerStartedEvent,
            )
            .await;
            // After the event of its start.
            exit::watch(node, &container, shim);
            recorded?;
            Ok(StartContainerResponse {})
        }
        Err(error) => {
            failed(node, &container, &shim, &error).await;
            Err(error)
        }
    }
}

/// It shall never run. What can't be killed may run yet: it is not said to have ended before it has.
async fn failed(node: &Arc<Node>, container: &Arc<Container>, shim: &Arc<Shim>, error: &Error) {
    if let Err(error) = exit::kill(node, container, Some(shim), &error.to_string()).await {
        log::warn(format_args!("container {}: {error}", container.id));
        exit::watch(node, container, Arc::clone(shim));
        return;
    }
    let ended = State::Exited {
        started_at: 0,
        finished_at: events::now(),
        exit_code: NOT_STARTED,
        reason: "StartError".into(),
        message: error.to_string(),
    };
    if let Err(error) = exit::end(node, container, ended).await {
        log::warn(format_args!("container {}: {error}", container.id));
    }
}
