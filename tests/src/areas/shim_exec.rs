//! Execs through the shim: the whole process of the specification, many at once, what they leave.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::host::{cgroup, process};
use crate::registry::Result;
use crate::shim::{Code, Containerd, Process, Refusal, Status, Streams};
use crate::test;
use crate::wait::until;

/// Runs a process of the specification to its end, and gives its standard output.
fn output(task: &Process<'_>, id: &str, spec: &Value) -> Result<String> {
    let streams = Streams::output(task.shim.t)?;
    let exec = task.exec_by(&task.exec_request_of(id, spec, &streams), streams)?;
    exec.start()?;
    exec.exits_with(0)?;
    let output = exec.streams.out.text_to_end()?;
    exec.delete()?;
    Ok(output)
}

test!(
    fn an_exec_has_the_directory_environment_and_user_it_is_given(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let spec = json!({
            "args": ["sh", "-c", "pwd; echo $COLOUR; id -u; id -g; id -G; umask"],
            "cwd": "/tmp",
            "env": ["PATH=/bin", "COLOUR=green"],
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27},
        });
        let text = output(&task, "e1", &spec)?;
        let lines: Vec<&str> = text.lines().collect();
        // runc 1.1 takes no umask for an exec.
        ensure!(
            lines[..5] == ["/tmp", "green", "1000", "1001", "1001 5 6"],
            "{text:?}"
        );
        ensure!(lines[5] == "0027" || !t.shim_is_ours(), "{text:?}");
        task.end()
    }
);

test!(
    fn an_exec_has_the_capabilities_limits_and_flags_it_is_given(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut spec = task.spec.clone();
        let sets = json!(["CAP_KILL"]);
        spec["capabilities"] = json!({"bounding": sets, "effective": sets, "permitted": sets});
        spec["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        spec["noNewPrivileges"] = json!(true);
        spec["args"] = json!([
            "sh",
            "-c",
            "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; ulimit -Sn; ulimit -Hn"
        ]);
        let text = output(&task, "e1", &spec)?;
        for line in [
            "CapEff:\t0000000000000020",
            "CapBnd:\t0000000000000020",
            "NoNewPrivs:\t1",
            "100",
            "200",
        ] {
            ensure!(text.lines().any(|each| each == line), "no {line:?} in {text:?}");
        }
        task.end()
    }
);

test!(
    fn an_exec_is_in_the_namespaces_and_the_cgroup_of_its_container(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec_sh("e1", "sleep 1000000")?;
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let (init, its) = (
                process::namespace(&task.pid().to_string(), kind)?,
                process::namespace(&exec.pid().to_string(), kind)?,
            );
            ensure!(init == its, "{kind}: {init}, {its}");
        }
        let own = format!("{}/{}", t.cgroup.path, task.id);
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", exec.pid()))?;
        let expected = if cgroup::is_unified() { 1 } else { 3 };
        let found = cgroups.lines().filter(|line| line.contains(&own)).count();
        ensure!(found >= expected, "{cgroups}");
        exec.end()?;
        task.end()
    }
);

test!(
    fn an_exec_is_in_a_sub_cgroup_of_its_own(t: &Test) -> Result {
        t.needs_cgroup_v2()?;
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec_sh("e1", "sleep 1000000")?;
        let group = |pid: i32| -> Result<String> {
            Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?
                .trim()
                .to_owned())
        };
        let (init, its) = (group(task.pid())?, group(exec.pid())?);
        ensure!(
            its != init && its.contains(&task.id),
            "init in {init}, exec in {its}"
        );
        exec.end()?;
        let path = its.trim_start_matches("0::/").to_owned();
        until("the exec's cgroup to go", || {
            Ok((!std::path::Path::new("/sys/fs/cgroup").join(&path).exists()).then_some(()))
        })?;
        task.end()
    }
);

test!(
    fn execs_that_leave_something_for_a_while_do_not_fill_the_container_with_cgroups(t: &Test) -> Result {
        t.needs_cgroup_v2()?;
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for n in 0..20 {
            task.output_of(&format!("e{n}"), "sleep 0.2 > /dev/null 2>&1 &")?;
        }
        sleep(Duration::from_millis(300));
        for n in 20..24 {
            task.output_of(&format!("e{n}"), "true")?;
        }
        let group = fs::read_to_string(format!("/proc/{}/cgroup", task.pid()))?;
        let directory = std::path::Path::new("/sys/fs/cgroup").join(group.trim().trim_start_matches("0::/"));
        let left = fs::read_dir(directory)?.filter(|entry| {
            let name = entry.as_ref().map(fs::DirEntry::file_name);
            name.is_ok_and(|name| name.to_string_lossy().starts_with("exec-"))
        });
        let left = left.count();
        ensure!(left <= 1, "{left} cgroups are left");
        task.end()
    }
);

test!(
    fn what_an_exec_leaves_in_the_background_lives_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().writable().sleeper())?;
        let exec = task.exec_sh(
            "e1",
            "(while sleep 0.02; do echo >> /alive; done) > /dev/null 2>&1 &",
        )?;
        exec.exits_with(0)?;
        exec.delete()?;
        task.output_of("e2", "rm -f /alive; until [ -s /alive ]; do sleep 0.02; done")?;
        ensure!(task.pids()?.len() >= 2, "{:?}", task.pids()?);
        task.pause()?;
        task.resume()?;
        task.output_of("e3", "rm -f /alive; until [ -s /alive ]; do sleep 0.02; done")?;
        // And ends with its container.
        task.end()
    }
);

test!(
    fn a_program_that_is_not_there_fails_start_and_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let before = task.pids()?.len();
        let exec = task.exec("e1", &["/no/such/program"])?;
        let error = exec.start().expect_err("started a program that is not there");
        // What crictl and the kubelet's tests look for.
        let text = format!("{error:#}");
        ensure!(text.contains("no such file or directory"), "{text}");
        let exited = exec.wait();
        ensure!(exited.is_ok() || t.shim_is_ours(), "Wait: {exited:?}");
        exec.delete()?;
        ensure!(task.pids()?.len() == before, "{:?}", task.pids()?);
        let not_in_path = task.exec("e2", &["no-such-program"])?;
        let error = format!("{:#}", not_in_path.start().expect_err("started"));
        ensure!(error.contains("executable file not found in $PATH"), "{error}");
        not_in_path.delete()?;
        task.end()
    }
);

test!(
    fn a_directory_or_a_file_without_permission_is_no_program(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for (number, program) in ["/etc", "/etc/passwd"].iter().enumerate() {
            let exec = task.exec(&format!("e{number}"), &[program])?;
            let error = format!("{:#}", exec.start().expect_err("started"));
            let lower = error.to_lowercase();
            ensure!(
                lower.contains("permission denied") || lower.contains("is a directory"),
                "{error}"
            );
            exec.delete()?;
        }
        task.output_of("good", "true")?;
        task.end()
    }
);

test!(
    fn an_exec_without_arguments_or_of_no_process_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for (number, spec) in [
            json!({"args": [], "cwd": "/", "user": {"uid": 0, "gid": 0}}),
            json!({"args": ["true"], "cwd": "not/absolute", "user": {"uid": 0, "gid": 0}}),
            json!([1, 2]),
        ]
        .iter()
        .enumerate()
        {
            let streams = Streams::default();
            let request = task.exec_request_of(&format!("e{number}"), spec, &streams);
            let error = match task.exec_by(&request, streams) {
                Err(error) => error,
                Ok(exec) => {
                    let error = exec.start().expect_err("started");
                    exec.delete()?;
                    error
                }
            };
            Err::<(), _>(error)
                .refused(Code::INVALID_ARGUMENT)
                .with_context(|| spec.to_string())?;
        }
        task.output_of("good", "true")?;
        task.end()
    }
);

test!(
    fn twenty_execs_at_once_each_have_their_own_output_and_status(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut execs = Vec::new();
        for number in 0..20_u32 {
            let script = format!("echo {number}; exit {number}");
            execs.push(task.exec(&format!("e{number}"), &["sh", "-c", &script])?);
        }
        // All started before the first answer is read.
        let starting: Vec<_> = execs
            .iter()
            .map(|exec| {
                let mut request = crate::shim::api::StartRequest::new();
                (request.id, request.exec_id) = (exec.id.clone(), exec.exec_id.clone());
                task.shim
                    .begin::<crate::shim::api::StartResponse>("Start", &request)
            })
            .collect::<Result<_>>()?;
        for started in starting {
            ensure!(started.answer()?.pid > 0, "no pid");
        }
        for (number, exec) in execs.iter().enumerate() {
            exec.exits_with(u32::try_from(number)?)?;
            ensure!(
                exec.streams.out.text_to_end()? == format!("{number}\n"),
                "output of {number}"
            );
            exec.delete()?;
        }
        task.end()
    }
);

test!(
    fn pids_show_execs_and_their_children(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let one = task.exec_sh("e1", "sleep 1000000 & wait")?;
        let two = task.exec_sh("e2", "sleep 1000000; true")?;
        until("five processes", || {
            let pids: Vec<i32> = task.pids()?.iter().map(|each| each.pid.cast_signed()).collect();
            let named = [task.pid(), one.pid(), two.pid()]
                .iter()
                .all(|pid| pids.contains(pid));
            Ok((pids.len() == 5 && named).then_some(()))
        })?;
        task.end_with_execs(&[&one, &two])
    }
);

test!(
    fn a_killed_exec_says_its_signal_and_the_container_lives_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for (id, signal) in [
            ("e1", libc::SIGKILL),
            ("e2", libc::SIGTERM),
            ("e3", libc::SIGUSR1),
        ] {
            let exec = task.exec(id, &["sleep", "1000000"])?;
            exec.start()?;
            exec.kill(signal)?;
            exec.exits_with(128 + signal.unsigned_abs())?;
            exec.delete()?;
        }
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn an_exec_dies_with_its_container(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec_sh("e1", "trap '' TERM; while :; do sleep 1; done")?;
        task.kill(libc::SIGKILL)?;
        exec.exits_with(137)?;
        task.exits_with(137)?;
        exec.delete()?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_container_can_be_deleted_with_execs_that_were_not(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let ended = task.exec_sh("e1", "true")?;
        ended.exits_with(0)?;
        let never = task.exec("e2", &["true"])?;
        task.end()?;
        ended.state().refused_exactly(Code::NOT_FOUND)?;
        never.state().refused_exactly(Code::NOT_FOUND)?;
        task.shim.ends()
    }
);

test!(
    fn execs_leave_no_zombie_and_no_descriptor(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let shim = task.shim.pid();
        let open = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{shim}/fd"))?.count()) };
        task.output_of("first", "true")?;
        let before = open()?;
        for number in 0..20 {
            task.output_of(&format!("e{number}"), "echo; sleep 0.01 &")?;
        }
        until("descriptors to be closed", || {
            Ok((open()? <= before).then_some(()))
        })
        .with_context(|| format!("{before} before, {:?} after", open()))?;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        let zombies: Vec<&str> = children
            .split_whitespace()
            .filter(|pid| !pid.parse().is_ok_and(process::is_alive))
            .collect();
        ensure!(zombies.is_empty(), "zombies {zombies:?}");
        task.end()
    }
);

test!(
    fn an_exec_before_the_start_runs_or_is_refused_and_the_task_starts(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sh("echo started; sleep 1000000"))?;
        let exec = task.exec("e1", &["true"])?;
        let started = exec.start();
        if started.is_ok() {
            exec.exits_with(0)?;
        } else {
            started.refused(Code::FAILED_PRECONDITION)?;
        }
        exec.delete()?;
        task.start()?;
        task.streams.out.wait_for("started")?;
        task.end()
    }
);
