//! Sockets between a service manager and the container: readiness (sd_notify(3)) and passed descriptors
//! (sd_listen_fds(3)).

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bundle::Bundle;
use crate::host::process;
use crate::test;
use crate::test::{Running, Test};
use crate::wait::{DEADLINE, until};

test!(
    fn readiness_of_the_program_reaches_the_callers_notify_socket(t: &Test) -> Result {
        let path = t.path("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let bundle = t.bundle().payload(&["notify", "READY=1"]);
        t.delete_at_end(&bundle.id);
        let run = bundle
            .command("run", &["--detach"])?
            .env("NOTIFY_SOCKET", &path.to_string_lossy())
            .spawn()?;
        let mut seen = String::new();
        while !seen.contains("READY=1") {
            let mut message = [0; 4096];
            let length = socket
                .recv(&mut message)
                .with_context(|| format!("no READY=1; seen {seen:?}"))?;
            seen.push_str(&String::from_utf8_lossy(&message[..length]));
            seen.push('\n');
        }
        run.wait()?.ok()?;
        Ok(())
    }
);

test!(
    fn without_a_notify_socket_the_program_has_none(t: &Test) -> Result {
        t.bundle().sh("echo [$NOTIFY_SOCKET]").run()?.prints("[]")?;
        Ok(())
    }
);

test!(
    fn descriptors_of_socket_activation_are_passed_on(t: &Test) -> Result {
        let file = t.path("passed");
        fs::write(&file, "through descriptor 3\n")?;
        let bundle = t.bundle().sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
        let run = bundle
            .command("run", &[])?
            .activate(1, &format!("3<{}", file.display()));
        let output = run.run()?.ok()?;
        ensure!(output.lines() == ["1 1", "through descriptor 3"], "{output}");
        Ok(())
    }
);

test!(
    fn descriptors_meant_for_another_process_are_not_passed_on(t: &Test) -> Result {
        let run = t.bundle().payload(&["fds"]).command("run", &[])?;
        let run = run
            .env("LISTEN_FDS", "1")
            .env("LISTEN_PID", "1")
            .redirect("3</etc/group");
        let output = run.run()?.ok()?;
        ensure!(output.lines().len() == 3, "{output}");
        Ok(())
    }
);

test!(
    fn a_notify_socket_that_nobody_reads_does_not_stop_the_program(t: &Test) -> Result {
        let path = t.path("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let bundle = t.bundle().sh("echo ran");
        let output = bundle
            .command("run", &[])?
            .env("NOTIFY_SOCKET", &path.to_string_lossy())
            .run()?;
        output.prints("ran")?;
        Ok(())
    }
);

/// The service manager's end: a socket and its path.
fn manager(t: &Test) -> crate::registry::Result<(UnixDatagram, String)> {
    let path = t.path("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok((socket, path.to_string_lossy().into_owned()))
}

/// A program that reports this once the file `/tmp/go` is there; the directory on the host that is `/tmp`.
fn that_reports<'t>(t: &'t Test, message: &str) -> crate::registry::Result<(Bundle<'t>, PathBuf)> {
    let directory = t.path("shared");
    fs::create_dir(&directory)?;
    let bundle = t.bundle();
    bundle.add_payload();
    let bundle = bundle.mount("/tmp", "bind", &directory.to_string_lossy(), &["bind"]);
    // The message as a word of the shell: it has line ends.
    let script = "touch /tmp/runs; until [ -e /tmp/go ]; do sleep 0.05; done; exec /bin/rtc-tests payload notify \"$0\"";
    let bundle = bundle.args(&["sh", "-c", script, message]);
    t.delete_at_end(&bundle.id);
    Ok((bundle, directory))
}

/// The call is still waiting when the program runs and has not reported; it ends well once the program has. Returns what
/// the manager was told.
fn waits_for_the_report(
    caller: Running,
    socket: &UnixDatagram,
    directory: &Path,
) -> crate::registry::Result<String> {
    until("the program to run", || {
        Ok(directory.join("runs").exists().then_some(()))
    })?;
    ensure!(process::is_alive(caller.pid()), "returned before READY=1");
    fs::write(directory.join("go"), "")?;
    caller.wait()?.ok()?;
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).context("no READY=1")?;
    Ok(String::from_utf8_lossy(&message[..length]).into_owned())
}

test!(
    fn a_detached_run_returns_only_once_the_program_is_ready(t: &Test) -> Result {
        let (socket, path) = manager(t)?;
        let (bundle, directory) = that_reports(t, "READY=1")?;
        let run = bundle
            .command("run", &["--detach"])?
            .env("NOTIFY_SOCKET", &path)
            .spawn()?;
        let told = waits_for_the_report(run, &socket, &directory)?;
        ensure!(told.lines().any(|line| line == "READY=1"), "{told:?}");
        Ok(())
    }
);

test!(
    fn start_returns_only_once_the_program_is_ready(t: &Test) -> Result {
        let (socket, path) = manager(t)?;
        let (bundle, directory) = that_reports(t, "READY=1")?;
        bundle
            .command("create", &[])?
            .env("NOTIFY_SOCKET", &path)
            .run()?
            .ok()?;
        let start = t
            .command(["start", &bundle.id])
            .env("NOTIFY_SOCKET", &path)
            .spawn()?;
        let told = waits_for_the_report(start, &socket, &directory)?;
        ensure!(told.lines().any(|line| line == "READY=1"), "{told:?}");
        Ok(())
    }
);

test!(
    fn a_container_can_say_nothing_but_its_readiness_to_the_manager(t: &Test) -> Result {
        let (socket, path) = manager(t)?;
        let (bundle, directory) = that_reports(t, "STATUS=spoofed\nREADY=1\nMAINPID=1\nWATCHDOG_USEC=7")?;
        let run = bundle
            .command("run", &["--detach"])?
            .env("NOTIFY_SOCKET", &path)
            .spawn()?;
        let told = waits_for_the_report(run, &socket, &directory)?;
        let state: serde_json::Value = serde_json::from_str(&t.rtc(["state", &bundle.id])?.ok()?.stdout)?;
        let main_pid = format!("MAINPID={}", state["pid"]);
        ensure!(
            told.lines().all(|line| line == "READY=1" || line == main_pid),
            "{told:?}"
        );
        Ok(())
    }
);

test!(
    fn descriptors_of_socket_activation_given_to_create_are_there_after_start(t: &Test) -> Result {
        let file = t.path("passed");
        fs::write(&file, "through descriptor 3\n")?;
        let bundle = t.bundle().sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
        t.delete_at_end(&bundle.id);
        let create = bundle
            .command("create", &[])?
            .activate(1, &format!("3<{}", file.display()))
            .spawn()?;
        let stdout = create.stdout.clone();
        create.wait()?.ok()?;
        t.rtc(["start", &bundle.id])?.ok()?;
        until("the program's output", || {
            Ok((fs::read_to_string(&stdout)? == "1 1\nthrough descriptor 3\n").then_some(()))
        })
    }
);
