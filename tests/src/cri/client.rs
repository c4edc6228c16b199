//! A client of CRI: the generated one, on a runtime of its own, each call waited for.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rtc_cri::proto::image_service_client::ImageServiceClient;
use rtc_cri::proto::runtime_service_client::RuntimeServiceClient;
use rtc_cri::proto::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::registry::Result;

/// Longest that a call may take: the kubelet's is two minutes, as is a test's.
const DEADLINE: Duration = Duration::from_secs(100);

/// The largest answer, in bytes: the kubelet's limit.
const ANSWER_MAX: usize = 16 << 20;

/// One connection.
pub(crate) struct Client {
    socket: PathBuf,
    tokio: tokio::runtime::Runtime,
    channel: RefCell<Option<Channel>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.socket).finish()
    }
}

/// The unary calls, by their names.
macro_rules! calls {
    ($service:ident: $($name:ident($request:ident) -> $answer:ident;)+) => {
        impl Client {
            $(#[expect(clippy::allow_attributes, reason = "not every call is made by a test yet")]
            #[allow(dead_code, reason = "as above")]
            pub(crate) fn $name(&self, request: $request) -> std::result::Result<$answer, Status> {
                let mut client = self.$service();
                self.wait(async move { client.$name(with_deadline(request)).await })
                    .map(tonic::Response::into_inner)
            })+
        }
    };
}

calls! { runtime:
    version(VersionRequest) -> VersionResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    status(StatusRequest) -> StatusResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
}

calls! { images:
    list_images(ListImagesRequest) -> ListImagesResponse;
    image_status(ImageStatusRequest) -> ImageStatusResponse;
    pull_image(PullImageRequest) -> PullImageResponse;
    remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl Client {
    /// Connects with the first call, and again after the server's restart.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("tokio")?;
        Ok(Self {
            socket: socket.to_owned(),
            tokio,
            channel: RefCell::default(),
        })
    }

    fn channel(&self) -> Channel {
        let connect = || {
            let _inside = self.tokio.enter();
            Endpoint::from_shared(format!("unix://{}", self.socket.display()))
                .unwrap_or_else(|error| panic!("{}: {error}", self.socket.display()))
                .connect_lazy()
        };
        self.channel.borrow_mut().get_or_insert_with(connect).clone()
    }

    /// The generated client of RuntimeService, for what is not one call and its answer; with [`Self::wait`].
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_MAX)
    }

    /// The generated client of ImageService.
    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_MAX)
    }

    /// Runs a future to its end on this client's runtime.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.tokio.block_on(future)
    }

    /// Closes its connection; the next call makes another.
    pub(crate) fn hang_up(&self) {
        self.channel.take();
        // What served the connection ends when it is polled again.
        self.wait(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }
}

/// The answer; an error says which call it was.
pub(crate) fn check<T>(call: &str, result: std::result::Result<T, Status>) -> Result<T> {
    result.map_err(|status| anyhow::anyhow!("{call}: {:?}: {}", status.code(), status.message()))
}

/// The call was refused with this code, and the message names each of these.
pub(crate) fn refused<T: fmt::Debug>(
    result: std::result::Result<T, Status>,
    code: Code,
    texts: &[&str],
) -> Result {
    let status = match result {
        Ok(answer) => bail!("expected {code:?}, not the answer {answer:?}"),
        Err(status) => status,
    };
    ensure!(
        status.code() == code,
        "expected {code:?}, not {:?}: {}",
        status.code(),
        status.message()
    );
    // What the peers write is their business.
    if std::env::var_os("CRI_PEER").is_none_or(|peer| peer.is_empty()) {
        super::names(status.message(), texts)?;
    }
    Ok(())
}
