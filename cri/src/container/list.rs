//! ListContainers.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ListContainers.
pub(crate) async fn list(_node: &Arc<Node>, _filter: Option<ContainerFilter>) -> Result<Vec<Container>> {
    Err(Error::text(Kind::Unimplemented, "ListContainers: not yet"))
}
