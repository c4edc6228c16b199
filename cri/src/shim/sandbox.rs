//! The sandbox of a shim: containerd's Sandbox service, and what `rtc.shim.v1` adds.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use prost::Message as _;

use super::{LONG, SHORT, Shim};
use crate::error::Result;
use crate::proto::PodSandboxConfig;

/// CRI's configuration, as containerd names its type.
const CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// A namespace of the pod, which the shim holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// In the words of the runtime specification, as `network`.
    pub(crate) kind: String,
    /// Where any process finds it while the shim lives.
    pub(crate) path: PathBuf,
    /// Which one it is, as stat(2) says.
    pub(crate) inode: u64,
}

impl Shim {
    /// Tells the shim what the pod is to be. Nothing is made yet.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the field.
    pub(crate) async fn create_sandbox(&self, bundle: &Path, config: &PodSandboxConfig) -> Result<()> {
        let request = api::CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: bundle.to_string_lossy().into_owned(),
            options: MessageField::some(Any {
                type_url: CONFIG_TYPE.into(),
                value: config.encode_to_vec(),
                ..Any::default()
            }),
            ..Default::default()
        };
        self.call("CreateSandbox", SHORT, |context| {
            self.sandboxes.create_sandbox(context, &request)
        })
        .await
        .map(drop)
    }

    /// Makes the pod's namespaces and files. Returns the pid that stands for the sandbox in the configurations of containers,
    /// as `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    ///
    /// Nothing is left of the pod but the shim.
    pub(crate) async fn start_sandbox(&self) -> Result<u32> {
        let request = api::StartSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        let started = self.call("StartSandbox", LONG, |context| {
            self.sandboxes.start_sandbox(context, &request)
        });
        Ok(started.await?.pid)
    }

    /// Waits until the sandbox has ended: it was stopped, or the init of its PID namespace is gone.
    ///
    /// # Errors
    ///
    /// `Unavailable`: the shim is gone (`is_lost`).
    pub(crate) async fn wait_sandbox(&self) -> Result<()> {
        let request = api::WaitSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.wait_for("WaitSandbox", |context| async move {
            self.sandboxes.wait_sandbox(context, &request).await
        })
        .await
        .map(drop)
    }

    /// What the shim shows of the sandbox: `SANDBOX_READY`, and its `info` where it is asked for (JSON by name).
    ///
    /// # Errors
    ///
    /// `NotFound`: it has no sandbox.
    pub(crate) async fn sandbox_status(&self, verbose: bool) -> Result<api::SandboxStatusResponse> {
        let request = api::SandboxStatusRequest {
            sandbox_id: self.id.clone(),
            verbose,
            ..Default::default()
        };
        self.call("SandboxStatus", SHORT, |context| {
            self.sandboxes.sandbox_status(context, &request)
        })
        .await
    }

    /// Stops the sandbox, deletes what is left of its containers, and ends the shim.
    ///
    /// # Errors
    ///
    /// It may be at it still.
    pub(crate) async fn shutdown_sandbox(&self) -> Result<()> {
        let request = api::ShutdownSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.call("ShutdownSandbox", LONG, |context| {
            self.sandboxes.shutdown_sandbox(context, &request)
        })
        .await
        .map(drop)
    }

    /// Ends a shim that has no sandbox.
    ///
    /// # Errors
    ///
    /// It may not have ended.
    pub(crate) async fn shutdown_unused(&self) -> Result<()> {
        let request = containerd_shim_protos::api::ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.call("Shutdown", SHORT, |context| {
            self.tasks.shutdown(context, &request)
        })
        .await
        .map(drop)
    }

    /// The pod's own namespaces.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the sandbox does not run.
    pub(crate) async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let answer = self.call("Namespaces", SHORT, |context| async {
            self.own.namespaces(context, &Default::default()).await
        });
        let namespaces = answer.await?.namespaces.into_iter().map(|one| Namespace {
            kind: one.kind,
            path: one.path.into(),
            inode: one.inode,
        });
        Ok(namespaces.collect())
    }
}
