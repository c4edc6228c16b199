//! GetContainerEvents: what happens to containers and sandboxes, to all who listen.
//!
//! ```text
//! a state changes ── send: one at a time: time, snapshot of the pod ── all streams, in the same order
//! ```
//!
//! The kubelet takes an event's snapshot for newer than that of an event before it, and drops what is older than what it
//! knows. So the time and the snapshot are taken while nobody else sends: no event is older than the one before it.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;

use crate::container::{State, status};
use crate::error::{Error, Kind};
use crate::locked;
use crate::node::Node;
use crate::proto::{ContainerEventResponse, ContainerEventType};
use crate::sandbox;
use crate::service::Stream;

/// So many events may wait for one who reads slowly; behind that, its stream ends with an error and it lists anew.
const WAITING: usize = 1024;

/// Where events go.
#[derive(Debug)]
pub(crate) struct Events {
    /// `None`: the server ends, and so do the streams.
    sender: Mutex<Option<broadcast::Sender<ContainerEventResponse>>>,
    /// The turn of who sends.
    turn: tokio::sync::Mutex<()>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Ends all streams: the server ends only after them.
    pub(crate) fn close(&self) {
        *locked(&self.sender) = None;
    }

    fn sender(&self) -> Option<broadcast::Sender<ContainerEventResponse>> {
        locked(&self.sender).clone()
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Tells all who listen what has happened, after it has: of a container, or of the sandbox itself (`id` is its own then, as
/// containerd and CRI-O have it).
pub(crate) async fn send(node: &Arc<Node>, id: &str, sandbox: &str, kind: ContainerEventType) {
    let Some(sender) = node.events.sender() else {
        return;
    };
    let _turn = node.events.turn.lock().await;
    if sender.receiver_count() == 0 {
        return;
    }
    // Before the snapshot: what changes in between is in it, and in an event of its own.
    let created_at = now();
    // A sandbox that was removed has none.
    let pod = node.sandbox(sandbox).ok();
    let containers = node.containers_of(sandbox).into_iter();
    let records = containers
        .map(|container| container.record())
        .filter(|record| record.state != State::Making);
    let event = ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        created_at,
        pod_sandbox_status: pod.map(|pod| sandbox::status::of(&pod.record())),
        containers_statuses: records.map(|record| status::of(node, &record)).collect(),
    };
    // Whoever listened has gone.
    let _ = sender.send(event);
}

/// GetContainerEvents: from now on.
pub(crate) fn stream(node: &Node) -> Stream<ContainerEventResponse> {
    let Some(sender) = node.events.sender() else {
        return Box::pin(tokio_stream::empty());
    };
    Box::pin(BroadcastStream::new(sender.subscribe()).map(|event| {
        event.map_err(|slow| {
            Error::text(
                Kind::ResourceExhausted,
                format_args!(
                    "events are read too slowly, some are lost: list containers, and listen anew ({slow})"
                ),
            )
            .into()
        })
    }))
}
