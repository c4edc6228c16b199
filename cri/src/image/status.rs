//! ImageStatus.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ImageStatus.
pub(crate) async fn status(_node: &Arc<Node>, _request: ImageStatusRequest) -> Result<ImageStatusResponse> {
    Err(Error::text(Kind::Unimplemented, "ImageStatus: not yet"))
}
