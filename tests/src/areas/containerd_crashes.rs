//! Deaths of containerd and of the shim: containers go on, and nothing is left in the end.

use std::fs;

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd::{Daemon, with_each};
use crate::host::process;
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A task that waits for a file in its root, and then ends with status 4.
fn waiter(containerd: &Daemon<'_>) -> Result<(String, std::path::PathBuf)> {
    let rootfs = containerd.busybox();
    let id = containerd.t.id();
    let runtime = containerd.runtime();
    let run = containerd.ctr_command([
        "run",
        "--detach",
        "--null-io",
        "--env",
        "PATH=/bin",
        "--runtime",
        &runtime,
    ]);
    let script = "while ! [ -e /go ]; do sleep 0.02; done; exit 4";
    run.args(["--rootfs"])
        .args([&rootfs])
        .args([&id, "sh", "-c", script])
        .run()?
        .ok()?;
    Ok((id, rootfs.join("go")))
}

/// Restarts containerd in this way while a task runs: it goes on, can be used, and its end is seen.
fn a_task_outlives(t: &Test, end: Signal) -> Result {
    with_each(t, |containerd| {
        let (id, go) = waiter(containerd)?;
        let pid = containerd.task_pid(&id)?;
        containerd.signal(end)?;
        ensure!(process::is_alive(pid), "the container went with containerd");
        containerd.start_daemon()?;
        containerd.wait(&id, "RUNNING")?;
        ensure!(containerd.task_pid(&id)? == pid, "another pid");
        containerd.exec(&id, &["echo", "here"])?.prints("here")?;
        fs::write(&go, "")?;
        containerd.wait(&id, "STOPPED")?;
        containerd.remove_ended(&id, 4)
    })
}

test!(
    fn a_task_outlives_containerds_restart(t: &Test) -> Result {
        a_task_outlives(t, Signal::SIGTERM)
    }
);

test!(
    fn a_task_outlives_containerds_violent_death(t: &Test) -> Result {
        a_task_outlives(t, Signal::SIGKILL)
    }
);

test!(
    fn the_end_of_a_task_while_containerd_is_away_is_known_afterwards(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (id, go) = waiter(containerd)?;
            let pid = containerd.task_pid(&id)?;
            containerd.kill()?;
            fs::write(&go, "")?;
            until("the container to end", || {
                Ok((!process::is_alive(pid)).then_some(()))
            })?;
            containerd.start_daemon()?;
            // containerd 1.7 and newer removes such a task when it starts.
            until("the end to be known", || {
                let task = containerd.task(&id)?;
                Ok(task.is_none_or(|(_, status)| status == "STOPPED").then_some(()))
            })?;
            if containerd.task(&id)?.is_some() {
                return containerd.remove_ended(&id, 4);
            }
            containerd.ctr(["container", "rm", &id])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn output_goes_on_into_its_file_while_containerd_is_away(t: &Test) -> Result {
        with_each(t, |containerd| {
            let log = t.path("log");
            let uri = format!("file://{}", log.display());
            let id = containerd.start(
                &["--log-uri", &uri],
                &["sh", "-c", "while :; do echo x; sleep 0.02; done"],
            )?;
            let length = || fs::metadata(&log).map_or(0, |file| file.len());
            let grown = |from| until("output", || Ok((length() > from).then_some(())));
            grown(0)?;
            containerd.kill()?;
            grown(length())?;
            containerd.start_daemon()?;
            grown(length())?;
            containerd.remove(&id)
        })
    }
);

/// Kills the shim of a running task.
fn kill_shim(containerd: &Daemon<'_>) -> Result {
    let shims = containerd.shims();
    ensure!(!shims.is_empty(), "no shim is found");
    for pid in &shims {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    until("the shim to die", || {
        Ok(shims.iter().all(|&pid| !process::is_alive(pid)).then_some(()))
    })
}

/// Removes what containerd still knows of a task whose shim died; it cleans up by itself, so the task may be gone.
fn remove_dead(containerd: &Daemon<'_>, id: &str) -> Result {
    until("the task to be gone", || {
        if containerd.task(id)?.is_some() {
            containerd.ctr(["task", "rm", "--force", id])?;
        }
        Ok(containerd.task(id)?.is_none().then_some(()))
    })?;
    containerd.ctr(["container", "rm", id])?.ok()?;
    Ok(())
}

test!(
    fn the_death_of_a_shim_ends_its_container_and_leaves_nothing(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&["--null-io"], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
            let pid = containerd.task_pid(&id)?;
            kill_shim(containerd)?;
            until("the container to end", || {
                Ok((!process::is_alive(pid)).then_some(()))
            })?;
            remove_dead(containerd, &id)
        })
    }
);

test!(
    fn the_death_of_a_shim_under_a_paused_container_leaves_nothing(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&["--null-io"], &["sleep", "1000"])?;
            let pid = containerd.task_pid(&id)?;
            containerd.ctr(["task", "pause", &id])?.ok()?;
            kill_shim(containerd)?;
            until("the container to end", || {
                Ok((!process::is_alive(pid)).then_some(()))
            })?;
            remove_dead(containerd, &id)
        })
    }
);

test!(
    fn the_death_of_shim_and_containerd_together_is_cleaned_up_at_its_start(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&["--null-io"], &["sleep", "1000"])?;
            let pid = containerd.task_pid(&id)?;
            containerd.kill()?;
            kill_shim(containerd)?;
            containerd.start_daemon()?;
            until("the container to end", || {
                Ok((!process::is_alive(pid)).then_some(()))
            })?;
            remove_dead(containerd, &id)
        })
    }
);

test!(
    fn containerd_killed_while_it_starts_tasks_comes_back_to_a_clean_state(t: &Test) -> Result {
        with_each(t, |containerd| {
            for delay in [5, 20, 40, 60, 90, 130] {
                let (run, id) = containerd.run(&["--detach", "--null-io"], &["sleep", "1000"]);
                let run = run.spawn()?;
                std::thread::sleep(std::time::Duration::from_millis(delay));
                containerd.kill()?;
                run.wait()?; // either way
                containerd.start_daemon()?;
                if containerd.ctr(["container", "info", &id])?.code == 0 {
                    remove_dead(containerd, &id)?;
                }
            }
            Ok(())
        })
    }
);
