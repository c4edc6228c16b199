//! Limits, classes of service and what becomes of who takes more.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::host::cgroup::{Cgroup, is_unified, knob};
use crate::kubelet::{STAY, Setup, busybox, busybox_with, manifest, with};
use crate::registry::Result;
use crate::test;

fn resources(requests: &Value, limits: &Value) -> Value {
    json!({"resources": {"requests": requests, "limits": limits}})
}

/// Shares of the processor as v1 counts them; v2's weight comes of them.
fn has_shares(cgroup: &Cgroup, shares: u64) -> Result {
    let found: u64 = cgroup.read(knob::CPU_WEIGHT)?.parse()?;
    if is_unified() {
        // The curve has changed over the years (runc 1.3.2): what counts is that there is one.
        ensure!(
            found >= 1 && (shares <= 2) == (found == 1),
            "{}: weight {found}",
            cgroup.path
        );
    } else {
        ensure!(found == shares, "{}: shares {found}, not {shares}", cgroup.path);
    }
    Ok(())
}

test!(
    fn each_class_of_service_has_its_cgroups_and_their_limits(t: &Test) -> Result {
        with(t, |node| {
            let all = json!({"memory": "32Mi", "cpu": "100m"});
            let pods = [
                ("best", json!({}), "BestEffort", "/besteffort"),
                (
                    "burst",
                    resources(
                        &json!({"memory": "16Mi", "cpu": "50m"}),
                        &json!({"memory": "64Mi", "cpu": "500m"}),
                    ),
                    "Burstable",
                    "/burstable",
                ),
                ("sure", resources(&all, &all), "Guaranteed", "/pod"),
            ];
            for (name, fields, ..) in &pods {
                node.run(&manifest(
                    name,
                    json!({"containers": [busybox_with("main", STAY, fields)]}),
                ))?;
            }
            for (name, _, class, place) in &pods {
                let pod = node.until_up(name)?;
                ensure!(pod.0["status"]["qosClass"] == *class, "{}", pod.0["status"]);
                let (own, whole) = (node.cgroup(&pod, "main")?, node.pod_cgroup(&pod));
                ensure!(
                    own.path.contains(place) || own.path.contains(&place.replace('/', "kubepods-")),
                    "{}",
                    own.path
                );
                ensure!(!own.processes()?.is_empty(), "nothing runs in {}", own.path);
                let score =
                    std::fs::read_to_string(format!("/proc/{}/oom_score_adj", node.main_pid(&pod, "main")?))?;
                let score: i32 = score.trim().parse()?;
                match *name {
                    "best" => {
                        ensure!(score == 1000, "{name}: {score}");
                        has_shares(&own, 2)?;
                    }
                    "burst" => {
                        ensure!((1..1000).contains(&score), "{name}: {score}");
                        has_shares(&own, 51)?;
                        for cgroup in [&own, &whole] {
                            ensure!(cgroup.read(knob::MEMORY_LIMIT)? == (64 << 20).to_string());
                            ensure!(cgroup.cpu_bandwidth()? == (Some(50_000), 100_000));
                        }
                    }
                    _ => {
                        // -997, where it may be lowered.
                        ensure!(score <= 0, "{name}: {score}");
                        has_shares(&own, 102)?;
                        ensure!(whole.read(knob::MEMORY_LIMIT)? == (32 << 20).to_string());
                        ensure!(own.cpu_bandwidth()? == (Some(10_000), 100_000));
                    }
                }
            }
            Ok(())
        })
    }
);

test!(
    fn who_takes_more_memory_than_it_may_is_killed_and_started_again(t: &Test) -> Result {
        with(t, |node| {
            let eater =
                "test -e /scratch/ate && exec sleep 1000; touch /scratch/ate; x=a; while :; do x=$x$x; done";
            let limits = json!({
                "resources": {"limits": {"memory": "24Mi"}},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            });
            let spec = json!({
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [busybox_with("main", eater, &limits), busybox("other", STAY)],
            });
            node.run(&manifest("eater", spec))?;
            let pod = node.until_pod("eater", "started again", |pod| {
                pod.restarts("main") == 1 && pod.is_up()
            })?;
            let ended = &pod.container("main")["lastState"]["terminated"];
            ensure!(
                ended["reason"] == "OOMKilled" && ended["exitCode"] == 137,
                "{ended}"
            );
            ensure!(pod.restarts("other") == 0, "{}", pod.0["status"]);
            Ok(())
        })
    }
);

test!(
    fn a_pod_may_have_so_many_processes(t: &Test) -> Result {
        let setup = Setup {
            kubelet: "podPidsLimit: 40\n".into(),
            ..Setup::default()
        };
        setup.with(t, |node| {
            let pod = node.up("pids", json!({"containers": [busybox("main", STAY)]}))?;
            ensure!(node.pod_cgroup(&pod).read(knob::PIDS_LIMIT)? == "40");
            let script = "n=0; while [ $n -lt 60 ]; do sleep 100 & n=$((n+1)); done";
            let refused = node.crictl(&["exec", "--sync", &pod.id("main")?, "sh", "-c", script])?;
            ensure!(
                refused.stderr.contains("can't fork") || refused.stdout.contains("can't fork"),
                "{refused}"
            );
            Ok(())
        })
    }
);
