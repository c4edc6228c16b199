//! Containers: a file for each verb.
//!
//! ```text
//! create.rs   Making ──> Created                      the task exists: its process waits at its gate
//! start.rs               Created ──> Running          exit.rs waits for its end, in a task of its own
//! exit.rs                            Running ──> Exited
//! stop.rs                Created ─────────────> Exited, Running: signals, until exit.rs says so
//! remove.rs   clean.rs: task, upper layer, bundle; then it is forgotten
//! ```

pub(crate) mod checkpoint;
pub(crate) mod clean;
pub(crate) mod create;
pub(crate) mod exec_sync;
pub(crate) mod exit;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod remove;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod update;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::locked;
use crate::proto::{ContainerConfig, ContainerState, ContainerUser, LinuxContainerResources};
use crate::stats::Rate;

/// What is recorded of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
// A field that is added has `#[serde(default)]`: else a new release can't read what an old one recorded.
pub(crate) struct Record {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// The sandbox's id.
    pub(crate) sandbox: String,
    /// As the kubelet asked for it.
    pub(crate) config: ContainerConfig,
    /// `sha256:...` of the image's configuration.
    pub(crate) image_id: String,
    /// The image's first name by digest, `name@sha256:...`, whatever name was asked for; the id where it has none.
    pub(crate) image_ref: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) state: State,
    /// Absolute; `None`: no log is wanted.
    pub(crate) log_path: Option<PathBuf>,
    /// Below the mount point of each hierarchy.
    pub(crate) cgroup: String,
    /// Whom it runs as, for ContainerStatus.
    pub(crate) user: Option<ContainerUser>,
    /// Linux's number: the request's, or the image's, or SIGTERM.
    pub(crate) stop_signal: i32,
    /// Its limits, as of the last update.
    pub(crate) resources: Option<LinuxContainerResources>,
    /// Of each of `config.mounts`: the digest of its image, where it is one.
    pub(crate) mounted_images: Vec<Option<String>>,
    /// Its shim may have something of it: mounts, a cgroup, a process.
    pub(crate) task: bool,
}

/// Where a container is in its life, with what is true in it. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// CreateContainer is on its way, or died: nobody was told of it yet.
    Making,
    Created,
    Running {
        pid: u32,
        started_at: i64,
    },
    Exited {
        /// 0 where it never ran.
        started_at: i64,
        finished_at: i64,
        exit_code: i32,
        /// As `Completed`, `Error`, `OOMKilled`.
        reason: String,
        message: String,
    },
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Never changes (`record.id`), to be read without the lock.
    pub(crate) id: String,
    record: Mutex<Arc<Record>>,
    /// Tells those who wait for a change of `state` that there was one.
    pub(crate) changed: watch::Sender<()>,
    /// The turn of who creates, starts, updates or removes it. Stopping what runs never waits for it.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// It was sent its stop signal: some programs take a second one for an order to hurry.
    pub(crate) signalled: AtomicBool,
    /// Somebody waits for its end (exit.rs).
    pub(crate) watched: AtomicBool,
    /// Processor time, for statistics.
    pub(crate) rate: Rate,
}

impl Record {
    /// What only one container can be called: a retry of CreateContainer asks for it again.
    pub(crate) fn name(&self) -> String {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        format!("{} {:?} {}", self.sandbox, metadata.name, metadata.attempt)
    }
}

impl Container {
    pub(crate) fn new(record: Record) -> Self {
        Self {
            id: record.id.clone(),
            record: Mutex::new(Arc::new(record)),
            changed: watch::Sender::new(()),
            turn: tokio::sync::Mutex::default(),
            signalled: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            rate: Rate::default(),
        }
    }

    /// What is known of it now.
    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&locked(&self.record))
    }

    /// Changes what is known; the caller records it (`Node::record_container`).
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Arc<Record> {
        let changed = {
            let mut record = locked(&self.record);
            change(Arc::make_mut(&mut record));
            Arc::clone(&record)
        };
        self.changed.send_replace(());
        changed
    }
}

impl Container {
    /// Waits until it has exited.
    pub(crate) async fn exited(&self) {
        let mut changed = self.changed.subscribe();
        while !matches!(self.record().state, State::Exited { .. }) {
            // We have the sender.
            let _ = changed.changed().await;
        }
    }
}

impl State {
    /// For a message, as `running`.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Making => "being created",
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }

    pub(crate) fn cri(&self) -> ContainerState {
        match self {
            Self::Making | Self::Created => ContainerState::ContainerCreated,
            Self::Running { .. } => ContainerState::ContainerRunning,
            Self::Exited { .. } => ContainerState::ContainerExited,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With nothing in it.
    pub(crate) fn record(id: &str, sandbox: &str, state: State) -> Record {
        Record {
            id: id.into(),
            sandbox: sandbox.into(),
            config: ContainerConfig::default(),
            image_id: String::new(),
            image_ref: String::new(),
            created_at: 1,
            state,
            log_path: None,
            cgroup: String::new(),
            user: None,
            stop_signal: 15,
            resources: None,
            mounted_images: Vec::new(),
            task: false,
        }
    }
}
