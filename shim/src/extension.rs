//! `rtc.shim.v1`: what rtc-cri asks beside containerd's services (`rtc_shim::protocol`).

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use rtc_shim::protocol::{self, ExecSyncRequest, ExecSyncResponse, InfoResponse};
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::exec_sync::exec_sync;
use crate::shim::Shim;
use crate::task::whole;

/// What this shim can do.
const FEATURES: [&str; 2] = ["exec-sync", "sandbox"];

/// The service, on the containers of a shim.
#[derive(Debug)]
pub(crate) struct Extension(pub(crate) Arc<Shim>);

#[async_trait]
impl protocol::Shim for Extension {
    async fn info(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<InfoResponse> {
        Ok(InfoResponse {
            version: protocol::VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.map(str::to_owned).to_vec(),
            pid: std::process::id(),
            ..InfoResponse::default()
        })
    }

    async fn exec_sync(
        &self,
        _: &TtrpcContext,
        request: ExecSyncRequest,
        client: ServerStreamSender<ExecSyncResponse>,
    ) -> ttrpc::Result<()> {
        whole(exec_sync(Arc::clone(&self.0), request, client)).await
    }
}
