//! A user namespace together with what else a container has: terminal, time namespace, read-only root, volumes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::ensure;
use serde_json::json;

use super::namespaces::with_user_namespace;
use crate::host::process;
use crate::terminal::{Terminal, listen};
use crate::test;

test!(
    fn the_terminal_belongs_to_the_user_as_the_namespace_numbers_it(t: &Test) -> Result {
        for user in [0, 1000] {
            let socket = t.path("console");
            let listener = listen(&socket)?;
            let container = with_user_namespace(t)?
                .set("/process/terminal", json!(true))
                .set("/process/user", json!({"uid": user, "gid": user}))
                .sh("stat -c %u:%g /dev/pts/0; stat -c %u:%g /dev/console; echo x >/dev/tty")
                .create_with(&["--console-socket", &socket.to_string_lossy()])?;
            let mut terminal = Terminal::receive(&listener)?;
            container.start()?.ok()?;
            let text = terminal.read_to_end()?;
            let lines: Vec<&str> = text.lines().collect();
            let owner = format!("{user}:5");
            ensure!(lines == [owner.as_str(), owner.as_str(), "x"], "{text:?}");
        }
        Ok(())
    }
);

test!(
    fn a_time_namespace_belongs_to_the_user_namespace(t: &Test) -> Result {
        const SECONDS: i64 = 8_000_000;
        let offsets = json!({"boottime": {"secs": SECONDS}});
        let container = with_user_namespace(t)?
            .namespace(json!({"type": "time"}))
            .set("/linux/timeOffsets", offsets)
            .sleeper()
            .start()?;
        let pid = container.pid()?.to_string();
        ensure!(process::namespace(&pid, "time")? != process::namespace("self", "time")?);
        ensure!(process::namespace(&pid, "user")? != process::namespace("self", "user")?);
        let output = container.exec(&["cut", "-d.", "-f1", "/proc/uptime"])?.ok()?;
        ensure!(output.stdout.trim().parse::<i64>()? >= SECONDS, "{output}");
        Ok(())
    }
);

test!(
    fn a_read_only_root_is_read_only_for_the_namespaces_root_too(t: &Test) -> Result {
        let script =
            "id -u; touch /tmp/x; mount -o remount,rw / 2>/dev/null || echo still; touch /tmp/y; ls /tmp";
        let bundle = with_user_namespace(t)?.capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        let output = bundle.sh(script).run()?.ok()?;
        ensure!(output.lines() == ["0", "still"], "{output}");
        ensure!(
            output.stderr.matches("Read-only file system").count() == 2,
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn a_volume_only_the_hosts_root_can_reach_is_bound(t: &Test) -> Result {
        let private = t.path("private");
        fs::create_dir_all(private.join("volume"))?;
        fs::write(private.join("volume/file"), "reached\n")?;
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
        let source = |name: &str| private.join(name).to_string_lossy().into_owned();
        let bundle = with_user_namespace(t)?
            .mount("/mnt", "bind", &source("volume"), &["bind", "ro"])
            .mount("/etc/file", "bind", &source("volume/file"), &["bind", "ro"]);
        bundle
            .sh("cat /mnt/file /etc/file")
            .run()?
            .prints("reached\nreached")?;
        Ok(())
    }
);
