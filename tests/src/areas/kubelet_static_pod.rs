//! A real kubelet runs static pods, on pure cgroup v2 with systemd's driver: what no test of ours alone can show, that
//! the names of cgroups, the logs, the probes and the statuses are as the kubelet wants them. The same on containerd
//! with the shim under test shows that the test itself is right.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cri::only_ours;
use crate::host::cgroup::{Cgroup, knob};
use crate::host::process;
use crate::kubelet::{BUSYBOX, Backend, NETNS, NODE_IP, Node, Setup, StaticPod, names, patience, with};
use crate::registry::Result;
use crate::test;
use crate::wait::{until, within};

/// Ends at once when it is told to, and says something meanwhile.
const MAIN: &str = "trap 'exit 0' TERM; echo hello; echo trouble >&2; n=0; \
    while :; do n=$((n+1)); echo tick $n; sleep 1 & wait $!; done";

/// A pod in a network of its own with limits and a probe: burstable.
fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-c", MAIN],
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                "resources": {"requests": {"memory": "16Mi", "cpu": "50m"}, "limits": {"memory": "64Mi", "cpu": "500m"}},
                "livenessProbe": {
                    "exec": {"command": ["sh", "-c", "echo x >>/scratch/probes; test ! -e /tmp/sick"]},
                    "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 1,
                },
            }],
        },
    })
}

/// As a control plane's pods are: in the host's network, with a directory of the host; best effort.
fn on_host(directory: &Path) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plane", "namespace": "kube-system"},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 5,
            "priorityClassName": "system-node-critical",
            "volumes": [{"name": "host", "hostPath": {"path": directory, "type": "Directory"}}],
            "containers": [{
                "name": "main", "image": BUSYBOX,
                "command": ["sh", "-c", format!("ip addr show up0 >/host/seen; {MAIN}")],
                "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                "securityContext": {"privileged": true},
            }],
        },
    })
}

fn the_cgroup_is_the_kubelets(node: &Node<'_>, pod: &StaticPod) -> Result<Cgroup> {
    let cgroup = node.cgroup(pod, "main")?;
    let memory = cgroup.read(knob::MEMORY_LIMIT)?;
    ensure!(memory == (64 << 20).to_string(), "memory limit {memory}");
    let bandwidth = cgroup.cpu_bandwidth()?;
    ensure!(bandwidth == (Some(50000), 100_000), "bandwidth {bandwidth:?}");
    let pid = node.main_pid(pod, "main")?;
    let inside = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(inside.contains("tick"), "pid {pid} is {inside:?}");
    Ok(cgroup)
}

/// The log where the kubelet looks for it, in the format that it reads.
fn the_log_is_the_kubelets(node: &Node<'_>, pod: &StaticPod) -> Result {
    let path = node.log_path(pod, "main", pod.restarts("main"));
    let text = until("the first lines", || {
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok(text.contains("trouble\n").then_some(text))
    })?;
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let right = fields.len() == 4
            && fields[0].contains('T')
            && ["stdout", "stderr"].contains(&fields[1])
            && ["F", "P"].contains(&fields[2]);
        ensure!(right, "a line of {path}: {line:?}");
    }
    ensure!(
        text.contains(" stdout F hello\n") && text.contains(" stderr F trouble\n"),
        "{text}"
    );
    let links = names(Path::new("/var/log/containers"));
    let wanted = format!("web-node_default_main-{}.log", pod.id("main")?);
    ensure!(links.contains(&wanted), "/var/log/containers has {links:?}");
    Ok(())
}

fn the_server_shows_it(node: &Node<'_>, pod: &StaticPod) -> Result {
    let json =
        |args: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&node.crictl(args)?.ok()?.stdout)?) };
    let pods = json(&["pods", "--output", "json", "--name", "web"])?;
    ensure!(pods["items"][0]["state"] == "SANDBOX_READY", "{pods}");
    ensure!(pods["items"][0]["metadata"]["uid"] == *pod.uid(), "{pods}");
    let containers = json(&["ps", "--output", "json"])?;
    let all = containers["containers"].as_array().cloned().unwrap_or_default();
    let id = pod.id("main")?;
    let own = all
        .iter()
        .find(|each| each["id"] == *id)
        .with_context(|| containers.to_string())?;
    ensure!(own["state"] == "CONTAINER_RUNNING", "{own}");
    ensure!(
        own["metadata"]["attempt"].as_u64().unwrap_or_default() == pod.restarts("main"),
        "{own}"
    );
    ensure!(
        node.shims().len() == 1,
        "one shim for the pod, not {:?}",
        node.shims()
    );
    Ok(())
}

fn the_pod_is_on_the_network(node: &Node<'_>, pod: &StaticPod) -> Result {
    let address = pod.address();
    ensure!(address.starts_with("10.88."), "podIP {address:?}");
    ensure!(
        node.addresses() == [address],
        "CNI has given {:?}",
        node.addresses()
    );
    ensure!(
        names(Path::new(NETNS)).len() == 1,
        "{NETNS}: {:?}",
        names(Path::new(NETNS))
    );
    let inside = node.exec(
        pod,
        "main",
        "echo $POD_IP; hostname; ip -4 addr show eth0; ip route; cat /etc/hosts",
    )?;
    for wanted in [
        "web-node",
        "default via 10.88.0.1",
        &format!("inet {address}/16"),
        &format!("{address}\tweb-node"),
    ] {
        ensure!(inside.contains(wanted), "no {wanted:?} in:\n{inside}");
    }
    ensure!(inside.starts_with(address), "POD_IP: {inside}");
    Ok(())
}

/// Lines that the liveness probe has written.
fn probes(node: &Node<'_>, pod: &StaticPod) -> Result<usize> {
    let text = node.exec(pod, "main", "test ! -e /scratch/probes || cat /scratch/probes")?;
    Ok(text.lines().count())
}

fn probes_go_on(node: &Node<'_>, pod: &StaticPod) -> Result {
    let before = probes(node, pod)?;
    within(patience(), "another liveness probe", || {
        Ok((probes(node, pod)? > before).then_some(()))
    })
}

fn statistics(node: &Node<'_>) -> Result {
    let mut last = Value::Null;
    within(patience(), "statistics of the pod", || {
        let summary = node.get("/stats/summary")?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        last = pods
            .into_iter()
            .find(|pod| pod["podRef"]["name"] == "web-node")
            .unwrap_or_default();
        let container = &last["containers"][0];
        let positive = |value: &Value| value.as_u64().is_some_and(|number| number > 0);
        let all = positive(&container["cpu"]["usageCoreNanoSeconds"])
            && positive(&container["memory"]["workingSetBytes"])
            && (!crate::host::cgroup::is_unified() || container["cpu"]["psi"]["some"].is_object())
            && positive(&container["rootfs"]["capacityBytes"])
            && container["rootfs"]["usedBytes"].is_u64()
            && positive(&container["logs"]["usedBytes"])
            && positive(&last["cpu"]["usageCoreNanoSeconds"])
            && positive(&last["memory"]["workingSetBytes"]);
        Ok(all.then_some(()))
    })
    .with_context(|| last.to_string())
}

/// Two restarts: the process dies; the probe fails. Both are the kubelet's, each a new attempt.
fn a_container_that_ends_is_started_again(
    node: &Node<'_>,
    before: &StaticPod,
    cgroup: &Cgroup,
) -> Result<StaticPod> {
    kill(Pid::from_raw(node.main_pid(before, "main")?), Signal::SIGKILL)?;
    let pod = node.until_pod("web", "with attempt 1", |pod| {
        pod.is_up() && pod.restarts("main") == 1
    })?;
    let ended = &pod.container("main")["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 137 && ended["reason"] == "Error", "{ended}");
    the_cgroup_is_the_kubelets(node, &pod)?;
    the_server_shows_it(node, &pod)?;
    ensure!(cgroup.directories()?.is_empty(), "{} is still there", cgroup.path);
    node.exec(&pod, "main", "touch /tmp/sick")?;
    let pod = node.until_pod("web", "with attempt 2", |pod| {
        pod.is_up() && pod.restarts("main") == 2
    })?;
    let ended = &pod.container("main")["lastState"]["terminated"];
    ensure!(
        ended["exitCode"] == 0 && ended["reason"] == "Completed",
        "{ended}"
    );
    Ok(pod)
}

/// Nothing of a pod notices that the server is gone and comes again.
fn the_pod_outlives_the_server(node: &Node<'_>, before: &StaticPod) -> Result {
    let pid = node.main_pid(before, "main")?;
    let count = probes(node, before)?;
    node.stop_server(Signal::SIGTERM)?;
    ensure!(process::is_alive(pid), "it went with the server");
    node.start_server()?;
    within(patience(), "probes after the restart", || {
        Ok((probes(node, before)? > count + 2).then_some(()))
    })?;
    let after = node.until_pod("web", "up", StaticPod::is_up)?;
    ensure!(
        after.id("main")? == before.id("main")? && after.restarts("main") == before.restarts("main"),
        "{}",
        after.container("main")
    );
    ensure!(node.main_pid(&after, "main")? == pid, "another process");
    the_server_shows_it(node, &after)
}

fn the_pod_of_the_host(node: &Node<'_>) -> Result {
    let directory = node.t.path("host");
    fs::create_dir(&directory)?;
    node.run(&on_host(&directory))?;
    let pod = node.until_pod("plane", "up", StaticPod::is_up)?;
    // A kubelet without an API server has no addresses of its node, hence no podIP; the pod sees them.
    // Up is not yet said: what it writes may be a moment away.
    until("the address that the pod sees", || {
        let seen = fs::read_to_string(directory.join("seen")).unwrap_or_default();
        Ok(seen.contains(NODE_IP).then_some(()))
    })?;
    let cgroup = node.pod_cgroup(&pod);
    ensure!(!cgroup.directories()?.is_empty(), "no {}", cgroup.path);
    node.withdraw("plane")
}

fn a_node_runs_static_pods(node: &Node<'_>) -> Result {
    node.run(&web())?;
    let pod = node.until_pod("web", "up", StaticPod::is_up)?;
    let cgroup = the_cgroup_is_the_kubelets(node, &pod).context("cgroup")?;
    the_log_is_the_kubelets(node, &pod).context("log")?;
    the_server_shows_it(node, &pod).context("crictl")?;
    the_pod_is_on_the_network(node, &pod).context("network")?;
    probes_go_on(node, &pod).context("probe")?;
    statistics(node).context("/stats/summary")?;
    let pod = a_container_that_ends_is_started_again(node, &pod, &cgroup).context("restart")?;
    the_pod_outlives_the_server(node, &pod).context("the server's restart")?;
    the_pod_of_the_host(node).context("host network")?;
    node.withdraw("web")?;
    node.until_gone("web")?;
    node.until_gone("plane")
}

test!(
    fn a_static_pod_runs_restarts_and_goes(t: &Test) -> Result {
        with(t, a_node_runs_static_pods)
    }
);

test!(
    fn a_static_pod_runs_restarts_and_goes_on_containerd_with_the_shim(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with_backend(t, Backend::ContainerdWithShim, a_node_runs_static_pods)
    }
);
