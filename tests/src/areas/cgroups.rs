//! Control groups, v1 and v2 alike: limits, membership, pause, kill, update, statistics, removal.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::container::Container;
use crate::host::cgroup::{self, Knob, knob};
use crate::host::process;
use crate::test;
use crate::test::Test;
use crate::wait::until;

const MIB: i64 = 1 << 20;

/// What the kernel shows for "no limit".
fn is_unlimited(value: &str) -> bool {
    value == "max" || value.parse::<u64>().is_ok_and(|value| value > 1 << 60)
}

fn limited<'t>(t: &'t Test, resources: Value) -> Bundle<'t> {
    let mut bundle = t.bundle().sleeper();
    for (key, value) in resources.as_object().into_iter().flatten() {
        bundle = bundle.set(&format!("/linux/resources/{key}"), value.clone());
    }
    bundle
}

test!(
    fn init_is_in_the_configured_cgroup_of_every_hierarchy(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        let pid = container.pid()?;
        let directories = container.cgroup.directories()?;
        ensure!(!directories.is_empty(), "no cgroup {}", container.cgroup.path);
        for directory in directories {
            let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
            ensure!(
                procs.lines().any(|line| line == pid.to_string()),
                "{}: {procs:?}",
                directory.display()
            );
        }
        for controller in ["memory", "cpu", "pids", "freezer", "devices", "cpuset"] {
            if cgroup::hierarchy_of(controller).is_some() {
                ensure!(container.cgroup.directory(controller)?.is_dir(), "{controller}");
            }
        }
        Ok(())
    }
);

test!(
    fn the_memory_limit_and_reservation_are_set(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let container =
            limited(t, json!({"memory": {"limit": 64 * MIB, "reservation": 32 * MIB}})).create()?;
        ensure!(container.cgroup.read(knob::MEMORY_LIMIT)? == (64 * MIB).to_string());
        ensure!(container.cgroup.read(knob::MEMORY_RESERVATION)? == (32 * MIB).to_string());
        Ok(())
    }
);

test!(
    fn a_memory_limit_of_minus_1_is_no_limit(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let container = limited(t, json!({"memory": {"limit": -1}})).create()?;
        let limit = container.cgroup.read(knob::MEMORY_LIMIT)?;
        ensure!(is_unlimited(&limit), "{limit}");
        Ok(())
    }
);

test!(
    fn a_program_that_takes_more_memory_than_its_limit_is_killed(t: &Test) -> Result {
        t.needs_controller("memory")?;
        // tail keeps what it has read until the end of input, which never comes.
        let bundle = limited(t, json!({"memory": {"limit": 24 * MIB, "swap": 24 * MIB}}));
        bundle.args(&["tail", "/dev/zero"]).run()?.code(137)?;
        Ok(())
    }
);

test!(
    fn the_swap_limit_is_the_sum_of_memory_and_swap(t: &Test) -> Result {
        t.needs_controller("memory")?;
        const SWAP: Knob = Knob {
            controller: "memory",
            v1: "memory.memsw.limit_in_bytes",
            v2: "memory.swap.max",
        };
        let container = limited(t, json!({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}})).create()?;
        let directory = container.cgroup.directory("memory")?;
        if !directory.join(SWAP.v1).exists() && !directory.join(SWAP.v2).exists() {
            t.skip("no swap accounting")?;
        }
        let expected = if cgroup::is_unified() { 32 * MIB } else { 96 * MIB };
        ensure!(
            container.cgroup.read(SWAP)? == expected.to_string(),
            "{}",
            container.cgroup.read(SWAP)?
        );
        Ok(())
    }
);

test!(
    fn the_pids_limit_is_set_and_holds(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = limited(t, json!({"pids": {"limit": 30}})).start()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "30");
        let script = "i=0; while [ $((i+=1)) -lt 50 ]; do sleep 1000000 >/dev/null 2>&1 & done";
        let output = container.exec_command(&[], &["sh", "-c", script]).run()?;
        ensure!(output.stderr.contains("can't fork"), "{output}");
        container.is("running")
    }
);

test!(
    fn a_pids_limit_of_minus_1_is_no_limit(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = limited(t, json!({"pids": {"limit": -1}})).create()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "max");
        Ok(())
    }
);

test!(
    fn cpu_shares_become_the_weight(t: &Test) -> Result {
        t.needs_controller("cpu")?;
        for (shares, weights) in [
            (1024, ["100", "39"]),
            (2, ["1", "1"]),
            (262_144, ["10000", "10000"]),
        ] {
            let container = limited(t, json!({"cpu": {"shares": shares}})).create()?;
            let value = container.cgroup.read(knob::CPU_WEIGHT)?;
            // v2: the present formula, which maps 1024 to 100; peers of some age have the linear one before it.
            let weights = if t.is_ours() { &weights[..1] } else { &weights[..] };
            let right = if cgroup::is_unified() {
                weights.contains(&value.as_str())
            } else {
                value == shares.to_string()
            };
            ensure!(right, "{shares} shares: {value}");
        }
        Ok(())
    }
);

test!(
    fn cpu_quota_and_period_are_set_together_and_alone(t: &Test) -> Result {
        t.needs_controller("cpu")?;
        for (cpu, expected) in [
            (json!({"quota": 30_000, "period": 60_000}), (Some(30_000), 60_000)),
            (json!({"quota": 50_000}), (Some(50_000), 100_000)),
            (json!({"period": 40_000}), (None, 40_000)),
            (json!({"quota": -1, "period": 50_000}), (None, 50_000)),
        ] {
            let container = limited(t, json!({"cpu": cpu}))
                .create()
                .with_context(|| cpu.to_string())?;
            let found = container.cgroup.cpu_bandwidth()?;
            ensure!(found == expected, "{cpu}: {found:?}");
        }
        Ok(())
    }
);

test!(
    fn cpus_and_memory_nodes_are_set(t: &Test) -> Result {
        t.needs_controller("cpuset")?;
        let container = limited(t, json!({"cpu": {"cpus": "0", "mems": "0"}})).start()?;
        ensure!(container.cgroup.read(knob::CPUSET_CPUS)? == "0");
        ensure!(container.cgroup.read(knob::CPUSET_MEMS)? == "0");
        ensure!(process::status_field(container.pid()?, "Cpus_allowed_list")? == "0");
        Ok(())
    }
);

test!(
    fn without_resources_there_is_still_a_cgroup(t: &Test) -> Result {
        let container = t.bundle().sleeper().unset("/linux/resources").create()?;
        ensure!(container.cgroup.processes()? == [container.pid()?]);
        Ok(())
    }
);

test!(
    fn without_a_cgroups_path_there_is_a_cgroup_of_the_containers_own_and_delete_removes_it(
        t: &Test,
    ) -> Result {
        let bundle = t.bundle().unset("/linux/cgroupsPath").sleeper();
        let container = bundle.create()?;
        let pid = container.pid()?;
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let line = cgroups
            .lines()
            .find(|line| line.contains("pids") || line.starts_with("0::"))
            .context("no line")?;
        let path = line.rsplit(':').next().context("path")?;
        ensure!(path.contains(&container.id), "{cgroups}");
        let directory = cgroup::hierarchy_of("pids")
            .context("pids")?
            .join(path.trim_start_matches('/'));
        ensure!(directory.is_dir(), "{}", directory.display());
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(
            !directory.exists(),
            "{} outlives the container",
            directory.display()
        );
        Ok(())
    }
);

test!(
    fn a_deep_cgroups_path_is_made_and_delete_removes_its_last_part(t: &Test) -> Result {
        t.needs_cgroupfs_driver()?;
        let bundle = t.bundle().sleeper();
        // Its parents are not the runtime's to remove: they are made before, and removed after, by the test.
        let deep = cgroup::Cgroup {
            path: format!("{}/a", t.cgroup.path),
        };
        let bundle = bundle.set("/linux/cgroupsPath", json!(format!("{}/b", deep.path)));
        let container = bundle.create()?;
        let last = container.cgroup.directories()?;
        ensure!(!last.is_empty());
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(last.iter().all(|directory| !directory.exists()), "{last:?}");
        for directory in deep.directories()? {
            fs::remove_dir(&directory).with_context(|| directory.display().to_string())?;
        }
        Ok(())
    }
);

test!(
    fn delete_removes_cgroups_that_were_made_below_the_containers_own(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for directory in container.cgroup.directories()? {
            fs::create_dir_all(directory.join("one/two"))?;
            fs::create_dir_all(directory.join("three"))?;
        }
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        ensure!(container.cgroup.directories()?.is_empty());
        Ok(())
    }
);

test!(
    fn delete_with_force_ends_processes_in_cgroups_below_the_containers_own(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let pid_file = t.path("pid");
        let flags = ["--detach", "--pid-file", &pid_file.to_string_lossy()];
        container
            .exec_command(&flags, &["sleep", "1000000"])
            .run()?
            .ok()?;
        let pid = fs::read_to_string(&pid_file)?;
        for directory in container.cgroup.directories()? {
            let sub = directory.join("sub");
            fs::create_dir(&sub)?;
            // A new v1 cpuset accepts no process before it is configured.
            if !sub.join("cpuset.cpus").exists() || cgroup::is_unified() {
                fs::write(sub.join("cgroup.procs"), &pid).with_context(|| sub.display().to_string())?;
            }
        }
        container.verb("delete", &["--force"])?.ok()?;
        let pid = pid.parse()?;
        until("the process to die", || {
            Ok((!process::is_alive(pid)).then_some(()))
        })?;
        ensure!(container.cgroup.directories()?.is_empty());
        Ok(())
    }
);

/// A container in the host's PID namespace: its init leaves a child behind when it dies.
fn in_the_hosts_pid_namespace<'t>(
    t: &'t Test,
    script: &str,
) -> crate::registry::Result<(Container<'t>, i32)> {
    let container = t.bundle().without_namespace("pid").sh(script).start()?;
    let output = container.wait_for_output("child ")?;
    let child = output.trim().rsplit(' ').next().context("pid")?.parse()?;
    Ok((container, child))
}

test!(
    fn kill_with_sigkill_in_the_hosts_pid_namespace_ends_all_processes(t: &Test) -> Result {
        let (container, child) = in_the_hosts_pid_namespace(t, "sleep 1000000 & echo child $!; wait")?;
        ensure!(process::is_alive(child));
        container.kill("KILL")?.ok()?;
        until("the child to die too", || {
            Ok((!process::is_alive(child)).then_some(()))
        })?;
        container.wait("stopped")
    }
);

test!(
    fn delete_with_force_in_the_hosts_pid_namespace_ends_what_a_dead_init_left(t: &Test) -> Result {
        let (container, child) = in_the_hosts_pid_namespace(t, "sleep 1000000 & echo child $!; exit 0")?;
        container.wait("stopped")?;
        ensure!(process::is_alive(child));
        container.verb("delete", &["--force"])?.ok()?;
        until("the child to die", || {
            Ok((!process::is_alive(child)).then_some(()))
        })?;
        Ok(())
    }
);

test!(
    fn a_paused_container_is_frozen_until_resumed(t: &Test) -> Result {
        let container = t.bundle().sh("while :; do echo tick; sleep 0.01; done").start()?;
        container.wait_for_output("tick")?;
        container.verb("pause", &[])?.ok()?;
        container.is("paused")?;
        ensure!(container.cgroup.is_frozen()?);
        let before = container.stdout()?.len();
        container.verb("resume", &[])?.ok()?;
        container.is("running")?;
        ensure!(!container.cgroup.is_frozen()?);
        until("it to go on", || {
            Ok((container.stdout()?.len() > before).then_some(()))
        })
    }
);

test!(
    fn pause_and_resume_in_the_wrong_state_are_refused(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container
            .verb("resume", &[])?
            .fails_naming(&[&container.id, "not paused"])?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.verb("pause", &[])?.fails_naming(&[&container.id])?;
        container.verb("resume", &[])?.fails_naming(&[&container.id])?;
        Ok(())
    }
);

test!(
    fn a_paused_container_can_be_killed_and_deleted(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container.verb("pause", &[])?.ok()?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        let container = t.bundle().sleeper().start()?;
        container.verb("pause", &[])?.ok()?;
        container.delete()?.fails_naming(&[&container.id])?;
        container.verb("delete", &["--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn update_changes_what_it_is_told_and_keeps_the_rest(t: &Test) -> Result {
        t.needs_controller("memory")?;
        t.needs_controller("pids")?;
        let resources = json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"quota": 30_000, "period": 60_000}});
        let container = limited(t, resources).start()?;
        container.verb("update", &["--memory", "96M"])?.ok()?;
        ensure!(container.cgroup.read(knob::MEMORY_LIMIT)? == (96 * MIB).to_string());
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "50");
        container.verb("update", &["--pids-limit", "60"])?.ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "60");
        ensure!(container.cgroup.read(knob::MEMORY_LIMIT)? == (96 * MIB).to_string());
        container.verb("update", &["--cpu-quota", "24000"])?.ok()?;
        ensure!(
            container.cgroup.cpu_bandwidth()? == (Some(24_000), 60_000),
            "{:?}",
            container.cgroup.cpu_bandwidth()?
        );
        container
            .verb("update", &["--cpu-period", "50000", "--cpu-quota", "25000"])?
            .ok()?;
        ensure!(container.cgroup.cpu_bandwidth()? == (Some(25_000), 50_000));
        container.is("running")
    }
);

test!(
    fn update_reads_resources_from_a_file_and_from_standard_input(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = limited(t, json!({"pids": {"limit": 50}})).start()?;
        let file = t.path("resources.json");
        fs::write(&file, json!({"pids": {"limit": 70}}).to_string())?;
        container
            .verb("update", &["--resources", &file.to_string_lossy()])?
            .ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "70");
        fs::write(&file, json!({"pids": {"limit": 80}}).to_string())?;
        let command = t
            .command(["update", "-r", "-", &container.id])
            .stdin(fs::File::open(&file)?);
        command.run()?.ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "80");
        Ok(())
    }
);

test!(
    fn update_keeps_the_device_rules(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = limited(t, json!({"pids": {"limit": 50}})).start()?;
        container.verb("update", &["--pids-limit", "60"])?.ok()?;
        container
            .exec(&["sh", "-c", "echo x >/dev/null && echo fine"])?
            .prints("fine")?;
        Ok(())
    }
);

test!(
    fn update_with_a_bad_value_is_refused_and_changes_nothing(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let container = limited(t, json!({"memory": {"limit": 64 * MIB}})).start()?;
        for (flag, value) in [
            ("--memory", "lots"),
            ("--cpu-quota", "x"),
            ("--pids-limit", "many"),
        ] {
            container
                .verb("update", &[flag, value])?
                .fails_naming(&[flag.trim_start_matches('-'), value])?;
        }
        ensure!(container.cgroup.read(knob::MEMORY_LIMIT)? == (64 * MIB).to_string());
        container.is("running")
    }
);

test!(
    fn ps_lists_the_host_pids_of_all_processes(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container
            .exec_command(&["--detach"], &["sleep", "4000000"])
            .run()?
            .ok()?;
        let output = container.verb("ps", &["--format", "json"])?.ok()?;
        let mut pids: Vec<i32> = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        let mut expected = container.cgroup.processes()?;
        pids.sort_unstable();
        expected.sort_unstable();
        ensure!(pids == expected && pids.len() == 2, "{pids:?} {expected:?}");
        let table = t.rtc(["ps", &container.id])?.ok()?;
        ensure!(table.lines()[0].contains("PID"), "{table}");
        ensure!(
            table.stdout.contains("sleep 1000000") && table.stdout.contains("sleep 4000000"),
            "{table}"
        );
        Ok(())
    }
);

test!(
    fn events_with_stats_prints_one_line_of_statistics(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = limited(t, json!({"pids": {"limit": 50}})).start()?;
        let output = t.rtc(["events", "--stats", &container.id])?.ok()?;
        let stats: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        ensure!(
            stats["type"] == "stats" && stats["id"] == container.id.as_str(),
            "{output}"
        );
        ensure!(
            stats["data"]["pids"]["current"] == 1 && stats["data"]["pids"]["limit"] == 50,
            "{output}"
        );
        if cgroup::hierarchy_of("memory").is_some() {
            ensure!(
                stats["data"]["memory"]["usage"]["usage"]
                    .as_u64()
                    .is_some_and(|usage| usage > 0),
                "{output}"
            );
        }
        Ok(())
    }
);

test!(
    fn unified_resources_are_written_as_they_are(t: &Test) -> Result {
        t.needs_cgroup_v2()?;
        let unified = json!({"pids.max": "77", "memory.high": "50331648"});
        let container = limited(t, json!({"unified": unified})).create()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "77");
        let high = Knob {
            controller: "memory",
            v1: "",
            v2: "memory.high",
        };
        ensure!(container.cgroup.read(high)? == "50331648");
        Ok(())
    }
);

test!(
    fn an_impossible_limit_is_refused_and_leaves_nothing(t: &Test) -> Result {
        t.needs_controller("cpuset")?;
        let bundle = limited(t, json!({"cpu": {"cpus": "999"}}));
        bundle
            .command("create", &[])?
            .run()?
            .fails_naming(&["cpuset.cpus", "999"])?;
        Ok(())
    }
);

test!(
    fn cpu_burst_and_idle_are_set(t: &Test) -> Result {
        t.needs_controller("cpu")?;
        const BURST: Knob = Knob {
            controller: "cpu",
            v1: "cpu.cfs_burst_us",
            v2: "cpu.max.burst",
        };
        const IDLE: Knob = Knob {
            controller: "cpu",
            v1: "cpu.idle",
            v2: "cpu.idle",
        };
        let container = limited(
            t,
            json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000}}),
        )
        .create()?;
        ensure!(
            container.cgroup.read(BURST)? == "20000",
            "{}",
            container.cgroup.read(BURST)?
        );
        let container = limited(t, json!({"cpu": {"idle": 1}})).create()?;
        ensure!(
            container.cgroup.read(IDLE)? == "1",
            "{}",
            container.cgroup.read(IDLE)?
        );
        Ok(())
    }
);

test!(
    fn events_reports_that_a_container_ran_out_of_memory_and_ends_with_it(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let container = limited(t, json!({"memory": {"limit": 24 * MIB, "swap": 24 * MIB}})).start()?;
        let events = t.command(["events", "--interval", "1s", &container.id]).spawn()?;
        let stdout = events.stdout.clone();
        until("the first statistics", || {
            Ok(fs::read_to_string(&stdout)?.contains("stats").then_some(()))
        })?;
        container.exec(&["tail", "/dev/zero"])?.code(137)?;
        until("the event", || {
            Ok(fs::read_to_string(&stdout)?
                .contains("\"type\":\"oom\"")
                .then_some(()))
        })?;
        container.verb("delete", &["--force"])?.ok()?;
        events.wait()?;
        Ok(())
    }
);
