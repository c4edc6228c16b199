//! What goes on while the kubelet or the CRI server is away, and what a node does from time to time: logs, images.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cri::only_ours;
use crate::image_registry::ImageRegistry;
use crate::kubelet::{Backend, Node, STAY, Setup, busybox, busybox_with, manifest, names, patience, with};
use crate::registry::Result;
use crate::test;
use crate::wait::{until, within};

/// Removed by nobody while a pod uses it; this one is used by none.
const UNUSED: &str = "registry.k8s.io/k8s-staging-cri-tools/test-image-1:latest";

test!(
    fn pods_outlive_the_kubelet_which_then_does_what_it_missed(t: &Test) -> Result {
        with(t, |node| {
            for name in ["stays", "dies", "goes"] {
                node.run(&manifest(name, json!({"containers": [busybox("main", STAY)]})))?;
            }
            let [stays, dies, _] = [
                node.until_up("stays")?,
                node.until_up("dies")?,
                node.until_up("goes")?,
            ];
            node.stop_kubelet()?;
            let pid = node.main_pid(&stays, "main")?;
            kill(Pid::from_raw(node.main_pid(&dies, "main")?), Signal::SIGKILL)?;
            node.withdraw("goes")?;
            node.run(&manifest("comes", json!({"containers": [busybox("main", STAY)]})))?;
            node.start_kubelet()?;
            node.until_up("comes")?;
            node.until_pod("dies", "restarted", |pod| {
                pod.restarts("main") == 1 && pod.is_up()
            })?;
            node.until_gone("goes")?;
            let after = node.until_up("stays")?;
            ensure!(after.id("main")? == stays.id("main")? && after.restarts("main") == 0);
            ensure!(node.main_pid(&after, "main")? == pid, "another process");
            Ok(())
        })
    }
);

fn coming(node: &Node<'_>, round: usize, number: usize) -> Result {
    let main = busybox_with(
        "main",
        STAY,
        &json!({"livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 30}}),
    );
    node.run(&manifest(
        &format!("p{round}-{number}"),
        json!({"containers": [main]}),
    ))
}

test!(
    fn a_server_that_is_killed_while_pods_come_and_go_loses_and_leaks_nothing(t: &Test) -> Result {
        with(t, |node| {
            let resident = node.up("resident", json!({"containers": [busybox("main", STAY)]}))?;
            let pid = node.main_pid(&resident, "main")?;
            for round in 0..3 {
                for number in 0..4 {
                    coming(node, round, number)?;
                }
                if round > 0 {
                    for number in 0..4 {
                        node.withdraw(&format!("p{}-{number}", round - 1))?;
                    }
                }
                // In the middle of it, wherever that is.
                std::thread::sleep(Duration::from_millis(150 + 200 * round as u64));
                node.stop_server(if round == 1 {
                    Signal::SIGTERM
                } else {
                    Signal::SIGKILL
                })?;
                std::thread::sleep(Duration::from_millis(300));
                node.start_server()?;
                for number in 0..4 {
                    node.until_up(&format!("p{round}-{number}"))?;
                }
            }
            let after = node.until_up("resident")?;
            ensure!(after.id("main")? == resident.id("main")? && after.restarts("main") == 0);
            ensure!(node.main_pid(&after, "main")? == pid, "another process");
            ensure!(node.exec(&after, "main", "echo in")? == "in");
            Ok(())
        })
    }
);

test!(
    fn a_pod_that_is_withdrawn_while_its_image_is_pulled_goes_and_may_come_again(t: &Test) -> Result {
        with(t, |node| {
            let registry = ImageRegistry::start()?;
            node.allow_registry(&registry.address())?;
            registry.push("slow", "1", &[&[("file", &[7; 4096])]]);
            registry.misbehave(|request, reply| {
                if request.is_blob() {
                    reply.stall_after(reply.body.len() / 2, Duration::from_secs(4));
                }
            });
            // Of the node: the image has no program.
            let main = json!({
                "name": "main", "image": registry.name("slow:1"), "command": ["/busybox", "sleep", "1000"],
                "volumeMounts": [{"name": "program", "mountPath": "/busybox"}],
            });
            let spec = json!({
                "volumes": [{"name": "program", "hostPath": {"path": "/bin/busybox", "type": "File"}}],
                "containers": [main],
            });
            let pod = manifest("pulled", spec);
            node.run(&pod)?;
            until("the pull", || {
                Ok(registry
                    .requests()
                    .iter()
                    .any(crate::image_registry::Request::is_blob)
                    .then_some(()))
            })?;
            node.withdraw("pulled")?;
            node.until_gone("pulled")?;
            registry.behave();
            node.run(&pod)?;
            node.until_up("pulled")?;
            Ok(())
        })
    }
);

/// All lines of a container's logs, the oldest first.
fn all_lines(path: &str) -> Result<Vec<String>> {
    let path = Path::new(path);
    let directory = path.parent().context("a log's directory")?;
    // 0.log.20261128-072000.gz, 0.log.20261128-072010, 0.log
    let mut rotated: Vec<String> = names(directory)
        .into_iter()
        .filter(|name| name.starts_with("0.log."))
        .collect();
    rotated.sort();
    rotated.push("0.log".to_owned());
    let mut all = Vec::new();
    for name in rotated {
        let file = directory.join(&name);
        let text = if name.ends_with(".gz") {
            let output = Command::new("/bin/busybox").arg("zcat").arg(&file).output()?;
            String::from_utf8_lossy(&output.stdout).into_owned()
        } else {
            fs::read_to_string(&file)?
        };
        all.extend(text.lines().map(str::to_owned));
    }
    Ok(all)
}

test!(
    fn logs_are_rotated_without_losing_a_line(t: &Test) -> Result {
        let setup = Setup {
            kubelet: "containerLogMaxSize: 20Ki\ncontainerLogMaxFiles: 5\ncontainerLogMonitorInterval: 3s\n"
                .into(),
            ..Setup::default()
        };
        setup.with(t, |node| {
            let talk = "trap 'exit 0' TERM; n=0; while [ $n -lt 2500 ]; do n=$((n+1)); echo line $n; usleep 3000; done; \
                        while :; do sleep 1 & wait $!; done";
            let pod = node.up("talk", json!({"containers": [busybox("main", talk)]}))?;
            let path = node.log_path(&pod, "main", 0);
            within(patience(), "the last line", || {
                Ok(fs::read_to_string(&path).unwrap_or_default().contains(" line 2500\n").then_some(()))
            })?;
            let lines = all_lines(&path)?;
            let numbers: Vec<usize> = lines
                .iter()
                .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
                .collect();
            let files = names(Path::new(&path).parent().context("directory")?);
            ensure!(files.len() >= 2, "never rotated: {files:?}");
            ensure!(numbers.len() == lines.len(), "a line that is none of the container's");
            let first = numbers.first().copied().unwrap_or_default();
            ensure!(numbers == (first..=2500).collect::<Vec<_>>(), "lines are missing or twice there: {files:?}");
            Ok(())
        })
    }
);

test!(
    fn images_that_no_pod_uses_go_when_the_disk_is_full(t: &Test) -> Result {
        with(t, |node| {
            let pod = node.up("user", json!({"containers": [busybox("main", STAY)]}))?;
            node.crictl(&["pull", UNUSED])?.ok()?;
            let images = || -> Result<String> { Ok(node.crictl(&["images"])?.ok()?.stdout) };
            ensure!(images()?.contains("test-image-1"));
            node.stop_kubelet()?;
            // Whatever there is on the disk is too much.
            let full =
                "evictionHard: {imagefs.available: 99%, nodefs.available: 99%}\nimageMinimumGCAge: 1s\n";
            node.configure_kubelet(&Setup {
                kubelet: full.into(),
                ..Setup::default()
            })?;
            node.start_kubelet()?;
            within(patience(), "the image to go", || {
                Ok((!images()?.contains("test-image-1")).then_some(()))
            })?;
            ensure!(images()?.contains("busybox"), "{}", images()?);
            let after = node.until_up("user")?;
            ensure!(after.id("main")? == pod.id("main")?);
            Ok(())
        })
    }
);

/// The node goes over to another server as docs/kubernetes.md says: without the kubelet, and with nothing left of the old.
fn go_over(node: &Node<'_>, to: Backend) -> Result {
    node.stop_kubelet()?;
    node.crictl(&["rmp", "--force", "--all"])?.ok()?;
    ensure!(node.addresses().is_empty(), "{:?}", node.addresses());
    until("the shims to go", || Ok(node.shims().is_empty().then_some(())))?;
    node.change_server(to)?;
    node.start_kubelet()
}

test!(
    fn a_node_goes_over_from_containerd_and_back_and_its_pods_keep_their_volumes(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with_backend(t, Backend::Containerd, |node| {
            let note = format!("echo $((1 + $(cat /scratch/count || echo 0))) >/scratch/count; {STAY}");
            let mounted = json!({"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]});
            let spec = json!({
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [busybox_with("main", &note, &mounted)],
            });
            let before = node.up("swapped", spec)?;
            for (to, count) in [(Backend::RtcCri, "2"), (Backend::Containerd, "3")] {
                go_over(node, to)?;
                let kind = if to == Backend::RtcCri {
                    "rtc://"
                } else {
                    "containerd://"
                };
                let after = node.until_pod("swapped", "up on the other server", |pod| {
                    let id = pod.container("main")["containerID"].as_str().unwrap_or_default();
                    pod.is_up() && id.starts_with(kind)
                })?;
                ensure!(after.uid() == before.uid(), "another pod");
                let found = node.exec(&after, "main", "cat /scratch/count")?;
                ensure!(found == count, "{found} starts");
            }
            Ok(())
        })
    }
);
