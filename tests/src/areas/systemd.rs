//! The systemd cgroup driver: `--systemd-cgroup`, cgroupsPath `slice:prefix:name`, a transient scope.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::resources::root_disk;
use crate::bundle::Bundle;
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::test::{Rtc, Test};
use crate::wait::until;

/// Skips where systemd does not run or the tests could not look at its cgroups in one place.
fn needs_systemd(t: &Test) -> Result {
    if !Path::new("/run/systemd/system").exists() {
        t.skip("systemd does not run")?;
    }
    t.needs_cgroup_v2()
}

/// A container under systemd: its scope's name and its cgroup directory.
fn scope(t: &Test, resources: Value) -> (Bundle<'_>, String, PathBuf) {
    let bundle = t.bundle().sleeper();
    let name = format!("rtc-{}.scope", bundle.id);
    let path = format!("system.slice:rtc:{}", bundle.id);
    let directory = Path::new("/sys/fs/cgroup/system.slice").join(&name);
    let mut bundle = bundle.set("/linux/cgroupsPath", json!(path));
    for (key, value) in resources.as_object().cloned().unwrap_or_default() {
        bundle = bundle.set(&format!("/linux/resources/{key}"), value);
    }
    (bundle, name, directory)
}

fn driven<'t>(t: &'t Test, words: &[&str]) -> Rtc<'t> {
    let driver = (!t.uses_systemd()).then_some("--systemd-cgroup");
    t.command(driver).args(words)
}

fn with_driver(t: &Test, words: &[&str]) -> Result<Output> {
    driven(t, words).run()
}

fn create(t: &Test, bundle: &Bundle<'_>) -> Result {
    bundle.write()?;
    t.delete_at_end(&bundle.id);
    with_driver(
        t,
        &[
            "run",
            "--detach",
            "--bundle",
            &bundle.directory.to_string_lossy(),
            &bundle.id,
        ],
    )?
    .ok()?;
    Ok(())
}

fn property(unit: &str, name: &str) -> Result<String> {
    // Another test may have systemd executed again.
    until("systemctl show", || {
        let output = Command::new("systemctl")
            .args(["show", "--value", "--property", name, unit])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(output.status.success().then_some(text))
    })
}

fn read(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    Ok(fs::read_to_string(&path)
        .with_context(|| path.display().to_string())?
        .trim()
        .to_owned())
}

test!(
    fn a_container_is_in_a_scope_of_its_slice(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, directory) = scope(t, json!({}));
        create(t, &bundle)?;
        ensure!(
            property(&name, "ActiveState")? == "active",
            "{}",
            property(&name, "ActiveState")?
        );
        ensure!(property(&name, "Slice")? == "system.slice");
        ensure!(property(&name, "Delegate")? == "yes");
        ensure!(!read(&directory, "cgroup.procs")?.is_empty());
        with_driver(t, &["delete", "--force", &bundle.id])?.ok()?;
        ensure!(!directory.exists(), "{}", directory.display());
        until("the unit to be gone", || {
            Ok((property(&name, "ActiveState")? == "inactive").then_some(()))
        })
    }
);

test!(
    fn limits_are_properties_of_the_scope_and_values_in_its_cgroup(t: &Test) -> Result {
        needs_systemd(t)?;
        let resources = json!({
            "memory": {"limit": 67_108_864}, "pids": {"limit": 55}, "cpu": {"quota": 30_000, "period": 100_000, "shares": 1024},
        });
        let (bundle, name, directory) = scope(t, resources);
        create(t, &bundle)?;
        ensure!(property(&name, "MemoryMax")? == "67108864");
        ensure!(property(&name, "TasksMax")? == "55");
        ensure!(property(&name, "CPUQuotaPerSecUSec")? == "300ms");
        ensure!(read(&directory, "memory.max")? == "67108864");
        ensure!(read(&directory, "pids.max")? == "55");
        ensure!(
            read(&directory, "cpu.max")? == "30000 100000",
            "{}",
            read(&directory, "cpu.max")?
        );
        Ok(())
    }
);

test!(
    fn the_device_rules_hold_under_systemd(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, ..) = scope(t, json!({}));
        let bundle = bundle.push(
            "/linux/devices",
            json!({"path": "/dev/some", "type": "c", "major": 10, "minor": 250}),
        );
        create(t, &bundle)?;
        let script = ": </dev/some; echo x >/dev/null && echo fine";
        let output = with_driver(t, &["exec", &bundle.id, "sh", "-c", script])?;
        ensure!(
            output.stderr.contains("not permitted") || output.stdout.is_empty(),
            "{output}"
        );
        with_driver(
            t,
            &["exec", &bundle.id, "sh", "-c", "echo x >/dev/null && echo fine"],
        )?
        .prints("fine")?;
        Ok(())
    }
);

test!(
    fn update_changes_the_scope(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, directory) =
            scope(t, json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 55}}));
        create(t, &bundle)?;
        with_driver(t, &["update", "--memory", "96M", &bundle.id])?.ok()?;
        ensure!(read(&directory, "memory.max")? == "100663296");
        ensure!(property(&name, "MemoryMax")? == "100663296");
        ensure!(read(&directory, "pids.max")? == "55");
        Ok(())
    }
);

test!(
    fn a_path_that_is_not_slice_prefix_and_name_is_refused(t: &Test) -> Result {
        needs_systemd(t)?;
        let bundle = t.bundle().set("/linux/cgroupsPath", json!("/not/three/parts"));
        bundle.write()?;
        let output = with_driver(
            t,
            &["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id],
        )?;
        output.fails_naming(&["cgroupsPath", "/not/three/parts"])?;
        Ok(())
    }
);

test!(
    fn without_systemd_the_driver_is_refused_and_nothing_is_left(t: &Test) -> Result {
        if Path::new("/run/systemd/system").exists() {
            t.skip("systemd runs")?;
        }
        let (bundle, ..) = scope(t, json!({}));
        bundle.write()?;
        let output = with_driver(
            t,
            &["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id],
        )?;
        output.fails_naming(&["systemd"])?;
        Ok(())
    }
);

test!(
    fn many_containers_at_once_under_systemd_are_all_made_and_removed(t: &Test) -> Result {
        needs_systemd(t)?;
        let mut runs = Vec::new();
        for number in 0..6 {
            let (bundle, ..) = scope(t, json!({}));
            let bundle = bundle.sh(&format!("echo number {number}"));
            bundle.write()?;
            let words = ["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id];
            runs.push((driven(t, &words).spawn()?, number, bundle.id.clone()));
        }
        for (run, number, id) in runs {
            run.wait()?.prints(&format!("number {number}"))?;
            let directory = Path::new("/sys/fs/cgroup/system.slice").join(format!("rtc-{id}.scope"));
            ensure!(!directory.exists(), "{}", directory.display());
        }
        Ok(())
    }
);

test!(
    fn annotations_become_properties_of_the_unit(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, _) = scope(t, json!({}));
        let annotations = json!({
            "org.systemd.property.TimeoutStopUSec": "uint64 123000000",
            "org.systemd.property.KillSignal": "int32 10",
        });
        let bundle = bundle.set("/annotations", annotations);
        create(t, &bundle)?;
        let timeout = property(&name, "TimeoutStopUSec")?;
        ensure!(timeout == "2min 3s", "{timeout}");
        ensure!(property(&name, "KillSignal")? == "10");
        Ok(())
    }
);

test!(
    fn annotations_that_would_rule_the_machine_are_refused(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, directory) = scope(t, json!({}));
        let bundle = bundle.set(
            "/annotations",
            json!({"org.systemd.property.ExecStopPost": "[('/bin/touch', ['touch', '/root/owned'], false)]"}),
        );
        bundle.write()?;
        let output = with_driver(
            t,
            &["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id],
        )?;
        output.fails_naming(&["org.systemd.property.ExecStopPost"])?;
        ensure!(!directory.exists(), "{}", directory.display());
        ensure!(property(&name, "ActiveState")? == "inactive");
        Ok(())
    }
);

/// A device that the rules allow beside the default ones, and one that they do not.
fn with_devices(bundle: Bundle<'_>) -> Bundle<'_> {
    // The kernel's log, and what makes loop devices: neither asks whoever opens it for a capability.
    let device = |path: &str, major: u32, minor: u32| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
    bundle
        .push("/linux/devices", device("/dev/allowed", 1, 11))
        .push("/linux/devices", device("/dev/denied", 10, 237))
        .push("/linux/resources/devices", rule)
}

/// Whether what is allowed is, and nothing else.
fn rules_hold(t: &Test, id: &str, when: &str) -> Result {
    let script = "true </dev/allowed && echo x >/dev/null && echo allowed; true </dev/denied || echo denied; \
        true >/dev/allowed || echo read";
    let output = with_driver(t, &["exec", id, "sh", "-c", script])?;
    ensure!(output.stdout == "allowed\ndenied\nread\n", "{when}: {output}");
    let refusals = output.stderr.matches("not permitted").count();
    ensure!(refusals == 2, "{when}: {output}");
    Ok(())
}

fn systemctl(words: &[&str]) -> Result {
    // Another test may have systemd executed again.
    until(&format!("systemctl {words:?}"), || {
        let status = Command::new("systemctl").args(words).status()?;
        Ok(status.success().then_some(()))
    })
}

test!(
    fn the_device_rules_outlive_a_reload_of_systemd(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, ..) = scope(t, json!({}));
        let bundle = with_devices(bundle);
        create(t, &bundle)?;
        rules_hold(t, &bundle.id, "before")?;
        systemctl(&["daemon-reload"])?;
        rules_hold(t, &bundle.id, "reloaded")?;
        with_driver(t, &["update", "--pids-limit", "77", &bundle.id])?.ok()?;
        rules_hold(t, &bundle.id, "updated")?;
        systemctl(&["daemon-reexec"])?;
        rules_hold(t, &bundle.id, "executed again")?;
        systemctl(&["daemon-reload"])?;
        rules_hold(t, &bundle.id, "reloaded again")
    }
);

test!(
    fn there_is_no_moment_without_device_rules_while_systemd_reloads(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, ..) = scope(t, json!({}));
        let script = "echo began; until [ -e /tmp/end ]; do head -c 0 /dev/denied 2>/dev/null && echo opened; done; echo end";
        let bundle =
            with_devices(bundle)
                .sh(script)
                .mount("/tmp", "bind", &t.directory.to_string_lossy(), &["bind"]);
        bundle.write()?;
        t.delete_at_end(&bundle.id);
        let run = driven(
            t,
            &["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id],
        )
        .spawn()?;
        until("the program to begin", || {
            let said = fs::read_to_string(&run.stdout).unwrap_or_default();
            Ok(said.contains("began").then_some(()))
        })?;
        for _ in 0..3 {
            systemctl(&["daemon-reload"])?;
        }
        fs::write(t.directory.join("end"), "")?;
        let output = run.wait()?;
        ensure!(output.stdout == "began\nend\n", "{output}");
        Ok(())
    }
);

test!(
    fn systemd_knows_the_device_rules_until_delete(t: &Test) -> Result {
        needs_systemd(t)?;
        if !Path::new("/sys/fs/bpf").exists() {
            t.skip("no bpf file system")?;
        }
        let (bundle, name, _) = scope(t, json!({}));
        let bundle = with_devices(bundle);
        create(t, &bundle)?;
        let told = property(&name, "BPFProgram")?;
        let path = told
            .strip_prefix("device:")
            .with_context(|| format!("BPFProgram={told:?}"))?;
        ensure!(Path::new(path).exists(), "{told}");
        ensure!(property(&name, "NeedDaemonReload")? == "no");
        // Other rules: what was denied is allowed, and the reverse; systemd must not bring back the old ones.
        let rules = json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 237, "access": "rw"},
        ]});
        let file = t.path("resources.json");
        fs::write(&file, rules.to_string())?;
        with_driver(t, &["update", "--resources", &file.to_string_lossy(), &bundle.id])?.ok()?;
        for when in ["updated", "reloaded", "reloaded again"] {
            let script =
                "true </dev/allowed && echo allowed; true </dev/denied && echo denied; echo x >/dev/null";
            let output = with_driver(t, &["exec", &bundle.id, "sh", "-c", script])?;
            ensure!(output.stdout == "denied\n", "{when}: {output}");
            ensure!(
                output.stderr.matches("not permitted").count() == 1,
                "{when}: {output}"
            );
            systemctl(&["daemon-reload"])?;
        }
        with_driver(t, &["delete", "--force", &bundle.id])?.ok()?;
        ensure!(!Path::new(path).exists(), "{told}");
        Ok(())
    }
);

test!(
    fn a_privileged_container_has_no_device_program(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, _) = scope(t, json!({"devices": [{"allow": true, "access": "rwm"}]}));
        create(t, &bundle)?;
        ensure!(property(&name, "BPFProgram")?.is_empty());
        ensure!(property(&name, "DevicePolicy")? == "auto");
        Ok(())
    }
);

test!(
    fn delete_makes_systemd_forget_the_unit_also_of_a_program_that_failed(t: &Test) -> Result {
        needs_systemd(t)?;
        for program in ["exec sleep 1000000", "exit 3", "kill -KILL $$"] {
            let (bundle, name, directory) = scope(t, json!({}));
            let bundle = bundle.sh(program);
            create(t, &bundle)?;
            with_driver(t, &["delete", "--force", &bundle.id])?.ok()?;
            ensure!(!directory.exists(), "{program}: {}", directory.display());
            until("the unit to be forgotten", || {
                Ok((property(&name, "LoadState")? == "not-found").then_some(()))
            })?;
        }
        Ok(())
    }
);

test!(
    fn a_unit_of_another_container_is_not_taken(t: &Test) -> Result {
        needs_systemd(t)?;
        let (first, name, directory) = scope(t, json!({}));
        create(t, &first)?;
        let before = read(&directory, "cgroup.procs")?;
        // In its own slice the cgroup is in use already, in another one only the name of the unit.
        for (slice, why) in [
            ("system.slice", "container's cgroup is not empty"),
            ("user.slice", &name),
        ] {
            let path = format!("{slice}:rtc:{}", first.id);
            let second = t.bundle().sleeper().set("/linux/cgroupsPath", json!(path));
            second.write()?;
            let output = with_driver(
                t,
                &["run", "--bundle", &second.directory.to_string_lossy(), &second.id],
            )?;
            output.fails_with(&[why])?;
            ensure!(read(&directory, "cgroup.procs")? == before, "{slice}");
            ensure!(property(&name, "ActiveState")? == "active", "{slice}");
        }
        Ok(())
    }
);

test!(
    fn a_unit_that_failed_is_shown_until_delete(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, _) = scope(t, json!({}));
        let annotations = json!({
            "org.systemd.property.RuntimeMaxSec": "1",
            "org.systemd.property.TimeoutStopSec": "1",
        });
        let bundle = bundle.set("/annotations", annotations);
        create(t, &bundle)?;
        until("systemd to end it", || {
            Ok((property(&name, "ActiveState")? == "failed").then_some(()))
        })?;
        with_driver(t, &["state", &bundle.id])?.mentions("\"stopped\"")?;
        with_driver(t, &["delete", &bundle.id])?.ok()?;
        ensure!(property(&name, "LoadState")? == "not-found");
        Ok(())
    }
);

test!(
    fn a_quota_is_the_same_in_the_unit_and_in_its_cgroup(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, directory) = scope(t, json!({"cpu": {"quota": 12_345, "period": 50_000}}));
        create(t, &bundle)?;
        ensure!(property(&name, "CPUQuotaPerSecUSec")? == "250ms");
        ensure!(property(&name, "CPUQuotaPeriodUSec")? == "50ms");
        ensure!(read(&directory, "cpu.max")? == "12500 50000");
        with_driver(t, &["update", "--cpu-quota", "20001", &bundle.id])?.ok()?;
        ensure!(property(&name, "CPUQuotaPerSecUSec")? == "410ms");
        ensure!(
            read(&directory, "cpu.max")? == "20500 50000",
            "{}",
            read(&directory, "cpu.max")?
        );
        systemctl(&["daemon-reload"])?;
        ensure!(read(&directory, "cpu.max")? == "20500 50000");
        Ok(())
    }
);

test!(
    fn unified_resources_are_properties_and_what_systemd_has_none_for_is_in_the_cgroup(t: &Test) -> Result {
        needs_systemd(t)?;
        let unified = json!({
            "memory.high": "50000000", "memory.min": "131072", "memory.low": "524288", "memory.oom.group": "1",
            "pids.max": "99", "cpu.weight": "42", "cpu.max": "30000 60000", "memory.swap.high": "41000960",
        });
        let (bundle, name, directory) = scope(t, json!({"unified": unified}));
        let bundle = bundle.unset("/linux/resources/memory");
        create(t, &bundle)?;
        for (key, value) in [
            ("MemoryHigh", "50000000"),
            ("MemoryMin", "131072"),
            ("MemoryLow", "524288"),
            ("OOMPolicy", "kill"),
            ("TasksMax", "99"),
            ("CPUWeight", "42"),
            ("CPUQuotaPeriodUSec", "60ms"),
            ("CPUQuotaPerSecUSec", "500ms"),
        ] {
            let found = property(&name, key)?;
            ensure!(found == value, "{key}={found}");
        }
        let files = [
            ("memory.high", "49999872"),
            ("memory.oom.group", "1"),
            ("cpu.weight", "42"),
            ("cpu.max", "30000 60000"),
        ];
        for round in ["made", "reloaded"] {
            for (file, value) in files {
                let found = read(&directory, file)?;
                ensure!(found == value, "{round}: {file}: {found}");
            }
            systemctl(&["daemon-reload"])?;
        }
        Ok(())
    }
);

test!(
    fn throttles_of_disks_are_properties_and_hold_over_a_reload(t: &Test) -> Result {
        needs_systemd(t)?;
        t.needs_controller("io")?;
        let Some((major, minor)) = root_disk() else {
            return t.skip("/ is not on a whole disk");
        };
        let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let block = json!({"throttleReadBpsDevice": rate(10_000_000), "throttleWriteIOPSDevice": rate(300)});
        let (bundle, name, directory) = scope(t, json!({"blockIO": block}));
        create(t, &bundle)?;
        for (key, value) in [("IOReadBandwidthMax", "10000000"), ("IOWriteIOPSMax", "300")] {
            let found = property(&name, key)?;
            ensure!(
                found == format!("/dev/block/{major}:{minor} {value}"),
                "{key}={found}"
            );
        }
        for when in ["made", "reloaded"] {
            let found = read(&directory, "io.max")?;
            let wanted = format!("{major}:{minor} rbps=10000000 wbps=max riops=max wiops=300");
            ensure!(found == wanted, "{when}: {found}");
            systemctl(&["daemon-reload"])?;
        }
        Ok(())
    }
);

fn in_slice<'t>(t: &'t Test, slice: &str) -> Bundle<'t> {
    let bundle = t.bundle().sleeper();
    let path = format!("{slice}:rtc:{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path))
}

test!(
    fn slices_are_nested_by_their_names_and_the_root_is_one(t: &Test) -> Result {
        needs_systemd(t)?;
        for (slice, below) in [
            (
                format!("rtct{0}-a-b.slice", t.unique),
                format!("rtct{0}.slice/rtct{0}-a.slice/rtct{0}-a-b.slice", t.unique),
            ),
            ("-.slice".to_owned(), String::new()),
        ] {
            let bundle = in_slice(t, &slice);
            let name = format!("rtc-{}.scope", bundle.id);
            create(t, &bundle)?;
            let directory = Path::new("/sys/fs/cgroup").join(below).join(&name);
            ensure!(!read(&directory, "cgroup.procs")?.is_empty(), "{slice}");
            ensure!(property(&name, "Slice")? == slice);
            with_driver(t, &["delete", "--force", &bundle.id])?.ok()?;
            ensure!(!directory.exists(), "{}", directory.display());
        }
        systemctl(&["stop", &format!("rtct{}.slice", t.unique)])
    }
);

test!(
    fn a_create_in_a_frozen_slice_is_refused_and_does_not_wait(t: &Test) -> Result {
        needs_systemd(t)?;
        let slice = format!("rtct{}.slice", t.unique);
        let first = in_slice(t, &slice);
        create(t, &first)?;
        let directory = Path::new("/sys/fs/cgroup").join(&slice);
        fs::write(directory.join("cgroup.freeze"), "1")?;
        let second = in_slice(t, &slice);
        second.write()?;
        let output = with_driver(
            t,
            &["run", "--bundle", &second.directory.to_string_lossy(), &second.id],
        );
        fs::write(directory.join("cgroup.freeze"), "0")?;
        output?.fails_with(&["frozen"])?;
        ensure!(!directory.join(format!("rtc-{}.scope", second.id)).exists());
        with_driver(t, &["delete", "--force", &first.id])?.ok()?;
        systemctl(&["stop", &slice])
    }
);

/// A bus that says nothing, or one line to whoever calls.
fn bus(t: &Test, says: &'static [u8]) -> Result<String> {
    let path = t.path("bus");
    let listener = UnixListener::bind(&path)?;
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming().flatten() {
            let mut to = &stream;
            if !says.is_empty() && to.write_all(says).is_ok() {
                // Until the other side has had enough.
                let _ = to.read_to_end(&mut Vec::new());
            }
            kept.push(stream);
        }
    });
    Ok(format!("unix:path={}", path.display()))
}

test!(
    fn a_bus_that_does_not_answer_or_refuses_is_told_and_nothing_is_left(t: &Test) -> Result {
        needs_systemd(t)?;
        for (says, told) in [
            (&b""[..], "timed out waiting for systemd"),
            (b"REJECTED EXTERNAL\r\n", "authentication"),
            (
                b"DATA\r\nOK 1234\r\nl\x03\0\x01\xff\xff\xff\x7f\0\0\0\0\0\0\0\0",
                "too long",
            ),
        ] {
            let (bundle, _, directory) = scope(t, json!({}));
            bundle.write()?;
            let began = Instant::now();
            let output = driven(
                t,
                &["run", "--bundle", &bundle.directory.to_string_lossy(), &bundle.id],
            )
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus(t, says)?)
            .run()?;
            output.fails_with(&["unable to start unit", told])?;
            ensure!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
            ensure!(!directory.exists());
        }
        Ok(())
    }
);

test!(
    fn delete_does_without_systemd_where_it_does_not_answer(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, name, directory) = scope(t, json!({}));
        create(t, &bundle)?;
        // With a warning, where it is not done before systemd has seen the end by itself.
        driven(t, &["delete", "--force", &bundle.id])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus(t, b"REJECTED\r\n")?)
            .run()?
            .ok()?;
        ensure!(!directory.exists());
        until("the unit to be forgotten", || {
            Ok((property(&name, "LoadState")? == "not-found").then_some(()))
        })
    }
);
