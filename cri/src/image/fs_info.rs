//! ImageFsInfo.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Result;
use crate::node::Node;
use crate::proto::*;

/// ImageFsInfo: both are on the file system of the root directory. From sums that are kept, not from the disk.
pub(crate) async fn fs_info(node: &Arc<Node>, _request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let timestamp = now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
    let mountpoint = node.config.root.display().to_string();
    let usage = |(bytes, inodes)| FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier {
            mountpoint: mountpoint.clone(),
        }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    };
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![usage(node.images.layers.usage())],
        container_filesystems: vec![usage(node.images.snapshots.usage())],
    })
}
