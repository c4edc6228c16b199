//! Limits, the end of memory, pause, statistics and health checks, in the words that Docker and Podman share.

use anyhow::{Context, ensure};

use super::Engine;
use crate::host::cgroup::{hierarchy_of, is_unified, knob};
use crate::registry::Result;
use crate::wait::until;

const MEBI: u64 = 1 << 20;

/// Limits given at the start and changed by `update` are in the container's cgroup.
pub(crate) fn limits(engine: &Engine<'_>) -> Result {
    let flags = [
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "512",
        "--pids-limit",
        "50",
    ];
    let name = engine.sleeper(&flags)?;
    let cgroup = engine.cgroup(&name)?;
    ensure!(
        cgroup.read(knob::MEMORY_LIMIT)? == (64 * MEBI).to_string(),
        "{}",
        cgroup.path
    );
    ensure!(cgroup.read(knob::PIDS_LIMIT)? == "50");
    ensure!(
        cgroup.cpu_bandwidth()? == (Some(50_000), 100_000),
        "{:?}",
        cgroup.cpu_bandwidth()?
    );
    engine
        .call(&[
            "update",
            "--memory",
            "96m",
            "--memory-swap",
            "192m",
            "--cpus",
            "0.25",
            &name,
        ])?
        .ok()?;
    ensure!(
        cgroup.read(knob::MEMORY_LIMIT)? == (96 * MEBI).to_string(),
        "memory after update"
    );
    ensure!(
        cgroup.cpu_bandwidth()? == (Some(25_000), 100_000),
        "cpu after update"
    );
    ensure!(cgroup.read(knob::PIDS_LIMIT)? == "50", "pids after update");
    engine.remove(&name)?;
    ensure!(
        cgroup.read(knob::PIDS_LIMIT).is_err(),
        "the cgroup {} stays",
        cgroup.path
    );
    if hierarchy_of("cpuset").is_some() {
        let name = engine.sleeper(&["--cpuset-cpus", "0"])?;
        ensure!(engine.cgroup(&name)?.read(knob::CPUSET_CPUS)? == "0");
        engine.remove(&name)?;
    }
    Ok(())
}

/// The limit of processes is felt inside.
pub(crate) fn too_many_processes(engine: &Engine<'_>) -> Result {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";
    let output = engine.sh(&["--pids-limit", "4"], script)?;
    ensure!(
        output.code != 0 && output.stderr.contains("can't fork"),
        "{output}"
    );
    Ok(())
}

/// A container that takes more memory than it may is killed, and the caller knows why.
pub(crate) fn out_of_memory(engine: &Engine<'_>) -> Result {
    let name = engine.t.id();
    let flags = ["--name", &name, "--memory", "16m", "--memory-swap", "16m"];
    engine
        .making("run", &flags, &["tail", "/dev/zero"])
        .run()?
        .code(137)?;
    // conmon 2.1 does not see it on cgroup v1, whatever the runtime.
    let known = engine.name == "docker" || is_unified();
    engine.wait_for(
        &name,
        "{{.State.OOMKilled}} {{.State.ExitCode}}",
        &format!("{known} 137"),
    )?;
    engine.remove(&name)?;
    let other = engine.t.id();
    engine
        .making("run", &["--name", &other], &["sh", "-c", "exit 137"])
        .run()?
        .code(137)?;
    engine.wait_for(&other, "{{.State.OOMKilled}} {{.State.ExitCode}}", "false 137")?;
    engine.remove(&other)
}

/// A paused container does nothing until it is let go on; statistics and processes of a running one.
pub(crate) fn pause_statistics_and_processes(engine: &Engine<'_>) -> Result {
    let script = "sleep 1000 & i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.05; done";
    let name = engine.start(&[], &["sh", "-c", script])?;
    engine.call(&["pause", &name])?.ok()?;
    engine.wait_for(&name, "{{.State.Status}}", "paused")?;
    let refused = engine.exec(&name, &["true"])?;
    let said = refused.stderr.contains("paused") || refused.stderr.contains("on running containers");
    ensure!(refused.code != 0 && said, "{refused}");
    engine.call(&["unpause", &name])?.ok()?;
    engine.wait_for(&name, "{{.State.Status}}", "running")?;
    let count = || -> Result<u64> {
        engine
            .exec(&name, &["cat", "/tmp/count"])?
            .ok()?
            .stdout
            .trim()
            .parse()
            .context("count")
    };
    let before = until("the count", || Ok(count().ok()))?;
    until("the count to go on", || {
        Ok((count().unwrap_or(0) > before).then_some(()))
    })?;
    let processes = if engine.name == "docker" {
        "{{.PIDs}}"
    } else {
        "{{.PIDS}}"
    };
    until("statistics", || {
        let stats = engine
            .call(&["stats", "--no-stream", "--format", processes, &name])?
            .ok()?;
        Ok(stats
            .stdout
            .trim()
            .parse::<u32>()
            .ok()
            .filter(|&count| count >= 2))
    })?;
    let memory = engine
        .call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", &name])?
        .ok()?;
    ensure!(!memory.stdout.starts_with("0B"), "{memory}");
    let listed = engine.call(&["ps", "--format", "{{.Names}}"])?.ok()?;
    ensure!(listed.lines() == [name.as_str()], "{listed}");
    engine.call(&["top", &name])?.mentions("sleep 1000")?;
    // Paused again: both callers thaw what they kill.
    engine.call(&["pause", &name])?.ok()?;
    engine.remove(&name)
}
