//! Namespaces: each new, shared with the host, or joined by path; user mappings; host name and kernel parameters.

use std::fs;
use std::os::unix::fs::chown;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::container::Container;
use crate::host::process;
use crate::test;
use crate::test::Test;

/// Kinds as (name in config.json, name in /proc/PID/ns).
const KINDS: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
];

fn namespace_of(container: &Container<'_>, kind: &str) -> crate::registry::Result<String> {
    process::namespace(&container.pid()?.to_string(), kind)
}

/// A bundle with a user namespace: 0..65536 inside is 100000.. outside; its rootfs belongs to its root.
pub(super) fn with_user_namespace(t: &Test) -> crate::registry::Result<Bundle<'_>> {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let bundle = t.bundle().namespace(json!({"type": "user"}));
    for name in ["", "tmp", "etc", "root", "home"] {
        chown(bundle.rootfs().join(name), Some(100_000), Some(100_000))?;
    }
    Ok(bundle
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map))
}

test!(
    fn each_listed_namespace_is_new(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        for (_, kind) in KINDS {
            let (own, theirs) = (process::namespace("self", kind)?, namespace_of(&container, kind)?);
            ensure!(own != theirs, "{kind}: {own} is the host's");
        }
        Ok(())
    }
);

test!(
    fn each_namespace_not_listed_is_the_hosts(t: &Test) -> Result {
        for (name, kind) in KINDS.into_iter().filter(|(name, _)| *name != "mount") {
            let mut bundle = t.bundle().sleeper().without_namespace(name);
            if name == "uts" {
                bundle = bundle.unset("/hostname");
            }
            let container = bundle.create().with_context(|| format!("without {name}"))?;
            for (_, other) in KINDS {
                let same = process::namespace("self", other)? == namespace_of(&container, other)?;
                ensure!(
                    same == (other == kind),
                    "without {name}: {other} is the host's: {same}"
                );
            }
            container.verb("delete", &["--force"])?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn each_namespace_can_be_joined_by_path(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let pid = first.pid()?;
        for (name, kind) in KINDS.into_iter().filter(|(name, _)| *name != "mount") {
            let joined = json!({"type": name, "path": format!("/proc/{pid}/ns/{kind}")});
            let mut bundle = t.bundle().sleeper().namespace(joined);
            if name == "uts" {
                bundle = bundle.unset("/hostname");
            }
            let second = bundle.start().with_context(|| format!("join {name}"))?;
            for (_, other) in KINDS {
                let same = namespace_of(&first, other)? == namespace_of(&second, other)?;
                ensure!(
                    same == (other == kind),
                    "joined {name}: {other} is the same: {same}"
                );
            }
            second.verb("delete", &["--force"])?.ok()?;
        }
        first.is("running")
    }
);

test!(
    fn several_namespaces_of_another_container_are_joined_together(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let pid = first.pid()?;
        let mut bundle = t.bundle().unset("/hostname");
        for (name, kind) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
            bundle = bundle.namespace(json!({"type": name, "path": format!("/proc/{pid}/ns/{kind}")}));
        }
        // In the shared PID namespace the first container's init is process 1.
        let output = bundle.sh("hostname; tr '\\0' ' ' </proc/1/cmdline").run()?.ok()?;
        ensure!(output.lines() == ["rtc", "sleep 1000000"], "{output}");
        Ok(())
    }
);

test!(
    fn a_namespace_path_that_does_not_exist_is_refused(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .namespace(json!({"type": "network", "path": "/nonexistent/netns"}));
        bundle.run()?.fails_naming(&["network", "/nonexistent/netns"])?;
        Ok(())
    }
);

test!(
    fn a_namespace_path_of_another_kind_is_refused(t: &Test) -> Result {
        for (name, wrong) in [("network", "ipc"), ("ipc", "uts"), ("pid", "net"), ("uts", "pid")] {
            let path = format!("/proc/self/ns/{wrong}");
            let bundle = t
                .bundle()
                .unset("/hostname")
                .namespace(json!({"type": name, "path": path}));
            bundle
                .run()?
                .fails_naming(&[name, &path])
                .with_context(|| format!("{name} from {path}"))?;
        }
        Ok(())
    }
);

test!(
    fn a_namespace_path_that_is_an_ordinary_file_is_refused(t: &Test) -> Result {
        let path = t.path("file");
        fs::write(&path, "")?;
        let bundle = t.bundle().namespace(json!({"type": "network", "path": path}));
        bundle
            .run()?
            .fails_naming(&["network", &path.to_string_lossy()])?;
        Ok(())
    }
);

test!(
    fn loopback_is_up_in_a_new_network_namespace(t: &Test) -> Result {
        let output = t.bundle().args(&["ifconfig", "lo"]).run()?.ok()?;
        ensure!(
            output.stdout.contains("127.0.0.1") && output.stdout.contains("UP"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn only_loopback_is_in_a_new_network_namespace(t: &Test) -> Result {
        t.bundle()
            .sh("tail -n +3 /proc/net/dev | cut -d: -f1 | grep -v -e tunl0 -e sit0 -e ip6tnl0 -e gre")
            .run()?
            .prints("lo")?;
        Ok(())
    }
);

test!(
    fn the_host_name_is_set_in_the_container_and_not_outside(t: &Test) -> Result {
        let before = nix::unistd::gethostname()?;
        let name = format!("named-{}", t.unique);
        t.bundle()
            .set("/hostname", json!(name))
            .args(&["hostname"])
            .run()?
            .prints(&name)?;
        ensure!(nix::unistd::gethostname()? == before);
        Ok(())
    }
);

test!(
    fn the_domain_name_is_set_in_the_container(t: &Test) -> Result {
        let bundle = t.bundle().set("/domainname", json!("example.org"));
        bundle
            .args(&["cat", "/proc/sys/kernel/domainname"])
            .run()?
            .prints("example.org")?;
        Ok(())
    }
);

test!(
    fn a_host_name_without_a_uts_namespace_is_refused(t: &Test) -> Result {
        let before = nix::unistd::gethostname()?;
        t.bundle()
            .without_namespace("uts")
            .run()?
            .fails_naming(&["hostname", "uts"])?;
        ensure!(nix::unistd::gethostname()? == before);
        Ok(())
    }
);

test!(
    fn kernel_parameters_of_own_namespaces_are_set(t: &Test) -> Result {
        let sysctl = json!({
            "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "12345",
            "net.ipv4.ip_local_port_range": "20000 30000", "fs.mqueue.msg_max": "11",
        });
        let files = "/proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax";
        let script =
            format!("cat {files} /proc/sys/net/ipv4/ip_local_port_range /proc/sys/fs/mqueue/msg_max");
        let output = t.bundle().set("/linux/sysctl", sysctl).sh(&script).run()?.ok()?;
        ensure!(
            output.lines() == ["1", "1", "12345", "20000\t30000", "11"],
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn kernel_parameters_of_the_whole_machine_are_refused(t: &Test) -> Result {
        for name in [
            "vm.swappiness",
            "kernel.panic",
            "fs.file-max",
            "nonsense",
            "kernel.core_pattern",
        ] {
            let bundle = t.bundle().set("/linux/sysctl", json!({name: "1"}));
            bundle.run()?.fails_naming(&["sysctl", name])?;
        }
        Ok(())
    }
);

test!(
    fn kernel_parameters_of_a_namespace_shared_with_the_host_are_refused(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .without_namespace("network")
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        bundle.run()?.fails_naming(&["net.ipv4.ip_forward"])?;
        let bundle = t
            .bundle()
            .without_namespace("ipc")
            .set("/linux/sysctl", json!({"kernel.msgmax": "12345"}));
        bundle.run()?.fails_naming(&["kernel.msgmax"])?;
        Ok(())
    }
);

test!(
    fn a_kernel_parameter_that_does_not_exist_is_refused_and_leaves_nothing(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/linux/sysctl", json!({"net.ipv4.no_such_parameter": "1"}));
        bundle.run()?.fails_with(&["no_such_parameter"])?;
        Ok(())
    }
);

test!(
    fn a_user_namespace_maps_users_and_groups_as_configured(t: &Test) -> Result {
        let uids = json!([
            {"containerID": 0, "hostID": 100_000, "size": 1000},
            {"containerID": 1000, "hostID": 300_000, "size": 500},
        ]);
        let gids = json!([{"containerID": 0, "hostID": 200_000, "size": 2000}]);
        let bundle = with_user_namespace(t)?
            .set("/linux/uidMappings", uids)
            .set("/linux/gidMappings", gids);
        let output = bundle
            .sh("cat /proc/self/uid_map /proc/self/gid_map; id -u")
            .run()?
            .ok()?;
        let fields: Vec<Vec<&str>> = output
            .lines()
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected: [&[&str]; 4] = [
            &["0", "100000", "1000"],
            &["1000", "300000", "500"],
            &["0", "200000", "2000"],
            &["0"],
        ];
        ensure!(fields == expected, "{output}");
        Ok(())
    }
);

test!(
    fn processes_in_a_user_namespace_are_the_mapped_user_on_the_host(t: &Test) -> Result {
        let user = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
        let container = with_user_namespace(t)?
            .set("/process/user", user)
            .sleeper()
            .start()?;
        let pid = container.pid()?;
        ensure!(
            process::status_field(pid, "Uid")?.starts_with("100007"),
            "{}",
            process::status_field(pid, "Uid")?
        );
        ensure!(
            process::status_field(pid, "Gid")?.starts_with("100008"),
            "{}",
            process::status_field(pid, "Gid")?
        );
        ensure!(
            process::status_field(pid, "Groups")?.contains("100009"),
            "{}",
            process::status_field(pid, "Groups")?
        );
        container.exec(&["id", "-u"])?.prints("7")?;
        container
            .exec_command(&["--user", "0"], &["sh", "-c", "id -u; cat /proc/self/setgroups"])
            .run()?
            .prints("0\nallow")?;
        Ok(())
    }
);

test!(
    fn root_of_a_user_namespace_has_power_over_the_containers_own_namespaces_only(t: &Test) -> Result {
        let bundle =
            with_user_namespace(t)?.capabilities(&["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"]);
        let file = t.path("root-only");
        fs::write(&file, "secret")?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let bundle = bundle.mount(
            "/tmp",
            "bind",
            &file.parent().context("parent")?.to_string_lossy(),
            &["bind"],
        );
        let name = file.file_name().context("name")?.to_string_lossy().into_owned();
        let script = format!(
            "hostname inside && hostname; ifconfig lo mtu 1400 && echo mtu; cat /tmp/{name} || echo denied"
        );
        bundle.sh(&script).run()?.prints("inside\nmtu\ndenied")?;
        Ok(())
    }
);

test!(
    fn device_nodes_exist_in_a_user_namespace(t: &Test) -> Result {
        let script =
            "echo x >/dev/null && head -c 2 /dev/zero | od -An -tx1 && head -c 1 /dev/urandom | wc -c";
        let output = with_user_namespace(t)?.sh(script).run()?.ok()?;
        ensure!(output.lines() == ["00 00", "1"], "{output}");
        Ok(())
    }
);

test!(
    fn a_user_namespace_without_mappings_is_refused(t: &Test) -> Result {
        let bundle = with_user_namespace(t)?
            .unset("/linux/uidMappings")
            .unset("/linux/gidMappings");
        bundle.run()?.fails_naming(&["linux.uidMappings"])?;
        Ok(())
    }
);

test!(
    fn mappings_without_a_user_namespace_are_refused(t: &Test) -> Result {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let bundle = t
            .bundle()
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        bundle.run()?.fails_naming(&["linux.uidMappings"])?;
        Ok(())
    }
);

test!(
    fn overlapping_mappings_are_refused(t: &Test) -> Result {
        let map = json!([
            {"containerID": 0, "hostID": 100_000, "size": 1000},
            {"containerID": 500, "hostID": 300_000, "size": 1000},
        ]);
        with_user_namespace(t)?
            .set("/linux/uidMappings", map)
            .run()?
            .fails_naming(&["uid"])?;
        Ok(())
    }
);

test!(
    fn the_namespaces_of_a_container_with_a_user_namespace_can_be_joined_by_another(t: &Test) -> Result {
        let first = with_user_namespace(t)?.sleeper().start()?;
        let pid = first.pid()?;
        let mut bundle = with_user_namespace(t)?.unset("/hostname");
        for (name, kind) in [
            ("user", "user"),
            ("network", "net"),
            ("ipc", "ipc"),
            ("uts", "uts"),
        ] {
            bundle = bundle.namespace(json!({"type": name, "path": format!("/proc/{pid}/ns/{kind}")}));
        }
        let bundle = bundle.unset("/linux/uidMappings").unset("/linux/gidMappings");
        let second = bundle.sleeper().start()?;
        for kind in ["user", "net", "ipc", "uts"] {
            ensure!(
                namespace_of(&first, kind)? == namespace_of(&second, kind)?,
                "{kind}"
            );
        }
        second.exec(&["id", "-u"])?.prints("0")?;
        Ok(())
    }
);

test!(
    fn the_program_is_process_1_of_a_new_pid_namespace_and_sees_only_its_own(t: &Test) -> Result {
        t.bundle()
            .sh("echo $$; ls /proc | grep -c '^[0-9]*$'")
            .run()?
            .mentions("1\n")?;
        let output = t.bundle().args(&["ps", "-o", "pid,comm"]).run()?.ok()?;
        ensure!(output.lines().len() == 2, "{output}");
        Ok(())
    }
);

test!(
    fn in_a_cgroup_namespace_the_containers_cgroup_is_the_root(t: &Test) -> Result {
        let output = t.bundle().args(&["cat", "/proc/self/cgroup"]).run()?.ok()?;
        let inside: Vec<&str> = output
            .lines()
            .into_iter()
            .filter(|line| !line.ends_with(":/"))
            .collect();
        // Hierarchies without controllers that the runtime has no cgroup in are left as they are.
        ensure!(inside.is_empty(), "{output}");
        Ok(())
    }
);

test!(
    fn namespaces_end_with_the_container(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        let container = bundle.start()?;
        let extra = container
            .exec_command(&["--detach"], &["sleep", "1000000"])
            .run()?
            .ok()?;
        let state: Value = container.state()?;
        ensure!(state["status"] == "running", "{extra}");
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        // With its init the whole PID namespace is gone, the other process too: else delete would find a busy cgroup.
        container.delete()?.ok()?;
        Ok(())
    }
);
