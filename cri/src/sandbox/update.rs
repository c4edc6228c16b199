//! UpdatePodSandboxResources.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// UpdatePodSandboxResources.
pub(crate) async fn update(
    _node: &Arc<Node>,
    _request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse> {
    Err(Error::text(
        Kind::Unimplemented,
        "UpdatePodSandboxResources: not yet",
    ))
}
