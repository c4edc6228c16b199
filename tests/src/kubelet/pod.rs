//! Pods as manifests, and as the kubelet says they are.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{Driver, Node};
use crate::host::cgroup::Cgroup;
use crate::host::process;
use crate::registry::Result;
use crate::wait::within;

/// busybox with all applets, as critest's images have it.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-4";

/// Ends at once when it is told to: a shell that waits for `sleep` does not.
pub(crate) const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// A manifest; it ends within two seconds unless it says more.
pub(crate) fn manifest(name: &str, mut spec: Value) -> Value {
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = json!(2);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": spec,
    })
}

/// A container of busybox that runs a script.
pub(crate) fn busybox(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", script]})
}

/// [`busybox`] with further fields.
pub(crate) fn busybox_with(name: &str, script: &str, fields: &Value) -> Value {
    let mut container = busybox(name, script);
    for (key, value) in fields.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

/// What the kubelet says of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pod(pub(crate) Value);

impl Pod {
    /// The status of a container of this name, of whatever kind; null where there is none.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let kinds = ["containerStatuses", "initContainerStatuses"];
        let mut all = kinds
            .iter()
            .filter_map(|kind| self.0["status"][kind].as_array())
            .flatten();
        all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
    }

    fn containers(&self) -> impl Iterator<Item = &Value> {
        self.0["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
    }

    pub(crate) fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// All containers run and are ready.
    pub(crate) fn is_up(&self) -> bool {
        self.phase() == "Running"
            && self.containers().count() > 0
            && self
                .containers()
                .all(|status| status["ready"] == true && !status["state"]["running"].is_null())
    }

    /// Of a container.
    pub(crate) fn restarts(&self, container: &str) -> u64 {
        self.container(container)["restartCount"]
            .as_u64()
            .unwrap_or_default()
    }

    /// Why a container waits: reason and message.
    pub(crate) fn waiting(&self, container: &str) -> (&str, &str) {
        let waiting = &self.container(container)["state"]["waiting"];
        let text = |key: &str| waiting[key].as_str().unwrap_or_default();
        (text("reason"), text("message"))
    }

    /// A container's id, without `containerd://`.
    pub(crate) fn id(&self, container: &str) -> Result<String> {
        let id = self.container(container)["containerID"]
            .as_str()
            .with_context(|| format!("no containerID of {container}"))?;
        Ok(id.rsplit('/').next().unwrap_or_default().to_owned())
    }

    pub(crate) fn uid(&self) -> &str {
        self.0["metadata"]["uid"].as_str().unwrap_or_default()
    }

    pub(crate) fn address(&self) -> &str {
        self.0["status"]["podIP"].as_str().unwrap_or_default()
    }

    /// `QOSClass` as the kubelet names cgroups: `burstable`, `besteffort`, or nothing.
    fn class(&self) -> &str {
        match self.0["status"]["qosClass"].as_str() {
            Some("Burstable") => "burstable",
            Some("BestEffort") => "besteffort",
            _ => "",
        }
    }
}

impl Node<'_> {
    /// Has the kubelet run a pod of this name, and waits until all of it is up and ready.
    pub(crate) fn up(&self, name: &str, spec: Value) -> Result<Pod> {
        self.run(&manifest(name, spec))?;
        self.until_up(name)
    }

    pub(crate) fn until_up(&self, name: &str) -> Result<Pod> {
        self.until_pod(name, "up", Pod::is_up)
    }

    /// Has the kubelet run a pod that ends by itself, and waits for its end; what its container `main` printed.
    pub(crate) fn output(&self, name: &str, mut spec: Value) -> Result<String> {
        spec["restartPolicy"] = json!("Never");
        self.run(&manifest(name, spec))?;
        let pod = self.until_pod(name, "at its end", |pod| {
            ["Succeeded", "Failed"].contains(&pod.phase())
        })?;
        let text = self.log_of(&pod, "main")?;
        ensure!(pod.phase() == "Succeeded", "{}: {text}", pod.0["status"]);
        Ok(text)
    }

    /// What the kubelet says of a pod; `None` where it has none of this name.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Pod>> {
        let name = format!("{name}-node");
        let list = self.get("/pods")?;
        let found = list["items"].as_array().into_iter().flatten();
        Ok(found
            .into_iter()
            .find(|pod| pod["metadata"]["name"] == *name)
            .cloned()
            .map(Pod))
    }

    /// Waits until what the kubelet says of a pod satisfies the probe.
    pub(crate) fn until_pod(&self, name: &str, what: &str, probe: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let mut last = Pod::default();
        within(super::patience(), &format!("pod {name} {what}"), || {
            last = self.pod(name)?.unwrap_or_default();
            Ok(probe(&last).then_some(()))
        })
        .with_context(|| format!("the kubelet says: {}", last.0["status"]))?;
        Ok(last)
    }

    /// Waits until a container waits for one of these reasons; the message with it.
    pub(crate) fn until_waiting(&self, name: &str, container: &str, reasons: &[&str]) -> Result<String> {
        let what = format!("waiting for {}", reasons.join(" or "));
        let pod = self.until_pod(name, &what, |pod| reasons.contains(&pod.waiting(container).0))?;
        Ok(pod.waiting(container).1.to_owned())
    }

    /// Waits until the kubelet has no pod of this name, and has ended what it had.
    pub(crate) fn until_gone(&self, name: &str) -> Result {
        let full = format!("{name}-node");
        within(super::patience(), &format!("pod {name} to go"), || {
            // It forgets what is withdrawn at once, and then ends it.
            if self.pod(name)?.is_some() {
                return Ok(None);
            }
            let list = self
                .crictl(&["pods", "--name", &full, "--state", "ready", "--quiet"])?
                .ok()?;
            Ok(list.stdout.trim().is_empty().then_some(()))
        })
    }

    /// The pid of a container's first process, as the node sees it.
    pub(crate) fn main_pid(&self, pod: &Pod, container: &str) -> Result<i32> {
        let cgroup = self.cgroup(pod, container)?;
        // The others in it are its children, and those of execs are outsiders.
        let depth = |pid: i32| process::status_field(pid, "NSpid").map_or(9, |pids| pids.len());
        let own = |pid: &i32| {
            process::status_field(*pid, "NSpid").is_ok_and(|pids| pids.split_whitespace().last() == Some("1"))
        };
        let mut all = cgroup.processes()?;
        all.sort_by_key(|&pid| depth(pid));
        let first = all.iter().copied().find(own).or(all.first().copied());
        first.with_context(|| format!("no process in {}", cgroup.path))
    }

    /// The pod's cgroup, by the name that the kubelet gives it.
    pub(crate) fn pod_cgroup(&self, pod: &Pod) -> Cgroup {
        let (class, uid) = (pod.class(), pod.uid());
        let path = match (self.driver, class) {
            (Driver::Cgroupfs, "") => format!("{}/kubepods/pod{uid}", self.t.cgroup.path),
            (Driver::Cgroupfs, _) => format!("{}/kubepods/{class}/pod{uid}", self.t.cgroup.path),
            (Driver::Systemd, "") => {
                format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"))
            }
            (Driver::Systemd, _) => format!(
                "/kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{}.slice",
                uid.replace('-', "_")
            ),
        };
        Cgroup { path }
    }

    /// A container's cgroup, by the name that the server gives it.
    pub(crate) fn cgroup(&self, pod: &Pod, container: &str) -> Result<Cgroup> {
        let (parent, id) = (self.pod_cgroup(pod).path, pod.id(container)?);
        Ok(Cgroup {
            path: match self.driver {
                Driver::Cgroupfs => format!("{parent}/{id}"),
                Driver::Systemd => format!("{parent}/{}-{id}.scope", self.backend().scope_prefix()),
            },
        })
    }

    /// The log of a container's newest attempt, without the fields that CRI puts before each line.
    pub(crate) fn log_of(&self, pod: &Pod, container: &str) -> Result<String> {
        let path = self.log_path(pod, container, pod.restarts(container));
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut all = String::new();
        for line in text.lines() {
            let mut fields = line.splitn(4, ' ').skip(1);
            let (Some("stdout" | "stderr"), Some(kind), Some(message)) =
                (fields.next(), fields.next(), fields.next())
            else {
                bail!("a line of {path}: {line:?}");
            };
            all += message;
            if kind == "F" {
                all.push('\n');
            }
        }
        Ok(all)
    }

    /// Where the kubelet has the server write the log of a container's attempt.
    pub(crate) fn log_path(&self, pod: &Pod, container: &str, attempt: u64) -> String {
        let metadata = &pod.0["metadata"];
        let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        format!(
            "/var/log/pods/{}_{}_{}/{container}/{attempt}.log",
            text("namespace"),
            text("name"),
            pod.uid()
        )
    }
}
