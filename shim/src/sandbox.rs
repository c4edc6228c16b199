//! containerd's Sandbox service: a pod's life, for `sandboxer = "shim"` (containerd 2).
//!
//! ```text
//! CreateSandbox   Created    the request is checked, nothing is made
//! StartSandbox    Ready      namespaces, the pod init where PIDs are shared, files: containers may come and go
//! StopSandbox     Stopped    what runs is killed, the namespaces are let go; WaitSandbox returns
//! ShutdownSandbox            what is left of containers is deleted, and the shim ends
//! ```
//!
//! A shim has one sandbox, and lives as long as it, with no container too. The end of the pod init is the end of the
//! sandbox: no process can live in its PID namespace any more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_async::Sandbox as Service;
use containerd_shim_protos::types::platform::Platform;
use serde_json::json;
use tokio::sync::watch;
use ttrpc::r#async::TtrpcContext;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::pod::Pod;
use crate::pod::config::PodConfig;
use crate::process::{Ended, timestamp};
use crate::shim::Shim;
use crate::task::whole;
use crate::{kill, log, pod, stats};

/// How long StopSandbox takes at most, where the request does not say.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the shim lives on after it has answered ShutdownSandbox: a client in Go that finds the answer and the end of
/// the connection at once takes either, and containerd takes the end for a failure.
const FAREWELL: Duration = Duration::from_millis(100);
/// containerd's name for the type of `config.json`.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The service, on the sandbox of a shim.
#[derive(Debug)]
pub(crate) struct SandboxService {
    shim: Arc<Shim>,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Ready { pid: u32 },
    Stopped(Ended),
}

/// A sandbox.
#[derive(Debug)]
struct Sandbox {
    id: String,
    bundle: std::path::PathBuf,
    config: PodConfig,
    created_at: SystemTime,
    phase: watch::Sender<Phase>,
    /// Also the turn of who starts or stops it.
    pod: tokio::sync::Mutex<Option<Pod>>,
}

impl SandboxService {
    pub(crate) fn new(shim: Arc<Shim>) -> Self {
        Self {
            shim,
            sandbox: Mutex::default(),
        }
    }

    /// The sandbox, by its id.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    fn find(&self, id: &str) -> Result<Arc<Sandbox>> {
        let sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sandbox.as_ref().filter(|sandbox| sandbox.id == id).cloned();
        found.ok_or_else(|| Error::text(Kind::NotFound, format_args!("sandbox {id:?} not found")))
    }

    fn add(&self, request: &CreateSandboxRequest) -> Result<()> {
        let new = Sandbox::new(request)?;
        let mut sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*sandbox {
            return Err(Error::text(
                Kind::AlreadyExists,
                format_args!("this shim has the sandbox {:?} already", other.id),
            ));
        }
        self.shim.hold_sandbox();
        *sandbox = Some(Arc::new(new));
        Ok(())
    }
}

impl Sandbox {
    fn new(request: &CreateSandboxRequest) -> Result<Self> {
        let config = PodConfig::parse(request)?;
        let bundle = std::path::PathBuf::from(&request.bundle_path);
        if !bundle.is_absolute() {
            return Err(Error::text(
                Kind::InvalidArgument,
                format_args!("bundle_path: {bundle:?}: must be an absolute path"),
            ));
        }
        Ok(Self {
            id: request.sandbox_id.clone(),
            bundle,
            config,
            created_at: SystemTime::now(),
            phase: watch::Sender::new(Phase::Created),
            pod: tokio::sync::Mutex::default(),
        })
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// It has ended; once it has, it stays so.
    fn note_end(&self, status: u32) {
        let ended = Ended {
            status,
            at: Some(SystemTime::now()),
        };
        self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Stopped(_));
            if first {
                *phase = Phase::Stopped(ended);
            }
            first
        });
    }

    /// Makes the pod. Returns the sandbox's process.
    async fn start(self: Arc<Self>, shim: Arc<Shim>) -> Result<u32> {
        let mut slot = self.pod.lock().await;
        if self.phase() != Phase::Created {
            return Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("sandbox {:?} was started before", self.id),
            ));
        }
        let made = Pod::make(&self.config, &self.bundle)
            .await
            .map_err(|error| error.context("make the pod"))?;
        let pid = made.pid();
        shim.set_pod(Some(made.substitution()));
        self.phase.send_replace(Phase::Ready { pid });
        if let Some(init) = made.init() {
            let sandbox = Arc::clone(&self);
            tokio::spawn(async move {
                let status = pod::end_of(init).await;
                sandbox.note_end(status);
            });
        }
        *slot = Some(made);
        Ok(pid)
    }

    /// Kills what runs, and lets the namespaces go.
    async fn stop(&self, shim: &Arc<Shim>, patience: Duration) -> Result<()> {
        let mut slot = self.pod.lock().await;
        let killed = kill_all(shim, patience).await;
        shim.set_pod(None);
        // Before the pod init is killed: that is not why it ends.
        self.note_end(0);
        if let Some(pod) = slot.take() {
            pod.end().await;
        }
        killed
    }

    async fn wait(&self) -> Ended {
        let mut phases = self.phase.subscribe();
        loop {
            if let Phase::Stopped(ended) = *phases.borrow_and_update() {
                return ended;
            }
            // The sender is ours: it does not end.
            let _ = phases.changed().await;
        }
    }

    async fn status(&self, shim: &Shim, verbose: bool) -> SandboxStatusResponse {
        let (state, pid, ended) = match self.phase() {
            Phase::Created => ("SANDBOX_NOTREADY", 0, None),
            Phase::Ready { pid } => ("SANDBOX_READY", pid, None),
            Phase::Stopped(ended) => ("SANDBOX_NOTREADY", 0, Some(ended)),
        };
        let mut answer = SandboxStatusResponse {
            sandbox_id: self.id.clone(),
            pid,
            state: state.to_owned(),
            created_at: Some(timestamp(self.created_at)).into(),
            exited_at: ended.map(Ended::timestamp).unwrap_or_default(),
            ..SandboxStatusResponse::default()
        };
        if verbose {
            // A start or stop that is on its way has none to show.
            let namespaces = match self.pod.try_lock() {
                Ok(slot) => slot.as_ref().map(Pod::describe).unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            let names = namespaces
                .into_iter()
                .map(|(kind, link)| (kind.to_owned(), link.into()));
            let containers = shim.containers();
            let ids = containers.iter().map(|container| container.id.as_str());
            // containerd reads "info" as its own `SandboxInfo`.
            let info = json!({
                "pid": pid,
                "processStatus": if ended.is_some() { "deleted" } else { "running" },
                "runtimeType": "io.containerd.rtc.v2",
            });
            let pod = json!({
                "shimPid": std::process::id(),
                "shimVersion": env!("CARGO_PKG_VERSION"),
                "namespaces": names.collect::<serde_json::Map<_, _>>(),
                "cgroupParent": self.config.cgroup_parent,
                "containers": ids.collect::<Vec<_>>(),
            });
            answer.info.insert("info".to_owned(), info.to_string());
            answer.info.insert("pod".to_owned(), pod.to_string());
        }
        answer
    }

    /// What a configuration of the sandbox would say, for those who look into it.
    fn spec(&self) -> Any {
        let spec = json!({
            "ociVersion": "1.2.0",
            "hostname": self.config.hostname,
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": self.id,
            },
            "linux": { "cgroupsPath": self.config.cgroup_parent },
        });
        Any {
            type_url: SPEC_TYPE.to_owned(),
            value: spec.to_string().into_bytes(),
            ..Any::default()
        }
    }
}

/// Kills every process of every container.
///
/// # Errors
///
/// `DeadlineExceeded`, with what does not end.
async fn kill_all(shim: &Shim, patience: Duration) -> Result<()> {
    let all: Vec<_> = shim
        .containers()
        .into_iter()
        .map(|container| tokio::spawn(async move { end(&container).await }))
        .collect();
    let deadline = tokio::time::Instant::now() + patience;
    let mut failed = Ok(());
    for one in all {
        let ended = match tokio::time::timeout_at(deadline, one).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => Err(Error::new(Kind::Unknown, error)),
            Err(_) => Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!("not all containers ended within {} s", patience.as_secs()),
            )),
        };
        failed = failed.and(ended);
    }
    failed
}

/// Ends a container, and waits until that was told.
async fn end(container: &Container) -> Result<()> {
    match kill::kill(container, "", nix::libc::SIGKILL.cast_unsigned(), true).await {
        Err(error) if error.kind != Kind::NotFound => return Err(error),
        _ => {}
    }
    container.init.wait().await;
    Ok(())
}

/// Deletes what is left of containers. What can't be deleted is left to containerd's call of `delete`.
async fn delete_all(shim: &Arc<Shim>) {
    for container in shim.containers() {
        if let Err(error) = container.delete(shim).await {
            log::warn(format_args!("delete container {}: {error}", container.id));
        }
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.add(&request)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let starting = Arc::clone(&sandbox).start(Arc::clone(&self.shim));
        let pid = whole(starting).await?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(sandbox.created_at)).into(),
            spec: Some(sandbox.spec()).into(),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            ..Platform::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform).into(),
            ..PlatformResponse::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let shim = Arc::clone(&self.shim);
        let patience = match request.timeout_secs {
            0 => STOP_PATIENCE,
            seconds => Duration::from_secs(seconds.into()),
        };
        whole(async move { sandbox.stop(&shim, patience).await }).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let ended = self.find(&request.sandbox_id)?.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: ended.status,
            exited_at: ended.timestamp(),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        Ok(sandbox.status(&self.shim, request.verbose).await)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.find(&request.sandbox_id)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let shim = Arc::clone(&self.shim);
        whole(async move {
            let stopped = tokio::time::timeout(2 * STOP_PATIENCE, async {
                let stopped = sandbox.stop(&shim, STOP_PATIENCE).await;
                delete_all(&shim).await;
                stopped
            });
            match stopped.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::warn(format_args!("shut down the sandbox: {error}")),
                Err(_) => {
                    log::warn("shut down the sandbox: something does not end; the shim goes without it");
                }
            }
            // Only after the answer.
            tokio::spawn(async move {
                tokio::time::sleep(FAREWELL).await;
                shim.end();
            });
            Ok(())
        })
        .await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let cgroup = pod::cgroup::of_pod(&sandbox.config.cgroup_parent, &sandbox.id)?;
        let data = stats::of_cgroup(&cgroup).map_err(Error::from)?;
        let mut answer = SandboxMetricsResponse::default();
        let metrics = answer.metrics.mut_or_insert_default();
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.id = sandbox.id.clone();
        metrics.data = Some(data).into();
        Ok(answer)
    }
}

/// As containerd's images have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
