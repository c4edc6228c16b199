//! PortForward: connections of a client, each to a port of a pod's loopback.
//!
//! ```text
//! client ──> Forward (data, error) ──> thread in the pod's netns: a socket ──> 127.0.0.1:port, then [::1]:port
//!   error: what went wrong with this connection, as text; the others live
//! ```

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::spdy::{self, Stall};
use super::stream::{Input, Output, Queue};
use crate::error::Result;
use crate::node::Node;
use crate::proto::PortForwardRequest;

/// Whose ports: what a token stands for.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The whole id.
    pub(super) sandbox: String,
}

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) port: u16,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Takes text, where it fails.
    pub(super) error: Output,
}

/// What of the request can be checked before anybody connects.
///
/// # Errors
///
/// `NotFound`, `InvalidArgument`; `FailedPrecondition`: the pod does not run.
pub(super) fn check(_node: &Node, _request: &PortForwardRequest) -> Result<Target> {
    Err(crate::error::Error::text(
        crate::error::Kind::Unimplemented,
        "PortForward: not yet",
    ))
}

/// Serves a connection that speaks SPDY (`portforward.k8s.io`), until it ends.
pub(super) async fn spdy<C>(node: Arc<Node>, target: Target, connection: C)
where
    C: AsyncRead + AsyncWrite + Send,
{
    let (_session, run) = spdy::open(connection, Stall::Reset);
    let _ = (node, target, run.await);
}

/// Serves what comes, until the client is gone.
pub(super) async fn serve(
    _node: Arc<Node>,
    _target: Target,
    mut forwards: mpsc::Receiver<Forward>,
    _queue: Queue,
) {
    while forwards.recv().await.is_some() {}
}
