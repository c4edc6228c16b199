//! containerd's Sandbox service (`sandboxer = "shim"`): a pod without a pause container.

use std::fs;

use anyhow::{Context, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::*;
use serde_json::json;

use crate::bundle::Bundle;
use crate::host::process;
use crate::registry::Result;
use crate::shim::{Code, Containerd, Field, Process, Refusal, Shim, Streams, by_hand};
use crate::test;
use crate::wait::until;

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// A pod whose shim has been started.
struct Pod<'t> {
    containerd: Containerd<'t>,
    bundle: Bundle<'t>,
    shim: Shim<'t>,
}

impl<'t> Pod<'t> {
    /// `pids`: 0 shared, 1 of each container (CRI's NamespaceMode).
    fn new(containerd: Containerd<'t>, pids: u64) -> Result<Self> {
        let bundle = containerd.bundle();
        let shim = containerd.start(&bundle)?;
        let pod = Self {
            containerd,
            bundle,
            shim,
        };
        // PodSandboxConfig: hostname 2; linux 8, security_context 2, namespace_options 1, pid 2.
        let options = Field::Number(2, pids);
        let linux = Field::message(2, &[Field::message(1, &[options])]);
        let config = by_hand(&[Field::text(2, "pod"), Field::message(8, &[linux])]);
        let request = CreateSandboxRequest {
            sandbox_id: pod.bundle.id.clone(),
            bundle_path: pod.bundle.directory.to_string_lossy().into_owned(),
            options: Some(Any {
                type_url: "runtime.v1.PodSandboxConfig".to_owned(),
                value: config,
                ..Any::default()
            })
            .into(),
            ..CreateSandboxRequest::default()
        };
        pod.call::<CreateSandboxResponse>("CreateSandbox", &request)?;
        Ok(pod)
    }

    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.shim.connection()?.call(SERVICE, method, request)
    }

    fn start(&self) -> Result<i32> {
        let request = StartSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            ..StartSandboxRequest::default()
        };
        Ok(self
            .call::<StartSandboxResponse>("StartSandbox", &request)?
            .pid
            .cast_signed())
    }

    fn status(&self) -> Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest {
            sandbox_id: self.bundle.id.clone(),
            verbose: true,
            ..SandboxStatusRequest::default()
        };
        self.call("SandboxStatus", &request)
    }

    fn ping(&self) -> Result {
        let request = PingRequest {
            sandbox_id: self.bundle.id.clone(),
            ..PingRequest::default()
        };
        self.call::<PingResponse>("PingSandbox", &request)?;
        Ok(())
    }

    fn stop(&self) -> Result {
        let request = StopSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            timeout_secs: 10,
            ..StopSandboxRequest::default()
        };
        self.call::<StopSandboxResponse>("StopSandbox", &request)?;
        Ok(())
    }

    /// ShutdownSandbox, and waits for the shim to be gone.
    fn shut_down(&self) -> Result {
        let request = ShutdownSandboxRequest {
            sandbox_id: self.bundle.id.clone(),
            ..ShutdownSandboxRequest::default()
        };
        self.call::<ShutdownSandboxResponse>("ShutdownSandbox", &request)?;
        self.shim.gone()
    }

    /// A container in the pod's namespaces, as containerd's CRI plugin writes it.
    fn run(&self, script: &str, shares_pids: bool) -> Result<Process<'t>> {
        let pid = self.status()?.pid;
        let mut bundle = self.containerd.bundle().sh(script).set(
            "/annotations",
            json!({"io.kubernetes.cri.sandbox-id": self.bundle.id}),
        );
        let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
        for (kind, name) in kinds.into_iter().take(if shares_pids { 4 } else { 3 }) {
            bundle = bundle.namespace(json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")}));
        }
        let bundle = bundle.unset("/hostname");
        let task = self.shim.create(&bundle, Streams::output(self.shim.t)?)?;
        task.start()?;
        Ok(task)
    }
}

test!(
    fn a_pods_containers_share_its_namespaces_and_no_pause_process_is_there(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        ensure!(pod.status()?.state == "SANDBOX_NOTREADY", "{}", pod.status()?);
        let pid = pod.start()?;
        let status = pod.status()?;
        ensure!(
            status.state == "SANDBOX_READY" && status.pid.cast_signed() == pid,
            "{status}"
        );
        pod.ping()?;
        let one = pod.run("hostname; sleep 1000000", false)?;
        let two = pod.run("sleep 1000000", false)?;
        one.streams.out.wait_for("pod\n")?;
        for kind in ["net", "ipc", "uts"] {
            let (first, second) = (
                process::namespace(&one.pid().to_string(), kind)?,
                process::namespace(&two.pid().to_string(), kind)?,
            );
            ensure!(
                first == second && first != process::namespace("self", kind)?,
                "{kind}: {first}, {second}"
            );
        }
        ensure!(
            process::namespace(&one.pid().to_string(), "pid")?
                != process::namespace(&two.pid().to_string(), "pid")?,
            "PIDs are shared"
        );
        // The shim and the two containers are all that there is.
        let of_shim = process::descendants(pod.shim.pid());
        ensure!(of_shim.len() == 2, "{of_shim:?}");
        one.end()?;
        two.end()?;
        pod.stop()?;
        pod.shut_down()
    }
);

test!(
    fn a_sandbox_lives_on_without_a_container_and_takes_a_new_one(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        pod.start()?;
        let first = pod.run("exit 3", false)?;
        first.exits_with(3)?;
        first.delete()?;
        // containerd calls it after each deleted task.
        pod.shim.shutdown()?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        pod.ping()?;
        ensure!(pod.status()?.state == "SANDBOX_READY", "{}", pod.status()?);
        let second = pod.run("exit 4", false)?;
        second.exits_with(4)?;
        second.delete()?;
        pod.stop()?;
        pod.shut_down()
    }
);

test!(
    fn a_pod_with_shared_pids_has_an_init_that_shows_nothing_of_the_host(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 0)?;
        pod.start()?;
        let one = pod.run("sleep 1000000", true)?;
        let script =
            "ls -A /proc/1/root/ 2>&1; echo; ps | wc -l; kill -KILL 1; ls -l /proc/1/fd 2>&1 | wc -l";
        let bundle = pod
            .containerd
            .bundle()
            .sh(&format!("{script}; echo end"))
            .set(
                "/annotations",
                json!({"io.kubernetes.cri.sandbox-id": pod.bundle.id}),
            )
            .capabilities(&["CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE"])
            .namespace(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", pod.status()?.pid)}));
        let looker = pod.shim.create(&bundle, Streams::output(t)?)?;
        looker.start()?;
        looker.exits_with(0)?;
        let text = looker.streams.out.text_to_end()?;
        // Nothing in its root, processes of both containers, and no descriptor: the one line of `ls -l`.
        ensure!(text.starts_with('\n') && text.ends_with("\n1\nend\n"), "{text:?}");
        looker.delete()?;
        one.end()?;
        pod.stop()?;
        pod.shut_down()
    }
);

test!(
    fn stop_ends_what_runs_and_wait_returns(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        pod.start()?;
        let task = pod.run("trap '' TERM; while :; do sleep 1; done", false)?;
        let mut waiting = pod.shim.connection()?;
        let request = WaitSandboxRequest {
            sandbox_id: pod.bundle.id.clone(),
            ..WaitSandboxRequest::default()
        };
        let stream = waiting.send(SERVICE, "WaitSandbox", request.write_to_bytes()?)?;
        pod.stop()?;
        let answer = WaitSandboxResponse::parse_from_bytes(&waiting.receive(stream)?)?;
        ensure!(answer.exited_at.seconds > 0, "{answer}");
        task.exits_with(137)?;
        ensure!(pod.status()?.state == "SANDBOX_NOTREADY", "{}", pod.status()?);
        task.delete()?;
        pod.stop().context("again")?;
        pod.shut_down()
    }
);

test!(
    fn shutdown_of_a_sandbox_deletes_what_is_left(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        pod.start()?;
        pod.run("sleep 1000000", false)?;
        let socket = pod.shim.socket().to_owned();
        pod.shut_down()?;
        until("the socket to go", || Ok((!socket.exists()).then_some(())))
    }
);

test!(
    fn a_sandbox_can_be_shut_down_before_its_start(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        pod.shut_down()
    }
);

test!(
    fn the_platform_is_this_one(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 1)?;
        let request = PlatformRequest {
            sandbox_id: pod.bundle.id.clone(),
            ..PlatformRequest::default()
        };
        let answer: PlatformResponse = pod.call("Platform", &request)?;
        ensure!(
            answer.platform.os == "linux" && !answer.platform.architecture.is_empty(),
            "{answer}"
        );
        pod.shut_down()
    }
);

test!(
    fn calls_for_another_sandbox_are_not_found(t: &Test) -> Result {
        let mut pod = Pod::new(Containerd::new(t)?, 1)?;
        let id = std::mem::replace(&mut pod.bundle.id, "nobody".to_owned());
        pod.start().refused(Code::NOT_FOUND)?;
        pod.status().refused(Code::NOT_FOUND)?;
        pod.ping().refused(Code::NOT_FOUND)?;
        pod.bundle.id = id;
        pod.start()?;
        pod.start().refused(Code::FAILED_PRECONDITION)?;
        pod.stop()?;
        pod.shut_down()
    }
);

test!(
    fn a_killed_shim_of_a_pod_leaves_nothing_after_delete(t: &Test) -> Result {
        let pod = Pod::new(Containerd::new(t)?, 0)?;
        pod.start()?;
        let task = pod.run("sleep 1000000", true)?;
        task.exec_sh("e1", "sleep 1000000")?;
        pod.shim.signal(nix::sys::signal::Signal::SIGKILL)?;
        pod.containerd
            .delete_dead_of(&pod.containerd.bundles.join(&task.id), &task.id)?;
        pod.bundle.write()?;
        pod.containerd.delete_dead(&pod.bundle)?;
        let left = fs::read_dir(t.root.join(t.namespace())).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} states are left");
        ensure!(!pod.shim.socket().exists(), "the socket is left");
        Ok(())
    }
);
