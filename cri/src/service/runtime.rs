//! `runtime.v1.RuntimeService`: each call goes to its verb.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{Answer, Stream, answer, pieces, whole};
use crate::node::Node;
use crate::proto::runtime_service_server::RuntimeService;
use crate::proto::*;
use crate::{container, events, metrics, sandbox, stats, status, streaming};

/// The service, on a node.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) node: Arc<Node>,
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Stream<StreamPodSandboxesResponse>;
    type StreamContainersStream = Stream<StreamContainersResponse>;
    type StreamContainerStatsStream = Stream<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Stream<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Stream<ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Stream<StreamPodSandboxMetricsResponse>;

    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer("Version", status::version(&self.node, request.into_inner()).await)
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let node = Arc::clone(&self.node);
        whole("RunPodSandbox", async move {
            sandbox::run::run(&node, request.into_inner()).await
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let node = Arc::clone(&self.node);
        whole("StopPodSandbox", async move {
            sandbox::stop::stop(&node, request.into_inner()).await
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let node = Arc::clone(&self.node);
        whole("RemovePodSandbox", async move {
            sandbox::remove::remove(&node, request.into_inner()).await
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        answer(
            "PodSandboxStatus",
            sandbox::status::status(&self.node, request.into_inner()).await,
        )
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let items = sandbox::list::list(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let all = sandbox::list::list(&self.node, request.into_inner().filter).await?;
        Ok(pieces(all, |pod_sandboxes| StreamPodSandboxesResponse {
            pod_sandboxes,
        }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let node = Arc::clone(&self.node);
        whole("CreateContainer", async move {
            container::create::create(&node, request.into_inner()).await
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let node = Arc::clone(&self.node);
        whole("StartContainer", async move {
            container::start::start(&node, request.into_inner()).await
        })
        .await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let node = Arc::clone(&self.node);
        whole("StopContainer", async move {
            container::stop::stop(&node, request.into_inner()).await
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let node = Arc::clone(&self.node);
        whole("RemoveContainer", async move {
            container::remove::remove(&node, request.into_inner()).await
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let containers = container::list::list(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let all = container::list::list(&self.node, request.into_inner().filter).await?;
        Ok(pieces(all, |containers| StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        answer(
            "ContainerStatus",
            container::status::status(&self.node, request.into_inner()).await,
        )
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let node = Arc::clone(&self.node);
        whole("UpdateContainerResources", async move {
            container::update::update(&node, request.into_inner()).await
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let node = Arc::clone(&self.node);
        whole("ReopenContainerLog", async move {
            container::log::reopen(&node, request.into_inner()).await
        })
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        answer(
            "ExecSync",
            container::exec_sync::exec_sync(&self.node, request.into_inner()).await,
        )
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        answer("Exec", streaming::exec(&self.node, request.into_inner()).await)
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        answer(
            "Attach",
            streaming::attach(&self.node, request.into_inner()).await,
        )
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        answer(
            "PortForward",
            streaming::port_forward(&self.node, request.into_inner()).await,
        )
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        answer(
            "ContainerStats",
            stats::container(&self.node, request.into_inner()).await,
        )
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = stats::containers(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let all = stats::containers(&self.node, request.into_inner().filter).await?;
        Ok(pieces(all, |container_stats| StreamContainerStatsResponse {
            container_stats,
        }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        answer(
            "PodSandboxStats",
            stats::sandbox(&self.node, request.into_inner()).await,
        )
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = stats::sandboxes(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let all = stats::sandboxes(&self.node, request.into_inner().filter).await?;
        Ok(pieces(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let node = Arc::clone(&self.node);
        whole("UpdateRuntimeConfig", async move {
            status::update_runtime_config(&node, request.into_inner()).await
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        answer("Status", status::status(&self.node, request.into_inner()).await)
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let node = Arc::clone(&self.node);
        whole("CheckpointContainer", async move {
            container::checkpoint::checkpoint(&node, request.into_inner()).await
        })
        .await
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(events::stream(&self.node)))
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(
            "ListMetricDescriptors",
            metrics::descriptors(&self.node, request.into_inner()).await,
        )
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let pod_metrics = metrics::sandboxes(&self.node).await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = metrics::sandboxes(&self.node).await?;
        Ok(pieces(all, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        }))
    }

    async fn runtime_config(&self, request: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        answer(
            "RuntimeConfig",
            status::runtime_config(&self.node, request.into_inner()).await,
        )
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let node = Arc::clone(&self.node);
        whole("UpdatePodSandboxResources", async move {
            sandbox::update::update(&node, request.into_inner()).await
        })
        .await
    }
}
