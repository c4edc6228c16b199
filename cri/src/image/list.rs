//! ListImages.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// ListImages.
pub(crate) async fn list(_node: &Arc<Node>, _filter: Option<ImageFilter>) -> Result<Vec<Image>> {
    Err(Error::text(Kind::Unimplemented, "ListImages: not yet"))
}
