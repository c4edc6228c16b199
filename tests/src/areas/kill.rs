//! kill: signals by name and number, and in each state.

use std::fs;

use anyhow::ensure;
use serde_json::json;

use crate::host::process;
use crate::test;
use crate::wait::until;

test!(
    fn kill_without_a_signal_sends_term(t: &Test) -> Result {
        let container = t
            .bundle()
            .sh("trap 'echo got TERM; exit 0' TERM; echo ready; while :; do sleep 0.1; done")
            .start()?;
        container.wait_for_output("ready")?;
        container.verb("kill", &[])?.ok()?;
        ensure!(container.finish()?.contains("got TERM"));
        Ok(())
    }
);

test!(
    fn kill_takes_signals_as_names_with_and_without_sig_and_as_numbers(t: &Test) -> Result {
        let script = "for s in HUP USR1 USR2; do trap \"echo got $s\" $s; done; echo ready; while :; do sleep 0.1; done";
        let container = t.bundle().sh(script).start()?;
        container.wait_for_output("ready")?;
        for (given, name) in [
            ("SIGUSR1", "USR1"),
            ("USR2", "USR2"),
            ("1", "HUP"),
            ("usr1", "USR1"),
        ] {
            let before = container.stdout()?.matches(&format!("got {name}\n")).count();
            container.kill(given)?.ok()?;
            until(&format!("the trap of {given}"), || {
                Ok((container.stdout()?.matches(&format!("got {name}\n")).count() > before).then_some(()))
            })?;
        }
        Ok(())
    }
);

test!(
    fn kill_with_an_unknown_signal_is_refused_by_name(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for signal in ["SIGNONSENSE", "-3", "4711"] {
            container.kill(signal)?.fails_naming(&[signal])?;
        }
        container.is("running")
    }
);

test!(
    fn kill_of_a_stopped_container_says_container_not_running(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).start()?;
        container.wait("stopped")?;
        container.kill("TERM")?.fails_with(&["container not running"])?;
        container.kill("KILL")?.fails_with(&["container not running"])?;
        container.is("stopped")
    }
);

test!(
    fn kill_of_a_created_container_stops_it(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.start()?.fails_naming(&[&container.id])?;
        container.delete()?.ok()?;
        Ok(())
    }
);

test!(
    fn a_created_container_ends_when_it_is_told_to_terminate(t: &Test) -> Result {
        for pid_namespace in [true, false] {
            let mut bundle = t.bundle().sleeper();
            if !pid_namespace {
                bundle = bundle.without_namespace("pid");
            }
            let container = bundle.create()?;
            container.kill("TERM")?.ok()?;
            container.wait("stopped")?;
            container.start()?.fails_naming(&[&container.id])?;
            container.delete()?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn kill_accepts_the_old_flag_all(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        t.rtc(["kill", "--all", &container.id, "KILL"])?.ok()?;
        container.wait("stopped")
    }
);

test!(
    fn a_foreground_run_that_is_told_to_terminate_passes_it_on(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sh("trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.1; done");
        let running = bundle.command("run", &[])?.spawn()?;
        until("the container to be ready", || {
            Ok(fs::read_to_string(&running.stdout)?
                .contains("ready")
                .then_some(()))
        })?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.pid()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let output = running.wait()?.code(7)?;
        ensure!(output.stdout.contains("told"), "{output}");
        Ok(())
    }
);

test!(
    fn kill_reaches_what_an_init_left_in_the_hosts_pid_namespace(t: &Test) -> Result {
        let bundle = t.bundle().without_namespace("pid");
        let container = bundle.sh("sleep 1000000 & echo child $!").start()?;
        let output = container.wait_for_output("child ")?;
        let child: i32 = output.trim().rsplit(' ').next().unwrap_or_default().parse()?;
        container.wait("stopped")?;
        ensure!(process::is_alive(child));
        container.kill("TERM")?.fails_with(&["container not running"])?;
        ensure!(process::is_alive(child));
        container.kill("KILL")?.ok()?;
        until("the child to die", || {
            Ok((!process::is_alive(child)).then_some(()))
        })
    }
);

test!(
    fn of_two_containers_in_one_pid_namespace_each_is_ended_alone(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let joined = json!({"type": "pid", "path": format!("/proc/{}/ns/pid", first.pid()?)});
        let second = t.bundle().namespace(joined).sleeper().start()?;
        let flags = ["--detach"];
        second.exec_command(&flags, &["sleep", "1000000"]).run()?.ok()?;
        let seconds = second.cgroup.processes()?;
        ensure!(seconds.len() == 2, "{seconds:?}");
        second.kill("KILL")?.ok()?;
        second.wait("stopped")?;
        until("all its processes to die", || {
            Ok((!seconds.iter().any(|&pid| process::is_alive(pid))).then_some(()))
        })?;
        first.is("running")?;
        first.exec(&["true"])?.ok()?;
        second.delete()?.ok()?;
        first.is("running")
    }
);

test!(
    fn the_end_of_a_pid_namespace_ends_the_containers_that_joined_it(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let joined = json!({"type": "pid", "path": format!("/proc/{}/ns/pid", first.pid()?)});
        let second = t.bundle().namespace(joined).sleeper().start()?;
        first.kill("KILL")?.ok()?;
        second.wait("stopped")?;
        second.delete()?.ok()?;
        first.delete()?.ok()?;
        Ok(())
    }
);
