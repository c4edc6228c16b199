//! Containers of an ordinary user: what it gets without any privilege, and the ids that newuidmap gives it.
//! Cgroups and state directories are in `rootless_cgroups` and `rootless_state`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::process;
use crate::registry::Result;
use crate::terminal::{Terminal, listen};
use crate::test;
use crate::test::Test;
use crate::user::{NEWUIDMAP, SUBORDINATE_IDS, User};

/// Nothing is left of a container that failed.
pub(super) fn leaves_nothing(t: &Test) -> Result {
    let left: Vec<_> = fs::read_dir(&t.root)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let left: Vec<_> = left.iter().filter(|path| !path.ends_with(".cache")).collect();
    ensure!(left.is_empty(), "left in the state root: {left:?}");
    Ok(())
}

test!(
    fn an_ordinary_user_runs_a_container_through_its_whole_life(t: &Test) -> Result {
        let user = User::new(t)?;
        let container = user.bundle(t)?.sh("echo started; sleep 1000000").create()?;
        container.is("created")?;
        container.start()?.ok()?;
        container.wait("running")?;
        container.wait_for_output("started")?;
        container.exec(&["id", "-u"])?.prints("0")?;
        let list = t.rtc(["list", "--quiet"])?.ok()?;
        ensure!(list.lines() == [container.id.as_str()], "{list}");
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        container.verb("state", &[])?.fails_naming(&["does not exist"])?;
        leaves_nothing(t)
    }
);

test!(
    fn the_programs_exit_status_and_output_are_those_of_run(t: &Test) -> Result {
        let user = User::new(t)?;
        let output = user
            .bundle(t)?
            .sh("echo out; echo error >&2; exit 7")
            .run()?
            .code(7)?;
        ensure!(
            output.stdout == "out\n" && output.stderr.contains("error"),
            "{output}"
        );
        leaves_nothing(t)
    }
);

test!(
    fn root_of_the_container_is_the_user_outside_and_has_no_other_id(t: &Test) -> Result {
        let user = User::new(t)?;
        let container = user.bundle(t)?.sleeper().start()?;
        let pid = container.pid()?;
        let id = user.id.to_string();
        for field in ["Uid", "Gid"] {
            let ids = process::status_field(pid, field)?;
            ensure!(ids.split_whitespace().all(|found| found == id), "{field}: {ids}");
        }
        let map = container
            .exec(&["cat", "/proc/self/uid_map", "/proc/self/gid_map"])?
            .ok()?;
        let expected = ["0", &id, "1", "0", &id, "1"];
        ensure!(map.stdout.split_whitespace().eq(expected), "{map}");
        container.exec(&["cat", "/proc/self/setgroups"])?.prints("deny")?;
        for kind in ["user", "pid", "mnt", "net", "ipc", "uts"] {
            ensure!(
                process::namespace(&pid.to_string(), kind)? != process::namespace("self", kind)?,
                "{kind}"
            );
        }
        Ok(())
    }
);

test!(
    fn the_configuration_of_spec_rootless_runs_as_it_is(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user.bundle(t)?;
        t.command(["spec", "--rootless"])
            .cwd(&bundle.directory)
            .run()?
            .ok()?;
        let path = bundle.directory.join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        ensure!(spec["process"]["terminal"] == true && spec["process"]["args"] == json!(["sh"]));
        // As it is but for what it runs: the user is root of the network that it shares with the host, and of nothing in it.
        spec["process"]["args"] = json!(["sh", "-c", "tty; id -u; touch /sys/x || echo read-only"]);
        fs::write(&path, serde_json::to_vec(&spec)?)?;
        let (mut terminal, slave) = Terminal::open()?;
        let running = t
            .command(["run", &bundle.id])
            .cwd(&bundle.directory)
            .terminal(slave)
            .spawn()?;
        let text = terminal
            .wait_for("read-only\n")
            .or_else(|_| terminal.wait_for("read-only\r\n"))?;
        running.wait()?.ok()?;
        ensure!(
            text.contains("/dev/pts/0") && text.contains("0\r") | text.contains("0\n"),
            "{text:?}"
        );
        Ok(())
    }
);

test!(
    fn a_container_without_a_user_namespace_is_refused_to_an_ordinary_user(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user
            .bundle(t)?
            .without_namespace("user")
            .unset("/linux/uidMappings")
            .unset("/linux/gidMappings");
        // crun adds one.
        if t.is_ours() {
            bundle
                .run()?
                .fails_with(&["rootless container requires user namespaces"])?;
            leaves_nothing(t)?;
        }
        Ok(())
    }
);

test!(
    fn an_ordinary_user_can_map_nobody_elses_id(t: &Test) -> Result {
        let user = User::new(t)?;
        user.allow_subordinate_ids()?;
        let maps = [
            json!([{"containerID": 0, "hostID": 0, "size": 1}]),
            json!([{"containerID": 0, "hostID": user.id, "size": 1}, {"containerID": 1, "hostID": 0, "size": 10}]),
            json!([{"containerID": 0, "hostID": user.first_subordinate(), "size": SUBORDINATE_IDS + 1}]),
        ];
        for map in maps {
            for field in ["uidMappings", "gidMappings"] {
                let bundle = user.bundle(t)?.set(&format!("/linux/{field}"), map.clone());
                bundle.run()?.fails_naming(&[field])?;
                leaves_nothing(t)?;
            }
        }
        Ok(())
    }
);

test!(
    fn many_ids_are_mapped_by_newuidmap_and_newgidmap(t: &Test) -> Result {
        if !Path::new(NEWUIDMAP).exists() {
            t.skip("no newuidmap (package uidmap)")?;
        }
        let user = User::new(t)?;
        user.allow_subordinate_ids()?;
        let map = json!([
            {"containerID": 0, "hostID": user.id, "size": 1},
            {"containerID": 1, "hostID": user.first_subordinate(), "size": SUBORDINATE_IDS}
        ]);
        let bundle = user
            .bundle(t)?
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
            .set("/process/user", json!({"uid": 5, "gid": 6}))
            .sleeper();
        let container = bundle.create()?;
        if t.is_ours() {
            // Its process is another user's by now, and waits; to runc 1.1 it is closed.
            container.exec(&["id", "-u"])?.prints("5")?;
        }
        container.start()?.ok()?;
        let pid = container.pid()?;
        for (field, inside) in [("Uid", 5), ("Gid", 6)] {
            let ids = process::status_field(pid, field)?;
            let outside = (user.first_subordinate() + inside - 1).to_string();
            ensure!(ids.split_whitespace().all(|id| id == outside), "{field}: {ids}");
        }
        container
            .exec_command(&["--user", "0:0"], &["cat", "/proc/self/setgroups"])
            .run()?
            .prints("allow")?;
        container
            .exec_command(&["--user", "7:8"], &["id", "-u"])
            .run()?
            .prints("7")?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        leaves_nothing(t)
    }
);

test!(
    fn additional_groups_are_those_of_newgidmap_or_refused(t: &Test) -> Result {
        if !t.is_ours() {
            // runc refuses them in any case.
            return Ok(());
        }
        let user = User::new(t)?;
        let with_groups = || -> Result<_> {
            Ok(user
                .bundle(t)?
                .set("/process/user/additionalGids", json!([9]))
                .args(&["id", "-G"]))
        };
        with_groups()?
            .run()?
            .fails_with(&["process.user.additionalGids"])?;
        leaves_nothing(t)?;
        if !Path::new(NEWUIDMAP).exists() {
            t.skip("no newuidmap (package uidmap)")?;
        }
        user.allow_subordinate_ids()?;
        let map = json!([
            {"containerID": 0, "hostID": user.id, "size": 1},
            {"containerID": 1, "hostID": user.first_subordinate(), "size": SUBORDINATE_IDS}
        ]);
        with_groups()?
            .set("/linux/gidMappings", map)
            .run()?
            .prints("0 9")?;
        Ok(())
    }
);

test!(
    fn what_newuidmap_says_is_passed_on_and_its_absence_is_told(t: &Test) -> Result {
        let user = User::new(t)?;
        let map = json!([{"containerID": 0, "hostID": user.first_subordinate(), "size": 10}]);
        let bundle = user.bundle(t)?.set("/linux/uidMappings", map);
        let programs = t.path("programs");
        fs::create_dir(&programs)?;
        let fake = programs.join("newuidmap");
        fs::write(&fake, "#!/bin/sh\necho \"no luck: $*\" >&2\nexit 3\n")?;
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
        let wanted = format!("0 {} 10", user.first_subordinate());
        bundle
            .command("run", &[])?
            .env("PATH", &path)
            .run()?
            .fails_naming(&["linux.uidMappings", "newuidmap", "no luck: ", &wanted])?;
        leaves_nothing(t)?;
        // What the harness itself starts is found in the default path of the C library.
        fs::remove_file(&fake)?;
        bundle
            .command("run", &[])?
            .env("PATH", &programs.display().to_string())
            .run()?
            .fails_naming(&["linux.uidMappings", &wanted, "uidmap", "$PATH"])?;
        leaves_nothing(t)
    }
);

test!(
    fn a_user_of_the_container_that_is_not_mapped_is_refused(t: &Test) -> Result {
        let user = User::new(t)?;
        for field in ["uid", "gid"] {
            let bundle = user.bundle(t)?.set(&format!("/process/user/{field}"), json!(5));
            bundle.run()?.fails_naming(&["process.user", field, "unmapped"])?;
            leaves_nothing(t)?;
        }
        Ok(())
    }
);

test!(
    fn an_owner_of_a_file_system_that_is_not_mapped_is_refused_or_left_out(t: &Test) -> Result {
        let user = User::new(t)?;
        for option in ["uid=5", "gid=5"] {
            let bundle = user.bundle(t)?.mount("/tmp", "tmpfs", "tmpfs", &[option]);
            bundle.run()?.fails_naming(&["mounts", option])?;
            leaves_nothing(t)?;
        }
        if t.is_ours() {
            // The usual configuration has it.
            let bundle = user
                .bundle(t)?
                .mount("/dev/pts", "devpts", "devpts", &["newinstance", "gid=5"]);
            bundle.sh("stat -c %g /dev/pts").run()?.prints("0")?;
        }
        Ok(())
    }
);

test!(
    fn an_idmapped_mount_is_refused_to_an_ordinary_user_by_name(t: &Test) -> Result {
        if !t.is_ours() {
            return Ok(());
        }
        let user = User::new(t)?;
        let source = t.path("volume");
        fs::create_dir(&source)?;
        let bundle = user
            .bundle(t)?
            .mount("/mnt", "bind", &source.to_string_lossy(), &["bind", "idmap"]);
        bundle
            .run()?
            .fails_with(&["mounts", "id-mapped mounts are not supported for rootless"])?;
        leaves_nothing(t)
    }
);

test!(
    fn a_volume_of_the_users_is_written_as_the_user(t: &Test) -> Result {
        let user = User::new(t)?;
        let source = t.path("volume");
        fs::create_dir(&source)?;
        user.owns(&source)?;
        let bundle = user
            .bundle(t)?
            .mount("/mnt", "bind", &source.to_string_lossy(), &["bind"]);
        bundle
            .sh("echo written >/mnt/file; stat -c %u /mnt/file")
            .run()?
            .prints("0")?;
        let file = fs::metadata(source.join("file"))?;
        ensure!((file.uid(), file.gid()) == (user.id, user.id), "{file:?}");
        Ok(())
    }
);

test!(
    fn what_the_user_may_not_mount_is_the_hosts(t: &Test) -> Result {
        let user = User::new(t)?;
        // Neither the network nor the queues are the container's own, so their file systems are not its to mount.
        let bundle = user.bundle(t)?.without_namespace("network");
        let script = "ls -d /sys/kernel; touch /sys/x 2>/dev/null || echo read-only; \
                      dd if=/dev/zero of=/dev/null bs=1 count=1 2>/dev/null && stat -c %t:%T /dev/null";
        let output = bundle.sh(script).run();
        // runc wants /sys to be bound then, as its `spec --rootless` has it.
        if t.is_ours() {
            let output = output?.ok()?;
            ensure!(output.lines() == ["/sys/kernel", "read-only", "1:3"], "{output}");
        }
        Ok(())
    }
);

test!(
    fn device_nodes_are_the_hosts_and_device_rules_are_left_out(t: &Test) -> Result {
        let user = User::new(t)?;
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}
        ]);
        let bundle = user
            .bundle(t)?
            .set("/linux/resources/devices", rules)
            .set(
                "/linux/devices",
                json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5}]),
            )
            .sh("echo x >/dev/null && cat /dev/extra; mknod /dev/made c 1 3 2>/dev/null || echo refused");
        // The host has no such node, and the user can make none.
        bundle.run()?.fails_naming(&["/dev/extra"])?;
        leaves_nothing(t)?;
        bundle
            .unset("/linux/devices")
            .sh("echo x >/dev/null && echo written; mknod /dev/made c 1 3 2>/dev/null || echo refused")
            .run()?
            .prints("written\nrefused")?;
        Ok(())
    }
);

test!(
    fn the_oom_score_is_raised_and_where_it_may_not_be_lowered_left(t: &Test) -> Result {
        let user = User::new(t)?;
        let score = |score: i32| -> Result<_> {
            let bundle = user.bundle(t)?.set("/process/oomScoreAdj", json!(score));
            bundle.args(&["cat", "/proc/self/oom_score_adj"]).run()
        };
        score(300)?.prints("300")?;
        let own = fs::read_to_string("/proc/self/oom_score_adj")?;
        if t.is_ours() {
            let output = score(own.trim().parse::<i32>()? - 1)?.prints(own.trim())?;
            ensure!(output.stderr.contains("process.oomScoreAdj"), "{output}");
        }
        Ok(())
    }
);

test!(
    fn a_limit_that_only_root_may_raise_is_refused_by_name(t: &Test) -> Result {
        let user = User::new(t)?;
        let limit = |hard: u64| json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": hard}]);
        let bundle = user.bundle(t)?.args(&["sh", "-c", "ulimit -n"]);
        bundle.set("/process/rlimits", limit(200)).run()?.prints("100")?;
        let bundle = user
            .bundle(t)?
            .set("/process/rlimits", limit(u64::from(u32::MAX)));
        bundle
            .run()?
            .fails_naming(&["process.rlimits", "RLIMIT_NOFILE"])?;
        leaves_nothing(t)
    }
);

test!(
    fn a_terminal_works_in_create_and_exec(t: &Test) -> Result {
        let user = User::new(t)?;
        let socket = t.path("console");
        let listener = listen(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777))?;
        let socket = socket.to_string_lossy().into_owned();
        let flags = ["--console-socket", socket.as_str()];
        let container = user
            .bundle(t)?
            .set("/process/terminal", json!(true))
            .sh("tty; stat -c %u /dev/console; read line; sleep 1000000")
            .create_with(&flags)?;
        let mut terminal = Terminal::receive(&listener)?;
        container.start()?.ok()?;
        terminal.wait_for("/dev/pts/0")?;
        let exec = container
            .exec_command(
                &["--tty", "--detach", "--console-socket", &socket],
                &["sh", "-c", "tty; echo done"],
            )
            .spawn()?;
        let mut second = Terminal::receive(&listener)?;
        exec.wait()?.ok()?;
        let text = second.wait_for("done")?;
        ensure!(text.contains("/dev/pts/1"), "{text:?}");
        Ok(())
    }
);

test!(
    fn hooks_are_run_as_the_user(t: &Test) -> Result {
        let user = User::new(t)?;
        let log = t.path("hooks");
        fs::write(&log, "")?;
        user.owns(&log)?;
        let hook = |name: &str| {
            let script = format!("echo {name} $(id -u) >>{}", log.display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
        };
        let hooks = json!({
            "createRuntime": hook("createRuntime"), "poststart": hook("poststart"), "poststop": hook("poststop")
        });
        user.bundle(t)?.set("/hooks", hooks).args(&["true"]).run()?.ok()?;
        let id = user.id;
        let text = fs::read_to_string(&log)?;
        let expected = format!("createRuntime {id}\npoststart {id}\npoststop {id}\n");
        ensure!(text == expected, "{text:?}");
        Ok(())
    }
);

test!(
    fn a_network_of_its_own_is_set_up_by_the_user_from_outside(t: &Test) -> Result {
        let user = User::new(t)?;
        let container = user
            .bundle(t)?
            .set("/linux/sysctl", json!({"net.core.somaxconn": "77"}))
            .sh("cat /proc/sys/net/core/somaxconn; ifconfig lo | grep -o 'inet addr:[^ ]*'; sleep 1000000")
            .create()?;
        // What slirp4netns and pasta do: they enter by the pid of the created container.
        let pid = container.pid()?;
        let script =
            format!("nsenter --preserve-credentials -U -n -t {pid} ip address add 192.0.2.1/32 dev lo");
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={}", user.id),
            &format!("--regid={}", user.id),
            "--clear-groups",
        ]);
        let done = command.args(["sh", "-c", &script]).output().context("setpriv")?;
        ensure!(done.status.success(), "{done:?}");
        container.start()?.ok()?;
        container.wait_for_output("77")?;
        container
            .exec(&["ip", "address", "show"])?
            .mentions("192.0.2.1")?;
        Ok(())
    }
);

test!(
    fn a_time_namespace_has_its_offsets(t: &Test) -> Result {
        const SECONDS: i64 = 8_000_000;
        let user = User::new(t)?;
        let container = user
            .bundle(t)?
            .namespace(json!({"type": "time"}))
            .set("/linux/timeOffsets", json!({"boottime": {"secs": SECONDS}}))
            .sh("cut -d. -f1 /proc/uptime; sleep 1000000")
            .start()?;
        let uptime = container.wait_for_output("\n")?;
        ensure!(uptime.trim().parse::<i64>()? >= SECONDS, "{uptime}");
        let output = container.exec(&["cut", "-d.", "-f1", "/proc/uptime"])?.ok()?;
        ensure!(output.stdout.trim().parse::<i64>()? >= SECONDS, "{output}");
        Ok(())
    }
);

test!(
    fn a_container_joins_the_namespaces_of_another_of_the_same_user(t: &Test) -> Result {
        let user = User::new(t)?;
        let first = user.bundle(t)?.sleeper().start()?;
        let pid = first.pid()?;
        let mut second = user.bundle(t)?.sleeper();
        for (kind, file) in [
            ("user", "user"),
            ("network", "net"),
            ("ipc", "ipc"),
            ("pid", "pid"),
        ] {
            let path = format!("/proc/{pid}/ns/{file}");
            second = second.namespace(json!({"type": kind, "path": path}));
        }
        // As runc 1.1 wants it, with its own mappings.
        let second = second.start()?;
        for kind in ["user", "net", "ipc", "pid"] {
            let of = |pid: i32| process::namespace(&pid.to_string(), kind);
            ensure!(of(pid)? == of(second.pid()?)?, "{kind}");
        }
        second.exec(&["id", "-u"])?.prints("0")?;
        second.kill("KILL")?.ok()?;
        second.wait("stopped")?;
        first.is("running")
    }
);

test!(
    fn the_hosts_network_can_be_joined_by_nobody_but_root(t: &Test) -> Result {
        let user = User::new(t)?;
        let path = "/proc/1/ns/net";
        let bundle = user
            .bundle(t)?
            .namespace(json!({"type": "network", "path": path}));
        bundle.run()?.fails_naming(&["linux.namespaces", path])?;
        leaves_nothing(t)
    }
);
