//! StopPodSandbox.

use std::sync::Arc;
use std::time::Duration;

use super::{Sandbox, State, end};
use crate::container;
use crate::error::{Error, Kind, Result};
use crate::events;
use crate::log;
use crate::node::Node;
use crate::proto::*;

/// StopPodSandbox. One that is stopped, or that nobody knows, is what is wanted.
pub(crate) async fn stop(node: &Arc<Node>, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse> {
    match node.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => {
            let _turn = sandbox.turn.lock().await;
            stop_sandbox(node, &sandbox).await?;
        }
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(StopPodSandboxResponse {})
}

/// Stops it. The caller has its turn.
///
/// # Errors
///
/// What could not be stopped: call again.
pub(super) async fn stop_sandbox(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    if sandbox.record().state == State::Stopped {
        return Ok(());
    }
    // From here no container can be made in it.
    sandbox.change(|record| record.state = State::Ended);
    if let Err(error) = node.record_sandbox(sandbox).await {
        // A file system that is full is no reason to let it run: what it holds may be what fills it.
        log::warn(format_args!("sandbox {}: {error}", sandbox.id));
    }
    stop_containers(node, sandbox).await?;
    end::network_and_shim(node, sandbox).await?;
    sandbox.change(|record| {
        record.state = State::Stopped;
        record.shim = None;
        record.pid = 0;
    });
    node.record_sandbox(sandbox).await?;
    let kind = ContainerEventType::ContainerStoppedEvent;
    events::send(node, &sandbox.id, &sandbox.id, kind).await;
    Ok(())
}

/// All at once, without grace: who wants one stops the containers first.
async fn stop_containers(node: &Arc<Node>, sandbox: &Sandbox) -> Result<()> {
    let stopping: Vec<_> = node
        .containers_of(&sandbox.id)
        .into_iter()
        .map(|container| {
            let node = Arc::clone(node);
            tokio::spawn(async move {
                match container::stop::stop_container(&node, &container, Duration::ZERO).await {
                    // Its shim goes, and so nothing can become of it.
                    Err(error) if container.record().state == container::State::Making => {
                        log::warn(error);
                        Ok(())
                    }
                    stopped => stopped,
                }
            })
        })
        .collect();
    let mut stopped = Ok(());
    for one in stopping {
        let one = one
            .await
            .unwrap_or_else(|error| Err(Error::new(Kind::Unknown, error)));
        stopped = stopped.and(one);
    }
    stopped
}
