//! A real kubelet runs static pods, on pure cgroup v2 with systemd's driver: what no test of ours alone can show, that
//! the names of cgroups, the logs, the probes and the statuses are as the kubelet wants them. The same on containerd
//! with the shim under test shows that the test itself is right.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::host::process;
use crate::kubelet::{Backend, NETNS, Node, PATIENCE, SLICE, names};
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::within;

const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-4";
/// Ends at once when it is told to: a shell that waits for `sleep` does not.
const MAIN: &str = "trap 'exit 0' TERM; echo hello; echo trouble >&2; n=0; \
    while :; do n=$((n+1)); echo tick $n; sleep 1 & wait $!; done";

/// A container's status, as the kubelet has it.
fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn is_up(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
        && container(pod)["ready"] == true
        && !container(pod)["state"]["running"].is_null()
}

fn restarts(pod: &Value) -> u64 {
    container(pod)["restartCount"].as_u64().unwrap_or_default()
}

/// The id, without `containerd://`.
fn id(pod: &Value) -> Result<String> {
    let id = container(pod)["containerID"].as_str().context("containerID")?;
    Ok(id.rsplit('/').next().unwrap_or_default().to_owned())
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

/// A pod in a network of its own with limits and a probe: burstable.
fn web() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "containers": [{
                "name": "main", "image": IMAGE, "command": ["sh", "-c", MAIN],
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
                "name": "main", "image": IMAGE,
                "command": ["sh", "-c", format!("ip addr show up0 >/host/seen; {MAIN}")],
                "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                "securityContext": {"privileged": true},
            }],
        },
    })
}

/// Its cgroup, by the name that the kubelet gives the pod and the server gives the container.
fn scope(node: &Node<'_>, pod: &Value) -> Result<PathBuf> {
    let slice = Path::new(SLICE).join("kubepods-burstable.slice").join(format!(
        "kubepods-burstable-pod{}.slice",
        uid(pod).replace('-', "_")
    ));
    Ok(slice.join(format!("{}-{}.scope", node.backend.scope_prefix(), id(pod)?)))
}

fn main_pid(scope: &Path) -> Result<i32> {
    let text = fs::read_to_string(scope.join("cgroup.procs")).with_context(|| scope.display().to_string())?;
    let pids = text.lines().filter_map(|pid| pid.parse::<i32>().ok());
    // The others in it are its children.
    let first = pids.min_by_key(|&pid| process::status_field(pid, "NSpid").map_or(9, |pids| pids.len()));
    first.context("no process in the scope")
}

fn the_cgroup_is_the_kubelets(node: &Node<'_>, pod: &Value) -> Result<PathBuf> {
    let scope = scope(node, pod)?;
    let read = |name: &str| {
        fs::read_to_string(scope.join(name)).with_context(|| scope.join(name).display().to_string())
    };
    ensure!(
        read("memory.max")?.trim() == (64 << 20).to_string(),
        "memory.max {}",
        read("memory.max")?
    );
    ensure!(
        read("cpu.max")?.trim() == "50000 100000",
        "cpu.max {}",
        read("cpu.max")?
    );
    let pid = main_pid(&scope)?;
    let inside = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(inside.contains("tick"), "pid {pid} is {inside:?}");
    Ok(scope)
}

/// The log where the kubelet looks for it, in the format that it reads.
fn the_log_is_the_kubelets(pod: &Value) -> Result {
    let directory = Path::new("/var/log/pods").join(format!("default_web-node_{}", uid(pod)));
    let path = directory.join("main").join(format!("{}.log", restarts(pod)));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let right = fields.len() == 4
            && fields[0].contains('T')
            && ["stdout", "stderr"].contains(&fields[1])
            && ["F", "P"].contains(&fields[2]);
        ensure!(right, "a line of {}: {line:?}", path.display());
    }
    ensure!(
        text.contains(" stdout F hello\n") && text.contains(" stderr F trouble\n"),
        "{text}"
    );
    let links = names(Path::new("/var/log/containers"));
    let wanted = format!("web-node_default_main-{}.log", id(pod)?);
    ensure!(links.contains(&wanted), "/var/log/containers has {links:?}");
    Ok(())
}

fn the_server_shows_it(node: &Node<'_>, pod: &Value) -> Result {
    let json =
        |args: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&node.crictl(args)?.ok()?.stdout)?) };
    let pods = json(&["pods", "--output", "json", "--name", "web"])?;
    ensure!(pods["items"][0]["state"] == "SANDBOX_READY", "{pods}");
    ensure!(pods["items"][0]["metadata"]["uid"] == *uid(pod), "{pods}");
    let containers = json(&["ps", "--output", "json"])?;
    let all = containers["containers"].as_array().cloned().unwrap_or_default();
    let id = id(pod)?;
    let own = all
        .iter()
        .find(|each| each["id"] == *id)
        .with_context(|| containers.to_string())?;
    ensure!(own["state"] == "CONTAINER_RUNNING", "{own}");
    ensure!(
        own["metadata"]["attempt"].as_u64().unwrap_or_default() == restarts(pod),
        "{own}"
    );
    ensure!(
        node.shims().len() == 1,
        "one shim for the pod, not {:?}",
        node.shims()
    );
    Ok(())
}

fn the_pod_is_on_the_network(node: &Node<'_>, pod: &Value) -> Result {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
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
        &id(pod)?,
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
fn probes(node: &Node<'_>, pod: &Value) -> Result<usize> {
    Ok(node
        .exec(&id(pod)?, "wc -l </scratch/probes || echo 0")?
        .parse()?)
}

fn probes_go_on(node: &Node<'_>, pod: &Value) -> Result {
    let before = probes(node, pod)?;
    within(PATIENCE, "another liveness probe", || {
        Ok((probes(node, pod)? > before).then_some(()))
    })
}

fn statistics(node: &Node<'_>) -> Result {
    let mut last = Value::Null;
    within(PATIENCE, "statistics of the pod", || {
        let summary = node.summary()?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        last = pods
            .into_iter()
            .find(|pod| pod["podRef"]["name"] == "web-node")
            .unwrap_or_default();
        let container = &last["containers"][0];
        let positive = |value: &Value| value.as_u64().is_some_and(|number| number > 0);
        let all = positive(&container["cpu"]["usageCoreNanoSeconds"])
            && positive(&container["memory"]["workingSetBytes"])
            && container["cpu"]["psi"]["some"].is_object()
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
fn a_container_that_ends_is_started_again(node: &Node<'_>, scope: &Path) -> Result<Value> {
    kill(Pid::from_raw(main_pid(scope)?), Signal::SIGKILL)?;
    let pod = node.until_pod("web", "with attempt 1", |pod| is_up(pod) && restarts(pod) == 1)?;
    let ended = &container(&pod)["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 137 && ended["reason"] == "Error", "{ended}");
    the_cgroup_is_the_kubelets(node, &pod)?;
    the_server_shows_it(node, &pod)?;
    ensure!(!scope.exists(), "{} is still there", scope.display());
    node.exec(&id(&pod)?, "touch /tmp/sick")?;
    let pod = node.until_pod("web", "with attempt 2", |pod| is_up(pod) && restarts(pod) == 2)?;
    let ended = &container(&pod)["lastState"]["terminated"];
    ensure!(
        ended["exitCode"] == 0 && ended["reason"] == "Completed",
        "{ended}"
    );
    Ok(pod)
}

/// Nothing of a pod notices that the server is gone and comes again.
fn the_pod_outlives_the_server(node: &Node<'_>, before: &Value) -> Result {
    let pid = main_pid(&scope(node, before)?)?;
    let count = probes(node, before)?;
    node.stop_server()?;
    ensure!(process::is_alive(pid), "it went with the server");
    node.start_server()?;
    within(PATIENCE, "probes after the restart", || {
        Ok((probes(node, before)? > count + 2).then_some(()))
    })?;
    let after = node.until_pod("web", "up", is_up)?;
    ensure!(
        id(&after)? == id(before)? && restarts(&after) == restarts(before),
        "{}",
        container(&after)
    );
    ensure!(main_pid(&scope(node, &after)?)? == pid, "another process");
    the_server_shows_it(node, &after)
}

fn the_pod_of_the_host(node: &Node<'_>) -> Result {
    let directory = node.t.path("host");
    fs::create_dir(&directory)?;
    node.run(&on_host(&directory))?;
    let pod = node.until_pod("plane", "up", is_up)?;
    // A kubelet without an API server has no addresses of its node, hence no podIP; the pod sees them.
    let seen = fs::read_to_string(directory.join("seen"))?;
    ensure!(seen.contains("192.0.2.10"), "{seen}");
    let slice = Path::new(SLICE).join(format!(
        "kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice",
        uid(&pod).replace('-', "_")
    ));
    ensure!(slice.is_dir(), "no {}", slice.display());
    node.withdraw("plane")
}

fn a_node_runs_static_pods(node: &Node<'_>) -> Result {
    node.run(&web())?;
    let pod = node.until_pod("web", "up", is_up)?;
    let scope = the_cgroup_is_the_kubelets(node, &pod).context("cgroup")?;
    the_log_is_the_kubelets(&pod).context("log")?;
    the_server_shows_it(node, &pod).context("crictl")?;
    the_pod_is_on_the_network(node, &pod).context("network")?;
    probes_go_on(node, &pod).context("probe")?;
    statistics(node).context("/stats/summary")?;
    let pod = a_container_that_ends_is_started_again(node, &scope).context("restart")?;
    the_pod_outlives_the_server(node, &pod).context("the server's restart")?;
    the_pod_of_the_host(node).context("host network")?;
    node.withdraw("web")?;
    within(PATIENCE, "the pods to go", || {
        Ok((node.pod("web")?.is_none() && node.pod("plane")?.is_none()).then_some(()))
    })
}

fn with(t: &Test, backend: Backend) -> Result {
    let node = Node::start(t, backend)?;
    a_node_runs_static_pods(&node).with_context(|| node.last_words())?;
    node.end().with_context(|| node.last_words())
}

test!(
    fn a_static_pod_runs_restarts_and_goes_on_rtc_cri(t: &Test) -> Result {
        with(t, Backend::RtcCri)
    }
);

test!(
    fn a_static_pod_runs_restarts_and_goes_on_containerd(t: &Test) -> Result {
        with(t, Backend::Containerd)
    }
);
