//! Ends of processes: one task for each process that runs.
//!
//! ```text
//! pidfd readable -> collected -> (init without a PID namespace of its own: the rest is killed)
//!   -> no Start is on its way, its event is sent -> (init: its execs have ended, their exits are told)
//!   -> output drained, for a bounded time -> Exit event -> Stopped: waiters hear it, Delete may begin
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::topics;
use nix::unistd::Pid;

use crate::container::Container;
use crate::events::Events;
use crate::log;
use crate::process::{Ended, Phase, Process, UNKNOWN_STATUS};
use crate::reaper;

/// How long the output of a process may take to be passed on after its end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a process of exec, whose background children may hold its output open for good.
const EXEC_DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// How long init's exit waits for those of its execs, which were killed: one may hang in the kernel.
const EXECS_PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the end of init.
pub(crate) fn watch_init(container: &Arc<Container>, events: &Events, pid: Pid, pidfd: Arc<OwnedFd>) {
    let (container, events) = (Arc::clone(container), events.clone());
    tokio::spawn(async move {
        let ended = collect(&container.init, pid, pidfd).await;
        container.note_end_of_init();
        if !container.owns_pids()
            && let Err(error) = container
                .runtime
                .kill_all(&container.id, nix::libc::SIGKILL)
                .await
        {
            log::warn(format_args!("end what init left: {error}"));
        }
        container.init.settled().await;
        let execs = wait_for_execs(&container);
        if tokio::time::timeout(EXECS_PATIENCE, execs).await.is_err() {
            log::warn(format_args!(
                "container {}: a process of exec has not ended with init",
                container.id
            ));
        }
        tell(&container, &container.init, &events, ended, DRAIN_PATIENCE).await;
    });
}

/// Waits for the end of a process of exec.
pub(crate) fn watch_exec(
    container: &Arc<Container>,
    process: Arc<Process>,
    events: &Events,
    pid: Pid,
    pidfd: Arc<OwnedFd>,
) {
    let (container, events) = (Arc::clone(container), events.clone());
    tokio::spawn(async move {
        let ended = collect(&process, pid, pidfd).await;
        if let Some(name) = process.own_cgroup() {
            container.remove_exec_cgroup(&name);
        }
        process.settled().await;
        tell(&container, &process, &events, ended, EXEC_DRAIN_PATIENCE).await;
    });
}

async fn collect(process: &Process, pid: Pid, pidfd: Arc<OwnedFd>) -> Ended {
    let exit = reaper::collect(pid, &pidfd).await;
    process.collected();
    let status = exit.map_or_else(
        |error| {
            log::warn(format_args!("the status of process {pid} is lost: {error:#}"));
            UNKNOWN_STATUS
        },
        |exit| exit.status().cast_unsigned(),
    );
    Ended {
        status,
        at: Some(SystemTime::now()),
    }
}

/// No exec can start any more: those that are on their way or run were killed with init.
async fn wait_for_execs(container: &Container) {
    for exec in container.execs() {
        if exec.phase() != Phase::Added {
            exec.wait().await;
        }
    }
}

async fn tell(container: &Container, process: &Process, events: &Events, ended: Ended, patience: Duration) {
    if let Some(io) = process.io() {
        io.drain(patience).await;
    }
    let id = if process.exec_id.is_empty() {
        container.id.as_str()
    } else {
        &process.exec_id
    };
    events.send(
        topics::TASK_EXIT_EVENT_TOPIC,
        &TaskExit {
            container_id: container.id.to_string(),
            id: id.to_owned(),
            pid: process.pid(),
            exit_status: ended.status,
            exited_at: ended.timestamp(),
            ..TaskExit::default()
        },
    );
    process.advance(Phase::Stopped(ended));
}
