//! ListMetricDescriptors, ListPodSandboxMetrics.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ListMetricDescriptors.
pub(crate) async fn descriptors(
    _node: &Arc<Node>,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse> {
    Err(Error::text(Kind::Unimplemented, "ListMetricDescriptors: not yet"))
}

/// ListPodSandboxMetrics.
pub(crate) async fn sandboxes(_node: &Arc<Node>) -> Result<Vec<PodSandboxMetrics>> {
    Err(Error::text(Kind::Unimplemented, "ListPodSandboxMetrics: not yet"))
}
