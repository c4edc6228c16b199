//! Version, UpdateRuntimeConfig, Status, RuntimeConfig.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// Version.
pub(crate) async fn version(_node: &Arc<Node>, _request: VersionRequest) -> Result<VersionResponse> {
    Err(Error::text(Kind::Unimplemented, "Version: not yet"))
}

/// UpdateRuntimeConfig.
pub(crate) async fn update_runtime_config(
    _node: &Arc<Node>,
    _request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse> {
    Err(Error::text(Kind::Unimplemented, "UpdateRuntimeConfig: not yet"))
}

/// Status.
pub(crate) async fn status(_node: &Arc<Node>, _request: StatusRequest) -> Result<StatusResponse> {
    Err(Error::text(Kind::Unimplemented, "Status: not yet"))
}

/// RuntimeConfig.
pub(crate) async fn runtime_config(
    _node: &Arc<Node>,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse> {
    Err(Error::text(Kind::Unimplemented, "RuntimeConfig: not yet"))
}
