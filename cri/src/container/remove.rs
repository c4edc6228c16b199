//! RemoveContainer.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// RemoveContainer.
pub(crate) async fn remove(
    _node: &Arc<Node>,
    _request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse> {
    Err(Error::text(Kind::Unimplemented, "RemoveContainer: not yet"))
}
