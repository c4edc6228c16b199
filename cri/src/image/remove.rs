//! RemoveImage.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::node::Node;
use crate::proto::*;

/// RemoveImage: by any of its names, all of them go, as in containerd. Containers that run from it keep its layers.
pub(crate) async fn remove(node: &Arc<Node>, request: RemoveImageRequest) -> Result<RemoveImageResponse> {
    let name = request.image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Error::invalid("image.image: is empty: name an image"));
    }
    node.images.forget(&name).await?;
    Ok(RemoveImageResponse {})
}
