//! Volumes as the kubelet makes them, seen from inside and from the node.

use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::cri::names;
use crate::kubelet::{BUSYBOX, STAY, Setup, busybox, busybox_with, manifest, with};
use crate::test;
use crate::wait::until;

fn two_that_share(volume: &Value) -> Value {
    let mounted = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    json!({
        "volumes": [volume],
        "containers": [
            busybox_with("writer", &format!("echo one >/shared/file; {STAY}"), &mounted),
            busybox_with("reader", STAY, &mounted),
        ],
    })
}

test!(
    fn containers_of_a_pod_share_an_empty_directory_that_goes_with_it(t: &Test) -> Result {
        with(t, |node| {
            let pod = node.up("disk", two_that_share(&json!({"name": "shared", "emptyDir": {}})))?;
            until("the file", || {
                Ok((node.exec(&pod, "reader", "cat /shared/file; true")? == "one").then_some(()))
            })?;
            let directory = format!(
                "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/shared",
                pod.uid()
            );
            ensure!(fs::read_to_string(format!("{directory}/file"))?.trim() == "one");
            node.withdraw("disk")?;
            node.until_gone("disk")?;
            until("the directory to go", || {
                Ok(fs::metadata(&directory).is_err().then_some(()))
            })
        })
    }
);

test!(
    fn an_empty_directory_in_memory_has_the_size_it_may_have(t: &Test) -> Result {
        with(t, |node| {
            let volume = json!({"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}});
            let pod = node.up("memory", two_that_share(&volume))?;
            let seen = node.exec(
                &pod,
                "reader",
                "grep ' /shared ' /proc/mounts; df -k /shared | tail -n 1; \
                 dd if=/dev/zero of=/shared/big bs=1M count=20 2>&1; rm /shared/big; cat /shared/file",
            )?;
            names(&seen, &["tmpfs", " 8192 ", "No space left on device", "one"])
        })
    }
);

test!(
    fn files_of_the_host_are_mounted_as_they_are_asked_for(t: &Test) -> Result {
        with(t, |node| {
            let directory = t.path("host");
            fs::create_dir(&directory)?;
            fs::write(directory.join("file"), "from the host\n")?;
            let spec = json!({
                "volumes": [
                    {"name": "directory", "hostPath": {"path": directory, "type": "Directory"}},
                    {"name": "file", "hostPath": {"path": directory.join("file"), "type": "File"}},
                    {"name": "new", "hostPath": {"path": directory.join("new"), "type": "DirectoryOrCreate"}},
                ],
                "containers": [busybox_with(
                    "main",
                    "cat /file; echo x >/readonly/y; echo in >/new/in && cat /new/in",
                    &json!({"volumeMounts": [
                        {"name": "directory", "mountPath": "/readonly", "readOnly": true},
                        {"name": "file", "mountPath": "/file"},
                        {"name": "new", "mountPath": "/new"},
                    ]}),
                )],
            });
            let seen = node.output("host", spec)?;
            names(&seen, &["from the host\n", "Read-only file system", "in\n"])?;
            ensure!(fs::read_to_string(directory.join("new/in"))? == "in\n");
            Ok(())
        })
    }
);

test!(
    fn a_mount_made_in_one_container_is_seen_where_propagation_lets_it(t: &Test) -> Result {
        with(t, |node| {
            let directory = t.path("host");
            fs::create_dir(&directory)?;
            let mounted = |propagation: &str| json!([{"name": "host", "mountPath": "/host", "mountPropagation": propagation}]);
            let spec = json!({
                "volumes": [{"name": "host", "hostPath": {"path": directory}}],
                "containers": [
                    busybox_with(
                        "giver",
                        &format!("mkdir /host/in && mount -t tmpfs t /host/in && touch /host/in/file; {STAY}"),
                        &json!({"volumeMounts": mounted("Bidirectional"), "securityContext": {"privileged": true}}),
                    ),
                    busybox_with("taker", STAY, &json!({"volumeMounts": mounted("HostToContainer")})),
                    busybox_with("other", STAY, &json!({"volumeMounts": mounted("None")})),
                ],
            });
            let pod = node.up("propagation", spec)?;
            until("the mount in the other container", || {
                let seen = node.exec(&pod, "taker", "ls /host/in; true")?;
                Ok((seen == "file").then_some(()))
            })?;
            ensure!(directory.join("in/file").exists(), "not on the node");
            let private = node.exec(&pod, "other", "ls /host/in; true")?;
            ensure!(private.is_empty() || private == "file", "{private}");
            // The one that made it can't take it along.
            node.exec(&pod, "giver", "umount /host/in")?;
            until("the mount to go", || {
                Ok((!directory.join("in/file").exists()).then_some(()))
            })
        })
    }
);

test!(
    fn described_and_sub_path_volumes_show_the_pod_to_itself(t: &Test) -> Result {
        with(t, |node| {
            let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
            let mut name = field("metadata.name");
            name["path"] = json!("name");
            let mut labels = field("metadata.labels");
            labels["path"] = json!("labels");
            let limit = json!({"path": "limit", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory"}});
            let spec = json!({
                "volumes": [
                    {"name": "all", "downwardAPI": {"items": [name, labels, limit]}},
                    {"name": "scratch", "emptyDir": {}},
                ],
                "initContainers": [busybox_with(
                    "init", "mkdir -p /scratch/a/b /scratch/described-node; echo deep >/scratch/a/b/file",
                    &json!({"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}),
                )],
                "containers": [busybox_with(
                    "main",
                    "cat /all/name; echo; cat /all/labels; echo; cat /all/limit; echo; cat /file; ls /own; echo $UID_OF $NODE; \
                     cd /own && touch x",
                    &json!({
                        "env": [
                            {"name": "POD", "valueFrom": field("metadata.name")},
                            {"name": "UID_OF", "valueFrom": field("metadata.uid")},
                            {"name": "NODE", "valueFrom": field("spec.nodeName")},
                        ],
                        "resources": {"limits": {"memory": "64Mi"}},
                        "volumeMounts": [
                            {"name": "all", "mountPath": "/all"},
                            {"name": "scratch", "mountPath": "/file", "subPath": "a/b/file"},
                            {"name": "scratch", "mountPath": "/own", "subPathExpr": "$(POD)"},
                        ],
                    }),
                )],
            });
            let seen = node.output("described", spec)?;
            names(
                &seen,
                &[
                    "described-node\n",
                    "app=\"described\"\n",
                    "67108864\n",
                    "deep\n",
                    " node\n",
                ],
            )
        })
    }
);

test!(
    fn the_files_of_a_described_volume_have_the_modes_and_the_owner_that_they_are_given(t: &Test) -> Result {
        with(t, |node| {
            let item = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
            let mut secret = item("deep/secret", "metadata.uid");
            secret["mode"] = json!(0o400);
            let spec = json!({
                "securityContext": {"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 4321},
                "restartPolicy": "Never",
                "volumes": [{"name": "all", "downwardAPI": {
                    "defaultMode": 0o444, "items": [item("name", "metadata.name"), secret],
                }}],
                "containers": [busybox_with(
                    "main",
                    "cd /all; cat name; echo; cat deep/secret && echo; stat -L -c '%a %u:%g %n' name deep/secret; \
                     readlink name; touch x",
                    &json!({"volumeMounts": [{"name": "all", "mountPath": "/all", "readOnly": true}]}),
                )],
            });
            // Of an API server even where its sources need none: it is this pod's trouble alone.
            let mut projected = spec.clone();
            let sources = projected["volumes"][0]["downwardAPI"].take();
            projected["volumes"][0] = json!({"name": "all", "projected": {"sources": [{"downwardAPI": {"items": sources["items"]}}]}});
            node.run(&manifest("projected", projected))?;
            node.run(&manifest("described", spec))?;
            let pod = node.until_pod("described", "at its end", |pod| pod.phase() == "Failed")?;
            let seen = node.log_of(&pod, "main")?;
            names(
                &seen,
                &[
                    "described-node\n",
                    pod.uid(),
                    "444 0:4321 name\n",
                    "440 0:4321 deep/secret\n",
                    // Files change all at once, by one link.
                    "..data/name\n",
                    "Read-only file system",
                ],
            )?;
            node.until_waiting("projected", "main", &["ContainerCreating"])
                .map(drop)
        })
    }
);

test!(
    fn an_image_is_a_volume(t: &Test) -> Result {
        let setup = Setup {
            gates: vec!["ImageVolume: true"],
            ..Setup::default()
        };
        setup.with(t, |node| {
            let spec = json!({
                "volumes": [{"name": "image", "image": {"reference": BUSYBOX, "pullPolicy": "IfNotPresent"}}],
                "containers": [busybox_with(
                    "main",
                    "ls /image/bin/busybox /bin-of-image/busybox; touch /image/x",
                    &json!({"volumeMounts": [
                        {"name": "image", "mountPath": "/image", "readOnly": true},
                        {"name": "image", "mountPath": "/bin-of-image", "subPath": "bin", "readOnly": true},
                    ]}),
                )],
            });
            node.run(&manifest("imagevolume", {
                let mut spec = spec;
                spec["restartPolicy"] = json!("Never");
                spec
            }))?;
            let pod = node.until_pod("imagevolume", "at its end", |pod| pod.phase() == "Failed")?;
            let seen = node.log_of(&pod, "main")?;
            names(
                &seen,
                &[
                    "/image/bin/busybox",
                    "/bin-of-image/busybox",
                    "Read-only file system",
                ],
            )
        })
    }
);

test!(
    fn a_volume_of_a_pod_is_its_groups(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({
                "securityContext": {"fsGroup": 4321, "runAsUser": 1234, "supplementalGroups": [777]},
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [
                    busybox_with(
                        "main",
                        "id; touch /scratch/new && stat -c '%u:%g' /scratch/new /scratch",
                        &json!({"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}),
                    ),
                    busybox("second", "true"),
                ],
            });
            let seen = node.output("group", spec)?;
            names(&seen, &["uid=1234", "4321", "777", "1234:4321\n0:4321\n"])
        })
    }
);
