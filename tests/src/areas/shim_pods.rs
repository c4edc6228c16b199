//! What the configuration of CRI asks of a pod that the shim makes (`shim_sandbox` has its life).

use std::fs;

use anyhow::{Context, ensure};
use containerd_shim_protos::sandbox_api::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shim::sandbox::{CONTAINER, NODE, Pod, Sandbox, namespace_of};
use crate::shim::{Code, Containerd, Refusal, Status, Streams};
use crate::test;

const NAMES: [&str; 4] = ["net", "ipc", "uts", "pid"];

test!(
    fn containers_of_a_pod_share_its_namespaces_and_files(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            hostname: "web-0",
            sysctl: Some(("kernel.shm_rmid_forced", "1")),
            ..Pod::default()
        };
        let sandbox = Sandbox::run(&containerd, &pod)?;
        let (one, two) = (sandbox.sleeper(&containerd)?, sandbox.sleeper(&containerd)?);
        for name in NAMES {
            let shared = namespace_of(one.pid(), name)?;
            ensure!(shared == namespace_of(two.pid(), name)?, "{name}");
            ensure!(
                shared != namespace_of(sandbox.shim.pid(), name)?,
                "{name} is the host's"
            );
        }
        let says = |id: &str, script: &str| one.output_of(id, script);
        ensure!(says("a", "hostname; cat /etc/hostname")? == "web-0\nweb-0\n");
        ensure!(says("b", "cat /etc/resolv.conf")? == "search pod.test\nnameserver 10.9.8.7\n");
        ensure!(says("c", "cat /proc/sys/kernel/shm_rmid_forced")? == "1\n");
        ensure!(says("d", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")? == "0\n");
        ensure!(says("e", "echo shared >/dev/shm/file")?.is_empty());
        ensure!(two.output_of("f", "cat /dev/shm/file")? == "shared\n");
        // They see each other, and the first of them all shows nothing of the host.
        ensure!(says("g", "ps | grep -c 'sleep [1]'")? == "2\n");
        ensure!(says("h", "ls /proc/1/root/ 2>/dev/null | wc -l")? == "0\n");
        one.end()?;
        two.end()
    }
);

test!(
    fn a_pod_on_the_hosts_namespaces_has_none(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            network: NODE,
            pid: NODE,
            ipc: NODE,
            ..Pod::default()
        };
        let sandbox = Sandbox::run(&containerd, &pod)?;
        ensure!(sandbox.pid.cast_signed() == sandbox.shim.pid());
        let task = sandbox.sleeper(&containerd)?;
        for name in NAMES {
            ensure!(
                namespace_of(task.pid(), name)? == namespace_of(sandbox.shim.pid(), name)?,
                "{name}"
            );
        }
        task.end()
    }
);

test!(
    fn a_container_is_never_shown_the_hosts_processes_by_mistake(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            pid: CONTAINER,
            ..Pod::default()
        };
        let sandbox = Sandbox::run(&containerd, &pod)?;
        let wants_pods = sandbox.bundle_in(&containerd, false).sleeper();
        let refused = sandbox
            .shim
            .create(&wants_pods, Streams::output(t)?)
            .refused(Code::UNKNOWN)?;
        ensure!(refused.message.contains("no PID namespace to share"), "{refused}");
        let own = sandbox.run_container(&sandbox.bundle_in(&containerd, true).sleeper())?;
        ensure!(namespace_of(own.pid(), "pid")? != namespace_of(sandbox.shim.pid(), "pid")?);
        own.end()
    }
);

test!(
    fn a_pod_with_users_of_its_own_owns_its_namespaces(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            hostname: "web-0",
            users: 200_000,
            ..Pod::default()
        };
        let sandbox = Sandbox::run(&containerd, &pod)?;
        let ids = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        let path = format!("/proc/{}/ns/user", sandbox.pid);
        let bundle = sandbox
            .bundle_in(&containerd, false)
            .namespace(json!({"type": "user", "path": path}))
            .set("/linux/uidMappings", ids.clone())
            .set("/linux/gidMappings", ids)
            .sleeper();
        for name in ["hostname", "hosts", "resolv.conf"] {
            // Its root may not make them: the files of the root are those of the host's.
            fs::write(bundle.rootfs().join("etc").join(name), "")?;
        }
        let task = sandbox.run_container(&bundle)?;
        let map = task.output_of("map", "cat /proc/self/uid_map")?;
        ensure!(map.split_whitespace().eq(["0", "200000", "65536"]), "{map}");
        // sysfs is mounted by who owns the network.
        ensure!(task.output_of("net", "ls /sys/class/net")? == "lo\n");
        task.end()
    }
);

test!(
    fn the_end_of_the_pod_init_is_that_of_the_pod(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let task = sandbox.sleeper(&containerd)?;
        let waiting = sandbox.begin_wait()?;
        ensure!(sandbox.pid.cast_signed() != sandbox.shim.pid());
        kill(Pid::from_raw(sandbox.pid.cast_signed()), Signal::SIGKILL)?;
        ensure!(waiting.answer()?.exit_status == 137);
        ensure!(sandbox.status()?.state == "SANDBOX_NOTREADY");
        task.exits_with(137)?;
        task.delete()?;
        sandbox.shutdown()
    }
);

test!(
    fn a_sandbox_tells_about_itself(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            cgroup_parent: t.cgroup.path.clone(),
            ..Pod::default()
        };
        let mut sandbox = Sandbox::create(&containerd, &pod)?;
        let before = sandbox.status()?;
        ensure!(
            before.state == "SANDBOX_NOTREADY" && before.pid == 0,
            "{before:?}"
        );
        sandbox.start()?;
        let task = sandbox.sleeper(&containerd)?;
        let status = sandbox.status()?;
        ensure!(
            status.pid == sandbox.pid && status.created_at.is_some(),
            "{status:?}"
        );
        let pod: serde_json::Value = serde_json::from_str(status.info.get("pod").context("no info")?)?;
        let network = pod["namespaces"]["network"].as_str();
        ensure!(network == Some(&*namespace_of(task.pid(), "net")?), "{pod}");
        let id = sandbox.bundle.id.clone();
        let platform: PlatformResponse = sandbox.call(
            "Platform",
            &PlatformRequest {
                sandbox_id: id.clone(),
                ..PlatformRequest::default()
            },
        )?;
        ensure!(platform.platform.os == "linux" && !platform.platform.architecture.is_empty());
        let _: PingResponse = sandbox.call(
            "PingSandbox",
            &PingRequest {
                sandbox_id: id.clone(),
                ..PingRequest::default()
            },
        )?;
        let metrics: SandboxMetricsResponse = sandbox.call(
            "SandboxMetrics",
            &SandboxMetricsRequest {
                sandbox_id: id,
                ..SandboxMetricsRequest::default()
            },
        )?;
        ensure!(metrics.metrics.data.type_url.ends_with("Metrics"), "{metrics:?}");
        task.end()
    }
);

test!(
    fn requests_that_can_not_be_are_refused_by_their_kind(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let mut sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let again = sandbox.create_request(Default::default());
        sandbox
            .call::<CreateSandboxResponse>("CreateSandbox", &again)
            .refused_exactly(Code::INVALID_ARGUMENT)?;
        let mut again = again;
        again.options = None.into();
        sandbox
            .call::<CreateSandboxResponse>("CreateSandbox", &again)
            .refused_exactly(Code::ALREADY_EXISTS)?;
        sandbox.start().refused_exactly(Code::FAILED_PRECONDITION)?;
        for method in [
            "PingSandbox",
            "StopSandbox",
            "ShutdownSandbox",
            "WaitSandbox",
            "SandboxStatus",
        ] {
            // All of them have the id as their first field, and nothing else.
            let unknown = PingRequest {
                sandbox_id: "unknown".to_owned(),
                ..PingRequest::default()
            };
            sandbox
                .call::<PingResponse>(method, &unknown)
                .refused_exactly(Code::NOT_FOUND)?;
        }
        let task = sandbox.sleeper(&containerd)?;
        task.is(Status::RUNNING)?;
        task.end()
    }
);
