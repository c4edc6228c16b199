//! `rtc.shim.v1`: what rtc-cri asks beside containerd's services (`rtc_shim::protocol`).

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use nix::fcntl::OFlag;
use rtc_shim::protocol::{
    self, AttachRequest, ExecSyncRequest, ExecSyncResponse, InfoResponse, Namespace, NamespacesResponse,
    OutOfMemoryRequest, OutOfMemoryResponse, ReopenLogRequest,
};
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::error::{Error, Kind, Result};
use crate::exec_sync::exec_sync;
use crate::io::Io;
use crate::io::fifo::Fifo;
use crate::shim::Shim;
use crate::task::whole;

/// What this shim can do.
const FEATURES: [&str; 7] = [
    "attach",
    "cri-log",
    "exec-sync",
    "namespaces",
    "out-of-memory",
    "reopen-log",
    "sandbox",
];

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

    async fn reopen_log(&self, _: &TtrpcContext, request: ReopenLogRequest) -> ttrpc::Result<Empty> {
        let (io, _) = self.io_of(&request.container)?;
        whole(async move { io.reopen_log().await }).await?;
        Ok(Empty::default())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Empty> {
        let (io, terminal) = self.io_of(&request.container)?;
        whole(async move { attach(&io, terminal, &request).await }).await?;
        Ok(Empty::default())
    }

    async fn exec_sync(
        &self,
        _: &TtrpcContext,
        request: ExecSyncRequest,
        client: ServerStreamSender<ExecSyncResponse>,
    ) -> ttrpc::Result<()> {
        whole(exec_sync(Arc::clone(&self.0), request, client)).await
    }

    async fn namespaces(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<NamespacesResponse> {
        let pod = self.0.pod()?.ok_or_else(|| {
            Error::text(
                Kind::FailedPrecondition,
                "this shim has no sandbox: CreateSandbox and StartSandbox make one",
            )
        })?;
        let namespaces: Result<Vec<Namespace>> = pod.namespaces.iter().map(described).collect();
        Ok(NamespacesResponse {
            namespaces: namespaces?,
            ..NamespacesResponse::default()
        })
    }

    async fn out_of_memory(
        &self,
        _: &TtrpcContext,
        request: OutOfMemoryRequest,
    ) -> ttrpc::Result<OutOfMemoryResponse> {
        let container = self.0.container(&request.container)?;
        Ok(OutOfMemoryResponse {
            killed: container.out_of_memory.load(Ordering::Relaxed),
            ..OutOfMemoryResponse::default()
        })
    }
}

impl Extension {
    /// The standard streams of a container's init, and whether they are a terminal.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition` where it has ended.
    fn io_of(&self, container: &str) -> Result<(Arc<Io>, bool)> {
        let container = self.0.container(container)?;
        let io = container.init.io().ok_or_else(|| {
            Error::text(
                Kind::FailedPrecondition,
                format_args!("container {} has ended", container.id),
            )
        })?;
        Ok((io, container.init.stdio.terminal))
    }
}

/// A descriptor of ours: looking at it does not wait.
fn described((kind, path): &(&'static str, PathBuf)) -> Result<Namespace> {
    let found = std::fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
    Ok(Namespace {
        kind: (*kind).to_owned(),
        path: path.to_string_lossy().into_owned(),
        inode: found.ino(),
        ..Namespace::default()
    })
}

async fn attach(io: &Io, terminal: bool, request: &AttachRequest) -> Result<()> {
    if request.terminal != terminal {
        return Err(Error::text(
            Kind::InvalidArgument,
            format_args!("terminal: {}: the container has {terminal}", request.terminal),
        ));
    }
    if terminal && !request.stderr.is_empty() {
        return Err(Error::text(
            Kind::InvalidArgument,
            format_args!(
                "stderr: {:?}: must be empty: a terminal has one output",
                request.stderr
            ),
        ));
    }
    if let Some(stdout) = client_end("stdout", &request.stdout)? {
        io.attach(&stdout, true, false).await?;
    }
    if let Some(stderr) = client_end("stderr", &request.stderr)? {
        io.attach(&stderr, false, true).await?;
    }
    Ok(())
}

/// Our end of a FIFO that a client reads. One that nobody reads is found out at the first write.
fn client_end(field: &'static str, path: &str) -> Result<Option<OwnedFd>> {
    if path.is_empty() {
        return Ok(None);
    }
    let fifo = Fifo::open(field, Path::new(path))?;
    fifo.reopen(OFlag::O_WRONLY | OFlag::O_NONBLOCK).map(Some)
}
