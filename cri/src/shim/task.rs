//! The containers of a shim: containerd's Task service.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use oci_spec::runtime::LinuxResources;

use super::{LONG, Options, SHORT, Shim};
use crate::error::{Error, Kind, Result};

/// A container that is to be created; its `config.json` is in the bundle.
#[derive(Debug, Clone)]
pub(crate) struct Task<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// What the shim mounts on `<bundle>/rootfs`.
    pub(crate) rootfs: &'a [Mount],
    pub(crate) terminal: bool,
    /// The path of a FIFO; empty: /dev/null.
    pub(crate) stdin: &'a str,
    /// As `cri:///var/log/pods/.../0.log` (shim/src/io/target.rs); empty: /dev/null.
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
    pub(crate) options: &'a Options,
}

/// A mount of mount(8), as containerd's snapshotters describe them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As `overlay`.
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Inside the root; empty: the root itself.
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As of a shell: 128 + n for signal n.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch; 0 where the shim does not know it.
    pub(crate) at: i64,
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Being created.
    Creating,
    Created,
    Running,
    Paused,
    Stopped(Exit),
}

/// A container, as its shim has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskState {
    /// Of its first process; 0: none.
    pub(crate) pid: u32,
    pub(crate) phase: Phase,
}

impl Shim {
    /// Makes a container, up to its user's program. Returns the pid of its first process.
    ///
    /// # Errors
    ///
    /// Nothing is left of it. `AlreadyExists`: the shim has one of this id. After `DeadlineExceeded` the shim may still be
    /// at it: call `delete_task`.
    pub(crate) async fn create_task(&self, task: &Task<'_>) -> Result<u32> {
        let request = api::CreateTaskRequest {
            id: task.id.to_owned(),
            bundle: task.bundle.to_string_lossy().into_owned(),
            rootfs: task.rootfs.iter().map(Mount::to_api).collect(),
            terminal: task.terminal,
            stdin: task.stdin.to_owned(),
            stdout: task.stdout.to_owned(),
            stderr: task.stderr.to_owned(),
            options: MessageField::some(task.options.to_any()),
            ..Default::default()
        };
        let created = self.call("Create", LONG, |context| self.tasks.create(context, &request));
        Ok(created.await?.pid)
    }

    /// Lets the user's program run. Returns the pid of the container's first process.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition` where it runs or has ended; why the program can't be executed.
    pub(crate) async fn start_task(&self, id: &str) -> Result<u32> {
        let request = api::StartRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let started = self.call("Start", LONG, |context| self.tasks.start(context, &request));
        Ok(started.await?.pid)
    }

    /// Sends a signal to the first process, or to all. SIGKILL: the shim sees to it that it works.
    ///
    /// # Errors
    ///
    /// `NotFound`: it has ended, or there is none; `DeadlineExceeded`, with what does not end of SIGKILL and where it hangs.
    pub(crate) async fn kill_task(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let request = api::KillRequest {
            id: id.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.call("Kill", LONG, |context| self.tasks.kill(context, &request))
            .await
            .map(drop)
    }

    /// Waits until the container has ended, however long that takes.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable`: the shim is gone (`is_lost`).
    pub(crate) async fn wait_task(&self, id: &str) -> Result<Exit> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let ended = self
            .wait_for("Wait", |context| self.tasks.wait(context, &request))
            .await?;
        Ok(Exit::new(ended.exit_status, &ended.exited_at))
    }

    /// Removes what is left of a container that has ended, or was never started: its cgroup, mounts, state.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is none; `FailedPrecondition`: it runs.
    pub(crate) async fn delete_task(&self, id: &str) -> Result<Exit> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let deleted = self
            .call("Delete", LONG, |context| self.tasks.delete(context, &request))
            .await?;
        Ok(Exit::new(deleted.exit_status, &deleted.exited_at))
    }

    /// What the container does now.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) async fn task_state(&self, id: &str) -> Result<TaskState> {
        let request = api::StateRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let state = self
            .call("State", SHORT, |context| self.tasks.state(context, &request))
            .await?;
        let exit = Exit::new(state.exit_status, &state.exited_at);
        Ok(TaskState {
            pid: state.pid,
            phase: phase(state.status, exit)?,
        })
    }

    /// Changes limits.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the limit that can't be so; `NotFound`.
    pub(crate) async fn update_task(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let value = serde_json::to_vec(resources).map_err(anyhow::Error::from)?;
        let request = api::UpdateTaskRequest {
            id: id.to_owned(),
            resources: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value,
                ..Any::default()
            }),
            ..Default::default()
        };
        self.call("Update", LONG, |context| self.tasks.update(context, &request))
            .await
            .map(drop)
    }

    /// Whether the kernel killed a process of a container for want of memory; to be asked before `delete_task`.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unimplemented`: a shim of an older release.
    pub(crate) async fn task_oom(&self, id: &str) -> Result<bool> {
        let request = rtc_shim::protocol::OutOfMemoryRequest {
            container: id.to_owned(),
            ..Default::default()
        };
        let answer = self.call("OutOfMemory", SHORT, |context| async {
            self.own.out_of_memory(context, &request).await
        });
        Ok(answer.await?.killed)
    }

    /// Opens the log of a container again by its name: it was renamed.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition`: it has ended, or has no log.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = rtc_shim::protocol::ReopenLogRequest {
            container: id.to_owned(),
            ..Default::default()
        };
        self.call("ReopenLog", SHORT, |context| {
            self.own.reopen_log(context, &request)
        })
        .await
        .map(drop)
    }
}

impl Mount {
    fn to_api(&self) -> containerd_shim_protos::types::mount::Mount {
        containerd_shim_protos::types::mount::Mount {
            type_: self.kind.clone(),
            source: self.source.clone(),
            target: self.target.clone(),
            options: self.options.clone(),
            ..Default::default()
        }
    }
}

impl Exit {
    pub(super) fn new(status: u32, at: &MessageField<Timestamp>) -> Self {
        let nanoseconds = at.as_ref().map(|at| {
            at.seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(at.nanos.into())
        });
        Self {
            status,
            at: nanoseconds.unwrap_or(0),
        }
    }
}

fn phase(status: EnumOrUnknown<api::Status>, exit: Exit) -> Result<Phase> {
    match status.enum_value() {
        Ok(api::Status::UNKNOWN) => Ok(Phase::Creating),
        Ok(api::Status::CREATED) => Ok(Phase::Created),
        Ok(api::Status::RUNNING | api::Status::PAUSING) => Ok(Phase::Running),
        Ok(api::Status::PAUSED) => Ok(Phase::Paused),
        Ok(api::Status::STOPPED) => Ok(Phase::Stopped(exit)),
        Err(number) => Err(Error::text(
            Kind::Unknown,
            format_args!("the shim says status {number}, which we don't know"),
        )),
    }
}
