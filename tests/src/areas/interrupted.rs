//! A container whose set-up is looked at, held up by a hook, killed half-way, or whose id got another owner.

use std::fs;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::gate::Gate;
use crate::host::process;
use crate::registry::Result;
use crate::test;
use crate::test::Running;
use crate::wait::until;

fn signal(running: &Running, signal: Signal) -> Result {
    Ok(kill(Pid::from_raw(running.pid()), signal)?)
}

test!(
    fn a_container_of_run_is_creating_until_its_hooks_have_run_and_takes_no_exec_before(t: &Test) -> Result {
        for kind in ["prestart", "createRuntime", "createContainer"] {
            let gate = Gate::new(t)?;
            let bundle = gate.hook(t.bundle().sleeper(), kind);
            t.delete_at_end(&bundle.id);
            let run = bundle.command("run", &["--detach"])?.spawn()?;
            gate.reached()?;
            let state: Value = serde_json::from_str(&t.rtc(["state", &bundle.id])?.ok()?.stdout)?;
            ensure!(state["status"] == "creating", "{kind}: {state}");
            t.rtc(["exec", &bundle.id, "true"])?
                .fails_naming(&["creating"])
                .with_context(|| kind)?;
            gate.open()?;
            run.wait()?.ok().with_context(|| kind)?;
            t.rtc(["exec", &bundle.id, "echo", "now"])?.prints("now")?;
        }
        Ok(())
    }
);

test!(
    fn a_create_killed_while_a_hook_of_the_container_runs_leaves_what_forced_delete_removes(
        t: &Test,
    ) -> Result {
        for pid_namespace in [true, false] {
            let gate = Gate::new(t)?;
            let mut bundle = gate.hook(t.bundle().sleeper(), "createContainer");
            if !pid_namespace {
                bundle = bundle.without_namespace("pid");
            }
            t.delete_at_end(&bundle.id);
            let create = bundle.command("create", &[])?.spawn()?;
            gate.reached()?;
            signal(&create, Signal::SIGKILL)?;
            create.wait()?;
            t.rtc(["delete", "--force", &bundle.id])?
                .ok()
                .with_context(|| format!("PID namespace: {pid_namespace}"))?;
            t.rtc(["state", &bundle.id])?.fails_naming(&["does not exist"])?;
        }
        Ok(())
    }
);

test!(
    fn forced_delete_ends_a_create_whose_hook_never_ends(t: &Test) -> Result {
        for kind in ["createRuntime", "createContainer"] {
            let gate = Gate::new(t)?;
            let bundle = gate.hook(t.bundle().sleeper(), kind);
            t.delete_at_end(&bundle.id);
            let create = bundle.command("create", &[])?.spawn()?;
            gate.reached()?;
            t.rtc(["delete", "--force", &bundle.id])?
                .ok()
                .with_context(|| kind)?;
            let output = create.wait()?;
            ensure!(output.code != 0, "{kind}: {output}");
            t.rtc(["state", &bundle.id])?.fails_naming(&["does not exist"])?;
        }
        Ok(())
    }
);

test!(
    fn forced_delete_ends_a_start_whose_hook_never_ends(t: &Test) -> Result {
        for pid_namespace in [true, false] {
            let gate = Gate::new(t)?;
            let mut bundle = gate.hook(t.bundle().sleeper(), "startContainer");
            if !pid_namespace {
                bundle = bundle.without_namespace("pid");
            }
            let container = bundle.create()?;
            let start = t.command(["start", &container.id]).spawn()?;
            gate.reached()?;
            container
                .verb("delete", &["--force"])?
                .ok()
                .with_context(|| format!("PID namespace: {pid_namespace}"))?;
            let output = start.wait()?;
            ensure!(output.code != 0, "PID namespace: {pid_namespace}: {output}");
            container.verb("state", &[])?.fails_naming(&["does not exist"])?;
        }
        Ok(())
    }
);

test!(
    fn a_foreground_run_whose_container_was_replaced_leaves_the_successor_alone(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        t.delete_at_end(&bundle.id);
        let foreground = bundle.command("run", &[])?.spawn()?;
        until("the first container to run", || {
            let state = t.rtc(["state", &bundle.id])?;
            Ok(state.stdout.contains("\"running\"").then_some(()))
        })?;
        // Refused, but only once the foreground run lets go of its container: stopped before, it would keep the lock.
        t.rtc(["start", &bundle.id])?.fails_naming(&[&bundle.id])?;
        signal(&foreground, Signal::SIGSTOP)?;
        until("the runtime to stop", || {
            let state = process::parent_and_state(foreground.pid());
            Ok(state.filter(|(_, state)| *state == 'T').map(drop))
        })?;
        t.rtc(["delete", "--force", &bundle.id])?.ok()?;
        let successor = bundle.start()?;
        let pid = successor.pid()?;
        signal(&foreground, Signal::SIGCONT)?;
        foreground.wait()?.code(137)?;
        successor.is("running")?;
        ensure!(successor.pid()? == pid && process::is_alive(pid));
        successor.exec(&["echo", "here"])?.prints("here")?;
        Ok(())
    }
);

test!(
    fn a_run_of_a_program_that_cannot_be_executed_leaves_no_pid_file(t: &Test) -> Result {
        for (program, detach) in [
            ("/missing", true),
            ("/missing", false),
            ("/plain", true),
            ("/plain", false),
        ] {
            let pid_file = t.path("pid");
            let bundle = t.bundle().args(&[program]);
            fs::write(bundle.rootfs().join("plain"), "no program")?;
            let pid_file_text = pid_file.to_string_lossy();
            let mut flags = vec!["--pid-file", &*pid_file_text];
            flags.extend(detach.then_some("--detach"));
            bundle.command("run", &flags)?.run()?.fails_naming(&[program])?;
            ensure!(
                !pid_file.exists(),
                "{program}, detached: {detach}: {} is left",
                pid_file.display()
            );
        }
        Ok(())
    }
);
