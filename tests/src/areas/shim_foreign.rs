//! A runtime by its command line under the shim (`BinaryName` of the options): rtc itself everywhere, and runc where
//! there is one.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::bundle::Bundle;
use crate::host::cgroup::{Cgroup, knob};
use crate::registry::Result;
use crate::shim::{
    Code, Containerd, OPTIONS_URL, Process, Refusal, Shim, Status, Streams, any_message, api, mount,
};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A runtime under a shim, and who asks it.
struct Foreign<'t> {
    t: &'t Test,
    containerd: Containerd<'t>,
    program: PathBuf,
}

/// Does something with each runtime; what is left in a test's places is looked for behind each.
fn with_each(t: &Test, body: impl Fn(&Foreign<'_>) -> Result) -> Result {
    // The newest that hack/peers has made, or the distribution's.
    let of_peers = std::env::var_os("PEERS").map(|peers| Path::new(&peers).join("runc/bin/runc"));
    let runc = of_peers
        .into_iter()
        .chain(["/usr/sbin/runc".into()])
        .find(|program| program.is_file());
    for program in [t.rtc.clone()].into_iter().chain(runc) {
        let foreign = Foreign {
            t,
            containerd: Containerd::new(t)?,
            program,
        };
        body(&foreign).with_context(|| foreign.program.display().to_string())?;
    }
    Ok(())
}

impl<'t> Foreign<'t> {
    fn bundle(&self) -> Bundle<'t> {
        self.containerd.bundle()
    }

    fn request(
        &self,
        shim: &Shim<'t>,
        bundle: &Bundle<'t>,
        streams: &Streams,
    ) -> Result<api::CreateTaskRequest> {
        let mut options = shim.options();
        options.binary_name = self.program.to_string_lossy().into_owned();
        let mut request = shim.create_request(bundle, streams)?;
        request.options = Some(any_message(OPTIONS_URL, &options)?).into();
        Ok(request)
    }

    fn create(&self, bundle: &Bundle<'t>, streams: Streams) -> Result<Process<'t>> {
        let shim = self.containerd.start(bundle)?;
        let request = self.request(&shim, bundle, &streams)?;
        shim.create_by(&request, bundle, streams)
    }

    fn run(&self, bundle: &Bundle<'t>) -> Result<Process<'t>> {
        let task = self.create(bundle, Streams::output(self.t)?)?;
        task.start()?;
        Ok(task)
    }

    /// Ends a task and its shim, and looks for what is left.
    fn end(&self, task: &Process<'t>, bundle: &Bundle<'t>) -> Result {
        task.end()?;
        self.containerd.nothing_is_left_of(bundle)?;
        task.shim.ends()
    }

    /// The shim is killed and containerd cleans up.
    fn crash(&self, task: &Process<'t>, bundle: &Bundle<'t>) -> Result {
        task.shim.signal(Signal::SIGKILL)?;
        self.containerd.delete_dead(bundle)?;
        task.shim.gone()?;
        self.containerd.nothing_is_left_of(bundle)?;
        ensure!(!task.shim.socket().exists(), "the socket is left");
        Ok(())
    }
}

test!(
    fn a_task_of_a_foreign_runtime_has_its_streams_states_and_status(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sh("cat; echo err >&2; exit 3");
            let task = foreign.create(&bundle, Streams::all(t)?)?;
            task.is(Status::CREATED)?;
            let pid = task.pid();
            ensure!(task.start()? == pid, "Start said {}, Create {pid}", task.pid());
            task.is(Status::RUNNING)?;
            let stdin = task.streams.type_in("typed\n")?;
            task.streams.out.wait_for("typed\n")?;
            task.close_stdin()?;
            drop(stdin);
            task.exits_with(3)?;
            task.is(Status::STOPPED)?;
            let deleted = task.delete()?;
            ensure!(
                deleted.exit_status == 3 && deleted.pid == pid.unsigned_abs(),
                "{deleted}"
            );
            ensure!(task.streams.out.text_to_end()? == "typed\n", "stdout");
            ensure!(task.streams.err.text_to_end()? == "err\n", "stderr");
            task.state().refused_exactly(Code::NOT_FOUND)?;
            foreign
                .containerd
                .events
                .are(&task.id, &["create", "start", "exit 3", "delete"])?;
            foreign.containerd.nothing_is_left_of(&bundle)?;
            task.shim.ends()
        })
    }
);

test!(
    fn a_created_task_of_a_foreign_runtime_can_be_deleted_and_its_rootfs_is_unmounted(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sleeper();
            let image = t.path("image");
            std::fs::rename(bundle.rootfs(), &image)?;
            std::fs::create_dir(bundle.rootfs())?;
            let shim = foreign.containerd.start(&bundle)?;
            let streams = Streams::output(t)?;
            let mut request = foreign.request(&shim, &bundle, &streams)?;
            let options = ["rbind".to_owned(), "ro".to_owned()];
            request.rootfs = vec![mount("bind", &image.to_string_lossy(), &options)];
            let task = shim.create_by(&request, &bundle, streams)?;
            task.is(Status::CREATED)?;
            task.delete()?;
            foreign.containerd.nothing_is_left_of(&bundle)?;
            task.shim.ends()
        })
    }
);

test!(
    fn execs_of_a_foreign_runtime_run_end_and_are_killed(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sleeper();
            let task = foreign.run(&bundle)?;
            ensure!(task.output_of("e1", "echo here")? == "here\n", "output");
            let failing = task.exec_sh("e2", "exit 4")?;
            failing.exits_with(4)?;
            failing.delete()?;
            let killed = task.exec_sh("e3", "sleep 1000000")?;
            killed.is(Status::RUNNING)?;
            killed.end()?;
            let dies_too = task.exec_sh("e4", "sleep 1000000")?;
            task.end_with_execs(&[&dies_too])?;
            foreign.containerd.nothing_is_left_of(&bundle)?;
            task.shim.ends()
        })
    }
);

test!(
    fn terminals_of_a_foreign_runtime_are_typed_in_and_resized(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign
                .bundle()
                .set("/process/terminal", json!(true))
                .sh("read line; stty size; sleep 1000000");
            let task = foreign.create(&bundle, Streams::terminal(t)?)?;
            task.start()?;
            task.resize(100, 30)?;
            let _stdin = task.streams.type_in("hello\n")?;
            task.streams.out.wait_for("30 100")?;
            let streams = Streams::terminal(t)?;
            let script = "read line; echo got $line; stty size";
            let request = task.exec_request("e1", &["sh", "-c", script], &streams);
            let exec = task.exec_by(&request, streams)?;
            exec.start()?;
            exec.resize(81, 25)?;
            let _stdin = exec.streams.type_in("word\n")?;
            exec.exits_with(0)?;
            let text = exec.streams.out.text_to_end()?;
            ensure!(text.contains("got word") && text.contains("25 81"), "{text:?}");
            exec.delete()?;
            foreign.end(&task, &bundle)
        })
    }
);

test!(
    fn signals_reach_a_foreign_runtimes_init_or_all_its_processes(t: &Test) -> Result {
        with_each(t, |foreign| {
            let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
            let bundle = foreign.bundle().sh(script);
            let task = foreign.run(&bundle)?;
            task.streams.out.wait_for("ready")?;
            task.kill(libc::SIGTERM)?;
            task.exits_with(9)?;
            task.kill(libc::SIGTERM).refused_exactly(Code::NOT_FOUND)?;
            task.delete()?;
            foreign.containerd.nothing_is_left_of(&bundle)?;
            // Without a PID namespace the others do not end with init by themselves.
            let bundle = foreign
                .bundle()
                .without_namespace("pid")
                .sh("sleep 1000000 & echo ready; sleep 1000001");
            let task = foreign.run(&bundle)?;
            task.streams.out.wait_for("ready")?;
            task.kill_all(libc::SIGKILL)?;
            task.exits_with(137)?;
            task.delete()?;
            foreign.containerd.nothing_is_left_of(&bundle)
        })
    }
);

test!(
    fn a_foreign_runtime_pauses_and_resumes(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sh("while echo; do sleep 0.01; done");
            let task = foreign.run(&bundle)?;
            task.streams.out.wait_for("\n\n")?;
            task.pause()?;
            task.is(Status::PAUSED)?;
            let before = task.streams.out.bytes().len();
            std::thread::sleep(std::time::Duration::from_millis(200));
            let written = task.streams.out.bytes().len() - before;
            // What was under way when it was paused.
            ensure!(written < 5, "a paused task has written {written} lines");
            task.resume()?;
            task.is(Status::RUNNING)?;
            until("more output", || {
                Ok((task.streams.out.bytes().len() > before + 5).then_some(()))
            })?;
            foreign.end(&task, &bundle)
        })
    }
);

test!(
    fn a_foreign_runtime_updates_limits(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sleeper();
            let task = foreign.run(&bundle)?;
            task.update(&json!({"memory": {"limit": 64 << 20}}))?;
            let cgroup = Cgroup {
                path: format!("{}/{}", t.cgroup.path, bundle.id),
            };
            let limit = cgroup.read(knob::MEMORY_LIMIT)?;
            ensure!(limit == (64 << 20).to_string(), "limit {limit}");
            foreign.end(&task, &bundle)
        })
    }
);

test!(
    fn delete_after_the_death_of_the_shim_of_a_foreign_runtime_leaves_nothing(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().sleeper();
            let created = foreign.create(&bundle, Streams::output(t)?)?;
            foreign.crash(&created, &bundle).context("created")?;
            let bundle = foreign.bundle().sleeper();
            let running = foreign.run(&bundle)?;
            running.exec_sh("e1", "sleep 1000000")?;
            foreign.crash(&running, &bundle).context("running")?;
            let bundle = foreign.bundle().sleeper();
            let paused = foreign.run(&bundle)?;
            paused.pause()?;
            foreign.crash(&paused, &bundle).context("paused")
        })
    }
);

test!(
    fn a_bad_program_under_a_foreign_runtime_is_named_and_leaves_nothing(t: &Test) -> Result {
        with_each(t, |foreign| {
            let bundle = foreign.bundle().args(&["/no/such/program"]);
            let shim = foreign.containerd.start(&bundle)?;
            let streams = Streams::output(t)?;
            let request = foreign.request(&shim, &bundle, &streams)?;
            let error = shim
                .create_by(&request, &bundle, streams)
                .err()
                .context("created")?;
            let text = format!("{error:#}");
            ensure!(
                text.contains("/no/such/program") && text.contains("no such file or directory"),
                "{text}"
            );
            foreign.containerd.nothing_is_left_of(&bundle)?;
            shim.ends()?;
            let bundle = foreign.bundle().sleeper();
            let task = foreign.run(&bundle)?;
            let before = task.pids()?.len();
            let exec = task.exec("e1", &["/no/such/program"])?;
            let text = format!("{:#}", exec.start().err().context("started")?);
            ensure!(text.contains("/no/such/program"), "{text}");
            exec.delete()?;
            ensure!(task.pids()?.len() == before, "{:?}", task.pids()?);
            foreign.end(&task, &bundle)
        })
    }
);

test!(
    fn a_runtime_that_is_not_there_fails_create_and_leaves_nothing(t: &Test) -> Result {
        let foreign = Foreign {
            t,
            containerd: Containerd::new(t)?,
            program: "/no/such/runtime".into(),
        };
        let bundle = foreign.bundle().sleeper();
        let shim = foreign.containerd.start(&bundle)?;
        let streams = Streams::output(t)?;
        let request = foreign.request(&shim, &bundle, &streams)?;
        let error = shim
            .create_by(&request, &bundle, streams)
            .err()
            .context("created")?;
        let text = format!("{error:#}");
        ensure!(text.contains("/no/such/runtime"), "{text}");
        foreign.containerd.nothing_is_left_of(&bundle)?;
        shim.ends()
    }
);
