//! ReopenContainerLog.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ReopenContainerLog.
pub(crate) async fn reopen(
    _node: &Arc<Node>,
    _request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse> {
    Err(Error::text(Kind::Unimplemented, "ReopenContainerLog: not yet"))
}
