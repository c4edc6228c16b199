//! ContainerStatus.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ContainerStatus.
pub(crate) async fn status(
    _node: &Arc<Node>,
    _request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse> {
    Err(Error::text(Kind::Unimplemented, "ContainerStatus: not yet"))
}
