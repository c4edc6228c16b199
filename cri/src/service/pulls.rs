//! `rtc.cri.v1.Pulls`: what CRI has no call for.

use std::sync::Arc;

use tonic::{Request, Response};

use super::Answer;
use crate::image::reference::Reference;
use crate::node::Node;
use crate::proto::extension::pulls_server::Pulls as Service;
use crate::proto::extension::{ProgressRequest, ProgressResponse};

/// The service, on a node.
#[derive(Debug)]
pub(crate) struct Pulls {
    pub(crate) node: Arc<Node>,
}

#[tonic::async_trait]
impl Service for Pulls {
    async fn progress(&self, request: Request<ProgressRequest>) -> Answer<ProgressResponse> {
        let reference = Reference::parse(&request.into_inner().image)?.to_string();
        let found = self.node.pulls.progress(&reference);
        Ok(Response::new(
            found.map_or_else(Default::default, |progress| progress.now()),
        ))
    }
}
