//! StartContainer.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// StartContainer.
pub(crate) async fn start(
    _node: &Arc<Node>,
    _request: StartContainerRequest,
) -> Result<StartContainerResponse> {
    Err(Error::text(Kind::Unimplemented, "StartContainer: not yet"))
}
