//! Exec, Attach, PortForward.

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
