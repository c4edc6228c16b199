//! ExecSync.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ExecSync.
pub(crate) async fn exec_sync(_node: &Arc<Node>, _request: ExecSyncRequest) -> Result<ExecSyncResponse> {
    Err(Error::text(Kind::Unimplemented, "ExecSync: not yet"))
}
