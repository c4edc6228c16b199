//! RemovePodSandbox.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// RemovePodSandbox.
pub(crate) async fn remove(
    _node: &Arc<Node>,
    _request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse> {
    Err(Error::text(Kind::Unimplemented, "RemovePodSandbox: not yet"))
}
