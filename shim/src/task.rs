//! containerd's Task service: from a request to one verb, and back.
//!
//! ttrpc drops a handler whose client has gone or whose time is over. So whatever changes something runs in a task of its
//! own, which comes to its end whoever waits for it.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use oci_spec::runtime::LinuxResources;
use rtc_runtime::bundle;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::process::{Ended, Phase, Stdio, Verb};
use crate::shim::Shim;
use crate::{kill, stats};

/// The service, on the containers of a shim.
#[derive(Debug)]
pub(crate) struct TaskService(pub(crate) Arc<Shim>);

/// Runs what must not be given up in the middle.
pub(crate) async fn whole<T: Send + 'static>(
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(verb).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Error::new(Kind::Unknown, error).into()),
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.0.container(&request.id)?;
        Ok(state(&container, &request)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let shim = Arc::clone(&self.0);
        let pid = whole(async move {
            let container = Container::new(&request, &shim.namespace)?;
            shim.claim(Arc::clone(&container))?;
            let created = container.create(&shim, request).await;
            created.inspect_err(|_| shim.forget(&container))
        });
        Ok(CreateTaskResponse {
            pid: pid.await?,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let shim = Arc::clone(&self.0);
        let pid = whole(async move {
            let container = shim.container(&request.id)?;
            if request.exec_id.is_empty() {
                container.start(&shim).await
            } else {
                container.start_exec(&shim, &request.exec_id).await
            }
        });
        Ok(StartResponse {
            pid: pid.await?,
            ..StartResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let shim = Arc::clone(&self.0);
        let deleted = whole(async move {
            if request.exec_id.is_empty() {
                shim.claimed(&request.id)?.delete(&shim).await
            } else {
                shim.container(&request.id)?.delete_exec(&request.exec_id)
            }
        });
        let (pid, ended): (u32, Ended) = deleted.await?;
        Ok(DeleteResponse {
            pid,
            exit_status: ended.status,
            exited_at: ended.timestamp(),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.0.container(&request.id)?;
        Ok(stats::pids(&container)?)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        whole(async move { shim.container(&request.id)?.pause(&shim).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        whole(async move { shim.container(&request.id)?.resume(&shim).await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        whole(async move { shim.container(&request.id)?.checkpoint(&shim, &request).await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        whole(async move {
            let container = shim.container(&request.id)?;
            kill::kill(&container, &request.exec_id, request.signal, request.all).await
        })
        .await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().unwrap_or_default().value;
        container.add_exec(&self.0, &request.exec_id, stdio, spec)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        process.phase().allows(Verb::Resize)?;
        if let Some(io) = process.io().filter(|_| process.stdio.terminal) {
            io.resize(cells(request.height), cells(request.width))?;
        }
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        process.phase().allows(Verb::CloseIo)?;
        process.close_stdin();
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let resources = resources(request.resources.as_ref())?;
        whole(async move { container.update(resources).await }).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let ended = process.wait().await;
        Ok(WaitResponse {
            exit_status: ended.status,
            exited_at: ended.timestamp(),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.0.container(&request.id)?;
        Ok(StatsResponse {
            stats: Some(stats::metrics(&container)?).into(),
            ..StatsResponse::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let container = self.0.container(&request.id);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.pid()),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.end_if_idle();
        Ok(Empty::default())
    }
}

fn state(container: &Container, request: &StateRequest) -> Result<StateResponse> {
    let process = container.process(&request.exec_id)?;
    let phase = container.phase_of(&process);
    let ended = phase.ended();
    let Stdio {
        stdin,
        stdout,
        stderr,
        terminal,
    } = process.stdio.clone();
    let id = if process.exec_id.is_empty() {
        container.id.to_string()
    } else {
        process.exec_id.clone()
    };
    Ok(StateResponse {
        id,
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: process.pid(),
        status: status(phase).into(),
        stdin,
        stdout,
        stderr,
        terminal,
        exit_status: ended.map_or(0, |ended| ended.status),
        exited_at: ended.map(Ended::timestamp).unwrap_or_default(),
        exec_id: process.exec_id.clone(),
        ..StateResponse::default()
    })
}

fn status(phase: Phase) -> Status {
    match phase {
        Phase::Creating => Status::UNKNOWN,
        Phase::Created | Phase::Added | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Pausing => Status::PAUSING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped(_) | Phase::Deleted(_) => Status::STOPPED,
    }
}

fn cells(cells: u32) -> u16 {
    u16::try_from(cells).unwrap_or(u16::MAX)
}

/// The limits of an update: JSON in an Any, whatever it calls itself.
fn resources(any: Option<&Any>) -> Result<LinuxResources> {
    let invalid = |error: anyhow::Error| Error::new(Kind::InvalidArgument, error.context("resources"));
    let any = any.ok_or_else(|| invalid(anyhow::anyhow!("missing")))?;
    let resources = bundle::parse_json(&any.value).map_err(invalid)?;
    bundle::check_resources(&resources).map_err(invalid)?;
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_can_not_be_are_named() {
        let json = |text: &str| Any {
            value: text.as_bytes().to_vec(),
            ..Any::default()
        };
        let error = resources(Some(&json(r#"{"memory": {"limit": -5}}"#))).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        assert!(error.to_string().contains("memory.limit: -5"), "{error}");
        assert!(resources(None).unwrap_err().to_string().contains("missing"));
        assert!(resources(Some(&json("{"))).is_err());
        assert!(resources(Some(&json(r#"{"pids": {"limit": 5}}"#))).is_ok());
    }
}
