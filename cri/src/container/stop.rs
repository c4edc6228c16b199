//! StopContainer.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// StopContainer.
pub(crate) async fn stop(_node: &Arc<Node>, _request: StopContainerRequest) -> Result<StopContainerResponse> {
    Err(Error::text(Kind::Unimplemented, "StopContainer: not yet"))
}
