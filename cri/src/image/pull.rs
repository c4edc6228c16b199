//! PullImage.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// PullImage.
pub(crate) async fn pull(_node: &Arc<Node>, _request: PullImageRequest) -> Result<PullImageResponse> {
    Err(Error::text(Kind::Unimplemented, "PullImage: not yet"))
}
