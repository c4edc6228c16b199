//! ImageFsInfo.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ImageFsInfo.
pub(crate) async fn fs_info(_node: &Arc<Node>, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse> {
    Err(Error::text(Kind::Unimplemented, "ImageFsInfo: not yet"))
}
