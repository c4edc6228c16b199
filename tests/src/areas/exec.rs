//! exec: another process in a container that is there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::process;
use crate::test;
use crate::wait::until;

test!(
    fn exec_returns_the_exit_status_and_passes_all_streams(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let input = t.path("input");
        fs::write(&input, "from stdin\n")?;
        let script = "cat; echo to-err >&2; exit 42";
        let command = container
            .exec_command(&[], &["sh", "-c", script])
            .stdin(fs::File::open(&input)?);
        let output = command.run()?.code(42)?;
        ensure!(
            output.stdout == "from stdin\n" && output.stderr == "to-err\n",
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn exec_returns_128_plus_the_signal_that_killed_the_process(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container.exec(&["sh", "-c", "kill -KILL $$"])?.code(137)?;
        Ok(())
    }
);

test!(
    fn exec_of_a_missing_program_is_an_error_with_status_255(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let output = container.exec(&["no-such-program"])?.code(255)?;
        output.fails_with(&["no-such-program", "executable file not found in $PATH"])?;
        let output = container.exec(&["/bin/no-such-program"])?.code(255)?;
        output.fails_with(&["/bin/no-such-program", "no such file or directory"])?;
        container
            .exec_command(&["--detach"], &["no-such-program"])
            .run()?
            .fails_with(&["no-such-program"])?;
        container.is("running")
    }
);

test!(
    fn exec_of_a_script_without_its_interpreter_names_the_script(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        let script = bundle.rootfs().join("run.sh");
        fs::write(&script, "#!/no/such/interpreter\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let container = bundle.start()?;
        container
            .exec(&["/run.sh"])?
            .fails_with(&["exec /run.sh: no such file or directory"])?;
        Ok(())
    }
);

test!(
    fn exec_works_in_a_created_container(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        container
            .exec(&["echo", "before start"])?
            .prints("before start")?;
        container.is("created")
    }
);

test!(
    fn exec_in_a_stopped_container_is_refused(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).start()?;
        container.wait("stopped")?;
        container.exec(&["true"])?.fails_with(&["stopped"])?;
        Ok(())
    }
);

test!(
    fn exec_joins_every_namespace_and_the_cgroup_of_the_container(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
            let script = format!("for p in 1 self; do readlink /proc/$p/ns/{kind}; done | uniq | wc -l");
            container
                .exec(&["sh", "-c", &script])?
                .prints("1")
                .with_context(|| kind)?;
        }
        let script = "cat /proc/1/cgroup /proc/self/cgroup | sort -u | wc -l; wc -l </proc/self/cgroup";
        let output = container.exec(&["sh", "-c", script])?.ok()?;
        ensure!(output.lines()[0] == output.lines()[1], "{output}");
        let before = container.cgroup.processes()?;
        container
            .exec_command(&["--detach"], &["sleep", "1000000"])
            .run()?
            .ok()?;
        ensure!(
            container.cgroup.processes()?.len() == before.len() + 1,
            "{:?}",
            container.cgroup.processes()?
        );
        Ok(())
    }
);

test!(
    fn exec_detached_writes_the_host_pid_of_the_process(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let pid_file = t.path("pid");
        let flags = ["--detach", "--pid-file", &pid_file.to_string_lossy()];
        container
            .exec_command(&flags, &["sleep", "4000000"])
            .run()?
            .ok()?;
        let pid: i32 = fs::read_to_string(&pid_file)?.parse()?;
        until("the program to run", || {
            Ok(process::describe(pid).contains("sleep 4000000").then_some(()))
        })?;
        ensure!(
            process::namespace(&pid.to_string(), "pid")?
                == process::namespace(&container.pid()?.to_string(), "pid")?
        );
        Ok(())
    }
);

test!(
    fn exec_takes_user_groups_directory_and_environment_from_the_configuration(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sleeper()
            .set("/process/user", json!({"uid": 1000, "gid": 1000, "umask": 0o027}));
        let container = bundle
            .set("/process/cwd", json!("/tmp"))
            .push("/process/env", json!("FROM=config"))
            .start()?;
        let script = "id -u; id -g; pwd; umask; echo $FROM; echo $HOME";
        container
            .exec(&["sh", "-c", script])?
            .prints("1000\n1000\n/tmp\n0027\nconfig\n/home/user")?;
        Ok(())
    }
);

test!(
    fn exec_flags_override_user_groups_directory_and_environment(t: &Test) -> Result {
        let container = t
            .bundle()
            .sleeper()
            .push("/process/env", json!("KEPT=yes"))
            .start()?;
        let flags = [
            "--user",
            "1000:1001",
            "--cwd",
            "/home",
            "--env",
            "ADDED=1",
            "--env",
            "PATH=/bin:/other",
        ];
        let output = container.exec_command(
            &flags,
            &[
                "sh",
                "-c",
                "id -u; id -g; pwd; for v in $ADDED $KEPT $PATH $HOME; do echo $v; done",
            ],
        );
        output
            .run()?
            .prints("1000\n1001\n/home\n1\nyes\n/bin:/other\n/home/user")?;
        let output = container.exec_command(
            &["-u", "1000", "-g", "10", "-g", "20"],
            &["cat", "/proc/self/status"],
        );
        let output = output.run()?.ok()?;
        ensure!(output.value_of("Gid")?.starts_with('0'), "{output}");
        let groups: Vec<&str> = output
            .value_of("Groups")?
            .split_whitespace()
            .filter(|&group| group != "0")
            .collect();
        ensure!(groups == ["10", "20"], "{output}");
        Ok(())
    }
);

test!(
    fn exec_as_a_user_that_is_no_number_or_too_large_is_refused(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for user in [
            "root",
            "1000:user",
            "-1",
            "4294967296",
            "18446744073709551616",
            "1000:4294967296",
            "",
            ":",
            "0x0",
            "1:2:3",
        ] {
            let output = container.exec_command(&["--user", user], &["id"]).run()?;
            output
                .fails_with(&[])
                .with_context(|| format!("--user {user:?}"))?;
        }
        Ok(())
    }
);

test!(
    fn exec_leaves_owner_and_mode_of_its_streams_alone(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let before = fs::metadata("/dev/null")?;
        let input = t.path("input");
        fs::write(&input, "x")?;
        let command = container
            .exec_command(&["--user", "1000:1000"], &["true"])
            .stdin(fs::File::open(&input)?);
        command.run()?.ok()?;
        container
            .exec_command(&["--user", "1000:1000"], &["true"])
            .run()?
            .ok()?;
        let after = fs::metadata("/dev/null")?;
        ensure!(
            (after.uid(), after.gid(), after.mode()) == (before.uid(), before.gid(), before.mode()),
            "/dev/null"
        );
        ensure!(
            fs::metadata(&input)?.uid() == 0,
            "owner of a file given as standard input"
        );
        Ok(())
    }
);

test!(
    fn exec_with_cap_adds_it_and_leaves_the_inheritable_set_empty(t: &Test) -> Result {
        let container = t.bundle().sleeper().capabilities(&["CAP_KILL"]).start()?;
        let status = ["cat", "/proc/self/status"];
        let output = container
            .exec_command(&["--cap", "CAP_CHOWN"], &status)
            .run()?
            .ok()?;
        ensure!(output.value_of("CapBnd")?.ends_with("21"), "{output}");
        ensure!(output.value_of("CapEff")?.ends_with("21"), "{output}");
        ensure!(
            output.value_of("CapInh")?.chars().all(|digit| digit == '0'),
            "{output}"
        );
        let output = container.exec(&status)?.ok()?;
        ensure!(
            output.value_of("CapBnd")?.trim_start_matches('0') == "20",
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn exec_with_a_process_file_takes_everything_from_it(t: &Test) -> Result {
        let container = t
            .bundle()
            .sleeper()
            .push("/process/env", json!("NOT=inherited"))
            .start()?;
        let process = json!({
            "args": ["sh", "-c", "pwd; id -u; env | sort; exit 5"], "cwd": "/tmp",
            "env": ["PATH=/bin", "OWN=1"], "user": {"uid": 1000, "gid": 1000},
        });
        let file = t.path("process.json");
        fs::write(&file, process.to_string())?;
        let output = t
            .rtc(["exec", "--process", &file.to_string_lossy(), &container.id])?
            .code(5)?;
        let lines = output.lines();
        ensure!(lines[..2] == ["/tmp", "1000"], "{output}");
        ensure!(
            lines.contains(&"OWN=1") && !output.stdout.contains("NOT="),
            "{output}"
        );
        ensure!(lines.contains(&"HOME=/home/user"), "{output}");
        Ok(())
    }
);

test!(
    fn exec_leads_its_own_session(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let output = container
            .exec(&["sh", "-c", "echo $$; cat /proc/$$/stat"])?
            .ok()?;
        let lines = output.lines();
        let fields: Vec<&str> = lines[1].split_whitespace().collect();
        ensure!(fields[3..6] == ["0", lines[0], lines[0]], "{output}");
        Ok(())
    }
);

test!(
    fn exec_has_no_new_privileges_where_the_container_has_or_the_flag_asks(t: &Test) -> Result {
        let status = ["grep", "NoNewPrivs", "/proc/self/status"];
        let container = t.bundle().sleeper().start()?;
        container.exec(&status)?.prints("NoNewPrivs:\t1")?;
        let container = t
            .bundle()
            .sleeper()
            .set("/process/noNewPrivileges", json!(false))
            .start()?;
        container.exec(&status)?.prints("NoNewPrivs:\t0")?;
        container
            .exec_command(&["--no-new-privs"], &status)
            .run()?
            .prints("NoNewPrivs:\t1")?;
        Ok(())
    }
);

test!(
    fn exec_has_the_resource_limits_of_the_configuration(t: &Test) -> Result {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222}]);
        let container = t.bundle().sleeper().set("/process/rlimits", limits).start()?;
        container
            .exec(&["sh", "-c", "ulimit -Sn; ulimit -Hn"])?
            .prints("111\n222")?;
        Ok(())
    }
);

test!(
    fn exec_in_a_paused_container_is_refused_unless_ignored(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container.verb("pause", &[])?.ok()?;
        container
            .exec(&["true"])?
            .fails_with(&["cannot exec in a paused container"])?;
        let ignoring = container
            .exec_command(&["--ignore-paused"], &["echo", "thawed"])
            .spawn()?;
        container.verb("resume", &[])?.ok()?;
        ignoring.wait()?.prints("thawed")?;
        Ok(())
    }
);

test!(
    fn many_execs_at_once_all_succeed(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let mut execs = Vec::new();
        for number in 0..16 {
            let word = format!("number {number}");
            execs.push((container.exec_command(&[], &["echo", &word]).spawn()?, word));
        }
        for (exec, word) in execs {
            exec.wait()?.prints(&word)?;
        }
        container.is("running")
    }
);

test!(
    fn exec_without_a_command_is_refused(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container.exec(&[])?.fails_with(&[])?;
        Ok(())
    }
);

test!(
    fn exec_in_a_sub_cgroup_runs_there(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for directory in container.cgroup.directories()? {
            fs::create_dir(directory.join("sub"))?;
            // A new v1 cpuset takes no process before it has cpus and memory nodes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (directory.join(file), directory.join("sub").join(file));
                if !crate::host::cgroup::is_unified() && from.exists() {
                    fs::write(to, fs::read(from)?)?;
                }
            }
        }
        let output = container
            .exec_command(&["--cgroup", "sub"], &["cat", "/proc/self/cgroup"])
            .run()?
            .ok()?;
        let wrong: Vec<&str> = output
            .lines()
            .into_iter()
            .filter(|line| line.ends_with(":/"))
            .collect();
        // Hierarchies in which the runtime makes no cgroup stay as they are.
        ensure!(
            output.lines().iter().any(|line| line.ends_with(":/sub")) && wrong.len() <= 2,
            "{output}"
        );
        container
            .exec_command(&["--cgroup", "nonexistent"], &["true"])
            .run()?
            .fails_naming(&["nonexistent"])?;
        container
            .exec_command(&["--cgroup", "../../escape"], &["true"])
            .run()?
            .fails_naming(&["escape"])?;
        Ok(())
    }
);

test!(
    fn exec_in_the_hosts_pid_namespace_ends_with_the_container(t: &Test) -> Result {
        let container = t.bundle().without_namespace("pid").sleeper().start()?;
        let pid_file = t.path("pid");
        let flags = ["--detach", "--pid-file", &pid_file.to_string_lossy()];
        container
            .exec_command(&flags, &["sleep", "1000000"])
            .run()?
            .ok()?;
        let pid = fs::read_to_string(&pid_file)?.parse()?;
        container.verb("delete", &["--force"])?.ok()?;
        until("the process to die", || {
            Ok((!process::is_alive(pid)).then_some(()))
        })
    }
);

test!(
    fn exec_sees_the_mounts_of_the_container(t: &Test) -> Result {
        let container = t
            .bundle()
            .mount("/tmp", "tmpfs", "tmpfs", &[])
            .sh("echo inside >/tmp/file; sleep 1000000")
            .start()?;
        until("the file", || {
            Ok((container.exec(&["cat", "/tmp/file"])?.stdout == "inside\n").then_some(()))
        })?;
        container
            .exec(&["sh", "-c", "touch /x 2>/dev/null || echo refused"])?
            .prints("refused")?;
        Ok(())
    }
);

test!(
    fn exec_outlives_the_runtime_when_detached_and_init_reaps_nothing_of_the_hosts(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let exec = container
            .exec_command(&["--detach"], &["sh", "-c", "sleep 0.2; echo done >&2"])
            .spawn()?;
        let stderr = exec.stderr.clone();
        exec.wait()?.ok()?;
        until("the process to end by itself", || {
            Ok(fs::read_to_string(&stderr)?.contains("done").then_some(()))
        })?;
        container.is("running")
    }
);

test!(
    fn exec_in_a_sub_cgroup_that_is_not_there_or_outside_is_refused(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for path in ["absent", "../../outside"] {
            container
                .exec_command(&["--cgroup", path], &["true"])
                .run()?
                .fails_naming(&["cgroup"])
                .with_context(|| path)?;
        }
        container.is("running")
    }
);
