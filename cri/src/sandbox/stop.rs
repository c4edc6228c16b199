//! StopPodSandbox.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// StopPodSandbox.
pub(crate) async fn stop(
    _node: &Arc<Node>,
    _request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse> {
    Err(Error::text(Kind::Unimplemented, "StopPodSandbox: not yet"))
}
