//! Device nodes in the container and the device cgroup.

use serde_json::{Value, json};

use anyhow::{Context, ensure};

use crate::bundle::Bundle;
use crate::test;
use crate::test::Test;

test!(
    fn the_default_devices_have_their_numbers_and_modes(t: &Test) -> Result {
        let output = t
            .bundle()
            .sh("cd /dev; stat -c '%n %t:%T %a %u:%g' null zero full random urandom tty")
            .run()?;
        output.prints(
            "null 1:3 666 0:0\nzero 1:5 666 0:0\nfull 1:7 666 0:0\nrandom 1:8 666 0:0\nurandom 1:9 666 0:0\ntty 5:0 666 0:0",
        )?;
        Ok(())
    }
);

test!(
    fn the_default_links_in_dev_are_there(t: &Test) -> Result {
        let output = t
            .bundle()
            .sh("cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done")
            .run()?;
        let output = output.ok()?;
        ensure!(
            output.lines()[..4]
                == [
                    "/proc/self/fd",
                    "/proc/self/fd/0",
                    "/proc/self/fd/1",
                    "/proc/self/fd/2"
                ],
            "{output}"
        );
        ensure!(output.lines()[4].ends_with("pts/ptmx"), "{output}");
        Ok(())
    }
);

test!(
    fn the_default_devices_work(t: &Test) -> Result {
        let script = "echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c && \
            { echo x >/dev/full || echo full; } 2>/dev/null";
        t.bundle().sh(script).run()?.prints("3\n3\nfull")?;
        Ok(())
    }
);

/// A bundle with one more device, its rule in the device cgroup as given (`None`: no rule).
fn with_device<'t>(t: &'t Test, device: &Value, access: Option<&str>) -> Bundle<'t> {
    let bundle = t.bundle().push("/linux/devices", device.clone());
    match access {
        Some(access) => bundle.push(
            "/linux/resources/devices",
            json!({"allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"], "access": access}),
        ),
        None => bundle,
    }
}

test!(
    fn configured_devices_are_made_with_mode_and_owner(t: &Test) -> Result {
        let device = json!({"path": "/dev/deep/er/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6});
        let bundle = with_device(t, &device, Some("rwm"));
        let script = "stat -c '%F %t:%T %a %u:%g' /dev/deep/er/null";
        bundle
            .sh(script)
            .run()?
            .prints("character special file 1:3 640 5:6")?;
        Ok(())
    }
);

test!(
    fn a_fifo_among_the_devices_is_made(t: &Test) -> Result {
        let device = json!({"path": "/dev/pipe", "type": "p", "fileMode": 0o622});
        t.bundle()
            .push("/linux/devices", device)
            .args(&["stat", "-c", "%F %a", "/dev/pipe"])
            .run()?
            .prints("fifo 622")?;
        Ok(())
    }
);

test!(
    fn a_block_device_is_made(t: &Test) -> Result {
        let device = json!({"path": "/dev/loop77", "type": "b", "major": 7, "minor": 77, "fileMode": 0o660});
        let bundle = t.bundle().push("/linux/devices", device);
        bundle
            .args(&["stat", "-c", "%F %t:%T", "/dev/loop77"])
            .run()?
            .prints("block special file 7:4d")?;
        Ok(())
    }
);

test!(
    fn default_devices_repeated_in_the_configuration_do_no_harm(t: &Test) -> Result {
        let bundle = with_device(
            t,
            &json!({"path": "/dev/tty", "type": "c", "major": 5, "minor": 0}),
            None,
        );
        let bundle = bundle.push(
            "/linux/devices",
            json!({"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}),
        );
        bundle
            .sh("echo x >/dev/null && echo fine")
            .run()?
            .prints("fine")?;
        Ok(())
    }
);

/// A number of the misc major that nobody has: opening it fails in any case, but with EPERM only by the device cgroup.
fn some_device() -> Value {
    json!({"path": "/dev/some", "type": "c", "major": 10, "minor": 250, "fileMode": 0o666})
}

const OPEN_BOTH_WAYS: &str = "for d in '<' '>>'; do eval \": $d/dev/some\" 2>&1 | grep -q 'not permitted' && echo denied || echo allowed; done";

test!(
    fn a_device_without_a_rule_cannot_be_opened(t: &Test) -> Result {
        t.needs_controller("devices")?;
        with_device(t, &some_device(), None)
            .sh(OPEN_BOTH_WAYS)
            .run()?
            .prints("denied\ndenied")?;
        Ok(())
    }
);

test!(
    fn a_device_with_a_rule_can_be_opened(t: &Test) -> Result {
        t.needs_controller("devices")?;
        with_device(t, &some_device(), Some("rwm"))
            .sh(OPEN_BOTH_WAYS)
            .run()?
            .prints("allowed\nallowed")?;
        Ok(())
    }
);

test!(
    fn read_and_write_are_allowed_separately(t: &Test) -> Result {
        t.needs_controller("devices")?;
        with_device(t, &some_device(), Some("r"))
            .sh(OPEN_BOTH_WAYS)
            .run()?
            .prints("allowed\ndenied")?;
        with_device(t, &some_device(), Some("w"))
            .sh(OPEN_BOTH_WAYS)
            .run()?
            .prints("denied\nallowed")?;
        Ok(())
    }
);

test!(
    fn a_rule_without_a_minor_number_covers_all_of_the_major(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let rule = json!({"allow": true, "type": "c", "major": 10, "access": "rwm"});
        let bundle = with_device(t, &some_device(), None).push("/linux/resources/devices", rule);
        bundle.sh(OPEN_BOTH_WAYS).run()?.prints("allowed\nallowed")?;
        Ok(())
    }
);

test!(
    fn the_last_rule_that_matches_decides(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let deny = json!({"allow": false, "type": "c", "major": 10, "minor": 250, "access": "rwm"});
        let bundle = with_device(t, &some_device(), Some("rwm")).push("/linux/resources/devices", deny);
        bundle.sh(OPEN_BOTH_WAYS).run()?.prints("denied\ndenied")?;
        Ok(())
    }
);

test!(
    fn a_rule_that_allows_everything_allows_everything(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let bundle = with_device(t, &some_device(), None).set(
            "/linux/resources/devices",
            json!([{"allow": true, "access": "rwm"}]),
        );
        bundle.sh(OPEN_BOTH_WAYS).run()?.prints("allowed\nallowed")?;
        Ok(())
    }
);

test!(
    fn nodes_may_be_made_but_not_opened(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let bundle = t
            .bundle()
            .mount("/tmp", "tmpfs", "tmpfs", &["dev"])
            .capabilities(&["CAP_MKNOD"]);
        let output = bundle
            .sh("mknod /tmp/some c 10 250 && echo made; : </tmp/some")
            .run()?;
        ensure!(
            output.stdout == "made\n" && output.stderr.contains("not permitted"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn the_device_rules_hold_for_exec_and_the_whole_life_of_the_container(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let container = with_device(t, &some_device(), None).sleeper().create()?;
        container
            .exec(&["sh", "-c", OPEN_BOTH_WAYS])?
            .prints("denied\ndenied")
            .context("created")?;
        container.start()?.ok()?;
        container
            .exec(&["sh", "-c", OPEN_BOTH_WAYS])?
            .prints("denied\ndenied")
            .context("running")?;
        container.exec(&["sh", "-c", "echo x >/dev/null"])?.ok()?;
        Ok(())
    }
);

test!(
    fn the_device_rules_hold_for_a_sub_cgroup_made_by_the_container(t: &Test) -> Result {
        t.needs_controller("devices")?;
        let container = with_device(t, &some_device(), None).sleeper().start()?;
        let sub = container.cgroup.directory("devices")?.join("sub");
        std::fs::create_dir(&sub)?;
        std::fs::write(sub.join("cgroup.procs"), container.pid()?.to_string())?;
        let script = format!("{OPEN_BOTH_WAYS}; echo x >/dev/null && echo fine");
        container
            .exec(&["sh", "-c", &script])?
            .prints("denied\ndenied\nfine")?;
        Ok(())
    }
);

test!(
    fn a_device_with_an_unknown_type_is_refused(t: &Test) -> Result {
        let device = json!({"path": "/dev/x", "type": "q", "major": 1, "minor": 3});
        t.bundle()
            .push("/linux/devices", device)
            .run()?
            .fails_naming(&["linux.devices", "q"])?;
        Ok(())
    }
);

test!(
    fn a_device_path_outside_dev_or_without_numbers_is_made_or_refused_but_never_escapes(t: &Test) -> Result {
        let outside = t.path("outside");
        let device = json!({"path": format!("/../../../../../..{}", outside.display()), "type": "c", "major": 1, "minor": 3});
        t.bundle().writable().push("/linux/devices", device).run()?;
        ensure!(!outside.exists(), "made outside the rootfs");
        Ok(())
    }
);

test!(
    fn what_was_denied_stays_denied_after_updates_and_dev_null_is_usable_throughout(t: &Test) -> Result {
        t.needs_controller("devices")?;
        t.needs_controller("pids")?;
        let script = "echo ready; while true >/dev/null; do :; done; echo lost; sleep 1000000";
        let container = with_device(t, &some_device(), None).sh(script).start()?;
        container.wait_for_output("ready")?;
        let resources = t.path("resources");
        std::fs::write(&resources, json!({"pids": {"limit": 70}}).to_string())?;
        for limit in ["50", "60", "-1"] {
            container.verb("update", &["--pids-limit", limit])?.ok()?;
            container
                .verb("update", &["--resources", &resources.to_string_lossy()])?
                .ok()?;
            container
                .exec(&["sh", "-c", OPEN_BOTH_WAYS])?
                .prints("denied\ndenied")
                .with_context(|| format!("after the update to {limit}"))?;
        }
        ensure!(container.stdout()? == "ready\n", "{}", container.stdout()?);
        Ok(())
    }
);
