//! ListImages.

use std::sync::Arc;

use super::Image;
use super::status::describe;
use crate::error::Result;
use crate::node::Node;
use crate::proto;

/// ListImages: all, or the one that the filter names.
pub(crate) async fn list(node: &Arc<Node>, filter: Option<proto::ImageFilter>) -> Result<Vec<proto::Image>> {
    let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let mut images: Vec<Arc<Image>> = if wanted.is_empty() {
        node.images.all()
    } else {
        node.images.find(&wanted).into_iter().collect()
    };
    images.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    Ok(images.iter().map(|image| describe(image)).collect())
}
