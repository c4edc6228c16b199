//! Manifests that can't be: each ends in the kubelet's reason for it, with a message that a person can act on.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::cri::{names, only_ours};
use crate::kubelet::{BUSYBOX, Node, STAY, busybox, busybox_with, manifest, with};
use crate::registry::Result;
use crate::test;

/// A pod of this one container, never up: why its container waits, and what the message names.
fn waits(node: &Node<'_>, name: &str, container: Value, reasons: &[&str], told: &[&str]) -> Result {
    waits_in(node, name, json!({"containers": [container]}), reasons, told)
}

fn waits_in(node: &Node<'_>, name: &str, spec: Value, reasons: &[&str], told: &[&str]) -> Result {
    node.run(&manifest(name, spec))?;
    let message = node.until_waiting(name, "main", reasons)?;
    names(&message, told)?;
    node.withdraw(name)
}

test!(
    fn an_image_that_can_not_be_had_is_named(t: &Test) -> Result {
        with(t, |node| {
            let image = |image: &str| json!({"name": "main", "image": image, "command": ["true"]});
            waits(
                node,
                "missing",
                image("registry.k8s.io/no/such:1"),
                &["ErrImagePull", "ImagePullBackOff"],
                &["registry.k8s.io/no/such:1"],
            )?;
            waits(
                node,
                "name",
                image("UPPER:case:twice"),
                &["InvalidImageName"],
                &["UPPER:case:twice"],
            )?;
            let mut never = image("registry.k8s.io/no/such:3");
            never["imagePullPolicy"] = json!("Never");
            waits(
                node,
                "never",
                never,
                &["ErrImageNeverPull"],
                &["registry.k8s.io/no/such:3"],
            )
        })
    }
);

test!(
    fn a_command_that_is_not_there_is_named(t: &Test) -> Result {
        with(t, |node| {
            // The second time it is the back-off that is waited for: the message is in what ended.
            let main = json!({"name": "main", "image": BUSYBOX, "command": ["/no/such/program"]});
            node.run(&manifest("command", json!({"containers": [main]})))?;
            let message = failed_to_start(node, "command")?;
            names(&message, &["/no/such/program"])?;
            let mut directory = json!({"name": "main", "image": BUSYBOX, "command": ["/etc"]});
            directory["workingDir"] = json!("/tmp");
            node.run(&manifest("directory", json!({"containers": [directory]})))?;
            names(&failed_to_start(node, "directory")?, &["/etc"])
        })
    }
);

/// What the kubelet says of a container that could not be started.
fn failed_to_start(node: &Node<'_>, name: &str) -> Result<String> {
    let pod = node.until_pod(name, "not started", |pod| {
        ["RunContainerError", "CreateContainerError"].contains(&pod.waiting("main").0)
    })?;
    Ok(pod.waiting("main").1.to_owned())
}

test!(
    fn a_mount_that_can_not_be_is_named(t: &Test) -> Result {
        with(t, |node| {
            let file = t.path("file");
            std::fs::write(&file, "x")?;
            let spec = |path: &str| {
                json!({
                    "volumes": [{"name": "v", "hostPath": {"path": file}}],
                    "containers": [busybox_with("main", STAY, &json!({"volumeMounts": [{"name": "v", "mountPath": path}]}))],
                })
            };
            // A file over a directory of the image.
            waits_in(
                node,
                "over",
                spec("/etc"),
                &["RunContainerError", "CreateContainerError"],
                &["/etc"],
            )?;
            let mut missing = spec("/x");
            missing["containers"][0]["volumeMounts"][0]["subPath"] = json!("no/such");
            waits_in(
                node,
                "sub",
                missing,
                &["CreateContainerConfigError"],
                &["subPath"],
            )
        })
    }
);

test!(
    fn a_profile_or_user_that_is_not_there_is_named(t: &Test) -> Result {
        with(t, |node| {
            let profile = json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "no/such.json"}}});
            waits(
                node,
                "seccomp",
                busybox_with("main", STAY, &profile),
                &["CreateContainerError", "RunContainerError"],
                &["no/such.json"],
            )?;
            let root = json!({"securityContext": {"runAsNonRoot": true}});
            waits(
                node,
                "root",
                busybox_with("main", STAY, &root),
                &["CreateContainerConfigError"],
                &["runAsNonRoot"],
            )?;
            let cwd = json!({"workingDir": "/etc/passwd/x"});
            node.run(&manifest(
                "cwd",
                json!({"containers": [busybox_with("main", STAY, &cwd)]}),
            ))?;
            names(&failed_to_start(node, "cwd")?, &["/etc/passwd"])
        })
    }
);

test!(
    fn a_pod_that_can_not_be_made_does_not_hold_up_the_others(t: &Test) -> Result {
        with(t, |node| {
            let sysctl = json!({
                "securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "not a number"}]},
                "containers": [busybox("main", STAY)],
            });
            node.run(&manifest("sysctl", sysctl))?;
            node.up("good", json!({"containers": [busybox("main", STAY)]}))?;
            let pod = node.pod("sysctl")?.unwrap_or_default();
            ensure!(pod.phase() == "Pending", "{}", pod.0["status"]);
            node.withdraw("sysctl")?;
            node.until_gone("sysctl")
        })
    }
);

test!(
    fn a_memory_limit_that_nothing_can_start_in_is_named(t: &Test) -> Result {
        // containerd's pause container can't start in such a pod either.
        only_ours(t)?;
        with(t, |node| {
            let low = json!({"resources": {"limits": {"memory": "1Ki"}}});
            node.run(&manifest(
                "low",
                json!({"containers": [busybox_with("main", STAY, &low)]}),
            ))?;
            names(&failed_to_start(node, "low")?, &["memory"])
        })
    }
);
