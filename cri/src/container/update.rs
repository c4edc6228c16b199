//! UpdateContainerResources.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// UpdateContainerResources.
pub(crate) async fn update(
    _node: &Arc<Node>,
    _request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse> {
    Err(Error::text(
        Kind::Unimplemented,
        "UpdateContainerResources: not yet",
    ))
}
