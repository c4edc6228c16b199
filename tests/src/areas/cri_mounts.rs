//! What a CRI server mounts into containers: directories of the host, images, and the volumes that images define.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::cri::proto::*;
use crate::cri::{Code, Container, Cri, Pod, check, namespaces, refused, security, with};
use crate::image_registry::ImageRegistry;
use crate::registry::Result;
use crate::test;

/// The map of a pod with users of its own.
const MAP: IdMapping = IdMapping {
    host_id: 200_000,
    container_id: 0,
    length: 65536,
};

/// Serves and pulls an image of two layers that has busybox and says this of its containers; its name.
fn image(
    cri: &Cri<'_>,
    registry: &ImageRegistry,
    config: &serde_json::Value,
    upper: &[(&str, &[u8])],
) -> Result<String> {
    let busybox = fs::read("/bin/busybox").context("/bin/busybox")?;
    let lower: &[(&str, &[u8])] = &[
        ("bin/busybox", &busybox),
        ("bin/sh -> busybox", b""),
        ("tmp/", b""),
        ("data/hidden", b"of the lower layer"),
    ];
    registry.push_with("app", "1", &[lower, upper], config);
    let name = registry.name("app:1");
    pull(cri, &name)?;
    Ok(name)
}

fn pull(cri: &Cri<'_>, name: &str) -> Result {
    let request = PullImageRequest {
        image: Some(spec(name)),
        ..PullImageRequest::default()
    };
    check("PullImage", cri.pull_image(request)).map(drop)
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.into(),
        ..ImageSpec::default()
    }
}

/// Runs a container of the image that sleeps.
fn run<'c, 't>(
    pod: &Pod<'c, 't>,
    image: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<Container<'c, 't>> {
    pod.run_with("web", "", |config| {
        config.image = Some(spec(image));
        config.command = ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec();
        change(config);
    })
}

/// A pod with users of its own.
fn pod_with_users<'c, 't>(cri: &'c Cri<'t>) -> Result<Pod<'c, 't>> {
    cri.pod_with(|config| {
        namespaces(config).userns_options = Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![MAP],
            gids: vec![MAP],
        });
    })
}

/// What a script in the container prints.
fn says(container: &Container<'_, '_>, script: &str) -> Result<String> {
    let output = container.exec(&["/bin/busybox", "sh", "-c", script])?.ok()?;
    Ok(output.stdout.trim_end().to_owned())
}

test!(
    fn a_directory_of_the_host_is_mounted(t: &Test) -> Result {
        with(t, |cri| {
            let volume = t.path("volume");
            fs::create_dir(&volume)?;
            fs::write(volume.join("file"), "of the host")?;
            let mount = |path: &str, readonly| Mount {
                container_path: path.into(),
                host_path: volume.display().to_string(),
                readonly,
                ..Mount::default()
            };
            let web = cri.pod()?.run_with("web", "sleep 1000", |config| {
                config.mounts = vec![mount("/volume", false), mount("/read-only", true)];
            })?;
            web.exec(&["cat", "/read-only/file"])?.prints("of the host")?;
            web.sh("echo of the container >/volume/other")?;
            ensure!(fs::read_to_string(volume.join("other"))? == "of the container\n");
            web.exec(&["touch", "/read-only/no"])?
                .fails_with(&["Read-only"])?;
            let mounts = web.status()?.mounts;
            ensure!(
                mounts
                    .iter()
                    .any(|mount| mount.container_path == "/read-only" && mount.readonly),
                "{mounts:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn a_volume_of_the_image_is_a_directory_of_the_container_with_what_the_image_has_there(
        t: &Test,
    ) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let config = json!({"Volumes": {"/data": {}, "new/one": {}, "/link/in": {}}});
            let upper: &[(&str, &[u8])] = &[
                ("data/kept", b"kept"),
                ("link -> /data", b""),
                ("data/in/x", b"x"),
            ];
            let image = image(cri, &registry, &config, upper)?;
            let pod = cri.pod()?;
            let web = run(&pod, &image, |config| security(config).readonly_rootfs = true)?;
            ensure!(says(&web, "cat /data/hidden /data/kept")? == "of the lower layerkept");
            says(
                &web,
                "echo mine >/data/kept; echo >/new/one/file; ! echo >/tmp/no",
            )?;
            ensure!(says(&web, "cat /link/in/x")? == "x");
            ensure!(says(&web, "grep -c ' /data ' /proc/mounts")? == "1");
            web.stop(0)?;
            web.remove()?;
            let again = run(&pod, &image, |_| {})?;
            ensure!(
                says(&again, "cat /data/kept; ls /new/one")? == "kept",
                "it is of another container"
            );
            Ok(())
        })
    }
);

test!(
    fn what_the_pod_mounts_takes_the_place_of_the_images_volume(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let config = json!({"Volumes": {"/data/": {}}});
            let image = image(cri, &registry, &config, &[])?;
            let volume = t.path("volume");
            fs::create_dir(&volume)?;
            let web = run(&cri.pod()?, &image, |config| {
                config.mounts = vec![Mount {
                    container_path: "/data".into(),
                    host_path: volume.display().to_string(),
                    ..Mount::default()
                }];
            })?;
            says(&web, "echo kept >/data/file; ! ls /data/hidden")?;
            ensure!(fs::read_to_string(volume.join("file"))? == "kept\n");
            Ok(())
        })
    }
);

test!(
    fn what_is_written_below_a_mount_of_the_pod_stays_in_it(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let image = image(cri, &registry, &json!({"Volumes": {"/var/lib/db/data": {}}}), &[])?;
            let volume = t.path("volume");
            fs::create_dir_all(volume.join("data"))?;
            let web = run(&cri.pod()?, &image, |config| {
                config.mounts = vec![Mount {
                    container_path: "/var/lib/db".into(),
                    host_path: volume.display().to_string(),
                    ..Mount::default()
                }];
            })?;
            says(&web, "echo kept >/var/lib/db/data/file")?;
            ensure!(fs::read_to_string(volume.join("data/file"))? == "kept\n");
            Ok(())
        })
    }
);

test!(
    fn a_volume_of_the_image_that_is_a_link_out_has_nothing_of_the_host(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let secret = t.path("secret");
            fs::create_dir(&secret)?;
            fs::write(secret.join("file"), "of the host")?;
            let up = format!("../../../../../../../..{}", secret.display());
            let config = json!({"Volumes": {"/absolute": {}, "/up": {}}});
            let links = [format!("absolute -> {}", secret.display()), format!("up -> {up}")];
            let upper: &[(&str, &[u8])] =
                &[(&links[0], b""), (&links[1], b""), ("data/in -> /absolute", b"")];
            let image = image(cri, &registry, &config, upper)?;
            let web = run(&cri.pod()?, &image, |_| {})?;
            ensure!(says(&web, "ls /absolute /up | grep -c file || true")? == "0");
            Ok(())
        })
    }
);

test!(
    fn a_volume_of_the_image_over_the_confinement_is_refused_by_its_path(t: &Test) -> Result {
        crate::cri::only_ours(t)?;
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pod = cri.pod()?;
            for path in ["/", "/proc", "/a/../proc/self", "/sys/fs/cgroup", "/dev"] {
                let image = image(cri, &registry, &json!({"Volumes": {path: {}}}), &[])?;
                let mut config = pod.container_config("web", "")?;
                config.image = Some(spec(&image));
                let request = pod.creation(config);
                refused(
                    cri.create_container(request),
                    Code::InvalidArgument,
                    &["Volumes", path],
                )?;
            }
            Ok(())
        })
    }
);

test!(
    fn volumes_of_the_image_belong_to_the_users_of_a_pod_that_has_its_own(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let image = image(cri, &registry, &json!({"Volumes": {"/data": {}}}), &[])?;
            let web = run(&pod_with_users(cri)?, &image, |_| {})?;
            ensure!(says(&web, "stat -c %u:%g /data /data/hidden")? == "0:0\n0:0");
            says(&web, "echo >/data/mine")?;
            ensure!(says(&web, "stat -c %u /data/mine")? == "0");
            Ok(())
        })
    }
);

test!(
    fn an_image_is_mounted_read_only_and_a_part_of_it_too(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let image = image(cri, &registry, &json!({}), &[("models/a/weights", b"1.5")])?;
            let mount = |path: &str, part: &str| Mount {
                container_path: path.into(),
                image: Some(spec(&image)),
                image_sub_path: part.into(),
                readonly: true,
                ..Mount::default()
            };
            let web = cri.pod()?.run_with("web", "sleep 1000", |config| {
                config.mounts = vec![mount("/whole", ""), mount("/part", "models/a")];
            })?;
            ensure!(web.sh("cat /whole/data/hidden /part/weights")? == "of the lower layer1.5");
            web.exec(&["touch", "/whole/no"])?.fails_with(&["Read-only"])?;
            Ok(())
        })
    }
);

test!(
    fn an_image_that_is_mounted_belongs_to_the_users_of_a_pod_that_has_its_own(t: &Test) -> Result {
        with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let two = image(cri, &registry, &json!({}), &[("models/a/weights", b"1.5")])?;
            registry.push("single", "1", &[&[("file", b"of one layer")]]);
            let one = registry.name("single:1");
            pull(cri, &one)?;
            let mount = |path: &str, image: &str, part: &str| Mount {
                container_path: path.into(),
                image: Some(spec(image)),
                image_sub_path: part.into(),
                readonly: true,
                uid_mappings: vec![MAP],
                gid_mappings: vec![MAP],
                ..Mount::default()
            };
            let web = pod_with_users(cri)?.run_with("web", "sleep 1000", |config| {
                config.mounts = vec![
                    mount("/two", &two, ""),
                    mount("/part", &two, "models/a"),
                    mount("/one", &one, ""),
                ];
            })?;
            let owners = web.sh("stat -c %u:%g /two/data/hidden /part/weights /one/file")?;
            ensure!(owners == "0:0\n0:0\n0:0", "{owners}");
            ensure!(web.sh("cat /one/file")? == "of one layer");
            web.exec(&["touch", "/two/no"])?.fails_with(&["Read-only"])?;
            Ok(())
        })
    }
);
