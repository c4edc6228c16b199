//! Seccomp notification: calls that another process on the host decides (seccomp_unotify(2)).

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::ensure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::sys;
use crate::terminal::listen;
use crate::test;
use crate::test::Test;
use crate::wait::DEADLINE;

fn agent(t: &Test) -> Result<(PathBuf, UnixListener)> {
    let path = t.path("agent");
    let listener = listen(&path)?;
    Ok((path, listener))
}

fn with_notify<'t>(t: &'t Test, listener: &str) -> Bundle<'t> {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": listener, "listenerMetadata": "metadata of the agent",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    });
    t.bundle().writable().set("/linux/seccomp", seccomp)
}

/// What the runtime sends: the container process state, and the notification descriptor.
fn receive(listener: &UnixListener) -> Result<(Value, Vec<OwnedFd>)> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ensure!(
        poll(&mut fds, PollTimeout::try_from(DEADLINE)?)? == 1,
        "nobody connects to the agent"
    );
    let (stream, _) = listener.accept()?;
    let (mut bytes, descriptors) = sys::receive_descriptors(&stream)?;
    // The runtime may keep the connection open: the message ends where its JSON does.
    let mut stream = stream;
    loop {
        if let Ok(state) = serde_json::from_slice(&bytes) {
            return Ok((state, descriptors));
        }
        let mut more = [0; 4096];
        let length = std::io::Read::read(&mut stream, &mut more)?;
        ensure!(length > 0, "not JSON: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&more[..length]);
    }
}

test!(
    fn the_agent_gets_the_state_and_the_descriptor(t: &Test) -> Result {
        let (path, listener) = agent(t)?;
        let bundle =
            with_notify(t, &path.to_string_lossy()).sh("mkdir /tmp/new 2>&1; echo end; sleep 1000000");
        t.delete_at_end(&bundle.id);
        let run = bundle.command("run", &["--detach"])?.spawn()?;
        let (state, descriptors) = receive(&listener)?;
        ensure!(descriptors.len() == 1, "{} descriptors", descriptors.len());
        ensure!(state["fds"] == json!(["seccompFd"]), "{state}");
        ensure!(state["metadata"] == "metadata of the agent", "{state}");
        ensure!(state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
        ensure!(state["state"]["id"] == bundle.id.as_str(), "{state}");
        let stdout = run.stdout.clone();
        run.wait()?.ok()?;
        // An agent that goes away makes the calls fail with ENOSYS.
        drop(descriptors);
        crate::wait::until("the call to fail", || {
            Ok(std::fs::read_to_string(&stdout)?
                .contains("Function not implemented")
                .then_some(()))
        })
    }
);

test!(
    fn exec_sends_a_descriptor_of_its_own(t: &Test) -> Result {
        let (path, listener) = agent(t)?;
        let bundle = with_notify(t, &path.to_string_lossy()).sleeper();
        t.delete_at_end(&bundle.id);
        let run = bundle.command("run", &["--detach"])?.spawn()?;
        let _first = receive(&listener)?;
        run.wait()?.ok()?;
        let exec = t
            .command(["exec", &bundle.id, "sh", "-c", "mkdir /tmp/new 2>&1; echo end"])
            .spawn()?;
        let (state, descriptors) = receive(&listener)?;
        ensure!(
            descriptors.len() == 1 && state["state"]["id"] == bundle.id.as_str(),
            "{state}"
        );
        drop(descriptors);
        exec.wait()?.mentions("Function not implemented")?;
        Ok(())
    }
);

test!(
    fn an_agent_that_is_not_there_fails_the_create_and_leaves_nothing(t: &Test) -> Result {
        let bundle = with_notify(t, "/nonexistent/agent").args(&["true"]);
        bundle.run()?.fails_with(&["/nonexistent/agent"])?;
        Ok(())
    }
);

test!(
    fn a_listener_path_without_a_notify_rule_is_ignored(t: &Test) -> Result {
        let bundle = with_notify(t, "/nonexistent/agent").set("/linux/seccomp/syscalls", json!([]));
        bundle.sh("echo fine").run()?.prints("fine")?;
        Ok(())
    }
);

test!(
    fn a_notify_rule_without_a_listener_path_is_refused(t: &Test) -> Result {
        let bundle = with_notify(t, "x")
            .unset("/linux/seccomp/listenerPath")
            .unset("/linux/seccomp/listenerMetadata");
        bundle.run()?.fails_naming(&["listenerPath"])?;
        Ok(())
    }
);

test!(
    fn the_write_call_cannot_be_notified(t: &Test) -> Result {
        let (path, _listener) = agent(t)?;
        let rules = json!([{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]);
        let bundle = with_notify(t, &path.to_string_lossy()).set("/linux/seccomp/syscalls", rules);
        bundle.run()?.fails_with(&["write"])?;
        Ok(())
    }
);

/// Waits for a notified call and answers it; returns its number and pid.
fn answer(listener: &OwnedFd, answer: sys::Answer) -> Result<(i32, u32)> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE)?;
    ensure!(poll(&mut fds, timeout)? == 1, "no call is notified");
    sys::answer_notification(listener, answer)
}

test!(
    fn an_agent_decides_that_a_call_goes_on_or_what_it_returns(t: &Test) -> Result {
        let (path, listener) = agent(t)?;
        let script =
            "for i in 1 2 3; do mkdir /dev/shm/$i 2>&1 && echo made; done; ls /dev/shm; exec sleep 1000000";
        let bundle = with_notify(t, &path.to_string_lossy()).sh(script);
        t.delete_at_end(&bundle.id);
        let run = bundle.command("run", &["--detach"])?.spawn()?;
        let (_, descriptors) = receive(&listener)?;
        let stdout = run.stdout.clone();
        run.wait()?.ok()?;
        let notifier = &descriptors[0];
        for decision in [
            sys::Answer::Continue,
            sys::Answer::Fail(libc::ENOMEDIUM),
            sys::Answer::Return(0),
        ] {
            let (number, pid) = answer(notifier, decision)?;
            ensure!(i64::from(number) == libc::SYS_mkdir && pid > 0, "{number} {pid}");
        }
        // The second failed as the agent said; the third was said to succeed and did nothing.
        let expected = "made\nmkdir: can't create directory '/dev/shm/2': No medium found\nmade\n1\n";
        crate::wait::until("the program's output", || {
            Ok(Some(std::fs::read_to_string(&stdout)?).filter(|output| output.lines().count() >= 4))
        })
        .and_then(|output| {
            ensure!(output == expected, "{output:?}");
            Ok(())
        })
    }
);

test!(
    fn an_agent_answers_the_calls_of_exec_too(t: &Test) -> Result {
        let (path, listener) = agent(t)?;
        let bundle = with_notify(t, &path.to_string_lossy()).sleeper();
        t.delete_at_end(&bundle.id);
        let run = bundle.command("run", &["--detach"])?.spawn()?;
        let _first = receive(&listener)?;
        run.wait()?.ok()?;
        let exec = t.command(["exec", &bundle.id, "mkdir", "/dev/shm/new"]).spawn()?;
        let (_, descriptors) = receive(&listener)?;
        answer(&descriptors[0], sys::Answer::Fail(libc::ENOMEDIUM))?;
        exec.wait()?.fails_with(&["No medium found"])?;
        Ok(())
    }
);
