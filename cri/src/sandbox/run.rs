//! RunPodSandbox.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// RunPodSandbox.
pub(crate) async fn run(_node: &Arc<Node>, _request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse> {
    Err(Error::text(Kind::Unimplemented, "RunPodSandbox: not yet"))
}
