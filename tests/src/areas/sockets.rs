//! Sockets between a service manager and the container: readiness (sd_notify(3)) and passed descriptors
//! (sd_listen_fds(3)).

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::test;
use crate::wait::DEADLINE;

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
