//! One test per vulnerability that CRI servers have had, by its mechanism: images, pods and clients that ask for what is not
//! theirs. What a runtime is to blame for is in `security.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::cri::proto::*;
use crate::cri::websocket::WebSocket;
use crate::cri::{Code, Container, Cri, Pod, check, names, namespaces, only_ours, refused, security, with};
use crate::host::process;
use crate::image_registry::ImageRegistry;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// Serves and pulls an image that has busybox, these files, and says this of its containers.
fn image(
    cri: &Cri<'_>,
    registry: &ImageRegistry,
    config: &Value,
    files: &[(&str, &[u8])],
) -> Result<ImageSpec> {
    let busybox = fs::read("/bin/busybox").context("/bin/busybox")?;
    let lower: &[(&str, &[u8])] = &[
        ("bin/busybox", &busybox),
        ("bin/sh -> busybox", b""),
        ("tmp/", b""),
    ];
    registry.push_with("app", "1", &[lower, files], config);
    let spec = ImageSpec {
        image: registry.name("app:1"),
        ..ImageSpec::default()
    };
    let request = PullImageRequest {
        image: Some(spec.clone()),
        ..PullImageRequest::default()
    };
    check("PullImage", cri.pull_image(request))?;
    Ok(spec)
}

/// A container of the image that sleeps.
fn of_image(pod: &Pod<'_, '_>, name: &str, image: &ImageSpec) -> Result<ContainerConfig> {
    let mut config = pod.container_config(name, "")?;
    config.image = Some(image.clone());
    config.command = ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec();
    Ok(config)
}

fn started<'c, 't>(pod: &Pod<'c, 't>, config: ContainerConfig) -> Result<Container<'c, 't>> {
    let container = pod.create(config)?;
    container.start()?;
    Ok(container)
}

/// The OCI configuration that the runtime was given: of the one bundle that there is.
fn given(cri: &Cri<'_>, container: &Container<'_, '_>) -> Result<Value> {
    let path = found(&cri.state(), "config.json")?
        .into_iter()
        .find(|path| path.to_string_lossy().contains(&container.id))
        .with_context(|| format!("the bundle of {}", container.id))?;
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Files of this name below a directory.
fn found(directory: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(directory)?.flatten() {
        let kind = entry.file_type()?;
        if kind.is_file() && entry.file_name() == name {
            list.push(entry.path());
        } else if kind.is_dir() && entry.file_name() != "rootfs" {
            list.extend(found(&entry.path(), name)?);
        }
    }
    Ok(list)
}

/// The paths of all files below a directory, but for roots of containers.
fn files(directory: &Path, list: &mut Vec<String>) -> Result {
    for entry in fs::read_dir(directory)?.flatten() {
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "rootfs" {
            files(&entry.path(), list)?;
        } else if kind.is_file() {
            list.push(entry.path().display().to_string());
        }
    }
    Ok(())
}

test!(
    fn cve_2024_40635_a_user_of_an_image_beyond_the_range_is_never_root(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pod = cri.pod()?;
            for (i, user) in ["2147483648", "2147483648:2147483648", "4294967294"]
                .iter()
                .enumerate()
            {
                let image = image(cri, &registry, &json!({"User": user}), &[])?;
                let Ok(container) = started(&pod, of_image(&pod, &format!("c{i}"), &image)?) else {
                    continue;
                };
                let uid = container.exec(&["/bin/busybox", "id", "-u"])?.ok()?.stdout;
                ensure!(Some(uid.trim()) == user.split(':').next(), "{user}: {uid}");
            }
            for user in ["4294967295", "4294967296", "0:4294967296", "-1"] {
                let image = image(cri, &registry, &json!({"User": user}), &[])?;
                refused(
                    cri.create_container(pod.creation(of_image(&pod, "no", &image)?)),
                    Code::InvalidArgument,
                    &[user.split(':').next_back().unwrap_or(user)],
                )?;
            }
            Ok(())
        })
    }
);

test!(
    fn cve_2026_46680_a_number_too_large_for_a_user_is_not_looked_up_as_a_name(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pod = cri.pod()?;
            let passwd: &[(&str, &[u8])] =
                &[("etc/passwd", b"4294967296:x:0:0::/:\n99999999999:x:0:0::/:\n")];
            for user in ["4294967296", "99999999999", "4294967296:0"] {
                let image = image(cri, &registry, &json!({"User": user}), passwd)?;
                refused(
                    cri.create_container(pod.creation(of_image(&pod, "no", &image)?)),
                    Code::InvalidArgument,
                    &[user.split(':').next().unwrap_or(user)],
                )?;
            }
            let image = image(cri, &registry, &json!({}), passwd)?;
            let mut config = of_image(&pod, "no", &image)?;
            security(&mut config).run_as_username = "4294967296".into();
            refused(
                cri.create_container(pod.creation(config)),
                Code::InvalidArgument,
                &["4294967296"],
            )
        })
    }
);

/// An image whose file is too large for what it is.
fn too_large(t: &test::Test, name: &str, line: &str) -> Result {
    only_ours(t)?;
    with(t, |cri| {
        let registry = ImageRegistry::start()?;
        let pod = cri.pod()?;
        let file = line.repeat((2 << 20) / line.len());
        let image = image(
            cri,
            &registry,
            &json!({"User": "ann"}),
            &[(name, file.as_bytes())],
        )?;
        refused(
            cri.create_container(pod.creation(of_image(&pod, "no", &image)?)),
            Code::FailedPrecondition,
            &[name, "1048576"],
        )
    })
}

test!(
    fn cve_2026_47262_a_group_file_of_an_image_that_is_too_large_is_not_read(t: &Test) -> Result {
        too_large(t, "etc/group", "g:x:7:ann,ann,ann,ann,ann\n")
    }
);

test!(
    fn cve_2025_4437_a_passwd_of_an_image_that_is_too_large_is_not_read(t: &Test) -> Result {
        too_large(t, "etc/passwd", "ann:x:7:7::/:/bin/sh\n")
    }
);

test!(
    fn cve_2026_53488_labels_of_an_image_are_nobodys_orders(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let ran = t.path("ran");
            let program = t.path("program");
            fs::write(&program, format!("#!/bin/sh\n: >{}\n", ran.display()))?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            let orders = [
                (
                    "containerd.io/restart.loguri",
                    format!("binary://{}", program.display()),
                ),
                ("containerd.io/restart.status", "running".into()),
                ("containerd.io/restart.policy", "always".into()),
                ("io.kubernetes.cri.sandbox-id", "another".into()),
                ("org.systemd.property.ExecStopPost", "['/bin/true']".into()),
                ("run.oci.keep_original_groups", "1".into()),
                ("cdi.k8s.io/x", "vendor.com/gpu=0".into()),
            ];
            let labels: serde_json::Map<String, Value> = orders
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect();
            let image = image(cri, &registry, &json!({"Labels": labels}), &[])?;
            let pod = cri.pod()?;
            let container = started(&pod, of_image(&pod, "web", &image)?)?;
            ensure!(
                container.status()?.labels.is_empty(),
                "{:?}",
                container.status()?.labels
            );
            if cri.is_ours() {
                let annotations = given(cri, &container)?["annotations"].clone();
                for (name, value) in &orders {
                    ensure!(annotations[*name] != json!(value), "{annotations}");
                }
            }
            container.stop(0)?;
            container.remove()?;
            ensure!(!ran.exists(), "a label's program was run");
            Ok(())
        })
    }
);

test!(
    fn cve_2024_3154_annotations_of_a_pod_reach_no_service_manager(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod_with(|config| {
                let order = (
                    "org.systemd.property.ExecStopPost",
                    "[('/bin/true', ['true'], false)]",
                );
                config.annotations.insert(order.0.into(), order.1.into());
            })?;
            let web = pod.run_with("web", "sleep 1000", |config| {
                config
                    .annotations
                    .insert("org.systemd.property.Slice".into(), "'system.slice'".into());
            })?;
            let annotations = given(cri, &web)?["annotations"].to_string();
            ensure!(!annotations.contains("org.systemd"), "{annotations}");
            Ok(())
        })
    }
);

test!(
    fn cve_2025_0750_a_log_path_leads_to_no_other_place(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let outside = t.path("outside");
            let up = "../".repeat(16);
            for path in [
                format!("{up}{}", outside.display()),
                outside.display().to_string(),
            ] {
                let mut config = pod.container_config("web", "echo x")?;
                config.log_path = path.trim_start_matches("//").to_owned();
                if cri.is_ours() {
                    refused(
                        cri.create_container(pod.creation(config)),
                        Code::InvalidArgument,
                        &["log_path"],
                    )?;
                }
                ensure!(!outside.exists(), "{path}");
            }
            let mut config = cri.pod_config()?;
            config.log_directory = format!("{}/../..{}", config.log_directory, outside.display());
            let _ = cri.run_pod(&config);
            ensure!(!outside.exists(), "{}", config.log_directory);
            Ok(())
        })
    }
);

test!(
    fn cve_2024_5154_what_an_image_links_to_the_host_gets_no_file_of_ours(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let outside = t.path("outside");
            fs::create_dir(&outside)?;
            let link = format!("etc -> {}", outside.display());
            let dev = format!("dev -> {}", outside.display());
            let config = json!({"WorkingDir": "/etc/made", "Volumes": {"/etc/volume": {}}});
            for (i, links) in [[(link.as_str(), &b""[..])], [(dev.as_str(), b"")]]
                .iter()
                .enumerate()
            {
                let image = image(cri, &registry, &config, links)?;
                let pod = cri.pod()?;
                // Hosts, name and resolv.conf are mounted below /etc, and links made in /dev.
                let _ = started(&pod, of_image(&pod, &format!("c{i}"), &image)?);
                let made: Vec<_> = fs::read_dir(&outside)?
                    .flatten()
                    .map(|entry| entry.path())
                    .collect();
                ensure!(made.is_empty(), "made outside: {made:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn cve_2024_21626_the_working_directory_of_an_image_makes_nothing_on_the_node(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let outside = t.path("outside");
            fs::create_dir(&outside)?;
            for descriptor in 3..16 {
                let up = "../".repeat(16);
                let config = json!({"WorkingDir": format!("/proc/self/fd/{descriptor}/{up}{}/made", outside.display())});
                let image = image(cri, &registry, &config, &[])?;
                let pod = cri.pod()?;
                if let Ok(container) = started(&pod, of_image(&pod, "web", &image)?) {
                    container.remove()?;
                }
                let made: Vec<_> = fs::read_dir(&outside)?
                    .flatten()
                    .map(|entry| entry.path())
                    .collect();
                ensure!(made.is_empty(), "descriptor {descriptor}: made outside: {made:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn cve_2025_47291_a_container_with_users_of_its_own_is_in_its_pods_cgroup(t: &Test) -> Result {
        with(t, |cri| {
            let map = IdMapping {
                host_id: 200_000,
                container_id: 0,
                length: 65_536,
            };
            let pod = cri.pod_with(|config| {
                namespaces(config).userns_options = Some(UserNamespace {
                    mode: NamespaceMode::Pod.into(),
                    uids: vec![map],
                    gids: vec![map],
                });
            })?;
            let web = pod.run("web", "sleep 98761")?;
            web.sh("true")?;
            let parent = &pod.config.linux.as_ref().context("linux")?.cgroup_parent;
            // The shim's daemon is the supervisor's by now.
            let sleeper = process::descendants(nix::unistd::getppid().as_raw())
                .into_iter()
                .find(|&pid| process::describe(pid).contains("98761"))
                .context("the container's process")?;
            let groups = fs::read_to_string(format!("/proc/{sleeper}/cgroup"))?;
            // On v1 there is a line for each hierarchy: all that count.
            let counted: Vec<&str> = groups
                .lines()
                .filter(|line| {
                    line.contains(":memory:") || line.contains(":pids:") || line.starts_with("0::/")
                })
                .filter(|line| !line.ends_with(":/"))
                .collect();
            ensure!(
                !counted.is_empty() && counted.iter().all(|line| line.contains(parent.as_str())),
                "{groups}"
            );
            Ok(())
        })
    }
);

test!(
    fn cve_2025_64329_attaching_and_going_away_leaves_nothing_behind(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let web = cri
                .pod()?
                .run_with("web", "sleep 1000", |config| config.stdin = true)?;
            let request = || AttachRequest {
                container_id: web.id.clone(),
                stdin: true,
                stdout: true,
                stderr: true,
                tty: false,
            };
            let held = || -> Result<(usize, String)> {
                let pid = cri.pid()?;
                let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
                Ok((open, process::status_field(pid, "Threads")?))
            };
            // Once, for what is made with the first.
            drop(WebSocket::open(
                &check("Attach", cri.attach(request()))?.url,
                "v5.channel.k8s.io",
            )?);
            for _ in 0..3 {
                let before = held()?.0;
                for i in 0..40 {
                    let url = check("Attach", cri.attach(request()))?.url;
                    // Some never come, some go without a word.
                    if i % 2 == 0 {
                        drop(WebSocket::open(&url, "v5.channel.k8s.io")?);
                    }
                }
                until("the end of all that was attached", || {
                    Ok((held()?.0 <= before + 2).then_some(()))
                })?;
            }
            web.is(ContainerState::ContainerRunning)
        })
    }
);

test!(
    fn cve_2024_25621_nobody_else_on_the_node_reads_what_is_kept(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let web = cri.pod()?.run("web", "echo kept >/secret; sleep 1000")?;
            web.sh("until [ -e /secret ]; do sleep 0.1; done")?;
            // By their names, too, which another may guess where it can't list them.
            let mut kept = Vec::new();
            for directory in [cri.root(), cri.state()] {
                files(&directory, &mut kept)?;
            }
            ensure!(kept.len() > 10, "{kept:?}");
            // A pod's name and name servers are for every user of its containers, which have these very files.
            kept.retain(|path| {
                !["/pod/hosts", "/pod/hostname", "/pod/resolv.conf"]
                    .iter()
                    .any(|end| path.ends_with(end))
            });
            let list = t.path("list");
            fs::write(&list, kept.join("\n"))?;
            let list = list.display();
            let script =
                format!(r#"while read -r file; do [ -r "$file" ] && echo "$file"; done <{list}; true"#);
            let output = Command::new("/bin/busybox")
                .args(["sh", "-c", &script])
                .uid(65534)
                .gid(65534)
                .output()?;
            let readable = String::from_utf8(output.stdout)?;
            ensure!(readable.is_empty(), "{readable}");
            let socket = std::os::unix::net::UnixStream::connect(cri.socket());
            ensure!(socket.is_ok(), "root is served");
            let output = Command::new("/bin/busybox")
                .args(["sh", "-c", &format!("[ -w {} ]", cri.socket().display())])
                .uid(65534)
                .gid(65534)
                .output()?;
            ensure!(!output.status.success(), "the socket is writable by others");
            Ok(())
        })
    }
);

test!(
    fn cve_2024_8676_2026_50195_2026_53489_2026_53492_an_image_of_a_checkpoint_is_an_image_like_any_other(
        t: &Test,
    ) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let secret = t.path("secret");
            fs::write(&secret, "of the host")?;
            let link = format!("container.log -> {}", secret.display());
            let spec = json!({
                "annotations": {"cdi.k8s.io/x": "vendor.com/gpu=0", "io.kubernetes.cri.image-name": "x"},
                "mounts": [{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]}],
                "linux": {"devices": [{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]},
            })
            .to_string();
            let dump =
                json!({"rootfsImageName": "docker.io/library/trusted:1", "runtime": "runc"}).to_string();
            let files: &[(&str, &[u8])] = &[
                (&link, b""),
                ("spec.dump", spec.as_bytes()),
                ("config.dump", dump.as_bytes()),
                ("checkpoint/inventory.img", b"x"),
            ];
            let labels = json!({"Labels": {"org.criu.checkpoint.container.name": "web",
                "io.kubernetes.cri-o.annotations.checkpoint.name": "web"}});
            let image = image(cri, &registry, &labels, files)?;
            let pod = cri.pod()?;
            let web = started(&pod, of_image(&pod, "web", &image)?)?;
            let says = |script| web.exec(&["/bin/busybox", "sh", "-c", script]);
            ensure!(
                says("[ -e /host ] || [ -e /dev/mem ]")?.code != 0,
                "the archive's mounts and devices"
            );
            ensure!(says("cat /container.log")?.code != 0, "the host's file");
            let log = fs::read_to_string(&web.log).unwrap_or_default();
            ensure!(!log.contains("of the host"), "{log}");
            let images = check("ListImages", cri.list_images(ListImagesRequest::default()))?.images;
            let tags = format!(
                "{:?}",
                images.iter().map(|image| &image.repo_tags).collect::<Vec<_>>()
            );
            ensure!(!tags.contains("trusted"), "{tags}");
            names(&tags, &["app:1"])?;
            refused(
                cri.checkpoint_container(CheckpointContainerRequest {
                    container_id: web.id.clone(),
                    ..CheckpointContainerRequest::default()
                }),
                Code::Unimplemented,
                &["CheckpointContainer"],
            )
        })
    }
);
