//! PodSandboxStatus.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// PodSandboxStatus.
pub(crate) async fn status(
    _node: &Arc<Node>,
    _request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse> {
    Err(Error::text(Kind::Unimplemented, "PodSandboxStatus: not yet"))
}
