//! Containers that fail, come before others, stand beside them, and are told of their start and end.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cri::names;
use crate::host::mounts;
use crate::kubelet::{STAY, StaticPod, busybox, busybox_with, manifest, patience, with};
use crate::test;
use crate::wait::within;

test!(
    fn a_container_that_fails_again_and_again_waits_longer_and_longer(t: &Test) -> Result {
        let setup = crate::kubelet::Setup {
            // Else the longest wait is one second, in these tests.
            kubelet: "crashLoopBackOff: {maxContainerRestartPeriod: 4s}\n".into(),
            ..Default::default()
        };
        setup.with(t, |node| {
            let script = "echo attempt; echo 'why it died' >/dev/termination-log; exit 3";
            node.run(&manifest(
                "crash",
                json!({"containers": [busybox("main", script)]}),
            ))?;
            let message = node.until_waiting("crash", "main", &["CrashLoopBackOff"])?;
            names(&message, &["back-off 4s restarting failed container", "main"])?;
            let again = |pod: &StaticPod| {
                pod.restarts("main") >= 2 && !pod.container("main")["lastState"]["terminated"].is_null()
            };
            let pod = node.until_pod("crash", "with two restarts", again)?;
            let ended = &pod.container("main")["lastState"]["terminated"];
            ensure!(ended["exitCode"] == 3 && ended["reason"] == "Error", "{ended}");
            ensure!(ended["message"] == "why it died\n", "{ended}");
            ensure!(node.log_of(&pod, "main")? == "attempt\n");
            Ok(())
        })
    }
);

test!(
    fn init_containers_come_one_after_the_other_and_a_sidecar_stays(t: &Test) -> Result {
        with(t, |node| {
            let directory = t.path("notes");
            fs::create_dir(&directory)?;
            let mounted = json!({"volumeMounts": [{"name": "notes", "mountPath": "/notes"}]});
            let note = |what: &str| format!("echo {what} >>/notes/all; ");
            let mut sidecar = busybox_with(
                "sidecar",
                &format!(
                    "{} trap '{} exit 0' TERM; while :; do sleep 1 & wait $!; done",
                    note("sidecar"),
                    note("end-of-sidecar")
                ),
                &mounted,
            );
            sidecar["restartPolicy"] = json!("Always");
            sidecar["startupProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
            let main = format!(
                "{} trap '{} exit 0' TERM; while :; do sleep 1 & wait $!; done",
                note("main"),
                note("end-of-main")
            );
            let spec = json!({
                "terminationGracePeriodSeconds": 10,
                "volumes": [{"name": "notes", "hostPath": {"path": directory}}],
                "initContainers": [
                    busybox_with("first", &format!("{} sleep 1; {}", note("first"), note("first-done")), &mounted),
                    sidecar,
                    busybox_with("last", &note("last"), &mounted),
                ],
                "containers": [busybox_with("main", &main, &mounted)],
            });
            let pod = node.up("ordered", spec)?;
            let sidecar = pod.container("sidecar");
            ensure!(
                sidecar["started"] == true && !sidecar["state"]["running"].is_null(),
                "{sidecar}"
            );
            ensure!(pod.container("first")["state"]["terminated"]["reason"] == "Completed");
            // One that ends is started again, beside what is there.
            kill(Pid::from_raw(node.main_pid(&pod, "sidecar")?), Signal::SIGKILL)?;
            let pod = node.until_pod("ordered", "with its sidecar again", |pod| {
                pod.restarts("sidecar") == 1 && !pod.container("sidecar")["state"]["running"].is_null()
            })?;
            ensure!(pod.restarts("main") == 0, "{}", pod.0["status"]);
            node.withdraw("ordered")?;
            node.until_gone("ordered")?;
            let notes = fs::read_to_string(directory.join("all"))?;
            let order: Vec<&str> = notes.split_whitespace().collect();
            let wanted = [
                "first",
                "first-done",
                "sidecar",
                "last",
                "main",
                "sidecar",
                "end-of-main",
                "end-of-sidecar",
            ];
            ensure!(order == wanted, "{order:?}");
            Ok(())
        })
    }
);

test!(
    fn an_init_container_that_fails_holds_up_the_pod(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({
                "initContainers": [busybox("init", "exit 7")],
                "containers": [busybox("main", STAY)],
            });
            node.run(&manifest("held", spec))?;
            let pod = node.until_pod("held", "with an init container that was tried twice", |pod| {
                pod.restarts("init") >= 1 && pod.container("init")["lastState"]["terminated"]["exitCode"] == 7
            })?;
            ensure!(pod.phase() == "Pending", "{}", pod.0["status"]);
            ensure!(pod.waiting("main").0 == "PodInitializing", "{}", pod.0["status"]);
            Ok(())
        })
    }
);

test!(
    fn hooks_run_after_the_start_and_before_the_end(t: &Test) -> Result {
        with(t, |node| {
            let directory = t.path("notes");
            fs::create_dir(&directory)?;
            let hook =
                |what: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {what} >>/notes/all")]}});
            let spec = json!({
                "terminationGracePeriodSeconds": 10,
                "volumes": [{"name": "notes", "hostPath": {"path": directory}}],
                "containers": [busybox_with(
                    "main",
                    "trap 'echo term >>/notes/all; exit 0' TERM; while :; do sleep 1 & wait $!; done",
                    &json!({
                        "volumeMounts": [{"name": "notes", "mountPath": "/notes"}],
                        "lifecycle": {"postStart": hook("started"), "preStop": hook("stopping")},
                    }),
                )],
            });
            node.up("hooks", spec)?;
            node.withdraw("hooks")?;
            node.until_gone("hooks")?;
            let notes = fs::read_to_string(directory.join("all"))?;
            ensure!(notes == "started\nstopping\nterm\n", "{notes}");
            Ok(())
        })
    }
);

test!(
    fn a_hook_that_fails_after_the_start_ends_the_container(t: &Test) -> Result {
        with(t, |node| {
            let hook = json!({"exec": {"command": ["sh", "-c", "echo no; exit 9"]}});
            let main = busybox_with("main", STAY, &json!({"lifecycle": {"postStart": hook}}));
            node.run(&manifest("hook", json!({"containers": [main]})))?;
            node.until_pod("hook", "with a restart", |pod| pod.restarts("main") >= 1)?;
            Ok(())
        })
    }
);

test!(
    fn who_does_not_end_when_told_is_killed_after_the_grace(t: &Test) -> Result {
        with(t, |node| {
            let directory = t.path("notes");
            fs::create_dir(&directory)?;
            let deaf = "trap 'echo told >>/notes/all' TERM; while :; do sleep 1; done";
            let mounted = json!({"volumeMounts": [{"name": "notes", "mountPath": "/notes"}]});
            let spec = json!({
                "terminationGracePeriodSeconds": 3,
                "volumes": [{"name": "notes", "hostPath": {"path": directory}}],
                "containers": [busybox_with("main", deaf, &mounted)],
            });
            node.up("deaf", spec)?;
            let began = Instant::now();
            node.withdraw("deaf")?;
            node.until_gone("deaf")?;
            let took = began.elapsed();
            ensure!(took >= Duration::from_secs(3), "ended after {took:?}");
            ensure!(fs::read_to_string(directory.join("all"))? == "told\n");
            Ok(())
        })
    }
);

test!(
    fn nothing_of_many_pods_stays_when_they_come_and_go_at_once(t: &Test) -> Result {
        with(t, |node| {
            let before = mounts::of("self")?.len();
            for number in 0..8 {
                let spec = json!({"containers": [busybox("main", STAY), busybox("second", STAY)]});
                node.run(&manifest(&format!("many{number}"), spec))?;
            }
            for number in 0..8 {
                node.until_up(&format!("many{number}"))?;
            }
            ensure!(node.addresses().len() == 8, "{:?}", node.addresses());
            ensure!(node.shims().len() == 8, "{:?}", node.shims());
            for number in 0..8 {
                node.withdraw(&format!("many{number}"))?;
            }
            for number in 0..8 {
                node.until_gone(&format!("many{number}"))?;
            }
            within(patience(), "no mount more than before", || {
                Ok((mounts::of("self")?.len() <= before).then_some(()))
            })
            .with_context(|| format!("{:#?}", mounts::of("self").map(|all| all.len())))
        })
    }
);
