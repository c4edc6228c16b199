//! Kubernetes' way to the shim: pods through containerd's CRI plugin, driven by `crictl`. critest (`hack/dev critest`)
//! shows the breadth; here is what it does not look at.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::containerd::{Daemon, Pods, with_each_cri};
use crate::host::cgroup::{Cgroup, knob};
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// A pod in the host's network: it needs no CNI.
pub(super) struct Pod<'d, 't> {
    containerd: &'d Daemon<'t>,
    pub(super) id: String,
    config: PathBuf,
    logs: PathBuf,
}

impl<'d, 't> Pod<'d, 't> {
    pub(super) fn start(containerd: &'d Daemon<'t>) -> Result<Self> {
        for archive in ["images/pause.tar", "images/busybox.tar"] {
            let local = if containerd.is_2() { &["--local"][..] } else { &[] };
            let import = containerd.ctr_command(["--namespace", "k8s.io", "image", "import"]);
            let archive = containerd.peer_file(archive);
            import
                .args(["--snapshotter", "native"])
                .args(local)
                .args([archive])
                .run()?
                .ok()?;
        }
        let (logs, config) = (containerd.t.path("logs"), containerd.t.path("pod.json"));
        fs::create_dir(&logs)?;
        let number = containerd.t.number();
        let text = json!({
            "metadata": {"name": format!("pod-{number}"), "uid": format!("uid-{number}"), "namespace": "tests"},
            "log_directory": logs,
            "linux": {
                "cgroup_parent": containerd.t.cgroup.path,
                "security_context": {"namespace_options": {"network": 2}},
            },
        });
        fs::write(&config, text.to_string())?;
        let id = containerd.crictl(&["runp", &config.to_string_lossy()])?.ok()?;
        let id = id.stdout.trim().to_owned();
        Ok(Self {
            containerd,
            id,
            config,
            logs,
        })
    }

    /// Creates a container of busybox that runs this script, and starts it.
    pub(super) fn run(&self, name: &str, script: &str) -> Result<String> {
        let config = self.containerd.t.path("container.json");
        let text = json!({
            "metadata": {"name": name},
            "image": {"image": "registry.k8s.io/e2e-test-images/busybox:1.29-4"},
            "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            "linux": {},
        });
        fs::write(&config, text.to_string())?;
        let files = [config, self.config.clone()].map(|path| path.to_string_lossy().into_owned());
        let created = self
            .containerd
            .crictl(&["create", "--no-pull", &self.id, &files[0], &files[1]])?
            .ok()?;
        let id = created.stdout.trim().to_owned();
        self.containerd.crictl(&["start", &id])?.ok()?;
        Ok(id)
    }

    pub(super) fn exec(&self, container: &str, args: &[&str]) -> Result<Output> {
        self.containerd
            .crictl(&[&["exec", "--sync", container], args].concat())
    }

    /// What a container's log has, waited for.
    pub(super) fn log(&self, name: &str, wanted: &str) -> Result<String> {
        let path = self.logs.join(format!("{name}.log"));
        until(&format!("{wanted:?} in the log"), || {
            Ok(fs::read_to_string(&path)
                .ok()
                .filter(|text| text.contains(wanted)))
        })
    }

    /// Stops and removes it with all its containers.
    pub(super) fn remove(&self) -> Result {
        self.containerd.crictl(&["stopp", &self.id])?.ok()?;
        self.containerd.crictl(&["rmp", &self.id])?.ok()?;
        Ok(())
    }
}

/// What a pod does from start to end, whoever makes it.
fn a_pod_from_start_to_end(containerd: &Daemon<'_>) -> Result {
    let pod = Pod::start(containerd)?;
    let web = pod.run("web", "echo out; echo err >&2; sleep 1000")?;
    let other = pod.run("other", "sleep 1000")?;
    let shims = containerd.shims();
    ensure!(shims.len() == 1, "one shim for the pod, not {}", shims.len());
    pod.exec(&web, &["echo", "in"])?.prints("in")?;
    pod.exec(&other, &["sh", "-c", "exit 3"])?.fails_with(&[])?;
    let log = pod.log("web", "stderr F err")?;
    ensure!(log.contains("stdout F out"), "{log}");
    until("statistics", || {
        let stats = containerd
            .crictl(&["stats", "--output", "json", "--id", &web])?
            .ok()?;
        let stats: Value = serde_json::from_str(&stats.stdout).with_context(|| stats.to_string())?;
        let memory = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
        Ok(memory.as_str().is_some_and(|bytes| bytes != "0").then_some(()))
    })?;
    containerd.crictl(&["stop", "--timeout", "1", &web])?.ok()?;
    let inspect = containerd.crictl(&["inspect", &web])?.ok()?;
    let inspect: Value = serde_json::from_str(&inspect.stdout)?;
    ensure!(inspect["status"]["state"] == "CONTAINER_EXITED", "{inspect}");
    ensure!(inspect["status"]["exitCode"] == 143, "{inspect}");
    containerd.crictl(&["rm", &web])?.ok()?;
    pod.exec(&other, &["echo", "still"])?.prints("still")?;
    pod.remove()
}

test!(
    fn a_pod_runs_executes_logs_counts_and_goes(t: &Test) -> Result {
        with_each_cri(t, Pods::Pause, a_pod_from_start_to_end)
    }
);

test!(
    fn a_pod_that_the_shim_makes_needs_no_pause_container(t: &Test) -> Result {
        with_each_cri(t, Pods::Shim, a_pod_from_start_to_end)
    }
);

test!(
    fn a_container_of_a_pod_restarts_when_all_have_ended(t: &Test) -> Result {
        with_each_cri(t, Pods::Shim, |containerd| {
            let pod = Pod::start(containerd)?;
            let first = pod.run("first", "exit 0")?;
            until("the container to end", || {
                let inspect = containerd.crictl(&["inspect", &first])?.ok()?;
                Ok(inspect.stdout.contains("CONTAINER_EXITED").then_some(()))
            })?;
            containerd.crictl(&["rm", &first])?.ok()?;
            let second = pod.run("second", "sleep 1000")?;
            pod.exec(&second, &["echo", "again"])?.prints("again")?;
            pod.remove()
        })
    }
);

test!(
    fn an_exec_that_takes_too_long_is_ended_and_its_container_lives(t: &Test) -> Result {
        with_each_cri(t, Pods::Pause, |containerd| {
            let pod = Pod::start(containerd)?;
            let web = pod.run("web", "sleep 1000")?;
            let slow = ["exec", "--sync", "--timeout", "1", &web, "sleep", "4321"];
            containerd.crictl(&slow)?.fails_with(&[])?;
            until("the exec to end", || {
                let processes = pod.exec(&web, &["ps"])?.ok()?;
                Ok((!processes.stdout.contains("sleep 4321")).then_some(()))
            })?;
            pod.remove()
        })
    }
);

test!(
    fn a_pod_outlives_containerds_violent_death(t: &Test) -> Result {
        with_each_cri(t, Pods::Pause, |containerd| {
            let pod = Pod::start(containerd)?;
            let web = pod.run("web", "while :; do echo x; sleep 0.1; done")?;
            containerd.kill()?;
            containerd.start_daemon()?;
            pod.exec(&web, &["echo", "here"])?.prints("here")?;
            let later = pod.run("later", "echo later; sleep 1000")?;
            pod.log("later", "stdout F later")?;
            pod.exec(&later, &["true"])?.ok()?;
            pod.remove()
        })
    }
);

test!(
    fn limits_of_a_running_container_change(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with_each_cri(t, Pods::Pause, |containerd| {
            let pod = Pod::start(containerd)?;
            let web = pod.run("web", "sleep 1000")?;
            let limit = (64_u64 << 20).to_string();
            containerd.crictl(&["update", "--memory", &limit, &web])?.ok()?;
            let cgroup = Cgroup {
                path: format!("{}/{web}", t.cgroup.path),
            };
            ensure!(
                cgroup.read(knob::MEMORY_LIMIT)? == limit,
                "{:?}",
                cgroup.read(knob::MEMORY_LIMIT)
            );
            pod.remove()
        })
    }
);
