//! ContainerStats, PodSandboxStats, ListContainerStats, ListPodSandboxStats.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ContainerStats.
pub(crate) async fn container(
    _node: &Arc<Node>,
    _request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse> {
    Err(Error::text(Kind::Unimplemented, "ContainerStats: not yet"))
}

/// PodSandboxStats.
pub(crate) async fn sandbox(
    _node: &Arc<Node>,
    _request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse> {
    Err(Error::text(Kind::Unimplemented, "PodSandboxStats: not yet"))
}

/// ListContainerStats.
pub(crate) async fn containers(
    _node: &Arc<Node>,
    _filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>> {
    Err(Error::text(Kind::Unimplemented, "ListContainerStats: not yet"))
}

/// ListPodSandboxStats.
pub(crate) async fn sandboxes(
    _node: &Arc<Node>,
    _filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<PodSandboxStats>> {
    Err(Error::text(Kind::Unimplemented, "ListPodSandboxStats: not yet"))
}
