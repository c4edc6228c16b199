//! GetContainerEvents: what happens to containers and sandboxes, to all who listen.

use tokio::sync::broadcast;

use crate::node::Node;
use crate::proto::ContainerEventResponse;
use crate::service::Stream;

/// So many events may wait for one who reads slowly; behind that, its stream ends with an error and it lists anew.
const WAITING: usize = 1024;

/// Where events go.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<ContainerEventResponse>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(WAITING),
        }
    }

    /// Tells all who listen; the time is set by the caller.
    pub(crate) fn send(&self, event: ContainerEventResponse) {
        // Nobody listens: nobody is to be told.
        let _ = self.sender.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.sender.subscribe()
    }
}

/// GetContainerEvents.
pub(crate) fn stream(_node: &Node) -> Stream<ContainerEventResponse> {
    Box::pin(tokio_stream::empty())
}
