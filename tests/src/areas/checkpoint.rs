//! `checkpoint` and `restore`, with a real CRIU: programs go on where they were.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::container::Container;
use crate::criu::{Checkpoints, has};
use crate::host::process;
use crate::registry::Result;
use crate::terminal::{Terminal, listen};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// Counts on standard output.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";

fn counter(t: &Test) -> Result<Checkpoints<'_>> {
    Checkpoints::of(t, t.bundle().sh(COUNTER))
}

/// The numbers a counter has printed, where there are some.
fn numbers(container: &Container<'_>) -> Result<Vec<u64>> {
    until("the counter", || {
        let numbers: Vec<u64> = container
            .stdout()?
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect();
        Ok((numbers.len() > 2).then_some(numbers))
    })
}

/// The counter goes on behind the last of the numbers.
fn goes_on(container: &Container<'_>, before: &[u64]) -> Result {
    let (last, first) = (before.last().context("none")?, numbers(container)?[0]);
    ensure!(first == last + 1, "it went on with {first} after {last}");
    Ok(())
}

/// No container of the id is left, nor its cgroup.
fn is_gone(t: &Test, container: &Container<'_>) -> Result {
    container.verb("state", &[])?.fails_with(&["does not exist"])?;
    ensure!(!t.root.join(&container.id).exists(), "its state is left");
    ensure!(
        container.cgroup.directories()?.iter().all(|path| !path.exists()),
        "its cgroup is left"
    );
    Ok(())
}

test!(
    fn a_program_goes_on_where_it_was(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        is_gone(t, &container)?;
        let before = numbers(&container)?;
        let restored = checkpoints.restore(&[])?;
        goes_on(&restored, &before)?;
        restored.is("running")?;
        restored.exec(&["hostname"])?.ok()?;
        restored.kill("KILL")?.ok()?;
        restored.wait("stopped")?;
        restored.delete()?.ok()?;
        is_gone(t, &restored)
    }
);

test!(
    fn it_can_be_checkpointed_again_and_again_with_the_processes_of_execs(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let mut container = checkpoints.start(&[])?;
        for round in 0..2 {
            let before = numbers(&container)?;
            let background = "sleep 1000000 </dev/null >/dev/null 2>&1 & echo $!";
            let pid = container
                .exec(&["sh", "-c", background])?
                .ok()?
                .stdout
                .trim()
                .to_owned();
            checkpoints
                .checkpoint(&[])?
                .ok()
                .with_context(|| format!("round {round}"))?;
            let before = numbers(&container).map(|all| all.into_iter().max().max(before.last().copied()))?;
            container = checkpoints.restore(&[])?;
            ensure!(numbers(&container)?[0] > before.unwrap_or(0), "it did not go on");
            container.exec(&["ls", "-d", &format!("/proc/{pid}")])?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn a_container_that_is_left_running_runs_on_beside_its_image(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        let before = numbers(&container)?;
        checkpoints.checkpoint(&["--leave-running"])?.ok()?;
        container.is("running")?;
        let last = *numbers(&container)?.last().context("none")?;
        ensure!(last >= *before.last().context("none")?, "{last}");
        until("it to count on", || {
            Ok((*numbers(&container)?.last().context("none")? > last).then_some(()))
        })?;
        let images: Vec<_> = fs::read_dir(&checkpoints.image)?.flatten().collect();
        ensure!(
            images.iter().any(|file| file.file_name() == "inventory.img"),
            "{images:?}"
        );
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        checkpoints.restore(&[])?.is("running")
    }
);

test!(
    fn a_paused_container_is_checkpointed_and_runs_when_it_is_restored(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        container.verb("pause", &[])?.ok()?;
        checkpoints.checkpoint(&["--leave-running"])?.ok()?;
        container.is("paused")?;
        checkpoints.checkpoint(&[])?.ok()?;
        let before = numbers(&container)?;
        goes_on(&checkpoints.restore(&[])?, &before)
    }
);

test!(
    fn memory_can_be_written_before(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        if !has(checkpoints.path(), "mem_dirty_track") {
            t.skip("the kernel does not track written memory")?;
        }
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        let earlier = checkpoints.image.with_file_name("earlier");
        let output = t
            .command(["checkpoint", "--pre-dump", "--image-path"])
            .args([&earlier])
            .args([&container.id])
            .env("PATH", checkpoints.path());
        output.run()?.ok()?;
        container.is("running")?;
        checkpoints.checkpoint(&["--parent-path", "../earlier"])?.ok()?;
        ensure!(
            checkpoints.image.join("parent").exists(),
            "the image has no parent"
        );
        let before = numbers(&container)?;
        goes_on(&checkpoints.restore(&[])?, &before)
    }
);

test!(
    fn a_kernel_that_does_not_track_memory_is_named(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        if has(checkpoints.path(), "mem_dirty_track") {
            t.skip("the kernel tracks written memory")?;
        }
        let container = checkpoints.start(&[])?;
        checkpoints
            .checkpoint(&["--pre-dump"])?
            .fails_naming(&["--pre-dump", "CONFIG_MEM_SOFT_DIRTY"])?;
        container.is("running")?;
        ensure!(!checkpoints.image.exists(), "an image was begun");
        Ok(())
    }
);

test!(
    fn bind_mounts_come_from_the_bundle_again(t: &Test) -> Result {
        let (data, other) = (t.path("data"), t.path("other"));
        fs::create_dir(&data)?;
        fs::create_dir(&other)?;
        fs::write(data.join("file"), "one\n")?;
        let bundle = t
            .bundle()
            .sh("cat /data/file; read x </data/wait; cat /data/file; echo new >/data/nested/made; echo end; sleep 100000")
            .mount("/data", "bind", &data.to_string_lossy(), &["bind", "rw"])
            .mount("/data/nested", "bind", &other.to_string_lossy(), &["rbind", "rw"]);
        nix::unistd::mkfifo(
            &data.join("wait"),
            nix::sys::stat::Mode::from_bits_truncate(0o600),
        )?;
        let checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        container.wait_for_output("one")?;
        checkpoints.checkpoint(&[])?.ok()?;
        fs::write(data.join("file"), "two\n")?;
        // The mount point inside of the other mount is made again.
        fs::remove_dir(data.join("nested"))?;
        let restored = checkpoints.restore(&[])?;
        fs::write(data.join("wait"), "\n")?;
        restored.wait_for_output("end")?;
        let output = restored.stdout()?;
        ensure!(output.trim() == "two\nend", "{output:?}");
        ensure!(
            fs::read_to_string(other.join("made"))? == "new\n",
            "written elsewhere"
        );
        Ok(())
    }
);

test!(
    fn a_destination_behind_a_link_is_found_again(t: &Test) -> Result {
        let data = t.path("data");
        fs::create_dir(&data)?;
        let bundle = t
            .bundle()
            .sh(COUNTER)
            .mount("/conf", "bind", &data.to_string_lossy(), &["bind"]);
        fs::create_dir_all(bundle.rootfs().join("real/conf"))?;
        symlink("/real/conf", bundle.rootfs().join("conf"))?;
        let checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let before = numbers(&container)?;
        let restored = checkpoints.restore(&[])?;
        goes_on(&restored, &before)?;
        restored
            .exec(&["grep", " /real/conf ", "/proc/self/mountinfo"])?
            .ok()?;
        Ok(())
    }
);

test!(
    fn a_place_that_would_be_another_mounts_source_is_refused(t: &Test) -> Result {
        let data = t.path("data");
        fs::create_dir(&data)?;
        let bundle = t
            .bundle()
            .sh(COUNTER)
            .mount("/a/data", "bind", &data.to_string_lossy(), &["bind"]);
        let checkpoints = Checkpoints::of(t, bundle)?;
        let rootfs = checkpoints.bundle.rootfs();
        let container = checkpoints.start(&[])?;
        // What leads to a mount point can be renamed, also from inside.
        fs::rename(rootfs.join("a"), rootfs.join("b"))?;
        fs::create_dir_all(rootfs.join("a"))?;
        fs::create_dir(rootfs.join("b").join("data]:")).ok();
        for target in ["/bin]:/name", "/"] {
            fs::create_dir_all(rootfs.join("bin]:/name"))?;
            let link = rootfs.join("a/data");
            fs::remove_file(&link).ok();
            symlink(target, &link)?;
            checkpoints
                .checkpoint(&[])?
                .fails_with(&["invalid external mount destination"])?;
            container.is("running")?;
        }
        Ok(())
    }
);

test!(
    fn a_terminal_is_sent_to_the_console_socket_again(t: &Test) -> Result {
        let socket = t.path("console");
        let listener = listen(&socket)?;
        let console = socket.to_string_lossy().into_owned();
        let bundle = t.bundle().set("/process/terminal", json!(true));
        let checkpoints = Checkpoints::of(
            t,
            bundle.sh("echo ready; while read line; do echo got $line; done"),
        )?;
        let _container = checkpoints.start(&["--console-socket", &console])?;
        let mut terminal = Terminal::receive(&listener)?;
        terminal.wait_for("ready")?;
        checkpoints.checkpoint(&[])?.ok()?;
        drop(terminal);
        let restored = checkpoints.restore(&["--console-socket", &console])?;
        let mut terminal = Terminal::receive(&listener)?;
        terminal.type_in("typed\n")?;
        terminal.wait_for("got typed")?;
        restored.is("running")?;
        Ok(())
    }
);

test!(
    fn a_restore_in_the_foreground_waits_and_tells_the_status(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sh("trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
        let checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        container.wait_for_output("ready")?;
        checkpoints.checkpoint(&[])?.ok()?;
        let pid_file = t.path("pid");
        let flags = ["--pid-file", &pid_file.to_string_lossy()];
        let running = checkpoints.restore_command(&flags)?.spawn()?;
        let pid = until("the pid file", || {
            Ok(fs::read_to_string(&pid_file).ok().filter(|text| !text.is_empty()))
        })?;
        ensure!(container.pid()?.to_string() == pid, "the pid file says {pid}");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.pid()),
            nix::sys::signal::SIGTERM,
        )?;
        running.wait()?.code(7)?.stdout_is("asked\n")?;
        is_gone(t, &container)
    }
);

test!(
    fn limits_and_cgroup_are_those_of_the_bundle(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sh(COUNTER)
            .set("/linux/resources/pids", json!({"limit": 33}));
        let mut checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints
            .checkpoint(&["--manage-cgroups-mode", "ignore"])?
            .ok()?;
        is_gone(t, &container)?;
        let other = format!("{}/other", t.cgroup.path);
        checkpoints.bundle = std::mem::replace(&mut checkpoints.bundle, t.bundle())
            .set("/linux/cgroupsPath", json!(other))
            .set("/linux/resources/pids", json!({"limit": 44}));
        let before = numbers(&container)?;
        let restored = checkpoints.restore(&["--manage-cgroups-mode", "ignore"])?;
        goes_on(&restored, &before)?;
        ensure!(
            restored.cgroup.processes()?.contains(&restored.pid()?),
            "init is elsewhere"
        );
        let limit = fs::read_to_string(restored.cgroup.directory("pids")?.join("pids.max"))?;
        ensure!(limit.trim() == "44", "{limit}");
        ensure!(
            container.cgroup.directories()?.iter().all(|path| !path.exists()),
            "the old cgroup is back"
        );
        Ok(())
    }
);

test!(
    fn every_process_is_in_the_cgroup_and_in_no_namespace_of_the_host(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let restored = checkpoints.restore(&[])?;
        let init = restored.pid()?;
        ensure!(restored.cgroup.processes()?.contains(&init), "init is elsewhere");
        for kind in ["mnt", "pid", "net", "ipc", "uts"] {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
            ensure!(of("self")? != of(&init.to_string())?, "{kind} is the host's");
        }
        let up = restored.exec(&["cat", "/sys/class/net/lo/flags"])?.ok()?;
        ensure!(
            up.stdout.trim() == "0x9",
            "the loopback interface is down: {}",
            up.stdout
        );
        // The mount that CRIU wants is of nobody else's.
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains("criu-root"), "{mounts}");
        ensure!(
            !t.root.join(&restored.id).join("criu-root").exists(),
            "its mount point is left"
        );
        Ok(())
    }
);

test!(
    fn a_joined_network_namespace_is_joined_again(t: &Test) -> Result {
        let holder = t.bundle().sleeper().start()?;
        let path = format!("/proc/{}/ns/net", holder.pid()?);
        let inode = fs::read_link(&path)?;
        let bundle = t
            .bundle()
            .sh(COUNTER)
            .namespace(json!({"type": "network", "path": path}));
        let checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let restored = checkpoints.restore(&[])?;
        let found = fs::read_link(format!("/proc/{}/ns/net", restored.pid()?))?;
        ensure!(found == inode, "{found:?}, not {inode:?}");
        Ok(())
    }
);

test!(
    fn a_tcp_connection_needs_its_flag(t: &Test) -> Result {
        let bundle = t.bundle().sh(
            "mkfifo /tmp/a /tmp/b; exec 3<>/tmp/a 4<>/tmp/b; nc -l -p 7777 <&3 & \
             until nc 127.0.0.1 7777 <&4; do sleep 0.05; done & echo ready; while :; do echo line >&3; sleep 0.05; done",
        );
        let checkpoints = Checkpoints::of(t, bundle)?;
        let container = checkpoints.start(&[])?;
        container.wait_for_output("line")?;
        checkpoints
            .checkpoint(&[])?
            .fails_naming(&["CRIU failed", "tcp-established", "dump.log"])?;
        container.is("running")?;
        let length = container.stdout()?.len();
        until("the connection to go on", || {
            Ok((container.stdout()?.len() > length).then_some(()))
        })?;
        if !has(checkpoints.path(), "tcp_half_closed") {
            // The kernel is without what CRIU asks of it about sockets.
            return Ok(());
        }
        checkpoints.checkpoint(&["--tcp-established"])?.ok()?;
        let restored = checkpoints.restore(&["--tcp-established"])?;
        restored.wait_for_output("line")?;
        Ok(())
    }
);

test!(
    fn hooks_run_at_a_restore_and_after_a_checkpoint(t: &Test) -> Result {
        let log = t.path("log");
        let hook = |name: &str| {
            let script = format!("read state; echo {name} >>{}", log.display());
            json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}])
        };
        let hooks = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "poststop": hook("poststop")});
        let checkpoints = Checkpoints::of(t, t.bundle().sh(COUNTER).set("/hooks", hooks))?;
        checkpoints.start(&[])?;
        checkpoints.checkpoint(&[])?.ok()?;
        ensure!(fs::read_to_string(&log)? == "prestart\ncreateRuntime\npoststop\n");
        let restored = checkpoints.restore(&[])?;
        ensure!(fs::read_to_string(&log)? == "prestart\ncreateRuntime\npoststop\nprestart\ncreateRuntime\n");
        restored.verb("delete", &["--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn pipes_are_those_of_the_restore(t: &Test) -> Result {
        use std::io::{Read, Write};
        let bundle = t.bundle().sh("while read line; do echo got $line; done");
        let checkpoints = Checkpoints::of(t, bundle)?;
        checkpoints.bundle.write()?;
        t.delete_at_end(&checkpoints.bundle.id);
        let (input, mut typed) = std::io::pipe()?;
        let run = checkpoints.bundle.command("run", &["--detach"])?.stdin(input);
        run.run()?.ok()?;
        checkpoints.checkpoint(&[])?.ok()?;
        let descriptors = fs::read_to_string(checkpoints.image.join("descriptors.json"))?;
        ensure!(descriptors.starts_with("[\"pipe:["), "{descriptors}");
        typed.write_all(b"lost\n").ok();
        let (input, mut typed) = std::io::pipe()?;
        let restore = checkpoints.restore_command(&["--detach"])?.stdin(input).spawn()?;
        let stdout = restore.stdout.clone();
        restore.wait()?.ok()?;
        typed.write_all(b"again\n")?;
        until("an answer", || {
            let mut text = String::new();
            fs::File::open(&stdout)?.read_to_string(&mut text)?;
            Ok((text == "got again\n").then_some(()))
        })
    }
);

test!(
    fn a_restore_that_fails_leaves_nothing(t: &Test) -> Result {
        let checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let core = fs::read_dir(&checkpoints.image)?
            .flatten()
            .map(|file| file.path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("core-"))
            })
            .context("no core image")?;
        fs::write(&core, "broken")?;
        let output = checkpoints.restore_command(&["--detach"])?.run()?;
        output.fails_naming(&["restore container", "CRIU failed", "restore.log"])?;
        is_gone(t, &container)
    }
);

test!(
    fn an_image_can_not_give_more_than_the_configuration(t: &Test) -> Result {
        let mut checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let bundle = std::mem::replace(&mut checkpoints.bundle, t.bundle());
        for (change, text) in [
            ("capabilities", "process.capabilities"),
            ("seccomp", "linux.seccomp"),
        ] {
            let mut changed = t.bundle().named(&bundle.id);
            changed.spec = bundle.spec.clone();
            checkpoints.bundle = match change {
                "capabilities" => changed.capabilities(&["CAP_KILL"]),
                _ => changed.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
            };
            let output = checkpoints.restore_command(&["--detach"])?.run()?;
            output.fails_naming(&["the image does not fit the configuration", text])?;
            is_gone(t, &container)?;
        }
        checkpoints.bundle = bundle;
        checkpoints.restore(&[])?.is("running")
    }
);

test!(
    fn a_hook_that_fails_ends_the_restore(t: &Test) -> Result {
        let mut checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let hooks = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "echo no network; exit 3"]}]});
        checkpoints.bundle = std::mem::replace(&mut checkpoints.bundle, t.bundle()).set("/hooks", hooks);
        let output = checkpoints.restore_command(&["--detach"])?.run()?;
        output.fails_with(&["createRuntime hook", "no network"])?;
        is_gone(t, &container)
    }
);

test!(
    fn a_restored_container_is_deleted_after_its_runtime_was_killed(t: &Test) -> Result {
        let mut checkpoints = counter(t)?;
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let began = t.path("began");
        let script = format!("echo >{}; sleep 1000", began.display());
        let hooks = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]});
        checkpoints.bundle = std::mem::replace(&mut checkpoints.bundle, t.bundle()).set("/hooks", hooks);
        let running = checkpoints.restore_command(&["--detach"])?.spawn()?;
        until("the hook", || Ok(began.exists().then_some(())))?;
        let pid = running.pid();
        let hook = process::descendants(pid);
        running.kill()?;
        for process in hook {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::SIGKILL).ok();
        }
        container.verb("delete", &["--force"])?.ok()?;
        is_gone(t, &container)
    }
);

test!(
    fn systemd_makes_the_scope_of_a_restored_container(t: &Test) -> Result {
        if !Path::new("/run/systemd/system").exists() {
            t.skip("systemd does not run")?;
        }
        t.needs_cgroup_v2()?;
        let bundle = t.bundle().sh(COUNTER);
        let scope = format!("rtc-{}.scope", bundle.id);
        let path = format!("system.slice:rtc:{}", bundle.id);
        let bundle = bundle
            .set("/linux/cgroupsPath", json!(path))
            .set("/linux/resources/pids", json!({"limit": 55}));
        let mut checkpoints = Checkpoints::of(t, bundle)?;
        checkpoints.globals = vec!["--systemd-cgroup".into()];
        let container = checkpoints.start(&[])?;
        numbers(&container)?;
        checkpoints.checkpoint(&[])?.ok()?;
        let before = numbers(&container)?;
        let restored = checkpoints.restore(&[])?;
        goes_on(&restored, &before)?;
        let directory = Path::new("/sys/fs/cgroup/system.slice").join(scope);
        let processes = fs::read_to_string(directory.join("cgroup.procs"))?;
        let init = restored.pid()?.to_string();
        ensure!(processes.lines().any(|line| line == init), "{processes}");
        ensure!(fs::read_to_string(directory.join("pids.max"))?.trim() == "55");
        Ok(())
    }
);
