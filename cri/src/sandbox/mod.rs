//! Pods: a sandbox is its network, its namespaces and its shim; containers come and go in it.
//!
//! ```text
//! RunPodSandbox   check ── name taken ── Making ── shim, namespaces ── netns pinned ── CNI ADD ── Ready
//!                    `── a step fails: all of it is taken back (end.rs), the name is free again
//! StopPodSandbox  Ended ── containers stopped ── CNI DEL ── netns unpinned ── shim shut down ── Stopped
//! RemovePodSandbox   stop ── containers removed ── bundle removed ── forgotten
//! ```
//!
//! Everything is done in the sandbox's turn, and each step of an end is fine with what is gone: a retry does what is left.

mod check;
mod end;
pub(crate) mod list;
mod netns;
pub(crate) mod recover;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod update;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::cni::Addresses;
use crate::config::Config;
use crate::error::Result;
use crate::locked;
use crate::proto::{NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxState};
use crate::shim::{Options, Shim};
use crate::stats::Rate;

/// What is recorded of a sandbox: enough to find everything of it after a `kill -9`.
#[derive(Debug, Clone, Serialize, Deserialize)]
// A field that is added has `#[serde(default)]`: else a new release can't read what an old one recorded.
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
    /// The process whose namespaces the configurations of containers name (`/proc/<pid>/ns/net`), as the shim said; 0 before.
    pub(crate) pid: u32,
    /// Where the network namespace is pinned; `None`: the host's.
    pub(crate) netns: Option<PathBuf>,
    /// What CNI gave it.
    pub(crate) addresses: Addresses,
    /// SELinux's level of all of its containers, as `s0:c1,c2`; empty without SELinux.
    pub(crate) selinux_level: String,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// RunPodSandbox is on its way, or died: nobody was told of it yet.
    Making,
    Ready,
    /// It has ended by itself (its shim or its init died), or a stop is on its way or failed: no container can be made in it,
    /// and StopPodSandbox has something to do.
    Ended,
    /// No namespaces, no network, no shim.
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
    /// Processor time, for statistics.
    pub(crate) rate: Rate,
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

    /// The namespaces that it asked for.
    pub(crate) fn namespaces(&self) -> NamespaceOption {
        let context = self
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref());
        context
            .and_then(|context| context.namespace_options.clone())
            .unwrap_or_default()
    }

    /// Whether it is in the host's network.
    pub(crate) fn is_host_network(&self) -> bool {
        self.namespaces().network == NamespaceMode::Node as i32
    }
}

/// The bundle of a sandbox: its shim's record, and the pod's files.
pub(crate) fn bundle(config: &Config, id: &str) -> PathBuf {
    config.state.join("sandboxes").join(id)
}

/// What the shim is told of its runtime, for a container of a sandbox with this handler.
///
/// # Errors
///
/// `InvalidArgument`: there is no such handler in the configuration.
pub(crate) fn options(config: &Config, handler: &str) -> Result<Options> {
    let handler = config.handler(handler)?;
    Ok(Options::new(
        handler,
        config.driver(),
        &config.state.join("runtime"),
    ))
}

impl Sandbox {
    pub(crate) fn new(record: Record) -> Self {
        Self {
            id: record.id.clone(),
            record: Mutex::new(Arc::new(record)),
            shim: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            rate: Rate::default(),
        }
    }

    /// What is known of it now.
    pub(crate) fn record(&self) -> Arc<Record> {
        Arc::clone(&locked(&self.record))
    }

    /// Changes what is known; the caller has its turn, and records it (`Node::record_sandbox`).
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Arc<Record> {
        let mut record = locked(&self.record);
        change(Arc::make_mut(&mut record));
        Arc::clone(&record)
    }

    pub(crate) fn shim(&self) -> Option<Arc<Shim>> {
        locked(&self.shim).clone()
    }

    pub(crate) fn set_shim(&self, shim: Option<Arc<Shim>>) {
        *locked(&self.shim) = shim;
    }
}

impl State {
    pub(crate) fn cri(self) -> PodSandboxState {
        match self {
            Self::Ready => PodSandboxState::SandboxReady,
            Self::Making | Self::Ended | Self::Stopped => PodSandboxState::SandboxNotready,
        }
    }
}
