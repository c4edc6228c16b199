//! The Sandbox service: pods that the shim makes, without a pause container.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use containerd_shim_protos::sandbox_api::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::host::{mounts, process};
use crate::shim::sandbox::{CONTAINER, NODE, Pod, Sandbox};
use crate::shim::{Code, Containerd, Refusal, Status, Streams};
use crate::test;
use crate::wait::until;

const NAMES: [&str; 4] = ["net", "ipc", "uts", "pid"];

fn namespace_of(pid: i32, name: &str) -> anyhow::Result<String> {
    process::namespace(&pid.to_string(), name)
}

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
        // They see each other.
        ensure!(says("g", "ps | grep -c 'sleep [1]'")? == "2\n");
        one.end()?;
        two.end()
    }
);

test!(
    fn a_pod_without_shared_pids_has_no_process_but_its_containers(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = Pod {
            pid: CONTAINER,
            ..Pod::default()
        };
        let sandbox = Sandbox::run(&containerd, &pod)?;
        let sleeper = || sandbox.run_container(&sandbox.bundle_in(&containerd, true).sleeper());
        let (one, two) = (sleeper()?, sleeper()?);
        ensure!(
            namespace_of(one.pid(), "pid")? != namespace_of(two.pid(), "pid")?,
            "PIDs are shared"
        );
        let of_shim = process::descendants(sandbox.shim.pid());
        ensure!(of_shim.len() == 2, "{of_shim:?}");
        one.end()?;
        two.end()
    }
);

test!(
    fn the_init_of_shared_pids_shows_nothing_of_the_host(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let one = sandbox.sleeper(&containerd)?;
        let script = "ls -A /proc/1/root/ 2>&1; echo; kill -KILL 1; ls -l /proc/1/fd 2>&1 | wc -l; echo end";
        let bundle = sandbox.bundle_in(&containerd, false).sh(script).capabilities(&[
            "CAP_SYS_PTRACE",
            "CAP_KILL",
            "CAP_DAC_OVERRIDE",
        ]);
        let looker = sandbox.run_container(&bundle)?;
        looker.exits_with(0)?;
        // Nothing in its root, and no descriptor: the one line of `ls -l`.
        let text = looker.streams.out.text_to_end()?;
        ensure!(text == "\n1\nend\n", "{text:?}");
        looker.delete()?;
        one.end()
    }
);

test!(
    fn a_pod_lives_without_containers_and_one_comes_later(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let first = sandbox.sleeper(&containerd)?;
        let network = namespace_of(first.pid(), "net")?;
        first.end()?;
        // containerd says so after every delete of a task.
        sandbox.shim.shutdown()?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(sandbox.status()?.state == "SANDBOX_READY");
        let second = sandbox.sleeper(&containerd)?;
        ensure!(namespace_of(second.pid(), "net")? == network, "another network");
        second.end()
    }
);

test!(
    fn stop_kills_what_runs_and_ends_every_wait(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let stubborn = sandbox
            .bundle_in(&containerd, true)
            .sh("trap '' TERM; while :; do sleep 1; done");
        let (one, two) = (sandbox.run_container(&stubborn)?, sandbox.sleeper(&containerd)?);
        let waiting = sandbox.begin_wait()?;
        sandbox.stop()?;
        let ended = waiting.answer()?;
        ensure!(ended.exit_status == 0 && ended.exited_at.is_some(), "{ended:?}");
        one.exits_with(137)?;
        two.exits_with(137)?;
        ensure!(sandbox.status()?.state == "SANDBOX_NOTREADY");
        ensure!(mounts::under(&sandbox.bundle.directory)?.is_empty());
        // A second one is fine, and nothing new comes.
        sandbox.stop()?;
        let late = sandbox.bundle_in(&containerd, true).sleeper();
        sandbox
            .shim
            .create(&late, Streams::output(t)?)
            .refused_exactly(Code::FAILED_PRECONDITION)?;
        one.delete()?;
        two.delete()?;
        sandbox.shutdown()
    }
);

test!(
    fn shutdown_ends_the_shim_and_deletes_what_is_left(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let bundle = sandbox.bundle_in(&containerd, false).sleeper();
        let task = sandbox.run_container(&bundle)?;
        let pid = task.pid();
        sandbox.shutdown()?;
        ensure!(!process::is_alive(pid), "the container runs on");
        ensure!(
            !process::is_alive(sandbox.pid.cast_signed()),
            "the pod init runs on"
        );
        ensure!(mounts::under(&sandbox.bundle.directory)?.is_empty());
        ensure!(!sandbox.shim.socket().exists(), "the socket is left");
        containerd.nothing_is_left_of(&bundle)
    }
);

test!(
    fn a_sandbox_can_be_shut_down_before_its_start(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        Sandbox::create(&containerd, &Pod::default())?.shutdown()
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
    fn a_killed_shim_leaves_nothing_of_its_pod(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let sandbox = Sandbox::run(&containerd, &Pod::default())?;
        let bundle = sandbox.bundle_in(&containerd, false).sleeper();
        let task = sandbox.run_container(&bundle)?;
        task.exec_sh("e1", "sleep 1000000")?;
        sandbox.kill_shim()?;
        // containerd calls it for each that it knows of.
        containerd.delete_dead(&bundle)?;
        containerd.delete_dead(&sandbox.bundle)?;
        for pid in [task.pid(), sandbox.pid.cast_signed()] {
            until("the pod's processes to end", || {
                Ok((!process::is_alive(pid)).then_some(()))
            })?;
        }
        ensure!(mounts::under(&sandbox.bundle.directory)?.is_empty());
        ensure!(!sandbox.shim.socket().exists(), "the socket is left");
        let states = fs::read_dir(t.root.join(t.namespace())).map_or(0, Iterator::count);
        ensure!(states == 0, "{states} states are left");
        containerd.nothing_is_left_of(&bundle)
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
