//! RemoveImage.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// RemoveImage.
pub(crate) async fn remove(_node: &Arc<Node>, _request: RemoveImageRequest) -> Result<RemoveImageResponse> {
    Err(Error::text(Kind::Unimplemented, "RemoveImage: not yet"))
}
