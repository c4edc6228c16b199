//! A shim that is killed or stopped at every step, and containerd that dies: `delete`, as containerd calls it then, leaves
//! nothing; what is not dead goes on.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bundle::Bundle;
use crate::gate::Gate;
use crate::host::process;
use crate::registry::Result;
use crate::shim::{Containerd, Process, Shim, Status, Streams, api, bytes, mount};
use crate::test;
use crate::test::{Skip, Test};
use crate::wait::until;

/// How long after the beginning of a step the shim is killed, in microseconds. Steps take one to fifty milliseconds.
const DELAYS: [u64; 9] = [0, 300, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000];

/// A container whose rootfs is an overlay that Create mounts.
struct Prepared<'t> {
    containerd: Containerd<'t>,
    bundle: Bundle<'t>,
    shim: Shim<'t>,
    request: api::CreateTaskRequest,
}

impl<'t> Prepared<'t> {
    fn new(t: &'t Test, change: impl FnOnce(Bundle<'t>) -> Bundle<'t>) -> Result<Self> {
        let containerd = Containerd::new(t)?;
        let bundle = change(containerd.bundle().writable().sh("sleep 1000000 & sleep 1000001"));
        let (image, upper, work) = (t.path("image"), t.path("upper"), t.path("work"));
        fs::rename(bundle.rootfs(), &image)?;
        for directory in [&upper, &work, &bundle.rootfs()] {
            fs::create_dir(directory)?;
        }
        let options = [
            format!("lowerdir={}", image.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        let shim = containerd.start(&bundle)?;
        let mut request = shim.create_request(&bundle, &Streams::output(t)?)?;
        request.rootfs = vec![mount("overlay", "overlay", &options)];
        Ok(Self {
            containerd,
            bundle,
            shim,
            request,
        })
    }

    fn create(&self) -> Result<Process<'t>> {
        self.shim
            .create_by(&self.request, &self.bundle, Streams::default())
    }

    /// The shim is killed; containerd notices, and cleans up.
    fn crash(&self) -> Result {
        self.shim.signal(Signal::SIGKILL)?;
        let deleted = self.containerd.delete_dead(&self.bundle)?;
        ensure!(deleted.exit_status == 137, "exit status {}", deleted.exit_status);
        self.shim.gone()?;
        self.containerd.nothing_is_left_of(&self.bundle)?;
        let socket = self.shim.socket();
        ensure!(!socket.exists(), "{} is left", socket.display());
        Ok(())
    }
}

/// Does a step's beginning in a new container after `before`, and kills the shim a while later; again for each delay.
fn at_every_delay(
    t: &Test,
    before: impl Fn(&Prepared<'_>) -> Result<Option<api::CreateTaskResponse>>,
    step: impl Fn(&Prepared<'_>, Process<'_>) -> Result,
) -> Result {
    for delay in DELAYS {
        let prepared = Prepared::new(t, |bundle| bundle)?;
        before(&prepared)?;
        step(
            &prepared,
            prepared.shim.process(&prepared.bundle, Streams::default(), 0),
        )?;
        sleep(Duration::from_micros(delay));
        prepared.crash().with_context(|| format!("after {delay} us"))?;
    }
    Ok(())
}

/// Sends a request, whose answer nobody waits for.
fn send(shim: &Shim<'_>, method: &str, request: Vec<u8>) -> Result {
    let mut connection = shim.connection()?;
    connection.send(&shim.service(), method, request)?;
    // It stays open as long as the shim lives.
    std::mem::forget(connection);
    Ok(())
}

fn start_request(id: &str, exec_id: &str) -> Result<Vec<u8>> {
    let mut request = api::StartRequest::new();
    (request.id, request.exec_id) = (id.to_owned(), exec_id.to_owned());
    bytes(&request)
}

fn created(prepared: &Prepared<'_>) -> Result<Option<api::CreateTaskResponse>> {
    prepared.create()?;
    Ok(None)
}

fn running(prepared: &Prepared<'_>) -> Result<Option<api::CreateTaskResponse>> {
    prepared.create()?.start()?;
    Ok(None)
}

test!(
    fn a_shim_killed_before_its_first_task_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, |_| Ok(None), |_, _| Ok(()))
    }
);

test!(
    fn a_shim_killed_during_create_leaves_nothing(t: &Test) -> Result {
        at_every_delay(
            t,
            |_| Ok(None),
            |prepared, _| send(&prepared.shim, "Create", bytes(&prepared.request)?),
        )
    }
);

test!(
    fn a_shim_killed_after_create_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, created, |_, _| Ok(()))
    }
);

test!(
    fn a_shim_killed_during_start_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, created, |prepared, task| {
            send(&prepared.shim, "Start", start_request(&task.id, "")?)
        })
    }
);

test!(
    fn a_shim_killed_while_its_task_runs_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |_, _| Ok(()))
    }
);

test!(
    fn a_shim_killed_during_exec_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |prepared, task| {
            let exec = task.exec("e1", &["sh", "-c", "sleep 1000000 & sleep 1000000"])?;
            send(&prepared.shim, "Start", start_request(&task.id, &exec.exec_id)?)
        })
    }
);

test!(
    fn a_shim_killed_while_an_exec_runs_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |_, task| {
            task.exec_sh("e1", "setsid sleep 1000000 & sleep 1000000")?;
            task.exec("e2", &["true"])?;
            Ok(())
        })
    }
);

test!(
    fn a_shim_killed_during_kill_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |prepared, task| {
            send(&prepared.shim, "Kill", bytes(&task.kill_request(libc::SIGKILL))?)
        })
    }
);

test!(
    fn a_shim_killed_while_its_task_is_paused_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |prepared, task| {
            let mut request = api::PauseRequest::new();
            request.id.clone_from(&task.id);
            send(&prepared.shim, "Pause", bytes(&request)?)
        })
    }
);

test!(
    fn a_shim_killed_during_delete_leaves_nothing(t: &Test) -> Result {
        at_every_delay(t, running, |prepared, task| {
            task.kill(libc::SIGKILL)?;
            task.wait()?;
            send(&prepared.shim, "Delete", bytes(&task.delete_request())?)
        })
    }
);

test!(
    fn a_shim_killed_while_a_hook_of_create_runs_leaves_nothing(t: &Test) -> Result {
        for kind in ["createRuntime", "createContainer"] {
            let gate = Gate::new(t)?;
            let prepared = Prepared::new(t, |bundle| gate.hook(bundle, kind))?;
            send(&prepared.shim, "Create", bytes(&prepared.request)?)?;
            // A hook in the container sees nothing of the gate; it is there a while later.
            if kind == "createRuntime" {
                gate.reached()?;
            } else {
                sleep(Duration::from_millis(300));
            }
            prepared.crash().context(kind)?;
        }
        Ok(())
    }
);

test!(
    fn a_shim_killed_while_a_hook_of_start_runs_leaves_nothing(t: &Test) -> Result {
        let gate = Gate::new(t)?;
        let prepared = Prepared::new(t, |bundle| gate.hook(bundle, "startContainer"))?;
        let task = prepared.create()?;
        send(&prepared.shim, "Start", start_request(&task.id, "")?)?;
        gate.reached()?;
        prepared.crash()
    }
);

test!(
    fn a_worker_that_is_killed_fails_its_call_and_leaves_nothing(t: &Test) -> Result {
        if !t.shim_is_ours() {
            return Err(Skip::because("another shim has no workers"));
        }
        let gate = Gate::new(t)?;
        let prepared = Prepared::new(t, |bundle| gate.hook(bundle, "createRuntime"))?;
        let Prepared { shim, request, .. } = &prepared;
        let creating = shim.begin::<api::CreateTaskResponse>("Create", request)?;
        gate.reached()?;
        // Of the shim's children, it is the one that has a child of its own: the hook.
        let children = process::descendants(shim.pid());
        let worker = children.into_iter().find(|child| {
            let parent = process::parent_and_state(*child).map(|(parent, _)| parent);
            parent == Some(shim.pid()) && !process::descendants(*child).is_empty()
        });
        let worker = worker.context("no worker")?;
        // The hook is nobody's then, and goes on.
        let hook = process::descendants(worker);
        for pid in [worker].into_iter().chain(hook) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        let refused = creating.answer().err().context("created by a dead worker")?;
        ensure!(format!("{refused:#}").contains("the worker died"), "{refused:#}");
        prepared.containerd.nothing_is_left_of(&prepared.bundle)?;
        until("the shim to have no child", || {
            Ok(process::descendants(shim.pid()).is_empty().then_some(()))
        })?;
        // Its id is free again.
        let again = shim.begin::<api::CreateTaskResponse>("Create", request)?;
        gate.open()?;
        again.answer()?;
        let task = shim.process(&prepared.bundle, Streams::default(), 0);
        task.start()?;
        task.end()
    }
);

test!(
    fn a_starter_that_is_killed_leaves_no_daemon(t: &Test) -> Result {
        for delay in DELAYS {
            let containerd = Containerd::new(t)?;
            let bundle = containerd.bundle().sleeper();
            bundle.write()?;
            let mut command = containerd.command(&bundle.directory, &bundle.id, &["start"]);
            command.stdout(std::process::Stdio::piped());
            let mut starter = command.spawn()?;
            sleep(Duration::from_micros(delay));
            starter.kill()?;
            starter.wait()?;
            containerd.delete_dead(&bundle)?;
            containerd.nothing_is_left_of(&bundle)?;
            let socket = containerd.usual_socket(&bundle.id)?;
            if t.shim_is_ours() {
                until("the socket to go", || Ok((!socket.exists()).then_some(())))?;
            }
            until("the daemon to end", || {
                let alive = process::descendants(nix::unistd::getppid().as_raw());
                let shims = alive
                    .into_iter()
                    .filter(|&pid| process::describe(pid).contains(&bundle.id));
                Ok((shims.count() == 0).then_some(()))
            })
            .with_context(|| format!("after {delay} us"))?;
        }
        Ok(())
    }
);

test!(
    fn delete_of_a_pods_containers_after_the_shims_death_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let first = containerd.bundle();
        let annotations = json!({"io.kubernetes.cri.sandbox-id": first.id});
        let first = first.sleeper().set("/annotations", annotations.clone());
        let mut bundles = vec![first];
        for _ in 0..3 {
            bundles.push(
                containerd
                    .bundle()
                    .sleeper()
                    .set("/annotations", annotations.clone()),
            );
        }
        let mut shim = None;
        for bundle in &bundles {
            let task = containerd.run(bundle)?;
            task.exec_sh("e1", "sleep 1000000")?;
            shim = Some(task.shim.clone());
        }
        let shim = shim.context("no shim")?;
        shim.signal(Signal::SIGKILL)?;
        for bundle in &bundles {
            containerd.delete_dead(bundle)?;
            containerd.nothing_is_left_of(bundle)?;
        }
        ensure!(!shim.socket().exists(), "{} is left", shim.socket().display());
        Ok(())
    }
);

test!(
    fn delete_can_be_called_twice_and_where_nothing_was(t: &Test) -> Result {
        let prepared = Prepared::new(t, |bundle| bundle)?;
        prepared.create()?.start()?;
        prepared.crash()?;
        prepared
            .containerd
            .delete_dead(&prepared.bundle)
            .context("again")?;
        let never = prepared.containerd.bundle();
        never.write()?;
        prepared.containerd.delete_dead(&never).context("never started")?;
        Ok(())
    }
);

test!(
    fn delete_says_the_pid_of_the_dead_task(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = containerd.run(&bundle)?;
        task.shim.signal(Signal::SIGKILL)?;
        let deleted = containerd.delete_dead(&bundle)?;
        ensure!(
            deleted.pid == task.pid().unsigned_abs(),
            "{deleted}, of {}",
            task.pid()
        );
        ensure!(deleted.exited_at.seconds > 0, "{deleted}");
        Ok(())
    }
);

test!(
    fn a_stopped_shim_loses_nothing_when_it_goes_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle();
        let shim = containerd.start(&bundle)?;
        let bundle = bundle.sh("read line; echo out; exit 7");
        let task = shim.create(&bundle, Streams::all(t)?)?;
        task.start()?;
        let _stdin = task.streams.open_stdin()?;
        let waiting = task.begin_wait()?;
        shim.signal(Signal::SIGSTOP)?;
        // Answered later.
        let state = shim.begin::<api::StateResponse>("State", &{
            let mut request = api::StateRequest::new();
            request.id.clone_from(&task.id);
            request
        })?;
        let typed = task.streams.type_in("\n");
        if t.shim_is_ours() {
            // The container's streams do not pass through it.
            task.streams.out.wait_for("out\n")?;
        }
        sleep(Duration::from_millis(200));
        shim.signal(Signal::SIGCONT)?;
        drop(typed);
        ensure!(waiting.answer()?.exit_status == 7, "exit status");
        state.answer()?;
        task.delete()?;
        containerd
            .events
            .are(&task.id, &["create", "start", "exit 7", "delete"])
    }
);

test!(
    fn a_task_that_ends_while_containerd_is_away_is_there_when_it_comes_back(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .writable()
            .sh("until [ -e /go ]; do sleep 0.02; done; exit 5");
        let task = containerd.run(&bundle)?;
        // Killed in the middle of an exec, which nobody waits for any more.
        let exec = task.exec("e1", &["sh", "-c", "touch /go; exit 3"])?;
        let mut connection = task.shim.connection()?;
        connection.send(&task.shim.service(), "Start", start_request(&task.id, "e1")?)?;
        drop(connection);
        containerd.events.go_away()?;
        until("init to end", || {
            Ok((!process::is_alive(task.pid())).then_some(()))
        })?;
        containerd.events.come_back()?;
        let again = containerd.start(&bundle)?;
        ensure!(again.pid() == task.shim.pid(), "another shim");
        task.becomes(Status::STOPPED)?;
        task.exits_with(5)?;
        exec.delete()?;
        task.delete()?;
        containerd.events.wait_for(&task.id, "delete")?;
        let found = containerd.events.of(&task.id)?;
        // Init's end may kill the exec before its own.
        let position = |name: &str| found.iter().position(|each| each.starts_with(name));
        let order = ["exec-started e1", "exit e1 ", "exit 5"].map(position);
        ensure!(
            order.is_sorted() && order.iter().all(Option::is_some),
            "{found:?}"
        );
        Ok(())
    }
);

test!(
    fn delete_of_a_shim_that_never_existed_does_not_touch_others(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let other = containerd.bundle();
        other.write()?;
        containerd.delete_dead(&other)?;
        task.is(Status::RUNNING)?;
        task.output_of("e1", "true")?;
        task.end()
    }
);

test!(
    fn delete_after_a_create_that_found_its_id_taken_does_not_touch_the_other(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        // Another containerd has a container of the same name, in its own directory of bundles.
        let other = Bundle::at(t, t.path("elsewhere").join(&task.id), &task.id)?.sleeper();
        let socket = t.path("elsewhere.sock");
        let socket = socket.to_string_lossy();
        let shim = containerd.start_by(&other, &["-socket", &socket, "start"], &[])?;
        ensure!(shim.pid() != task.shim.pid(), "one shim for both");
        let request = shim.create_request(&other, &Streams::default())?;
        let created = shim.call::<api::CreateTaskResponse>("Create", &request);
        ensure!(created.is_err(), "two containers of one id");
        shim.signal(Signal::SIGKILL)?;
        shim.gone()?;
        containerd.delete_dead(&other)?;
        task.is(Status::RUNNING)?;
        task.output_of("e1", "true")?;
        task.end()
    }
);

test!(
    fn delete_of_a_pods_first_container_spares_one_that_comes_at_the_same_time(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let first = containerd.bundle();
        let annotations = json!({"io.kubernetes.cri.sandbox-id": first.id});
        let first = first.sleeper().set("/annotations", annotations.clone());
        let second = containerd.bundle().sleeper().set("/annotations", annotations);
        containerd.run(&first)?.end()?;
        let shim = containerd.start(&second)?;
        // containerd before 2.0 calls it after each Delete; it waits a second for a shim without containers to end.
        let directory = first.directory.to_string_lossy().into_owned();
        let mut delete = containerd.command(&first.directory, &first.id, &["-bundle", &directory, "delete"]);
        let mut deleting = delete.stdout(std::process::Stdio::null()).spawn()?;
        sleep(Duration::from_millis(500));
        let task = shim.create(&second, Streams::output(t)?)?;
        task.start()?;
        ensure!(deleting.wait()?.success(), "delete");
        task.is(Status::RUNNING)?;
        task.end()
    }
);
