//! The shim's Task service: what each call does in each state of a task.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::{mounts, process};
use crate::registry::Result;
use crate::shim::{
    Code, Containerd, Exited, OPTIONS_URL, Pending, Process, Refusal, Status, Streams, any_message, api,
    mount,
};
use crate::test;
use crate::wait::until;

/// Start, Pause, Resume and so on as one list: which of them are refused in this state of the task.
fn are_refused(task: &Process<'_>, calls: &[&str]) -> Result {
    for call in calls {
        let result = match *call {
            "Start" => task.start().map(|_| ()),
            "Pause" => task.pause(),
            "Resume" => task.resume(),
            "Delete" => task.delete().map(|_| ()),
            "Update" => task.update(&json!({})),
            "Exec" => task.exec("refused", &["true"]).and_then(|exec| {
                let started = exec.start().map(|_| ());
                exec.delete()?;
                started
            }),
            _ => anyhow::bail!("no call {call}"),
        };
        result
            .refused(Code::FAILED_PRECONDITION)
            .with_context(|| format!("{call} of a task in {:?}", task.state()))?;
    }
    Ok(())
}

test!(
    fn a_task_is_created_runs_stops_and_is_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sh("echo out; echo err >&2; exit 3"))?;
        task.is(Status::CREATED)?;
        ensure!(process::is_alive(task.pid()), "no process {}", task.pid());
        let pid = task.pid();
        ensure!(
            task.start()? == pid,
            "Create said pid {pid}, Start {}",
            task.pid()
        );
        let exited = task.exits_with(3)?;
        task.is(Status::STOPPED)?;
        let deleted = task.delete()?;
        ensure!(deleted.pid == pid.unsigned_abs(), "pid {}", deleted.pid);
        ensure!(
            Exited::new(deleted.exit_status, deleted.exited_at.as_ref()) == exited,
            "Wait and Delete differ: {exited:?}, {deleted:?}"
        );
        ensure!(task.streams.out.text_to_end()? == "out\n", "stdout");
        ensure!(task.streams.err.text_to_end()? == "err\n", "stderr");
        task.state().refused_exactly(Code::NOT_FOUND)?;
        task.shim.ends()
    }
);

test!(
    fn a_created_task_can_be_started_and_updated_but_not_paused_or_resumed(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sleeper())?;
        are_refused(&task, &["Pause", "Resume"])?;
        task.update(&json!({"memory": {"limit": 64 << 20}}))?;
        task.is(Status::CREATED)?;
        task.start()?;
        task.is(Status::RUNNING)
    }
);

test!(
    fn a_created_task_can_be_deleted_without_having_run(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sleeper())?;
        task.delete()?;
        task.state().refused_exactly(Code::NOT_FOUND)?;
        until("init to be gone", || {
            Ok((!process::is_alive(task.pid())).then_some(()))
        })?;
        task.shim.ends()
    }
);

test!(
    fn a_running_task_cannot_be_started_resumed_or_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        are_refused(&task, &["Start", "Resume", "Delete"])?;
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn a_paused_task_does_nothing_and_takes_no_exec_until_it_is_resumed(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .writable()
            .sh("while echo; do sleep 0.01; done");
        let task = containerd.run(&bundle)?;
        task.streams.out.wait_for("\n\n")?;
        task.pause()?;
        task.is(Status::PAUSED)?;
        are_refused(&task, &["Start", "Pause", "Exec", "Delete"])?;
        let before = task.streams.out.bytes().len();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let written = task.streams.out.bytes().len() - before;
        // What was under way when it was paused.
        ensure!(written < 5, "a paused task has written {written} lines");
        task.resume()?;
        task.is(Status::RUNNING)?;
        let before = task.streams.out.bytes().len();
        until("more output", || {
            Ok((task.streams.out.bytes().len() > before + 2).then_some(()))
        })?;
        task.output_of("again", "echo")?;
        task.end()
    }
);

test!(
    fn a_stopped_task_can_only_be_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().args(&["true"]))?;
        task.exits_with(0)?;
        are_refused(&task, &["Start", "Pause", "Resume", "Update", "Exec"])?;
        task.kill(libc::SIGTERM).refused_exactly(Code::NOT_FOUND)?;
        task.exits_with(0)?;
        let state = task.state()?;
        ensure!(
            state.exit_status == 0 && state.exited_at.seconds > 0,
            "State of a stopped task: {state}"
        );
        task.delete()?;
        task.delete().refused_exactly(Code::NOT_FOUND)?;
        Ok(())
    }
);

test!(
    fn state_says_what_create_was_given(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let task = shim.create(&bundle, Streams::all(t)?)?;
        let state = task.state()?;
        let found = [
            &state.id,
            &state.bundle,
            &state.stdin,
            &state.stdout,
            &state.stderr,
        ];
        let directory = bundle.directory.to_string_lossy().into_owned();
        let streams = &task.streams;
        let expected = [
            &bundle.id,
            &directory,
            &streams.stdin,
            &streams.stdout,
            &streams.stderr,
        ];
        ensure!(found == expected, "expected {expected:?}, found {found:?}");
        ensure!(
            !state.terminal && state.pid == task.pid().unsigned_abs(),
            "{state}"
        );
        Ok(())
    }
);

test!(
    fn exit_statuses_are_codes_and_128_plus_the_signal(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        for (script, status) in [
            ("exit 255", 255),
            ("kill -TERM $$", 143),
            ("kill -SEGV $$", 139),
            ("kill -KILL $$", 137),
        ] {
            // Not as pid 1 of a PID namespace, which its own signals do not reach.
            let bundle = containerd.bundle().without_namespace("pid").sh(script);
            let task = containerd.run(&bundle)?;
            task.exits_with(status).context(script)?;
            let deleted = task.delete()?;
            ensure!(deleted.exit_status == status, "Delete: {}", deleted.exit_status);
        }
        Ok(())
    }
);

test!(
    fn an_exec_is_added_runs_stops_and_is_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec("e1", &["sh", "-c", "echo out; read line < /dev/null; exit 4"])?;
        exec.is(Status::CREATED)?;
        let pid = exec.start()?;
        ensure!(pid > 0 && pid != task.pid(), "pid {pid}");
        exec.exits_with(4)?;
        exec.is(Status::STOPPED)?;
        exec.kill(libc::SIGTERM).refused_exactly(Code::NOT_FOUND)?;
        exec.start().refused(Code::FAILED_PRECONDITION)?;
        let deleted = exec.delete()?;
        ensure!(
            deleted.exit_status == 4 && deleted.pid == pid.unsigned_abs(),
            "{deleted}"
        );
        ensure!(exec.streams.out.text_to_end()? == "out\n", "stdout");
        exec.state().refused_exactly(Code::NOT_FOUND)?;
        task.end()
    }
);

test!(
    fn a_running_exec_is_not_started_again_or_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec_sh("e1", "sleep 1000000")?;
        exec.start().refused(Code::FAILED_PRECONDITION)?;
        exec.delete().refused(Code::FAILED_PRECONDITION)?;
        exec.is(Status::RUNNING)?;
        exec.end()
    }
);

test!(
    fn an_exec_that_was_never_started_can_be_deleted_and_not_killed(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec("e1", &["true"])?;
        exec.kill(libc::SIGTERM).refused(Code::FAILED_PRECONDITION)?;
        exec.delete()?;
        exec.state().refused_exactly(Code::NOT_FOUND)?;
        Ok(())
    }
);

test!(
    fn an_exec_id_is_taken_until_it_is_deleted_and_then_free_again(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let first = task.exec("e1", &["sh", "-c", "exit 1"])?;
        task.exec("e1", &["true"]).refused_exactly(Code::ALREADY_EXISTS)?;
        first.start()?;
        first.exits_with(1)?;
        task.exec("e1", &["true"]).refused_exactly(Code::ALREADY_EXISTS)?;
        first.delete()?;
        let second = task.exec_sh("e1", "exit 2")?;
        second.exits_with(2)?;
        second.delete()?;
        Ok(())
    }
);

test!(
    fn a_second_task_of_one_id_is_refused_and_the_first_lives_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = containerd.run(&bundle)?;
        let streams = Streams::output(t)?;
        let request = task.shim.create_request(&bundle, &streams)?;
        task.shim
            .create_by(&request, &bundle, streams)
            .refused(Code::ALREADY_EXISTS)?;
        task.is(Status::RUNNING)?;
        ensure!(task.output_of("e1", "echo here")? == "here\n", "exec");
        task.end()
    }
);

test!(
    fn wait_answers_all_who_wait_and_those_who_come_later(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let waiting: Vec<Pending<api::WaitResponse>> =
            (0..8).map(|_| task.begin_wait()).collect::<Result<_>>()?;
        // Nobody else is kept waiting meanwhile.
        task.is(Status::RUNNING)?;
        task.kill(libc::SIGKILL)?;
        let exited = task.exits_with(137)?;
        for pending in waiting {
            let answer = pending.answer()?;
            let found = Exited::new(answer.exit_status, answer.exited_at.as_ref());
            ensure!(found == exited, "one got {found:?}, another {exited:?}");
        }
        Ok(())
    }
);

test!(
    fn calls_on_one_connection_are_answered_while_one_of_them_waits(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut connection = task.shim.connection()?;
        let service = task.shim.service();
        let request = |id: &str| {
            let mut wait = api::WaitRequest::new();
            id.clone_into(&mut wait.id);
            wait
        };
        let bytes = crate::shim::bytes(&request(&task.id))?;
        let first = connection.send(&service, "Wait", bytes.clone())?;
        let second = connection.send(&service, "Wait", bytes)?;
        let _: api::StateResponse = connection.call(&service, "State", &request(&task.id))?;
        task.kill(libc::SIGKILL)?;
        connection.receive(second)?;
        connection.receive(first)?;
        Ok(())
    }
);

test!(
    fn pids_are_those_of_the_container_and_name_the_execs(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sh("sleep 1000000 & wait"))?;
        let exec = task.exec_sh("e1", "sleep 1000000")?;
        until("three processes", || {
            let pids = task.pids()?;
            let found: Vec<i32> = pids.iter().map(|each| each.pid.cast_signed()).collect();
            Ok(
                (found.len() == 3 && found.contains(&task.pid()) && found.contains(&exec.pid()))
                    .then_some(()),
            )
        })?;
        let pids = task.pids()?;
        let named = pids
            .iter()
            .find(|each| each.pid.cast_signed() == exec.pid())
            .and_then(|each| each.info.as_ref())
            .context("the exec has no details")?;
        ensure!(
            named.type_url.ends_with("containerd.runc.v1.ProcessDetails"),
            "{named}"
        );
        ensure!(String::from_utf8_lossy(&named.value).contains("e1"), "{named}");
        exec.end()?;
        task.end()
    }
);

test!(
    fn connect_says_the_pids_of_shim_and_task(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sleeper())?;
        let connected = task.connect()?;
        ensure!(
            connected.task_pid == task.pid().unsigned_abs(),
            "task: {connected}"
        );
        let shim = connected.shim_pid.cast_signed();
        let command = process::describe(shim);
        ensure!(
            command.contains("containerd-shim") || !t.shim_is_ours(),
            "{command}"
        );
        ensure!(
            !command.ends_with(" start"),
            "the daemon still says start: {command}"
        );
        Ok(())
    }
);

test!(
    fn update_changes_limits(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = containerd.run(&bundle)?;
        let cgroup = crate::host::cgroup::Cgroup {
            path: format!("{}/{}", t.cgroup.path, bundle.id),
        };
        task.update(&json!({"memory": {"limit": 64 << 20}}))?;
        let limit = cgroup.read(crate::host::cgroup::knob::MEMORY_LIMIT)?;
        ensure!(limit == (64 << 20).to_string(), "limit {limit}");
        task.end()
    }
);

test!(
    fn stats_are_of_the_type_of_this_machines_cgroups(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let stats = task.stats()?;
        let expected = if crate::host::cgroup::is_unified() {
            "io.containerd.cgroups.v2.Metrics"
        } else {
            "io.containerd.cgroups.v1.Metrics"
        };
        ensure!(stats.type_url == expected, "{}", stats.type_url);
        ensure!(crate::shim::process_count(&stats)? == 1, "pids: {stats}");
        task.end()
    }
);

test!(
    fn calls_on_unknown_tasks_and_execs_are_not_found(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = containerd.run(&bundle)?;
        let unknown_exec = Process::unknown(&task, &task.id, "nobody");
        let unknown_task = Process::unknown(&task, "nobody", "");
        for unknown in [&unknown_exec, &unknown_task] {
            unknown
                .state()
                .refused_exactly(Code::NOT_FOUND)
                .context("State")?;
            unknown
                .start()
                .refused_exactly(Code::NOT_FOUND)
                .context("Start")?;
            unknown.wait().refused_exactly(Code::NOT_FOUND).context("Wait")?;
            unknown
                .kill(libc::SIGKILL)
                .refused_exactly(Code::NOT_FOUND)
                .context("Kill")?;
            unknown
                .delete()
                .refused_exactly(Code::NOT_FOUND)
                .context("Delete")?;
            unknown
                .resize(80, 24)
                .refused_exactly(Code::NOT_FOUND)
                .context("ResizePty")?;
            unknown
                .close_stdin()
                .refused_exactly(Code::NOT_FOUND)
                .context("CloseIO")?;
        }
        unknown_task
            .pause()
            .refused_exactly(Code::NOT_FOUND)
            .context("Pause")?;
        unknown_task
            .resume()
            .refused_exactly(Code::NOT_FOUND)
            .context("Resume")?;
        unknown_task
            .pids()
            .refused_exactly(Code::NOT_FOUND)
            .context("Pids")?;
        unknown_task
            .stats()
            .refused_exactly(Code::NOT_FOUND)
            .context("Stats")?;
        unknown_task
            .update(&json!({}))
            .refused_exactly(Code::NOT_FOUND)
            .context("Update")?;
        unknown_task
            .exec("e1", &["true"])
            .refused_exactly(Code::NOT_FOUND)
            .context("Exec")?;
        ensure!(
            unknown_task.connect()?.task_pid == 0,
            "Connect knows an unknown task"
        );
        task.is(Status::RUNNING)
    }
);

test!(
    fn the_rootfs_is_mounted_as_asked_and_unmounted_by_delete(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .writable()
            .sh("echo made > /made; cat /made /below; sleep 1000000");
        let (image, upper, work) = (t.path("image"), t.path("upper"), t.path("work"));
        std::fs::rename(bundle.rootfs(), &image)?;
        for directory in [&upper, &work, &bundle.rootfs()] {
            std::fs::create_dir(directory)?;
        }
        std::fs::write(image.join("below"), "below\n")?;
        let options = [
            format!("lowerdir={}", image.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        let shim = containerd.start(&bundle)?;
        let streams = Streams::output(t)?;
        let mut request = shim.create_request(&bundle, &streams)?;
        request.rootfs = vec![mount("overlay", "overlay", &options)];
        let task = shim.create_by(&request, &bundle, streams)?;
        task.start()?;
        task.streams.out.wait_for("made\nbelow\n")?;
        task.end()?;
        ensure!(upper.join("made").exists(), "not in the upper directory");
        let left = mounts::under(&bundle.directory)?;
        ensure!(left.is_empty(), "still mounted: {left:?}");
        Ok(())
    }
);

test!(
    fn a_foreign_runtime_starts_with_sigpipe_as_programs_expect_it(t: &Test) -> Result {
        if !t.shim_is_ours() {
            return t.skip("a Go program ignores no SIGPIPE");
        }
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let (program, said) = (t.path("runtime"), t.path("said"));
        let script = format!(
            "#!/bin/sh\ngrep SigIgn /proc/$$/status > {}\nexit 1\n",
            said.display()
        );
        std::fs::write(&program, script)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let mut request = shim.create_request(&bundle, &Streams::default())?;
        let mut options = shim.options();
        options.binary_name = program.to_string_lossy().into_owned();
        request.options = Some(any_message(OPTIONS_URL, &options)?).into();
        ensure!(
            shim.call::<api::CreateTaskResponse>("Create", &request).is_err(),
            "created"
        );
        let said = std::fs::read_to_string(said)?;
        let ignored = said.trim().rsplit('\t').next().unwrap_or_default();
        let ignored = u64::from_str_radix(ignored, 16)?;
        ensure!(ignored & 1 << (libc::SIGPIPE - 1) == 0, "{said}");
        shim.ends()
    }
);

test!(
    fn a_foreign_container_whose_id_was_taken_is_not_deleted_after_a_failed_create(t: &Test) -> Result {
        if !t.shim_is_ours() {
            return t.skip("the Go shim calls the runtime's delete");
        }
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let (program, said) = (t.path("runtime"), t.path("said"));
        // As runc: its words go to the file of --log.
        let error = json!({"level": "error", "msg": "container with given ID already exists"});
        let said_by = said.display();
        let script = format!("#!/bin/sh\necho \"$@\" >> {said_by}\necho '{error}' > \"$4\"\nexit 1\n");
        std::fs::write(&program, script)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let mut request = shim.create_request(&bundle, &Streams::default())?;
        let mut options = shim.options();
        options.binary_name = program.to_string_lossy().into_owned();
        request.options = Some(any_message(OPTIONS_URL, &options)?).into();
        shim.call::<api::CreateTaskResponse>("Create", &request)
            .refused_exactly(Code::ALREADY_EXISTS)?;
        containerd.delete_dead(&bundle)?;
        let said = std::fs::read_to_string(said)?;
        ensure!(said.contains(" create ") && !said.contains(" delete "), "{said}");
        Ok(())
    }
);

test!(
    fn a_task_has_a_scope_of_systemds_where_the_options_say_so(t: &Test) -> Result {
        if !std::path::Path::new("/run/systemd/system").exists() {
            return t.skip("systemd does not run");
        }
        if !t.shim_is_ours() {
            return t.skip("the Go shim runs runc");
        }
        let containerd = Containerd::new(t)?;
        let unit = format!("rtc-{}.scope", t.unique);
        let path = format!("system.slice:rtc:{}", t.unique);
        let bundle = containerd
            .bundle()
            .sleeper()
            .set("/linux/cgroupsPath", json!(path));
        let shim = containerd.start(&bundle)?;
        let mut request = shim.create_request(&bundle, &Streams::default())?;
        let mut options = shim.options();
        options.systemd_cgroup = true;
        request.options = Some(any_message(OPTIONS_URL, &options)?).into();
        let created = shim.call::<api::CreateTaskResponse>("Create", &request)?;
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", created.pid))?;
        ensure!(cgroup.contains(&format!("system.slice/{unit}")), "{cgroup}");
        let request = api::DeleteRequest {
            id: bundle.id.clone(),
            ..api::DeleteRequest::default()
        };
        shim.call::<api::DeleteResponse>("Delete", &request)?;
        Ok(())
    }
);
