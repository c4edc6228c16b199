//! CreateContainer.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// CreateContainer.
pub(crate) async fn create(
    _node: &Arc<Node>,
    _request: CreateContainerRequest,
) -> Result<CreateContainerResponse> {
    Err(Error::text(Kind::Unimplemented, "CreateContainer: not yet"))
}
