//! Further resources: block I/O, network class, checks before an update, and `update` with each of its flags.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, ensure};
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::host::cgroup::{self, Knob, knob};
use crate::host::process;
use crate::test;
use crate::test::Test;

const MIB: i64 = 1 << 20;

fn limited<'t>(t: &'t Test, key: &str, value: Value) -> Bundle<'t> {
    t.bundle()
        .sleeper()
        .set(&format!("/linux/resources/{key}"), value)
}

/// Number of the whole disk below `/`, if `/` is on one: throttling works on disks, not on partitions.
pub(super) fn root_disk() -> Option<(u64, u64)> {
    let device = fs::metadata("/").ok()?.dev();
    let (major, minor) = (major(device), minor(device));
    let sys = format!("/sys/dev/block/{major}:{minor}");
    let is_disk = fs::exists(&sys).ok()? && !fs::exists(format!("{sys}/partition")).ok()?;
    is_disk.then_some((major, minor))
}

test!(
    fn reads_and_writes_of_a_disk_are_throttled(t: &Test) -> Result {
        let controller = if cgroup::is_unified() { "io" } else { "blkio" };
        t.needs_controller(controller)?;
        let Some((major, minor)) = root_disk() else {
            return t.skip("/ is not on a whole disk");
        };
        let rate = |rate: i64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let block = json!({"throttleReadBpsDevice": rate(10 * MIB), "throttleWriteIOPSDevice": rate(300)});
        let container = limited(t, "blockIO", block).create()?;
        let directory = container.cgroup.directory(controller)?;
        let read = |file: &str| fs::read_to_string(directory.join(file)).with_context(|| file.to_owned());
        if cgroup::is_unified() {
            let text = read("io.max")?;
            ensure!(
                text.contains(&format!("{major}:{minor} rbps=10485760")) && text.contains("wiops=300"),
                "{text}"
            );
        } else {
            let text = read("blkio.throttle.read_bps_device")?;
            ensure!(text.trim() == format!("{major}:{minor} 10485760"), "{text}");
            let text = read("blkio.throttle.write_iops_device")?;
            ensure!(text.trim() == format!("{major}:{minor} 300"), "{text}");
        }
        Ok(())
    }
);

test!(
    fn a_disk_that_does_not_exist_is_refused_and_leaves_nothing(t: &Test) -> Result {
        let controller = if cgroup::is_unified() { "io" } else { "blkio" };
        t.needs_controller(controller)?;
        let block = json!({"throttleReadBpsDevice": [{"major": 4095, "minor": 77, "rate": 1_000_000}]});
        limited(t, "blockIO", block)
            .command("create", &[])?
            .run()?
            .fails_naming(&["4095:77"])?;
        Ok(())
    }
);

test!(
    fn a_memory_limit_below_what_is_used_is_rejected_where_so_asked(t: &Test) -> Result {
        t.needs_cgroup_v2()?;
        t.needs_controller("memory")?;
        let container =
            limited(t, "memory", json!({"limit": 64 * MIB, "checkBeforeUpdate": true})).start()?;
        let script = "head -c 20000000 /dev/zero >/dev/shm/fill && echo filled; sleep 1000000";
        let filler = container
            .exec_command(&["--detach"], &["sh", "-c", script])
            .spawn()?;
        let stdout = filler.stdout.clone();
        filler.wait()?.ok()?;
        crate::wait::until("20 MB in use", || {
            Ok(fs::read_to_string(&stdout)?.contains("filled").then_some(()))
        })?;
        let file = t.path("resources");
        fs::write(
            &file,
            json!({"memory": {"limit": 8 * MIB, "checkBeforeUpdate": true}}).to_string(),
        )?;
        let output = container.verb("update", &["--resources", &file.to_string_lossy()])?;
        output.fails_with(&["rejecting memory limit"])?;
        ensure!(container.cgroup.read(knob::MEMORY_LIMIT)? == (64 * MIB).to_string());
        container.is("running")
    }
);

test!(
    fn update_sets_each_value_by_its_flag(t: &Test) -> Result {
        t.needs_controller("memory")?;
        t.needs_controller("cpu")?;
        let container = t.bundle().sleeper().start()?;
        let weight = if cgroup::is_unified() { "100" } else { "1024" };
        let updates: [(&[&str], Knob, &str); 5] = [
            (&["--memory", "100m"], knob::MEMORY_LIMIT, "104857600"),
            (
                &["--memory-reservation", "50M"],
                knob::MEMORY_RESERVATION,
                "52428800",
            ),
            (&["--pids-limit", "44"], knob::PIDS_LIMIT, "44"),
            (&["--pids-limit", "-1"], knob::PIDS_LIMIT, "max"),
            (&["--cpu-share", "1024"], knob::CPU_WEIGHT, weight),
        ];
        for (flags, knob, expected) in updates {
            container.verb("update", flags)?.ok()?;
            let found = container.cgroup.read(knob)?;
            let linear = !t.is_ours() && cgroup::is_unified() && found == "39";
            ensure!(found == expected || linear, "{flags:?}: {found}, not {expected}");
        }
        Ok(())
    }
);

test!(
    fn update_works_on_a_created_and_on_a_paused_container(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = t.bundle().sleeper().create()?;
        container.verb("update", &["--pids-limit", "33"])?.ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "33");
        container.start()?.ok()?;
        container.verb("pause", &[])?.ok()?;
        container.verb("update", &["--pids-limit", "34"])?.ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "34");
        container.is("paused")?;
        container.verb("resume", &[])?.ok()?;
        container.is("running")
    }
);

test!(
    fn update_of_a_stopped_container_is_refused(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).start()?;
        container.wait("stopped")?;
        container
            .verb("update", &["--pids-limit", "33"])?
            .fails_naming(&[&container.id])?;
        Ok(())
    }
);

test!(
    fn an_updated_limit_survives_pause_and_resume(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let container = t.bundle().sleeper().start()?;
        container.verb("update", &["--pids-limit", "35"])?.ok()?;
        container.verb("pause", &[])?.ok()?;
        container.verb("resume", &[])?.ok()?;
        ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "35");
        Ok(())
    }
);

test!(
    fn a_delete_while_exec_runs_ends_exec_and_leaves_nothing(t: &Test) -> Result {
        for _ in 0..5 {
            let container = t.bundle().sleeper().start()?;
            let exec = container.exec_command(&[], &["sleep", "1000000"]).spawn()?;
            container.verb("delete", &["--force"])?.ok()?;
            let output = exec.wait()?;
            ensure!(output.code != 0, "{output}");
        }
        Ok(())
    }
);

test!(
    fn a_cgroup_with_processes_of_others_is_not_taken(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let before = first.cgroup.processes()?;
        let second = t
            .bundle()
            .sleeper()
            .set("/linux/cgroupsPath", json!(first.cgroup.path));
        second
            .command("create", &[])?
            .run()?
            .fails_with(&["container's cgroup is not empty"])?;
        first.is("running")?;
        ensure!(first.cgroup.processes()? == before);
        first.exec(&["true"])?.ok()?;
        Ok(())
    }
);

test!(
    fn a_relative_cgroups_path_names_a_cgroup_that_delete_removes(t: &Test) -> Result {
        t.needs_cgroupfs_driver()?;
        let name = format!("rtc-relative-{}", t.unique);
        let container = t
            .bundle()
            .sleeper()
            .set("/linux/cgroupsPath", json!(name))
            .create()?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?))?;
        let line = cgroups
            .lines()
            .find(|line| line.contains("pids") || line.starts_with("0::"))
            .context("no line")?;
        let path = line.rsplit(':').next().context("path")?;
        ensure!(path.ends_with(&format!("/{name}")), "{cgroups}");
        let place = cgroup::Cgroup {
            path: path.to_owned(),
        };
        ensure!(!place.directories()?.is_empty());
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(place.directories()?.is_empty(), "{:?}", place.directories()?);
        Ok(())
    }
);

test!(
    fn update_sets_the_sum_of_memory_and_swap(t: &Test) -> Result {
        t.needs_controller("memory")?;
        const SWAP: Knob = Knob {
            controller: "memory",
            v1: "memory.memsw.limit_in_bytes",
            v2: "memory.swap.max",
        };
        let container = limited(t, "memory", json!({"limit": 32 * MIB})).start()?;
        let directory = container.cgroup.directory("memory")?;
        if !directory.join(SWAP.v1).exists() && !directory.join(SWAP.v2).exists() {
            t.skip("no swap accounting")?;
        }
        // Both grow and both shrink: v1 takes the two files only in the right order.
        for (memory, sum) in [(64, 96), (16, 24), (48, 48)] {
            let (memory_flag, sum_flag) = (format!("{memory}M"), format!("{sum}M"));
            container
                .verb("update", &["--memory", &memory_flag, "--memory-swap", &sum_flag])?
                .ok()?;
            let swap = if cgroup::is_unified() { sum - memory } else { sum };
            let found = (
                container.cgroup.read(knob::MEMORY_LIMIT)?,
                container.cgroup.read(SWAP)?,
            );
            ensure!(
                found == ((memory * MIB).to_string(), (swap * MIB).to_string()),
                "{memory} {sum}: {found:?}"
            );
        }
        Ok(())
    }
);

test!(
    fn update_sets_burst_and_idle(t: &Test) -> Result {
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
        let container = t.bundle().sleeper().start()?;
        let flags = [
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
            "--cpu-burst",
            "20000",
        ];
        container.verb("update", &flags)?.ok()?;
        ensure!(container.cgroup.cpu_bandwidth()? == (Some(50_000), 100_000));
        ensure!(container.cgroup.read(BURST)? == "20000");
        container.verb("update", &["--cpu-burst", "0"])?.ok()?;
        ensure!(container.cgroup.read(BURST)? == "0");
        for idle in ["1", "0"] {
            container.verb("update", &["--cpu-idle", idle])?.ok()?;
            ensure!(container.cgroup.read(IDLE)? == idle, "{idle}");
        }
        Ok(())
    }
);

test!(
    fn update_moves_the_processes_to_other_cpus(t: &Test) -> Result {
        t.needs_controller("cpuset")?;
        let container = t.bundle().sleeper().start()?;
        let flags = ["--cpuset-cpus", "0", "--cpuset-mems", "0"];
        container.verb("update", &flags)?.ok()?;
        ensure!(container.cgroup.read(knob::CPUSET_CPUS)? == "0");
        ensure!(container.cgroup.read(knob::CPUSET_MEMS)? == "0");
        ensure!(process::status_field(container.pid()?, "Cpus_allowed_list")? == "0");
        container
            .verb("update", &["--cpuset-cpus", "4000"])?
            .fails_naming(&["cpuset"])?;
        ensure!(container.cgroup.read(knob::CPUSET_CPUS)? == "0");
        Ok(())
    }
);

test!(
    fn ps_takes_options_of_its_own_and_shows_a_stopped_container_as_empty(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let output = t.rtc(["ps", &container.id, "-e", "-o", "pid,args"])?.ok()?;
        let lines = output.lines();
        ensure!(
            lines.len() == 2 && lines[1] == format!("{} sleep 1000000", container.pid()?),
            "{output}"
        );
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        let output = t.rtc(["ps", &container.id])?.ok()?;
        ensure!(output.lines().len() == 1, "{output}");
        let output = container.verb("ps", &["--format", "json"])?.ok()?;
        let pids: Option<Vec<i32>> =
            serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        ensure!(pids.unwrap_or_default().is_empty(), "{output}");
        Ok(())
    }
);

test!(
    fn a_create_in_a_frozen_cgroup_is_refused_and_does_not_wait(t: &Test) -> Result {
        t.needs_controller("freezer")?;
        t.needs_cgroupfs_driver()?;
        let frozen = cgroup::Cgroup {
            path: format!("{}/frozen", t.cgroup.path),
        };
        let directory = frozen.directory("freezer")?;
        fs::create_dir_all(&directory)?;
        let (file, freeze, thaw) = if cgroup::is_unified() {
            ("cgroup.freeze", "1", "0")
        } else {
            ("freezer.state", "FROZEN", "THAWED")
        };
        fs::write(directory.join(file), freeze)?;
        let bundle = t.bundle().sleeper();
        let path = format!("{}/{}", frozen.path, bundle.id);
        let bundle = bundle.set("/linux/cgroupsPath", json!(path));
        let output = bundle.command("create", &[])?.run();
        fs::write(directory.join(file), thaw)?;
        output?.fails_with(&["frozen"])?;
        for directory in frozen.directories()? {
            fs::remove_dir(&directory).with_context(|| directory.display().to_string())?;
        }
        Ok(())
    }
);
