//! What a pod's security context asks for, under a real kubelet.

use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::cri::names;
use crate::host::process;
use crate::kubelet::{STAY, busybox_with, with};
use crate::test;

fn security(context: &Value) -> Value {
    json!({"securityContext": context})
}

test!(
    fn a_pod_in_a_user_namespace_is_root_only_inside(t: &Test) -> Result {
        with(t, |node| {
            let mounted = json!({"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]});
            let spec = json!({
                "hostUsers": false,
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [
                    busybox_with("main", &format!("echo mine >/scratch/file; {STAY}"), &mounted),
                    busybox_with("other", STAY, &mounted),
                ],
            });
            let pod = node.up("users", spec)?;
            let pid = node.main_pid(&pod, "main")?;
            let outside: u32 = process::status_field(pid, "Uid")?
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .parse()?;
            ensure!(outside >= 65536, "root inside is user {outside} of the node");
            let seen = node.exec(
                &pod,
                "other",
                "id -u; stat -c %u /scratch/file /etc/passwd; cat /scratch/file; cat /proc/self/uid_map; \
                 mount -t tmpfs t /tmp 2>/dev/null || echo refused",
            )?;
            names(
                &seen,
                &["0\n0\n0\nmine", &outside.to_string(), "65536", "refused"],
            )?;
            for kind in ["user", "net", "ipc", "uts"] {
                let other = node.main_pid(&pod, "other")?.to_string();
                let (one, two) = (
                    process::namespace(&pid.to_string(), kind)?,
                    process::namespace(&other, kind)?,
                );
                ensure!(
                    one == two && one != process::namespace("self", kind)?,
                    "{kind}: {one} {two}"
                );
            }
            // On the node's disk it is nobody's but root's own, mapped at the mount.
            let file = format!(
                "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/scratch/file",
                pod.uid()
            );
            ensure!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(file)?) == 0);
            Ok(())
        })
    }
);

test!(
    fn each_kind_of_seccomp_profile_is_the_one_that_is_asked_for(t: &Test) -> Result {
        with(t, |node| {
            let profiles = "/var/lib/kubelet/seccomp/profiles";
            fs::create_dir_all(profiles)?;
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
            });
            fs::write(format!("{profiles}/no-mkdir.json"), profile.to_string())?;
            let kind = |profile: Value| security(&json!({"seccompProfile": profile}));
            let spec = json!({"containers": [
                busybox_with("default", STAY, &kind(json!({"type": "RuntimeDefault"}))),
                busybox_with("none", STAY, &kind(json!({"type": "Unconfined"}))),
                busybox_with("own", STAY, &kind(json!({"type": "Localhost", "localhostProfile": "profiles/no-mkdir.json"}))),
            ]});
            let pod = node.up("seccomp", spec)?;
            for (name, mode) in [("default", "2"), ("none", "0"), ("own", "2")] {
                let found = process::status_field(node.main_pid(&pod, name)?, "Seccomp")?;
                ensure!(found == mode, "{name}: {found}");
            }
            let refused = node.exec(&pod, "own", "mkdir /x 2>&1; true")?;
            names(&refused, &["Operation not permitted"])?;
            ensure!(node.exec(&pod, "default", "mkdir /x && echo made")? == "made");
            // What the default profile keeps from who has no CAP_SYS_ADMIN.
            names(
                &node.exec(&pod, "default", "unshare -U true 2>&1; true")?,
                &["not permitted"],
            )?;
            Ok(())
        })
    }
);

test!(
    fn users_capabilities_and_a_read_only_root_are_what_is_asked_for(t: &Test) -> Result {
        with(t, |node| {
            let strict = json!({
                "runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            });
            let some = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "SYS_TIME"]}});
            let spec = json!({"containers": [
                busybox_with("strict", STAY, &security(&strict)), busybox_with("some", STAY, &security(&some)),
            ]});
            let pod = node.up("strict", spec)?;
            let seen = node.exec(
                &pod,
                "strict",
                "id; touch /x 2>&1; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status",
            )?;
            names(
                &seen,
                &[
                    "uid=1000",
                    "gid=2000",
                    "Read-only file system",
                    "CapEff:\t0000000000000000",
                    "CapBnd:\t0000000000000000",
                    "NoNewPrivs:\t1",
                ],
            )?;
            // 10 and 25.
            names(
                &node.exec(&pod, "some", "grep CapEff /proc/self/status")?,
                &["0000000002000400"],
            )
        })
    }
);

test!(
    fn a_privileged_container_has_the_devices_and_the_kernels_files(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({"containers": [
                busybox_with("strong", STAY, &security(&json!({"privileged": true}))),
                busybox_with("weak", STAY, &json!({})),
            ]});
            let pod = node.up("privileged", spec)?;
            let look = "ls /dev | wc -l; mkdir /m; mount -t tmpfs t /m 2>/dev/null && echo mounted; \
                        test -w /proc/sys/kernel/hostname && grep -q ' /sys sysfs rw' /proc/mounts && echo writable; true";
            let (strong, weak) = (node.exec(&pod, "strong", look)?, node.exec(&pod, "weak", look)?);
            names(&strong, &["mounted", "writable"])?;
            let count = |text: &str| text.lines().next().and_then(|line| line.parse::<u32>().ok());
            ensure!(count(&strong) > count(&weak), "{strong}\n{weak}");
            ensure!(!weak.contains("mounted") && !weak.contains("writable"), "{weak}");
            Ok(())
        })
    }
);

test!(
    fn an_apparmor_profile_confines_a_container_and_one_that_is_not_loaded_is_named(t: &Test) -> Result {
        if !fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y'))
        {
            t.skip("no AppArmor")?;
        }
        with(t, |node| {
            let kind = |profile: Value| security(&json!({"appArmorProfile": profile}));
            let spec = json!({"containers": [
                busybox_with("default", STAY, &kind(json!({"type": "RuntimeDefault"}))),
                busybox_with("none", STAY, &kind(json!({"type": "Unconfined"}))),
            ]});
            let pod = node.up("apparmor", spec)?;
            let label = |name: &str| node.exec(&pod, name, "cat /proc/self/attr/current");
            names(&label("default")?, &["enforce"])?;
            ensure!(label("none")? == "unconfined", "{}", label("none")?);
            let missing = kind(json!({"type": "Localhost", "localhostProfile": "no-such-profile"}));
            let spec = json!({"containers": [busybox_with("main", STAY, &missing)]});
            node.run(&crate::kubelet::manifest("missing", spec))?;
            let pod = node.until_pod("missing", "refused", |pod| {
                pod.waiting("main").1.contains("no-such-profile")
                    || pod.0["status"]["message"]
                        .as_str()
                        .is_some_and(|text| text.contains("no-such-profile"))
            })?;
            ensure!(pod.container("main")["state"]["running"].is_null());
            Ok(())
        })
    }
);
