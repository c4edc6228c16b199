//! containerd's own shim for runc, told to call the runtime under test (`BinaryName`), by each version of containerd.

use anyhow::ensure;

use crate::areas::containerd_cri::Pod;
use crate::containerd::{Daemon, Pods, with_each, with_each_cri};
use crate::registry::Result;
use crate::terminal::Terminal;
use crate::test;
use crate::test::Rtc;
use crate::wait::until;

/// `ctr run` with it, not started yet; and the id. The last of two `--runtime` counts.
fn run<'t>(containerd: &Daemon<'t>, flags: &[&str], args: &[&str]) -> (Rtc<'t>, String) {
    let binary = containerd.t.rtc.display().to_string();
    let shim = ["--runtime", "io.containerd.runc.v2", "--runc-binary", &binary];
    containerd.run(&[&shim, flags].concat(), args)
}

fn start(containerd: &Daemon<'_>, flags: &[&str], args: &[&str]) -> Result<String> {
    let (command, id) = run(containerd, &[&["--detach"], flags].concat(), args);
    command.run()?.ok()?;
    Ok(id)
}

test!(
    fn containerds_shim_runs_executes_pauses_and_kills(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (command, _) = run(
                containerd,
                &["--rm"],
                &["sh", "-c", "echo out; echo err >&2; exit 7"],
            );
            let output = command.run()?.code(7)?;
            ensure!(
                output.stdout == "out\n" && output.stderr.contains("err\n"),
                "{output}"
            );
            let id = start(containerd, &[], &["sleep", "1000"])?;
            containerd.wait(&id, "RUNNING")?;
            let pid = containerd.task_pid(&id)?;
            // A started task may be the runtime's for a moment yet.
            until("the program to run", || {
                let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
                Ok(program.ends_with("busybox").then_some(()))
            })?;
            // ctr 1.6 may be gone before the last of the output.
            until("the output of an exec", || {
                let exec = containerd.exec(&id, &["sh", "-c", "echo in; exit 5"])?.code(5)?;
                Ok((exec.stdout == "in\n").then_some(()))
            })?;
            containerd.ctr(["task", "ps", &id])?.mentions(&pid.to_string())?;
            containerd.ctr(["task", "pause", &id])?.ok()?;
            containerd.wait(&id, "PAUSED")?;
            containerd.ctr(["task", "resume", &id])?.ok()?;
            containerd.wait(&id, "RUNNING")?;
            containerd.ctr(["task", "metrics", &id])?.mentions("pids")?;
            containerd.ctr(["task", "kill", "--signal", "KILL", &id])?.ok()?;
            containerd.wait(&id, "STOPPED")?;
            containerd.remove_ended(&id, 137)
        })
    }
);

test!(
    fn containerds_shim_gives_a_terminal(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (mut terminal, slave) = Terminal::open()?;
            let (command, _) = run(containerd, &["--rm", "--tty"], &["sh"]);
            let command = command.terminal(slave).spawn()?;
            terminal.wait_for("# ")?;
            terminal.type_in("tty; echo size-$((6 * 7)); exit 3\n")?;
            terminal.wait_for("/dev/pts/0")?;
            terminal.wait_for("size-42")?;
            command.wait()?.code(3)?;
            Ok(())
        })
    }
);

test!(
    fn containerds_shim_tells_what_does_not_start(t: &Test) -> Result {
        with_each(t, |containerd| {
            for (program, text) in [
                ("nosuch", "executable file not found in $PATH"),
                ("/nosuch", "no such file or directory"),
                ("/etc/passwd", "permission denied"),
            ] {
                let (command, id) = run(containerd, &[], &[program]);
                command.run()?.fails_with(&[text])?;
                containerd.ctr(["container", "rm", &id])?.ok()?;
            }
            let id = start(containerd, &[], &["sleep", "1000"])?;
            containerd
                .exec(&id, &["nosuch"])?
                .fails_with(&["executable file not found in $PATH"])?;
            containerd.remove(&id)
        })
    }
);

test!(
    fn a_pod_of_containerds_cri_plugin_and_shim_runs_logs_and_executes(t: &Test) -> Result {
        with_each_cri(t, Pods::OwnShim, |containerd| {
            let pod = Pod::start(containerd)?;
            let web = pod.run("web", "echo out; echo err >&2; sleep 1000")?;
            let inspected = containerd.crictl(&[
                "inspectp",
                "--output",
                "go-template",
                "--template",
                "{{.info.runtimeOptions}}",
                &pod.id,
            ])?;
            inspected.mentions(&t.rtc.display().to_string())?;
            pod.exec(&web, &["echo", "in"])?.prints("in")?;
            pod.exec(&web, &["sh", "-c", "exit 3"])?.fails_with(&[])?;
            let log = pod.log("web", "stderr F err")?;
            ensure!(log.contains("stdout F out"), "{log}");
            containerd.crictl(&["stop", "--timeout", "0", &web])?.ok()?;
            let state = containerd.crictl(&[
                "inspect",
                "--output",
                "go-template",
                "--template",
                "{{.status.exitCode}}",
                &web,
            ])?;
            state.prints("137")?;
            pod.remove()
        })
    }
);
