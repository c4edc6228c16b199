//! Kill in every situation, and that each call is answered in bounded time whatever a container or a disk does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::fuse::{Freezable, Hanging};
use crate::gate::Gate;
use crate::host::process;
use crate::registry::Result;
use crate::shim::extension::Executing;
use crate::shim::{Code, Containerd, Process, Refusal, Shim, Status, Streams, api};
use crate::test;
use crate::test::{Skip, Test};
use crate::wait::until;

/// No call may take longer, whatever hangs.
const BOUND: Duration = Duration::from_secs(30);

/// Two bundles of one pod.
fn pod<'t>(containerd: &Containerd<'t>) -> (Bundle<'t>, Bundle<'t>) {
    let first = containerd.bundle();
    let annotations = json!({"io.kubernetes.cri.sandbox-id": first.id});
    let second = containerd.bundle().set("/annotations", annotations.clone());
    (first.set("/annotations", annotations), second)
}

/// Exec, logs, State and Pids of a container work.
fn goes_on(task: &Process<'_>, round: u32) -> Result {
    let start = Instant::now();
    ensure!(
        task.output_of(&format!("on{round}"), "echo here")? == "here\n",
        "exec"
    );
    let signalled = task.exec_sh(&format!("kill{round}"), "sleep 1000000")?;
    signalled.end()?;
    task.is(Status::RUNNING)?;
    ensure!(!task.pids()?.is_empty(), "no pids");
    ensure!(start.elapsed() < BOUND, "{} s", start.elapsed().as_secs());
    Ok(())
}

/// A call that may be refused, but not keep its caller waiting.
fn in_bounded_time<T>(what: &str, call: impl FnOnce() -> Result<T>) -> Result<Result<T>> {
    let start = Instant::now();
    let result = call();
    ensure!(
        start.elapsed() < BOUND,
        "{what} took {} s",
        start.elapsed().as_secs()
    );
    Ok(result)
}

test!(
    fn signals_arrive_by_their_number(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for number in [1, 2, 3, 10, 12, 15] {
            let script = format!(
                "trap 'exit {}' {number}; echo ready; while :; do sleep 0.02; done",
                40 + number
            );
            let exec = task.exec_sh(&format!("e{number}"), &script)?;
            exec.streams.out.wait_for("ready")?;
            exec.kill(number)?;
            exec.exits_with(40 + number.unsigned_abs())?;
            exec.delete()?;
        }
        // A real-time one, to a process that dies of it.
        let exec = task.exec("rt", &["sleep", "1000000"])?;
        exec.start()?;
        exec.kill(40)?;
        exec.exits_with(128 + 40)?;
        exec.delete()?;
        task.end()
    }
);

test!(
    fn signals_reach_a_containers_init(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "trap 'echo usr1' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
        let task = containerd.run(&containerd.bundle().sh(script))?;
        task.streams.out.wait_for("ready")?;
        task.kill(libc::SIGUSR1)?;
        task.streams.out.wait_for("usr1")?;
        task.kill(libc::SIGTERM)?;
        task.exits_with(9)?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_signal_that_is_none_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for number in [65, 4096] {
            task.kill(number).refused(Code::INVALID_ARGUMENT)?;
        }
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn a_process_that_ignores_a_signal_is_killed_by_the_next(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let task = containerd.run(&containerd.bundle().sh(script))?;
        task.streams.out.wait_for("ready")?;
        let waiting = task.begin_wait()?;
        task.kill(libc::SIGTERM)?;
        task.is(Status::RUNNING)?;
        task.kill(libc::SIGKILL)?;
        ensure!(waiting.answer()?.exit_status == 137, "exit status");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn kill_of_all_reaches_every_process(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "sleep 1000000 & sleep 1000001 & echo ready; wait; wait";
        let task = containerd.run(&containerd.bundle().without_namespace("pid").sh(script))?;
        task.streams.out.wait_for("ready")?;
        let exec = task.exec_sh("e1", "sleep 1000000; true")?;
        until("five processes", || Ok((task.pids()?.len() == 5).then_some(())))?;
        let pids: Vec<i32> = task.pids()?.iter().map(|each| each.pid.cast_signed()).collect();
        task.kill_all(libc::SIGKILL)?;
        exec.exits_with(137)?;
        task.exits_with(137)?;
        until("all to be gone", || {
            Ok((!pids.iter().any(|&pid| process::is_alive(pid))).then_some(()))
        })?;
        exec.delete()?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn without_a_pid_namespace_the_end_of_init_ends_the_others(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().without_namespace("pid");
        let task = containerd.run(&bundle.sh("sleep 1000000 & echo ready; read line; exit 5"))?;
        task.exits_with(5)?;
        task.delete()?;
        task.shim.ends()
    }
);

test!(
    fn a_created_task_can_be_killed(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sleeper())?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        task.is(Status::STOPPED)?;
        task.delete()?;
        task.shim.ends()
    }
);

test!(
    fn a_paused_task_can_be_killed(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sh("sleep 1000000 & sleep 1000000"))?;
        let exec = task.exec_sh("e1", "sleep 1000000")?;
        task.pause()?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        exec.exits_with(137)?;
        exec.delete()?;
        task.delete()?;
        task.shim.ends()
    }
);

test!(
    fn a_signal_to_a_paused_task_arrives_when_it_goes_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
        let task = containerd.run(&containerd.bundle().sh(script))?;
        task.streams.out.wait_for("ready")?;
        task.pause()?;
        task.kill(libc::SIGTERM)?;
        task.is(Status::PAUSED)?;
        task.resume()?;
        task.exits_with(9)?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_stopped_task_is_not_found_by_kill_and_with_all_neither(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().args(&["true"]))?;
        task.exits_with(0)?;
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            task.kill(signal).refused_exactly(Code::NOT_FOUND)?;
            // With `all` there may be others left to kill: none here.
            let killed = task.kill_all(signal);
            if killed.is_err() {
                killed.refused_exactly(Code::NOT_FOUND)?;
            }
        }
        task.delete()?;
        Ok(())
    }
);

/// Create in the background.
fn begin_create(
    shim: &Shim<'_>,
    bundle: &Bundle<'_>,
) -> Result<crate::shim::Pending<api::CreateTaskResponse>> {
    let request = shim.create_request(bundle, &Streams::default())?;
    shim.delete_at_end(&bundle.id);
    shim.begin("Create", &request)
}

test!(
    fn a_hook_of_one_container_holds_up_no_other(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let (first, second) = pod(&containerd);
        let task = containerd.run(&first.sleeper())?;
        let gate = Gate::new(t)?;
        let second = gate.hook(second.sleeper(), "createRuntime");
        let shim = containerd.start(&second)?;
        let creating = begin_create(&shim, &second)?;
        gate.reached()?;
        for round in 0..3 {
            goes_on(&task, round)?;
        }
        gate.open()?;
        creating.answer()?;
        let other = shim.process(&second, Streams::default(), 0);
        other.start()?;
        other.end()
    }
);

test!(
    fn a_container_can_be_killed_while_its_start_hook_runs(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let (first, second) = pod(&containerd);
        let task = containerd.run(&first.sleeper())?;
        let gate = Gate::new(t)?;
        let second = gate.hook(second.sleeper(), "startContainer");
        let shim = containerd.start(&second)?;
        let other = shim.create(&second, Streams::output(t)?)?;
        let mut request = api::StartRequest::new();
        request.id.clone_from(&other.id);
        let starting = shim.begin::<api::StartResponse>("Start", &request)?;
        gate.reached()?;
        goes_on(&task, 0)?;
        in_bounded_time("Kill", || other.kill(libc::SIGKILL))??;
        in_bounded_time("Wait", || other.exits_with(137))??;
        // Started and killed, or not started: its caller is told in any case.
        let _ = in_bounded_time("Start", || starting.answer())?;
        other.delete()?;
        goes_on(&task, 1)
    }
);

test!(
    fn a_container_can_be_killed_while_its_create_hook_runs(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let (first, second) = pod(&containerd);
        let task = containerd.run(&first.sleeper())?;
        let gate = Gate::new(t)?;
        let second = gate.hook(second.sleeper(), "createRuntime");
        let shim = containerd.start(&second)?;
        let creating = begin_create(&shim, &second)?;
        gate.reached()?;
        let other = shim.process(&second, Streams::default(), 0);
        // A container that is not there yet, or one that can be killed.
        let killed = in_bounded_time("Kill", || other.kill(libc::SIGKILL))?;
        if killed.is_err() {
            killed.refused_exactly(Code::NOT_FOUND)?;
        }
        goes_on(&task, 0)?;
        gate.open()?;
        if creating.answer().is_ok() {
            let _ = other.kill(libc::SIGKILL);
            other.wait()?;
            other.delete()?;
        }
        goes_on(&task, 1)
    }
);

fn hanging(t: &Test) -> Result<Hanging> {
    match Hanging::mount(t.path("hanging"))? {
        Some(mounted) => Ok(mounted),
        None => Err(Skip::because("no FUSE")),
    }
}

test!(
    fn a_process_that_nothing_can_kill_holds_up_no_call(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let (first, second) = pod(&containerd);
        let task = containerd.run(&first.sleeper())?;
        let mut hang = hanging(t)?;
        let source = hang.path.to_string_lossy().into_owned();
        let second = second
            .mount("/mnt", "bind", &source, &["rbind"])
            .sh("echo ready; cat /mnt/hang");
        fs::create_dir(second.rootfs().join("mnt"))?;
        let shim = containerd.start(&second)?;
        let stuck = shim.create(&second, Streams::output(t)?)?;
        stuck.start()?;
        until("the process to hang", || Ok(hang.holds_somebody().then_some(())))?;
        // Refused with a word about the process, or taken note of: but answered.
        let _ = in_bounded_time("Kill", || stuck.kill(libc::SIGTERM))?;
        let killed = in_bounded_time("Kill", || stuck.kill(libc::SIGKILL))?;
        if t.shim_is_ours() {
            let text = killed.err().map(|error| format!("{error:#}")).unwrap_or_default();
            for word in [
                "(\"cat\")",
                "state D",
                "the mount of fuse",
                "at \"/mnt\"",
                "request_wait_answer",
            ] {
                ensure!(text.contains(word), "{word} is missing: {text}");
            }
        }
        let _ = in_bounded_time("Kill of all", || stuck.kill_all(libc::SIGKILL))?;
        in_bounded_time("State", || stuck.state())??;
        let _ = in_bounded_time("Pids", || stuck.pids())?;
        let _ = in_bounded_time("Stats", || stuck.stats())?;
        ensure!(
            in_bounded_time("Delete", || stuck.delete())?.is_err(),
            "deleted while a process is left"
        );
        for round in 0..2 {
            goes_on(&task, round)?;
        }
        let waiting = stuck.begin_wait()?;
        hang.end();
        ensure!(waiting.answer()?.exit_status == 137, "exit status");
        stuck.delete()?;
        task.end()
    }
);

test!(
    fn a_create_that_hangs_on_a_mount_holds_up_no_other_container(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let (first, second) = pod(&containerd);
        let task = containerd.run(&first.sleeper())?;
        let mut hang = hanging(t)?;
        let source = hang.path.join("hang").to_string_lossy().into_owned();
        let second = second.mount("/etc/passwd", "bind", &source, &["bind"]).sleeper();
        let shim = containerd.start(&second)?;
        let creating = begin_create(&shim, &second)?;
        until("create to hang", || Ok(hang.holds_somebody().then_some(())))?;
        for round in 0..2 {
            goes_on(&task, round)?;
        }
        hang.end();
        ensure!(
            creating.answer().is_err(),
            "created with a mount that is not there"
        );
        goes_on(&task, 3)?;
        task.end()?;
        shim.ends()
    }
);

fn freezable(t: &Test) -> Result<Freezable> {
    match Freezable::mount(t.path("logs"))? {
        Some(mounted) => Ok(mounted),
        None => Err(Skip::because("no ext4 on a loop device")),
    }
}

/// Containers whose logs go to a file system that is frozen: only its own writes wait.
fn frozen_logs(t: &Test, uri: impl Fn(&Path) -> String) -> Result {
    let containerd = Containerd::new(t)?;
    let (first, second) = pod(&containerd);
    let logs = freezable(t)?;
    let log = logs.path.join("log");
    let second = second.sh("while echo line; do sleep 0.001; done");
    let task = containerd.run(&first.sleeper())?;
    let shim = containerd.start(&second)?;
    let logged = shim.create(&second, Streams::uri(&uri(&log)))?;
    logged.start()?;
    let size = || fs::metadata(&log).map_or(0, |metadata| metadata.len());
    until("lines in the log", || Ok((size() > 0).then_some(())))?;
    ensure!(logs.freeze(), "fsfreeze");
    for round in 0..2 {
        goes_on(&task, round)?;
        goes_on(&logged, round).context("the container whose log is frozen")?;
    }
    in_bounded_time("Kill", || logged.kill(libc::SIGKILL))??;
    until("its process to be gone", || {
        Ok((!process::is_alive(logged.pid())).then_some(()))
    })?;
    goes_on(&task, 2)?;
    let before = size();
    ensure!(logs.thaw(), "thaw");
    logged.exits_with(137)?;
    logged.delete()?;
    ensure!(size() >= before, "the log has shrunk");
    let text = fs::read_to_string(&log)?;
    ensure!(
        text.ends_with("line\n"),
        "the end of the log: {:?}",
        text.lines().next_back()
    );
    Ok(())
}

test!(
    fn a_frozen_file_system_of_a_log_holds_up_no_call(t: &Test) -> Result {
        frozen_logs(t, |log| format!("file://{}", log.display()))
    }
);

test!(
    fn a_frozen_file_system_of_a_cri_log_holds_up_no_call(t: &Test) -> Result {
        frozen_logs(t, |log| format!("cri://{}", log.display()))
    }
);

test!(
    fn the_timeout_of_an_exec_holds_for_a_program_that_can_not_even_be_read(t: &Test) -> Result {
        if !t.shim_is_ours() {
            return t.skip("rtc.shim.v1 is ours");
        }
        let containerd = Containerd::new(t)?;
        let mut hang = hanging(t)?;
        let source = hang.path.to_string_lossy().into_owned();
        let bundle = containerd
            .bundle()
            .sleeper()
            .mount("/mnt", "bind", &source, &["rbind"]);
        fs::create_dir(bundle.rootfs().join("mnt"))?;
        let task = containerd.run(&bundle)?;
        let process = serde_json::json!({"args": ["/bin/cat", "/mnt/hang"], "cwd": "/mnt/hang",
            "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let processes = || process::descendants(task.shim.pid()).len();
        let before = processes();
        for _ in 0..3 {
            let done = in_bounded_time("ExecSync", || {
                Executing::begin_process(&task, &process, 300)?.finish()
            })??;
            ensure!(done.exit == Some((137, true)), "{done:?}");
        }
        task.is(Status::RUNNING)?;
        hang.end();
        until("what was given up to end", || {
            Ok((processes() <= before).then_some(()))
        })?;
        task.end()
    }
);
