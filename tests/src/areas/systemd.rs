//! The systemd cgroup driver: `--systemd-cgroup`, cgroupsPath `slice:prefix:name`, a transient scope.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::test;
use crate::test::Test;
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

fn with_driver(t: &Test, words: &[&str]) -> Result<crate::output::Output> {
    t.command(["--systemd-cgroup"]).args(words).run()
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
    let output = Command::new("systemctl")
        .args(["show", "--value", "--property", name, unit])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
            runs.push((
                t.command(["--systemd-cgroup"]).args(words).spawn()?,
                number,
                bundle.id.clone(),
            ));
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

test!(
    fn the_device_rules_outlive_a_reload_of_systemd(t: &Test) -> Result {
        needs_systemd(t)?;
        let (bundle, ..) = scope(t, json!({}));
        let bundle = bundle.push(
            "/linux/devices",
            json!({"path": "/dev/some", "type": "c", "major": 10, "minor": 250}),
        );
        create(t, &bundle)?;
        let script = "true </dev/some; echo x >/dev/null && echo fine";
        for turn in ["before", "reloaded", "updated"] {
            match turn {
                "reloaded" => {
                    let reload = Command::new("systemctl").arg("daemon-reload").status()?;
                    ensure!(reload.success(), "daemon-reload: {reload}");
                }
                "updated" => {
                    with_driver(t, &["update", "--pids-limit", "77", &bundle.id])?.ok()?;
                }
                _ => {}
            }
            let output = with_driver(t, &["exec", &bundle.id, "sh", "-c", script])?.prints("fine")?;
            ensure!(output.stderr.contains("not permitted"), "{turn}: {output}");
        }
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
