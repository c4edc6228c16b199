//! CheckpointContainer.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// CheckpointContainer.
pub(crate) async fn checkpoint(
    _node: &Arc<Node>,
    _request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse> {
    Err(Error::text(Kind::Unimplemented, "CheckpointContainer: not yet"))
}
