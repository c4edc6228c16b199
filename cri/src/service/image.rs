//! `runtime.v1.ImageService`: each call goes to its verb.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{Answer, Stream, answer, pieces, whole};
use crate::image;
use crate::node::Node;
use crate::proto::image_service_server::ImageService;
use crate::proto::*;

/// The service, on a node.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) node: Arc<Node>,
}

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = Stream<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = image::list::list(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let all = image::list::list(&self.node, request.into_inner().filter).await?;
        Ok(pieces(all, |images| StreamImagesResponse { images }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        answer(
            "ImageStatus",
            image::status::status(&self.node, request.into_inner()).await,
        )
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        // Not `whole`: a pull runs in a task of its own, which ends when nobody waits for it any more (image/pulls.rs).
        answer(
            "PullImage",
            image::pull::pull(&self.node, request.into_inner()).await,
        )
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let node = Arc::clone(&self.node);
        whole("RemoveImage", async move {
            image::remove::remove(&node, request.into_inner()).await
        })
        .await
    }

    async fn image_fs_info(&self, request: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        answer(
            "ImageFsInfo",
            image::fs_info::fs_info(&self.node, request.into_inner()).await,
        )
    }
}
