//! ListPodSandbox.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ListPodSandbox.
pub(crate) async fn list(_node: &Arc<Node>, _filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
    Err(Error::text(Kind::Unimplemented, "ListPodSandbox: not yet"))
}
