//! What containers of a CRI server may do: users, capabilities, system calls, AppArmor, devices by name, owners of volumes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use anyhow::ensure;

use crate::cri::proto::security_profile::ProfileType;
use crate::cri::proto::*;
use crate::cri::{Code, Container, Pod, names, only_ours, refused, security, with};
use crate::registry::Result;
use crate::test;

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

fn user(uid: i64) -> Option<Int64Value> {
    Some(Int64Value { value: uid })
}

/// A container whose security context was changed.
fn secured<'c, 't>(
    pod: &Pod<'c, 't>,
    name: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> Result<Container<'c, 't>> {
    pod.run_with(name, "sleep 1000", |config| change(security(config)))
}

fn capabilities(add: &[&str], drop: &[&str], ambient: &[&str]) -> Option<Capability> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    })
}

test!(
    fn the_default_seccomp_profile_denies_what_escapes_are_made_of(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let confined = secured(&pod, "confined", |context| {
                context.seccomp = profile(ProfileType::RuntimeDefault, "");
            })?;
            ensure!(confined.sh("grep Seccomp: /proc/1/status")?.ends_with('2'));
            ensure!(
                confined.exec(&["unshare", "-U", "true"])?.code != 0,
                "a user namespace was made"
            );
            // Ordinary life goes on: processes, pipes, files, sockets.
            confined
                .exec(&["sh", "-c", "echo a | cat >/x; ls -l /x; nc -z 127.0.0.1 1; true"])?
                .ok()?;
            let free = pod.run("free", "sleep 1000")?;
            ensure!(
                free.sh("grep Seccomp: /proc/1/status")?.ends_with('0'),
                "nothing was asked for"
            );
            Ok(())
        })
    }
);

test!(
    fn an_added_capability_brings_its_system_calls(t: &Test) -> Result {
        with(t, |cri| {
            let admin = secured(&cri.pod()?, "admin", |context| {
                context.seccomp = profile(ProfileType::RuntimeDefault, "");
                // Where there is AppArmor, its default profile denies mounts to everyone.
                context.apparmor = profile(ProfileType::Unconfined, "");
                context.capabilities = capabilities(&["SYS_ADMIN"], &[], &[]);
            })?;
            admin.exec(&["mount", "-t", "tmpfs", "x", "/tmp"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_seccomp_profile_of_the_node_is_obeyed(t: &Test) -> Result {
        with(t, |cri| {
            let path = t.path("no-mkdir.json");
            let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 39}]}"#;
            fs::write(&path, text)?;
            let pod = cri.pod()?;
            let path = path.display().to_string();
            let web = secured(&pod, "web", |context| {
                context.seccomp = profile(ProfileType::Localhost, &path);
            })?;
            web.exec(&["mkdir", "/x"])?.fails_with(&["not empty"])?;
            let mut config = pod.container_config("none", "true")?;
            security(&mut config).seccomp = profile(ProfileType::Localhost, "/no/such.json");
            let request = pod.creation(config);
            if cri.is_ours() {
                refused(
                    cri.create_container(request),
                    Code::InvalidArgument,
                    &["localhost_ref", "/no/such.json"],
                )?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_user_that_is_not_root_has_the_ambient_capabilities_that_it_was_given(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let web = secured(&cri.pod()?, "web", |context| {
                context.run_as_user = user(1234);
                context.capabilities = capabilities(&[], &["ALL"], &["NET_ADMIN"]);
            })?;
            // CAP_NET_ADMIN is 12.
            names(
                &web.sh("grep Cap /proc/self/status")?,
                &["CapEff:\t0000000000001000", "CapAmb:\t0000000000001000"],
            )?;
            web.exec(&["ip", "link", "set", "lo", "mtu", "1400"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn users_that_can_not_be_are_refused_and_never_root(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let number = "99999999999999999999";
            let changes: [fn(&mut LinuxContainerSecurityContext); 4] = [
                |context| context.run_as_user = user(1 << 32),
                |context| context.run_as_user = user(-1),
                |context| context.run_as_username = "99999999999999999999".into(),
                |context| context.run_as_group = user(7),
            ];
            let parts = ["4294967296", "-1", number, "run_as_group"];
            for (i, (change, part)) in changes.iter().zip(parts).enumerate() {
                let mut config = pod.container_config(&format!("c{i}"), "true")?;
                change(security(&mut config));
                refused(
                    cri.create_container(pod.creation(config)),
                    Code::InvalidArgument,
                    &[part],
                )?;
            }
            Ok(())
        })
    }
);

test!(
    fn an_exec_is_confined_as_its_container_is(t: &Test) -> Result {
        with(t, |cri| {
            let web = secured(&cri.pod()?, "web", |context| {
                context.run_as_user = user(1234);
                context.no_new_privs = true;
                context.seccomp = profile(ProfileType::RuntimeDefault, "");
                context.capabilities = capabilities(&[], &["ALL"], &[]);
            })?;
            let fields = "grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap...):'";
            let init = web.sh(&format!("{fields} /proc/1/status"))?;
            let exec = web.sh(&format!("{fields} /proc/self/status"))?;
            ensure!(init == exec, "{init}\n\n{exec}");
            Ok(())
        })
    }
);

test!(
    fn a_device_is_injected_by_its_name(t: &Test) -> Result {
        with(t, |cri| {
            // /var/run/cdi is in the test's own mount namespace.
            let directory = "/run/cdi";
            fs::create_dir_all(directory)?;
            let volume = t.path("driver");
            fs::create_dir(&volume)?;
            fs::write(volume.join("lib"), "the driver")?;
            let file = format!("{directory}/{}.yaml", t.unique);
            let text = format!(
                "cdiVersion: 0.6.0\nkind: rtc-{}.example.com/gpu\ncontainerEdits:\n  env: [DRIVER=1]\ndevices:\n- name: zero\n  \
                 containerEdits:\n    deviceNodes: [{{path: /dev/gpu, hostPath: /dev/zero}}]\n    mounts:\n    - hostPath: {}\n      \
                 containerPath: /driver\n      options: [ro, bind]\n",
                t.unique,
                volume.display()
            );
            fs::write(&file, text)?;
            let pod = cri.pod()?;
            let name = format!("rtc-{}.example.com/gpu=zero", t.unique);
            let run = pod.run_with("web", "sleep 1000", |config| {
                config.cdi_devices = vec![CdiDevice { name: name.clone() }];
            });
            let refused = pod.run_with("none", "sleep 1000", |config| {
                config
                    .annotations
                    .insert("cdi.k8s.io/x_1".into(), name.replace("zero", "other"));
            });
            fs::remove_file(file)?;
            let web = run?;
            web.exec(&["head", "-c", "1", "/dev/gpu"])?.ok()?;
            ensure!(
                web.sh("cat /driver/lib; tr '\\0' '\\n' </proc/1/environ")?
                    .contains("the driver")
            );
            names(&web.sh("tr '\\0' '\\n' </proc/1/environ")?, &["DRIVER=1"])?;
            ensure!(refused.is_err(), "a device that is not there");
            Ok(())
        })
    }
);

test!(
    fn a_pod_with_users_of_its_own_owns_its_volumes(t: &Test) -> Result {
        with(t, |cri| {
            let map = IdMapping {
                host_id: 200_000,
                container_id: 0,
                length: 65_536,
            };
            let pod = cri.pod_with(|config| {
                let options = crate::cri::namespaces(config);
                options.userns_options = Some(UserNamespace {
                    mode: NamespaceMode::Pod.into(),
                    uids: vec![map],
                    gids: vec![map],
                });
            })?;
            let volume = t.path("volume");
            fs::create_dir(&volume)?;
            chown(&volume, Some(7), Some(8))?;
            let web = pod.run_with("web", "sleep 1000", |config| {
                config.mounts = vec![Mount {
                    container_path: "/volume".into(),
                    host_path: volume.display().to_string(),
                    uid_mappings: vec![map],
                    gid_mappings: vec![map],
                    ..Mount::default()
                }];
            })?;
            names(&web.sh("cat /proc/self/uid_map")?, &["200000"])?;
            ensure!(web.sh("stat -c %u:%g /volume")? == "7:8");
            web.sh("echo >/volume/of-root")?;
            let made = fs::metadata(volume.join("of-root"))?;
            ensure!((made.uid(), made.gid()) == (0, 0), "{made:?}");
            // Outside it is no root.
            let uid = web.sh("stat -c %u /proc/1")?;
            ensure!(uid == "0", "{uid}");
            Ok(())
        })
    }
);

test!(
    fn a_container_is_confined_by_apparmor_unless_it_says_otherwise(t: &Test) -> Result {
        only_ours(t)?;
        if !fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y'))
        {
            t.skip("no AppArmor")?;
        }
        with(t, |cri| {
            let pod = cri.pod()?;
            let label = |container: &Container<'_, '_>| container.sh("cat /proc/1/attr/current");
            let usual = pod.run("usual", "sleep 1000")?;
            ensure!(label(&usual)? == "rtc-default (enforce)", "{}", label(&usual)?);
            ensure!(
                label(&usual)? == usual.sh("cat /proc/self/attr/current")?,
                "of an exec"
            );
            // What the file system would let root do.
            ensure!(usual.exec(&["sh", "-c", "echo b >/proc/sysrq-trigger"])?.code != 0);
            usual.exec(&["sh", "-c", "echo x >/tmp/x; ps; kill -0 1"])?.ok()?;
            let free = secured(&pod, "free", |context| {
                context.apparmor = profile(ProfileType::Unconfined, "");
            })?;
            ensure!(label(&free)? == "unconfined", "{}", label(&free)?);
            let mut config = pod.container_config("none", "true")?;
            security(&mut config).apparmor = profile(ProfileType::Localhost, "no-such-profile");
            let request = pod.creation(config);
            refused(
                cri.create_container(request),
                Code::FailedPrecondition,
                &["no-such-profile", "not loaded"],
            )?;
            usual.stop(1)
        })
    }
);
