//! Pods: a sandbox is its network, its namespaces and its shim; containers come and go in it.

pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod update;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cni::Addresses;
use crate::proto::{PodSandboxConfig, PodSandboxState};
use crate::shim::Shim;

/// What is recorded of a sandbox: enough to find everything of it after a `kill -9`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// As the kubelet asked for it.
    pub(crate) config: PodSandboxConfig,
    /// The runtime handler's name, as asked for: empty for the default.
    pub(crate) handler: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) state: State,
    /// The shim's ttrpc socket (`unix:///...`), once it runs.
    pub(crate) shim: Option<String>,
    /// Where the network namespace is pinned; `None`: the host's.
    pub(crate) netns: Option<PathBuf>,
    /// What CNI gave it.
    pub(crate) addresses: Addresses,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// RunPodSandbox is on its way, or died: nobody was told of it yet.
    Making,
    Ready,
    /// Stopped: no namespaces, no network, no shim.
    Stopped,
}

/// A sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Never changes (`record.id`), to be read without the lock.
    pub(crate) id: String,
    record: Mutex<Arc<Record>>,
    /// Its shim, while there is one.
    shim: Mutex<Option<Arc<Shim>>>,
    /// The turn of who runs, stops or removes it.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

impl Record {
    /// What only one sandbox can be called: a retry of RunPodSandbox asks for it again.
    pub(crate) fn name(&self) -> String {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        format!(
            "{:?} {:?} {:?} {}",
            metadata.namespace, metadata.name, metadata.uid, metadata.attempt
        )
    }
}

impl Sandbox {
    pub(crate) fn new(record: Record) -> Self {
        Self {
            id: record.id.clone(),
            record: Mutex::new(Arc::new(record)),
            shim: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What is known of it now.
    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what is known; the caller has its turn, and records it (`Node::record_sandbox`).
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Arc<Record> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut record));
        Arc::clone(&record)
    }

    pub(crate) fn shim(&self) -> Option<Arc<Shim>> {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_shim(&self, shim: Option<Arc<Shim>>) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = shim;
    }
}

impl State {
    pub(crate) fn cri(self) -> PodSandboxState {
        match self {
            Self::Ready => PodSandboxState::SandboxReady,
            Self::Making | Self::Stopped => PodSandboxState::SandboxNotready,
        }
    }
}
