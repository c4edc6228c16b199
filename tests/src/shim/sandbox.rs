//! containerd's Sandbox service, and a pod as CRI describes it.

use anyhow::{Result, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::*;
use nix::sys::signal::Signal;
use serde_json::json;

use super::message::{Field, by_hand};
use super::process::Pending;
use super::{Containerd, Process, Shim, Streams};
use crate::bundle::Bundle;

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// Values of CRI's `NamespaceMode`.
pub(crate) const CONTAINER: u64 = 1;
/// As [`CONTAINER`].
pub(crate) const NODE: u64 = 2;

/// A `runtime.v1.PodSandboxConfig`; by default as CRI has it: everything is the pod's.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    /// The host name.
    pub(crate) hostname: &'static str,
    /// `NamespaceMode` of network, pid and ipc.
    pub(crate) network: u64,
    /// As `network`.
    pub(crate) pid: u64,
    /// As `network`.
    pub(crate) ipc: u64,
    /// First id on the host of a user namespace of 65536 ids; 0 for none.
    pub(crate) users: u64,
    /// One kernel parameter and its value.
    pub(crate) sysctl: Option<(&'static str, &'static str)>,
    /// A cgroup above those of the containers.
    pub(crate) cgroup_parent: String,
}

impl Pod {
    fn options(&self) -> Any {
        let ids = |number| {
            let all = [Field::Number(1, self.users), Field::Number(3, 65536)];
            Field::message(number, &all)
        };
        let mut namespaces = vec![
            Field::Number(1, self.network),
            Field::Number(2, self.pid),
            Field::Number(3, self.ipc),
        ];
        if self.users != 0 {
            namespaces.push(Field::message(5, &[ids(2), ids(3)]));
        }
        let mut linux = vec![
            Field::text(1, &self.cgroup_parent),
            Field::message(2, &[Field::message(1, &namespaces)]),
        ];
        if let Some((name, value)) = self.sysctl {
            linux.push(Field::message(3, &[Field::text(1, name), Field::text(2, value)]));
        }
        let metadata = [
            Field::text(1, "pod"),
            Field::text(2, "uid"),
            Field::text(3, "default"),
        ];
        let pod = by_hand(&[
            Field::message(1, &metadata),
            Field::text(2, self.hostname),
            Field::message(4, &[Field::text(1, "10.9.8.7"), Field::text(2, "pod.test")]),
            // Labels, which nobody here reads.
            Field::message(6, &[Field::text(1, "app"), Field::text(2, "web")]),
            Field::message(8, &linux),
        ]);
        Any {
            type_url: "runtime.v1.PodSandboxConfig".to_owned(),
            value: pod,
            ..Any::default()
        }
    }
}

/// A sandbox of a shim.
pub(crate) struct Sandbox<'t> {
    /// The shim it has for itself.
    pub(crate) shim: Shim<'t>,
    /// Its bundle, without a configuration of use.
    pub(crate) bundle: Bundle<'t>,
    /// The process whose namespaces its containers are told.
    pub(crate) pid: u32,
}

impl<'t> Sandbox<'t> {
    /// Starts a shim and creates the sandbox.
    pub(crate) fn create(containerd: &Containerd<'t>, pod: &Pod) -> Result<Self> {
        let bundle = containerd.bundle();
        let shim = containerd.start(&bundle)?;
        if !shim.t.shim_is_ours() {
            shim.t.skip("containerd's own shim makes no pods")?;
        }
        let sandbox = Self { shim, bundle, pid: 0 };
        let _: CreateSandboxResponse =
            sandbox.call("CreateSandbox", &sandbox.create_request(pod.options()))?;
        // The harness ends shims by Shutdown, which is not enough here.
        let (shim, id) = (sandbox.shim.clone(), sandbox.bundle.id.clone());
        let socket = shim.socket().to_owned();
        sandbox.shim.t.at_end(move || {
            if !socket.exists() {
                return Ok(());
            }
            let request = ShutdownSandboxRequest {
                sandbox_id: id,
                ..ShutdownSandboxRequest::default()
            };
            let mut connection = super::Connection::open(&socket, true)?;
            let _: ShutdownSandboxResponse = connection.call(SERVICE, "ShutdownSandbox", &request)?;
            Ok(())
        });
        Ok(sandbox)
    }

    /// What containerd sends.
    pub(crate) fn create_request(&self, options: Any) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            bundle_path: self.bundle.directory.to_string_lossy().into_owned(),
            options: Some(options).into(),
            ..CreateSandboxRequest::default()
        }
    }

    /// [`Sandbox::create`] and StartSandbox.
    pub(crate) fn run(containerd: &Containerd<'t>, pod: &Pod) -> Result<Self> {
        let mut sandbox = Self::create(containerd, pod)?;
        sandbox.start()?;
        Ok(sandbox)
    }

    /// StartSandbox.
    pub(crate) fn start(&mut self) -> Result<()> {
        let request = StartSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            ..StartSandboxRequest::default()
        };
        let started: StartSandboxResponse = self.call("StartSandbox", &request)?;
        ensure!(started.pid != 0, "no process");
        self.pid = started.pid;
        Ok(())
    }

    /// Calls a method of the service.
    pub(crate) fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.shim.connection()?.call(SERVICE, method, request)
    }

    /// SandboxStatus.
    pub(crate) fn status(&self) -> Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest {
            sandbox_id: self.bundle.id.clone(),
            verbose: true,
            ..SandboxStatusRequest::default()
        };
        self.call("SandboxStatus", &request)
    }

    /// StopSandbox.
    pub(crate) fn stop(&self) -> Result<()> {
        let request = StopSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            timeout_secs: 10,
            ..StopSandboxRequest::default()
        };
        let _: StopSandboxResponse = self.call("StopSandbox", &request)?;
        Ok(())
    }

    /// Sends WaitSandbox on a connection of its own.
    pub(crate) fn begin_wait(&self) -> Result<Pending<WaitSandboxResponse>> {
        let request = WaitSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            ..WaitSandboxRequest::default()
        };
        Pending::new(self.shim.connection()?, SERVICE, "WaitSandbox", &request)
    }

    /// ShutdownSandbox, and waits for the shim to be gone.
    pub(crate) fn shutdown(&self) -> Result<()> {
        let request = ShutdownSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            ..ShutdownSandboxRequest::default()
        };
        let _: ShutdownSandboxResponse = self.call("ShutdownSandbox", &request)?;
        self.shim.gone()
    }

    /// A bundle whose namespaces are the sandbox's, as containerd writes them.
    pub(crate) fn bundle_in(&self, containerd: &Containerd<'t>, own_pids: bool) -> Bundle<'t> {
        let mut bundle = containerd.bundle().unset("/hostname");
        for (kind, name) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
            if kind == "pid" && own_pids {
                continue;
            }
            let path = format!("/proc/{}/ns/{name}", self.pid);
            bundle = bundle.namespace(json!({"type": kind, "path": path}));
        }
        bundle
    }

    /// Creates and starts a container of the pod that sleeps.
    pub(crate) fn sleeper(&self, containerd: &Containerd<'t>) -> Result<Process<'t>> {
        self.run_container(&self.bundle_in(containerd, false).sleeper())
    }

    /// Creates and starts a container.
    pub(crate) fn run_container(&self, bundle: &Bundle<'t>) -> Result<Process<'t>> {
        let task = self.shim.create(bundle, Streams::output(self.shim.t)?)?;
        task.start()?;
        Ok(task)
    }

    /// SIGKILL for the shim.
    pub(crate) fn kill_shim(&self) -> Result<()> {
        self.shim.signal(Signal::SIGKILL)?;
        self.shim.gone()
    }
}
