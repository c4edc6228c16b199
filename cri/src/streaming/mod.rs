//! Exec, Attach, PortForward: a call answers with a URL; who opens it speaks SPDY/3.1 or WebSocket.
//!
//! ```text
//! exec.rs attach.rs port_forward.rs   the calls: checked, kept in tokens.rs, answered with a URL; and what is done when it is opened
//! server.rs     HTTP on loopback: a token is taken, once; the protocol agreed on; the connection upgraded
//! spdy/         SPDY/3.1: frames, headers, a connection's streams
//! websocket.rs  v5.channel.k8s.io, v4.channel.k8s.io
//! remote.rs     stdin, stdout, stderr, error, resize, of either
//! stream.rs     one stream of either
//! ```

mod port_forward;
mod spdy;
mod stream;

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// Exec.
pub(crate) async fn exec(_node: &Arc<Node>, _request: ExecRequest) -> Result<ExecResponse> {
    Err(Error::text(Kind::Unimplemented, "Exec: not yet"))
}

/// Attach.
pub(crate) async fn attach(_node: &Arc<Node>, _request: AttachRequest) -> Result<AttachResponse> {
    Err(Error::text(Kind::Unimplemented, "Attach: not yet"))
}

/// PortForward.
pub(crate) async fn port_forward(
    _node: &Arc<Node>,
    _request: PortForwardRequest,
) -> Result<PortForwardResponse> {
    Err(Error::text(Kind::Unimplemented, "PortForward: not yet"))
}
