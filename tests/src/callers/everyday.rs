//! What people do with Docker and Podman in the same words: run, exec, terminals, logs, kill, stop, restarts.

use std::io::Write;
use std::process::Stdio;

use anyhow::ensure;

use super::engine::IMAGE;
use super::{Engine, last_capability, root_is_whole};
use crate::output::Output;
use crate::registry::Result;
use crate::terminal::Terminal;
use crate::wait::until;

/// The command ended with this code, and said this text, in whatever case.
fn failed(output: &Output, code: i32, text: &str) -> Result {
    let said = output.stderr.to_lowercase() + &output.stdout.to_lowercase();
    ensure!(
        output.code == code && said.contains(text),
        "expected {code} and {text:?}\n{output}"
    );
    Ok(())
}

/// Both streams, standard input and the exit status of a container in the foreground.
pub(crate) fn streams_and_status(engine: &Engine<'_>) -> Result {
    let output = engine.sh(&[], "echo out; echo err >&2; exit 6")?.code(6)?;
    ensure!(output.stdout == "out\n" && output.stderr == "err\n", "{output}");
    engine
        .sh(
            &["--env", "NAME=value", "--workdir", "/tmp", "--hostname", "web"],
            "echo $NAME; pwd; hostname",
        )?
        .prints("value\n/tmp\nweb")?;
    let (reader, mut writer) = std::io::pipe()?;
    let run = engine.making("run", &["--rm", "--interactive"], &["sh", "-c", "cat; echo end"]);
    let run = run.stdin(Stdio::from(reader)).spawn()?;
    writer.write_all(b"one\ntwo\n")?;
    drop(writer);
    run.wait()?.prints("one\ntwo\nend")?;
    let all = engine.sh(&[], "seq 1 100000")?.ok()?;
    ensure!(
        all.stdout.lines().count() == 100_000,
        "{} lines",
        all.stdout.lines().count()
    );
    Ok(())
}

/// 127 for what is not there, 126 for what is no program; with the words by which the callers tell them apart.
pub(crate) fn programs_that_do_not_start(engine: &Engine<'_>) -> Result {
    failed(
        &engine.run(&[], &["nosuch"])?,
        127,
        "executable file not found in $path",
    )?;
    failed(&engine.run(&[], &["/nosuch"])?, 127, "no such file or directory")?;
    failed(&engine.run(&[], &["/etc/passwd"])?, 126, "permission denied")?;
    failed(&engine.run(&[], &["/etc"])?, 126, "")?;
    let name = engine.sleeper(&[])?;
    for (program, code, text) in [
        ("nosuch", 127, "executable file not found in $path"),
        ("/nosuch", 127, "no such file or directory"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let output = engine.exec(&name, &[program])?;
        // Docker before 23 says 126 of all.
        let code = if output.code == 126 && engine.name == "docker" {
            126
        } else {
            code
        };
        failed(&output, code, text)?;
    }
    engine.exec(&name, &["sh", "-c", "exit 3"])?.code(3)?;
    engine.remove(&name)
}

/// `run -it` and `exec -it`: a terminal of the container's own, its size, job control, and the exit status.
pub(crate) fn terminals(engine: &Engine<'_>) -> Result {
    let (mut terminal, slave) = Terminal::open()?;
    terminal.resize(40, 100)?;
    let run = engine.making("run", &["--rm", "--interactive", "--tty"], &["sh"]);
    let run = run.terminal(slave).spawn()?;
    terminal.wait_for("# ")?;
    terminal.type_in("tty; echo size-$(stty size)\n")?;
    terminal.wait_for("/dev/pts/0")?;
    terminal.wait_for("size-40 100")?;
    terminal.resize(50, 120)?;
    terminal.type_in("while [ \"$(stty size)\" != '50 120' ]; do sleep 0.1; done; echo re-$((6 * 7))\n")?;
    terminal.wait_for("re-42")?;
    terminal.type_in("echo go-$((1 + 1)); sleep 1000\n")?;
    terminal.wait_for("go-2")?;
    terminal.type_in("\u{3}")?;
    terminal.type_in("echo ctrl-$((5 * 5))\n")?;
    terminal.wait_for("ctrl-25")?;
    terminal.type_in("exit 5\n")?;
    run.wait()?.code(5)?;

    let name = engine.sleeper(&[])?;
    let (mut terminal, slave) = Terminal::open()?;
    terminal.resize(30, 90)?;
    let exec = engine
        .command(["exec", "--interactive", "--tty", &name, "sh"])
        .terminal(slave)
        .spawn()?;
    terminal.wait_for("# ")?;
    terminal.type_in("test -t 0 && echo tty-$((6 * 7)); exit 4\n")?;
    terminal.wait_for("tty-42")?;
    exec.wait()?.code(4)?;
    engine.remove(&name)
}

/// Standard input, environment, user, directory and status of an exec; one in the background.
pub(crate) fn execs(engine: &Engine<'_>) -> Result {
    let name = engine.sleeper(&["--env", "FROM=run"])?;
    engine
        .call(&[
            "exec",
            "--env",
            "NAME=value",
            "--workdir",
            "/tmp",
            "--user",
            "1000:1000",
            &name,
            "sh",
            "-c",
            "echo $FROM $NAME; pwd; id -u; id -g",
        ])?
        .prints("run value\n/tmp\n1000\n1000")?;
    let (reader, mut writer) = std::io::pipe()?;
    let exec = engine
        .command(["exec", "--interactive", &name, "cat"])
        .stdin(Stdio::from(reader))
        .spawn()?;
    writer.write_all(b"typed\n")?;
    drop(writer);
    exec.wait()?.prints("typed")?;
    engine
        .call(&["exec", "--detach", &name, "sh", "-c", "echo done > /tmp/file"])?
        .ok()?;
    until("what the exec in the background writes", || {
        Ok((engine.exec(&name, &["cat", "/tmp/file"])?.code == 0).then_some(()))
    })?;
    engine.exec(&name, &["sh", "-c", "kill -KILL $$"])?.code(137)?;
    if root_is_whole()? {
        let all = format!("{:016x}", (1_u64 << (last_capability()? + 1)) - 1);
        let privileged = engine
            .call(&["exec", "--privileged", &name, "cat", "/proc/self/status"])?
            .ok()?;
        ensure!(privileged.value_of("CapEff")? == all, "{privileged}");
    }
    let listed = engine.call(&["top", &name])?.ok()?;
    ensure!(listed.stdout.contains("sleep 1000"), "{listed}");
    engine.remove(&name)
}

/// Logs of both streams, followed to the end; `stop` with its time, `kill` with its signal, what `wait` says.
pub(crate) fn logs_and_signals(engine: &Engine<'_>) -> Result {
    let obedient = "trap 'echo bye; exit 9' TERM; trap 'echo usr1' USR1; echo up; echo err >&2; while :; do sleep 0.1; done";
    let name = engine.start(&[], &["sh", "-c", obedient])?;
    engine.wait_for_log(&name, "up\n")?;
    let follow = engine.command(["logs", "--follow", &name]).spawn()?;
    engine.call(&["kill", "--signal", "USR1", &name])?.ok()?;
    engine.wait_for_log(&name, "usr1\n")?;
    engine.call(&["stop", "--time", "50", &name])?.ok()?;
    engine.call(&["wait", &name])?.prints("9")?;
    let followed = follow.wait()?.ok()?;
    ensure!(
        followed.stdout == "up\nusr1\nbye\n" && followed.stderr == "err\n",
        "{followed}"
    );
    engine
        .call(&["logs", "--tail", "1", &name])?
        .ok()?
        .stdout_is("bye\n")?;
    engine.call(&["kill", &name])?.fails_with(&["running"])?;
    engine.call(&["start", &name])?.ok()?;
    engine.wait_for(&name, "{{.State.Status}}", "running")?;
    engine.remove(&name)?;

    let deaf = engine.start(
        &[],
        &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"],
    )?;
    engine.wait_for_log(&deaf, "up\n")?;
    engine.call(&["stop", "--time", "1", &deaf])?.ok()?;
    engine.call(&["wait", &deaf])?.prints("137")?;
    engine.remove(&deaf)?;

    let killed = engine.start(&[], &["sleep", "1000"])?;
    engine.call(&["kill", &killed])?.ok()?;
    engine.call(&["wait", &killed])?.prints("137")?;
    engine.remove(&killed)
}

/// `--restart`: as often as was said after failures; always until it is stopped.
pub(crate) fn restarts(engine: &Engine<'_>) -> Result {
    let failing = engine.start(&["--restart", "on-failure:2"], &["sh", "-c", "echo x; exit 3"])?;
    engine.wait_for(&failing, "{{.RestartCount}} {{.State.Status}}", "2 exited")?;
    engine.wait_for(&failing, "{{.State.ExitCode}}", "3")?;
    engine.call(&["logs", &failing])?.prints("x\nx\nx")?;
    engine.remove(&failing)?;
    let always = engine.start(&["--restart", "always"], &["sleep", "1000"])?;
    let first = engine.pid(&always)?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    until("a new process", || {
        let now = engine.pid(&always)?;
        Ok((now != 0 && now != first).then_some(()))
    })?;
    engine.call(&["restart", "--time", "1", &always])?.ok()?;
    engine.wait_for(&always, "{{.State.Status}}", "running")?;
    engine.call(&["stop", "--time", "0", &always])?.ok()?;
    engine.wait_for(&always, "{{.State.Status}}", "exited")?;
    engine.remove(&always)
}

/// `create`, `start --attach`, `rename`, `cp`, `ps`; and the same container started again.
pub(crate) fn created_then_started(engine: &Engine<'_>) -> Result {
    let name = engine.t.id();
    let script = "cat /etc/copied; echo x >> /etc/kept; wc -l < /etc/kept";
    engine
        .making("create", &["--name", &name], &["sh", "-c", script])
        .run()?
        .ok()?;
    engine.wait_for(&name, "{{.State.Status}}", "created")?;
    let file = engine.t.path("file");
    std::fs::write(&file, "copied\n")?;
    engine
        .call(&["cp", &file.to_string_lossy(), &format!("{name}:/etc/copied")])?
        .ok()?;
    for lines in 1..=2 {
        let output = engine.call(&["start", "--attach", &name])?.ok()?;
        ensure!(output.stdout == format!("copied\n{lines}\n"), "{output}");
    }
    engine
        .call(&["cp", &format!("{name}:/etc/kept"), &file.to_string_lossy()])?
        .ok()?;
    ensure!(std::fs::read_to_string(&file)? == "x\nx\n");
    engine.remove(&name)
}

/// Several at once, each with its own output and status.
pub(crate) fn many_at_once(engine: &Engine<'_>) -> Result {
    let mut running = Vec::new();
    for number in 0..6 {
        let script = format!("echo {number}; exit {number}");
        running.push((
            number,
            engine.making("run", &["--rm"], &["sh", "-c", &script]).spawn()?,
        ));
    }
    for (number, run) in running {
        run.wait()?.code(number)?.stdout_is(&format!("{number}\n"))?;
    }
    Ok(())
}

/// `build`: steps run by the runtime, as another user, with a failure that is told.
pub(crate) fn builds(engine: &Engine<'_>, flags: &[&str]) -> Result {
    let context = engine.t.path("context");
    std::fs::create_dir(&context)?;
    std::fs::write(context.join("data"), "data\n")?;
    let file = format!(
        "FROM {IMAGE}\nCOPY data /data\nENV NAME=value\nRUN echo $NAME > /made && cat /data >> /made\n\
         RUN id -u >> /made && mount | grep -q ' /proc ' && test -c /dev/null && chmod 777 /tmp\nUSER 1000\nWORKDIR /tmp\nRUN id -u > /tmp/user\n\
         CMD cat /made /tmp/user\n"
    );
    std::fs::write(context.join("Dockerfile"), file)?;
    let directory = context.display().to_string();
    let build =
        |tag: &str| engine.call(&[&["build", "--force-rm"], flags, &["--tag", tag, &directory]].concat());
    build("built")?.ok()?;
    engine
        .command(["run", "--rm"])
        .args(&engine.creating)
        .args(["built"])
        .run()?
        .prints("value\ndata\n0\n1000")?;
    std::fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\nRUN exit 7\n"))?;
    let failing = build("broken")?;
    ensure!(failing.code != 0 && failing.stderr.contains('7'), "{failing}");
    std::fs::write(
        context.join("Dockerfile"),
        format!("FROM {IMAGE}\nRUN [\"/nosuch\"]\n"),
    )?;
    let missing = build("broken")?;
    ensure!(missing.code != 0, "{missing}");
    let said = missing.stderr.to_lowercase() + &missing.stdout.to_lowercase();
    ensure!(said.contains("no such file"), "{missing}");
    Ok(())
}
