//! ImageStatus.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::Configuration;
use super::Image;
use super::layers::chains;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::proto::{self, ImageStatusRequest, ImageStatusResponse, Int64Value};

/// ImageStatus: an image that is not here is an empty answer, not an error.
pub(crate) async fn status(node: &Arc<Node>, request: ImageStatusRequest) -> Result<ImageStatusResponse> {
    let spec = request.image.unwrap_or_default();
    if spec.image.is_empty() {
        return Err(Error::invalid("image.image: is empty: name an image"));
    }
    let Some(image) = node.images.find(&spec.image) else {
        return Ok(ImageStatusResponse::default());
    };
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("info".to_owned(), verbose(node, &image).await?);
    }
    Ok(ImageStatusResponse {
        // The same whatever name was asked for: no `spec`.
        image: Some(describe(&image)),
        info,
    })
}

/// An image as CRI has it.
pub(super) fn describe(image: &Image) -> proto::Image {
    let (uid, username) = user(&image.config.user);
    proto::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// The uid or the name in `user[:group]`. The kubelet's `runAsNonRoot` goes by them: a number that no user can have stays a
/// name, which it refuses, and never becomes root (CVE-2024-40635, CVE-2026-46680).
fn user(user: &str) -> (Option<i64>, String) {
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    if user.is_empty() {
        return (Some(0), String::new());
    }
    match user.parse::<u32>() {
        Ok(uid) if user.bytes().all(|byte| byte.is_ascii_digit()) => (Some(uid.into()), String::new()),
        _ => (None, user.to_owned()),
    }
}

/// As containerd: the chain id and the configuration (image-spec).
async fn verbose(node: &Arc<Node>, image: &Image) -> Result<String> {
    let path = node.images.configuration(&image.id);
    let text = tokio::fs::read_to_string(&path)
        .await
        .map_err(|error| anyhow::Error::new(error).context(format!("read {}", path.display())))?;
    let diff_ids = Configuration::parse(text.as_bytes())?.diff_ids;
    let configuration = RawValue::from_string(text).map_err(anyhow::Error::from)?;
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let info = json!({"chainID": chains(&diff_ids).pop().unwrap_or_default(), "layers": layers});
    let mut text = info.to_string();
    // The image's own words, as they are.
    text.pop();
    Ok(format!("{text},\"imageSpec\":{configuration}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_never_root_by_accident() {
        for (text, uid, name) in [
            ("", Some(0), ""),
            ("0", Some(0), ""),
            ("1000:2000", Some(1000), ""),
            ("nginx:www", None, "nginx"),
            ("4294967295", Some(4_294_967_295), ""),
            ("4294967296", None, "4294967296"),
            ("9223372036854775808", None, "9223372036854775808"),
            ("-1", None, "-1"),
            ("+0", None, "+0"),
            ("00x", None, "00x"),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text:?}");
        }
    }
}
