//! Small things of all sections that the peers' suites look at, each by itself.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::host::cgroup::{Cgroup, is_unified};
use crate::host::process;
use crate::registry::Result;
use crate::terminal::{Terminal, listen};
use crate::test;
use crate::wait::until;

test!(
    fn the_default_root_that_is_not_there_is_listed_as_empty(t: &Test) -> Result {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        let nothing: Option<&str> = None;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_PRIVATE | MsFlags::MS_REC,
            nothing,
        )?;
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), nothing)?;
        t.bare(["list", "-q"]).run()?.prints("")?;
        ensure!(fs::read_dir("/run")?.count() == 0, "a root was made");
        Ok(())
    }
);

test!(
    fn debug_messages_in_json_have_their_level(t: &Test) -> Result {
        let log = t.path("log");
        let bundle = t.bundle().args(&["true"]);
        bundle.write()?;
        t.bare(["--debug", "--log-format", "json", "--log"])
            .args([&log])
            .args(["--root"])
            .args([&t.root])
            .args(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id])
            .run()?
            .ok()?;
        let text = fs::read_to_string(&log)?;
        let mut debug = 0;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            debug += usize::from(line["level"] == "debug");
        }
        ensure!(debug > 0, "{text}");
        if t.is_ours() {
            // How CVE-2019-5736 is kept off, in runc's words.
            ensure!(text.contains("for sealed /proc/self/exe"), "{text}");
        }
        Ok(())
    }
);

test!(
    fn without_a_subreaper_orphans_go_to_the_one_above(t: &Test) -> Result {
        nix::sys::prctl::set_child_subreaper(true)?;
        let own = std::process::id().cast_signed();
        for (flags, above) in [(&["--no-subreaper"][..], true), (&[], false)] {
            let bundle = t.bundle().without_namespace("pid");
            // The middle one ends, and leaves its child an orphan.
            let bundle = bundle.sh("(sleep 1000000 & echo $! >&2); echo left; sleep 1000000");
            let running = bundle.command("run", flags)?.spawn()?;
            let stderr = running.stderr.clone();
            let orphan: i32 = until("the orphan", || {
                Ok(fs::read_to_string(&stderr)?.trim().parse().ok())
            })?;
            let runtime = running.pid();
            until("its new parent", || {
                let parent = process::parent_and_state(orphan).map(|(parent, _)| parent);
                let wanted = if above { own } else { runtime };
                Ok((parent == Some(wanted)).then_some(()))
            })
            .with_context(|| format!("{flags:?}"))?;
            t.rtc(["kill", &bundle.id, "KILL"])?.ok()?;
            running.wait()?.code(137)?;
        }
        Ok(())
    }
);

test!(
    fn ps_counts_processes_in_cgroups_below(t: &Test) -> Result {
        let container = t.bundle().sh("sleep 1000000 & echo $!; wait").start()?;
        container.wait_for_output("\n")?;
        let listed = || -> Result<Vec<i64>> {
            let output = container.verb("ps", &["--format", "json"])?.ok()?;
            let pids: Vec<i64> = serde_json::from_str(&output.stdout)?;
            Ok(pids)
        };
        let before = listed()?;
        ensure!(before.len() == 2, "{before:?}");
        let below = before
            .iter()
            .find(|pid| **pid != i64::from(container.pid().unwrap_or(0)));
        let below = below.context("the second process")?.to_string();
        for directory in container.cgroup.directories()? {
            let sub = directory.join("sub");
            fs::create_dir(&sub)?;
            // A cpuset of v1 begins empty, and takes nobody then.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(directory.join(file)) {
                    let _ = fs::write(sub.join(file), value);
                }
            }
            fs::write(sub.join("cgroup.procs"), &below).with_context(|| sub.display().to_string())?;
        }
        let (mut after, mut before) = (listed()?, before);
        after.sort_unstable();
        before.sort_unstable();
        ensure!(after == before, "{before:?} {after:?}");
        container.verb("delete", &["--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn a_group_given_twice_does_no_harm(t: &Test) -> Result {
        let user = json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 7, 1000, 8]});
        let bundle = t.bundle().set("/process/user", user);
        let output = bundle.args(&["id", "-G"]).run()?.ok()?;
        let mut groups: Vec<&str> = output.stdout.split_whitespace().collect();
        groups.sort_unstable();
        groups.dedup();
        ensure!(groups == ["1000", "7", "8"], "{output}");
        Ok(())
    }
);

test!(
    fn without_a_bounding_set_no_program_has_capabilities(t: &Test) -> Result {
        let sets = json!({"effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
        let bundle = t.bundle().set("/process/capabilities", sets);
        let output = bundle.args(&["cat", "/proc/self/status"]).run()?.ok()?;
        for set in ["CapBnd:", "CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            ensure!(output.value_of(set)? == "0000000000000000", "{set} {output}");
        }
        Ok(())
    }
);

test!(
    fn a_process_label_without_selinux_is_refused_by_name(t: &Test) -> Result {
        if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            t.skip("this machine has SELinux")?;
        }
        let label = "system_u:system_r:container_t:s0";
        let container = t.bundle().sleeper().start()?;
        container
            .exec_command(&["--process-label", label], &["true"])
            .run()?
            .fails_naming(&["selinuxLabel", label])?;
        let bundle = t.bundle().set("/process/selinuxLabel", json!(label));
        bundle.run()?.fails_naming(&["selinuxLabel", label])?;
        Ok(())
    }
);

test!(
    fn the_io_priority_may_be_of_the_realtime_class(t: &Test) -> Result {
        let priority = json!({"class": "IOPRIO_CLASS_RT", "priority": 3});
        let bundle = t.bundle().set("/process/ioPriority", priority);
        bundle.args(&["ionice"]).run()?.mentions("realtime: prio 3")?;
        Ok(())
    }
);

test!(
    fn exec_in_a_sub_cgroup_of_one_controller_is_there_for_that_alone(t: &Test) -> Result {
        if is_unified() {
            t.skip("needs cgroup v1")?;
        }
        t.needs_controller("pids")?;
        t.needs_controller("freezer")?;
        let container = t.bundle().sleeper().start()?;
        let sub = container.cgroup.directory("pids")?.join("sub");
        fs::create_dir(&sub)?;
        let exec = container.exec_command(&["--cgroup", "pids:sub"], &["cat", "/proc/self/cgroup"]);
        let output = exec.run()?.ok()?;
        for line in output.lines() {
            let controllers: Vec<&str> = line.split(':').nth(1).unwrap_or_default().split(',').collect();
            ensure!(
                line.ends_with("/sub") == controllers.contains(&"pids"),
                "{line}: {output}"
            );
        }
        Ok(())
    }
);

test!(
    fn standard_input_that_is_no_terminal_is_no_obstacle_to_one(t: &Test) -> Result {
        let bundle = t.bundle().set("/process/terminal", json!(true));
        // Its input ends at once, its output is a file: the program has a terminal all the same.
        let output = bundle.sh("tty; echo done").run()?.ok()?;
        ensure!(
            output.stdout.contains("/dev/pts/0") && output.stdout.contains("done"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn a_console_of_exec_has_the_size_of_its_process_file(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for (size, command, expected) in [
            (json!({"height": 17, "width": 93}), "stty size", "17 93"),
            (json!({"height": 0, "width": 0}), "tty", "/dev/pts/"),
        ] {
            let process = json!({
                "terminal": true, "consoleSize": size, "user": {}, "cwd": "/",
                "args": ["sh", "-c", command], "env": ["PATH=/bin"]
            });
            let (file, socket) = (t.path("process.json"), t.path("console"));
            fs::write(&file, process.to_string())?;
            let listener = listen(&socket)?;
            let exec = t
                .command(["exec", "--detach", "--console-socket"])
                .args([&socket]);
            exec.args(["--process"])
                .args([&file])
                .args([&container.id])
                .run()?
                .ok()?;
            let text = Terminal::receive(&listener)?.read_to_end()?;
            ensure!(text.starts_with(expected), "{text:?}");
        }
        Ok(())
    }
);

test!(
    fn a_terminal_is_sent_with_its_name(t: &Test) -> Result {
        let socket = t.path("console");
        let listener = listen(&socket)?;
        let bundle = t.bundle().set("/process/terminal", json!(true)).sleeper();
        t.delete_at_end(&bundle.id);
        let flags = ["--console-socket", &*socket.to_string_lossy()];
        let create = bundle.command("create", &flags)?.spawn()?;
        let (stream, _) = listener.accept()?;
        let (name, descriptors) = crate::sys::receive_descriptors(&stream)?;
        create.wait()?.ok()?;
        ensure!(
            descriptors.len() == 1 && name == b"/dev/ptmx",
            "{}",
            String::from_utf8_lossy(&name)
        );
        Ok(())
    }
);

test!(
    fn a_mount_namespace_can_be_joined_by_path_where_nothing_is_mounted(t: &Test) -> Result {
        let first = t
            .bundle()
            .mount("/tmp", "tmpfs", "tmpfs", &[])
            .sleeper()
            .start()?;
        let path = format!("/proc/{}/ns/mnt", first.pid()?);
        let bundle = t.bundle().namespace(json!({"type": "mount", "path": path}));
        // All of the second is in the first's: either it works or it is refused, and the first is as it was.
        let before = first.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        let output = bundle.args(&["true"]).run()?;
        ensure!(output.code == 0 || output.stderr.contains("mount"), "{output}");
        let after = first.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        ensure!(before == after, "{before}\n{after}");
        Ok(())
    }
);

test!(
    fn a_container_may_share_the_hosts_mount_namespace(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .without_namespace("mount")
            .unset("/mounts")
            .unset("/linux/maskedPaths")
            .unset("/linux/readonlyPaths")
            .set("/root/readonly", json!(false))
            .sleeper();
        let container = bundle.start()?;
        let (own, theirs) = (
            process::namespace("self", "mnt")?,
            process::namespace(&container.pid()?.to_string(), "mnt")?,
        );
        ensure!(own == theirs, "{own} {theirs}");
        container.exec(&["ls", "/bin/busybox"])?.ok()?;
        ensure!(
            container.exec(&["ls", "/proc/self"])?.code != 0,
            "it sees the host's /proc"
        );
        Ok(())
    }
);

test!(
    fn options_of_proc_reach_it(t: &Test) -> Result {
        let bundle = t.bundle().edit(|spec| {
            for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
                if mount["destination"] == "/proc" {
                    mount["options"] = json!(["nosuid", "hidepid=2"]);
                }
            }
        });
        let output = bundle.args(&["cat", "/proc/self/mountinfo"]).run()?.ok()?;
        let line = output.lines().into_iter().find(|line| line.contains(" /proc "));
        let line = line.context("/proc")?.to_owned();
        ensure!(line.contains("nosuid") && line.contains("hidepid="), "{line}");
        Ok(())
    }
);

test!(
    fn no_symbolic_link_is_followed_on_a_mount_that_says_so(t: &Test) -> Result {
        let volume = t.path("volume");
        fs::create_dir(&volume)?;
        fs::write(volume.join("file"), "text")?;
        symlink("file", volume.join("link"))?;
        let source = volume.to_string_lossy().into_owned();
        let with = |option: &str| {
            let bundle = t.bundle().mount("/tmp", "bind", &source, &["bind", option]);
            bundle.args(&["cat", "/tmp/link"]).run()
        };
        with("symfollow")?.prints("text")?;
        let output = with("nosymfollow")?;
        ensure!(output.code != 0 && output.stdout.is_empty(), "{output}");
        Ok(())
    }
);

test!(
    fn what_an_idmapped_mount_does_not_map_cannot_be_written(t: &Test) -> Result {
        let volume = t.path("volume");
        fs::create_dir(&volume)?;
        fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let map = json!([{"containerID": 0, "hostID": 0, "size": 1000}]);
        let mount = json!({
            "destination": "/tmp", "source": volume, "options": ["bind"], "uidMappings": map, "gidMappings": map
        });
        let with = |uid: u32| {
            let bundle = t.bundle().push("/mounts", mount.clone());
            let bundle = bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
            bundle.args(&["touch", "/tmp/file"]).run()
        };
        let output = with(1000)?;
        ensure!(
            output.code != 0 && output.stderr.contains("too large"),
            "{output}"
        );
        ensure!(fs::read_dir(&volume)?.count() == 0);
        with(999)?.ok()?;
        Ok(())
    }
);

test!(
    fn the_link_to_the_kernels_memory_is_there(t: &Test) -> Result {
        let output = t.bundle().args(&["readlink", "/dev/core"]).run()?;
        // runc makes it where the host has /proc/kcore.
        if std::path::Path::new("/proc/kcore").exists() || output.code == 0 {
            output.prints("/proc/kcore")?;
        }
        Ok(())
    }
);

test!(
    fn a_rule_for_a_block_device_is_none_for_a_character_device(t: &Test) -> Result {
        t.needs_controller("devices")?;
        // /dev/fuse, 10:229.
        let device = json!({"path": "/dev/thing", "type": "c", "major": 10, "minor": 229, "fileMode": 438});
        let with = |kind: &str| {
            let rule = json!({"allow": true, "type": kind, "major": 10, "minor": 229, "access": "rwm"});
            let bundle = t.bundle().push("/linux/devices", device.clone());
            let bundle = bundle.push("/linux/resources/devices", rule);
            bundle
                .sh("(: <>/dev/thing) 2>/dev/null && echo opened || echo denied")
                .run()
        };
        with("b")?.prints("denied")?;
        with("c")?.prints("opened")?;
        Ok(())
    }
);

test!(
    fn a_masked_directory_has_the_links_of_an_empty_one(t: &Test) -> Result {
        let bundle = t.bundle().push("/linux/maskedPaths", json!("/etc"));
        bundle.args(&["stat", "-c", "%h", "/etc"]).run()?.prints("2")?;
        Ok(())
    }
);

test!(
    fn figures_of_events_are_those_of_the_container(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let container = t
            .bundle()
            .sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; sleep 1000000");
        let container = container
            .set("/linux/resources/memory/limit", json!(64 << 20))
            .start()?;
        container.wait_for_output("ready")?;
        let output = container.verb("events", &["--stats"])?.ok()?;
        let event: Value = serde_json::from_str(&output.stdout)?;
        let number = |pointer: &str| event.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        ensure!(number("/data/cpu/usage/total") > 1_000_000, "{output}");
        let used = number("/data/memory/usage/usage");
        ensure!(used > 4096 && used < 64 << 20, "{output}");
        ensure!(number("/data/memory/usage/limit") == 64 << 20, "{output}");
        ensure!(number("/data/pids/current") == 1, "{output}");
        Ok(())
    }
);

test!(
    fn old_flags_of_kernel_memory_are_told_to_do_nothing(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let output = container
            .verb("update", &["--kernel-memory", "10m", "--pids-limit", "77"])?
            .ok()?;
        ensure!(
            !t.is_ours() || output.stderr.contains("--kernel-memory"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn swappiness_and_the_oom_killer_are_set_in_the_kernel(t: &Test) -> Result {
        if is_unified() {
            t.skip("needs cgroup v1")?;
        }
        let memory = json!({"swappiness": 17, "disableOOMKiller": true});
        let container = t
            .bundle()
            .set("/linux/resources/memory", memory)
            .sleeper()
            .start()?;
        let directory = container.cgroup.directory("memory")?;
        let swappiness = fs::read_to_string(directory.join("memory.swappiness"))?;
        ensure!(swappiness.trim() == "17", "{swappiness}");
        let control = fs::read_to_string(directory.join("memory.oom_control"))?;
        ensure!(control.contains("oom_kill_disable 1"), "{control}");
        Ok(())
    }
);

test!(
    fn a_cpuset_of_a_new_parent_has_what_is_above_it(t: &Test) -> Result {
        t.needs_controller("cpuset")?;
        if is_unified() {
            t.skip("needs cgroup v1")?;
        }
        let bundle = t.bundle().sleeper();
        let path = format!("{}/new/parent/{}", t.cgroup.path, bundle.id);
        let bundle = bundle.set("/linux/cgroupsPath", json!(path));
        let container = bundle.start()?;
        let directory = container.cgroup.directory("cpuset")?;
        let parent = directory
            .parent()
            .and_then(std::path::Path::parent)
            .context("parent")?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(directory.join(file))?;
            ensure!(!value.trim().is_empty(), "{file} is empty");
            ensure!(value == fs::read_to_string(parent.join(file))?, "{file}");
        }
        container.verb("delete", &["--force"])?.ok()?;
        for path in ["new/parent", "new"] {
            let made = Cgroup {
                path: format!("{}/{path}", t.cgroup.path),
            };
            for directory in made.directories()? {
                fs::remove_dir(&directory).with_context(|| directory.display().to_string())?;
            }
        }
        Ok(())
    }
);

test!(
    fn a_container_starts_with_very_little_memory(t: &Test) -> Result {
        t.needs_controller("memory")?;
        // What CRI-O asks of crun (`container_min_memory`); of runc it asks 12 MiB.
        for limit in [500 << 10, 1 << 20] {
            let bundle = t.bundle().set("/linux/resources/memory/limit", json!(limit));
            bundle
                .args(&["true"])
                .run()?
                .ok()
                .with_context(|| limit.to_string())?;
        }
        Ok(())
    }
);

test!(
    fn the_cgroup_belongs_to_the_root_of_a_user_namespace_that_may_write_it(t: &Test) -> Result {
        t.needs_cgroup_v2()?;
        let with = |options: &[&str], cgroup_namespace: bool| -> Result<_> {
            let bundle = super::namespaces::with_user_namespace(t)?.without_namespace("cgroup");
            let bundle = bundle.edit(|spec| {
                for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
                    if mount["destination"] == "/sys/fs/cgroup" {
                        mount["options"] = json!(options);
                    }
                }
            });
            let bundle = match cgroup_namespace {
                true => bundle.push("/linux/namespaces", json!({"type": "cgroup"})),
                false => bundle,
            };
            bundle
                .sh("cd /sys/fs/cgroup; stat -c %u . cgroup.procs; mkdir sub 2>/dev/null && echo made")
                .run()
        };
        with(&["nosuid"], true)?.prints("0\n0\nmade")?;
        for (options, namespace) in [(&["ro"][..], true), (&["nosuid"], false)] {
            let output = with(options, namespace)?;
            ensure!(output.lines() == ["65534", "65534"], "{output}");
        }
        Ok(())
    }
);
