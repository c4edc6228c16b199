//! Limits, classes of service and what becomes of who takes more.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::host::cgroup::{Cgroup, is_unified, knob};
use crate::kubelet::{Node, STAY, Setup, StaticPod, busybox, busybox_with, manifest, with};
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

/// A static pod that keeps its uid keeps its containers, too: what changes of its resources is changed in place.
fn resized(memory: &str, cpu: &str) -> Value {
    let all = json!({"memory": memory, "cpu": cpu});
    let mut main = busybox_with("main", STAY, &resources(&all, &all));
    let policy = |resource: &str, policy: &str| json!({"resourceName": resource, "restartPolicy": policy});
    main["resizePolicy"] = json!([policy("cpu", "NotRequired"), policy("memory", "NotRequired")]);
    let mut restarted = busybox_with("restarted", STAY, &resources(&all, &all));
    restarted["resizePolicy"] = json!([policy("cpu", "NotRequired"), policy("memory", "RestartContainer")]);
    let mut pod = manifest("resized", json!({"containers": [main, restarted]}));
    pod["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
    pod
}

/// Older kubelets resize no static pod, and say so; it goes on as it was.
fn is_refused(node: &Node<'_>, before: &StaticPod) -> Result {
    node.run(&resized("64Mi", "400m"))?;
    let after = node.until_pod("resized", "refused", |pod| {
        let mut conditions = pod.0["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|each| each["type"] == "PodResizePending" && each["reason"] == "Infeasible")
    })?;
    ensure!(after.id("main")? == before.id("main")?, "{}", after.0["status"]);
    ensure!(node.cgroup(&after, "main")?.cpu_bandwidth()?.0 == Some(20_000));
    Ok(())
}

test!(
    fn a_pod_that_is_resized_has_its_new_limits_without_a_restart(t: &Test) -> Result {
        with(t, |node| {
            node.run(&resized("48Mi", "200m"))?;
            let before = node.until_up("resized")?;
            let pid = node.main_pid(&before, "main")?;
            if node.minor() < 36 {
                return is_refused(node, &before);
            }
            // More of the one, then less of the other; then memory again, which one container restarts for.
            for (memory, cpu, restarts) in [("48Mi", "400m", 0), ("48Mi", "100m", 0), ("64Mi", "100m", 1)] {
                node.run(&resized(memory, cpu))?;
                let bytes = memory.trim_end_matches("Mi").parse::<u64>()? << 20;
                let quota = cpu.trim_end_matches('m').parse::<i64>()? * 100;
                let after = node.until_pod("resized", &format!("resized to {memory}, {cpu}"), |pod| {
                    let actual = &pod.container("main")["resources"]["limits"];
                    pod.is_up()
                        && actual["memory"] == memory
                        && actual["cpu"] == cpu
                        && pod.restarts("restarted") == restarts
                })?;
                ensure!(
                    after.restarts("main") == 0 && after.id("main")? == before.id("main")?,
                    "{}",
                    after.0["status"]
                );
                ensure!(node.main_pid(&after, "main")? == pid, "another process");
                for (cgroup, count) in [(node.cgroup(&after, "main")?, 1), (node.pod_cgroup(&after), 2)] {
                    let limit = cgroup.read(knob::MEMORY_LIMIT)?;
                    ensure!(
                        limit == (bytes * count).to_string(),
                        "{}: {limit}, not {count} * {bytes}",
                        cgroup.path
                    );
                    let bandwidth = cgroup.cpu_bandwidth()?;
                    ensure!(
                        bandwidth.0 == Some(quota * count.cast_signed()),
                        "{}: {bandwidth:?}",
                        cgroup.path
                    );
                }
            }
            Ok(())
        })
    }
);
