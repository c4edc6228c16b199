//! `rtc update`: changes the limits of a container. What no flag names stays as it is.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder,
};
use rtc_runtime::resctrl::Update;
use rtc_runtime::{bundle, container, log};

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "update",
    summary: "update container resource constraints",
    description: "Limits are given by flags, or as the JSON of linux.resources in a file: then all other flags are ignored.\n   \
                  Sizes are in bytes, or have a suffix k, m, g or t (1024 each).",
    flags: &[
        Flag::value(
            "resources",
            "file with the limits to update, or '-' for the standard input",
        )
        .or('r'),
        Flag::value("blkio-weight", "per cgroup weight, from 10 to 1000"),
        Flag::value(
            "cpu-period",
            "CPU CFS period in microseconds; 0 for the system's default",
        ),
        Flag::value(
            "cpu-quota",
            "CPU time allowed in a period, in microseconds; -1 for no limit",
        ),
        Flag::value(
            "cpu-burst",
            "CPU time that may be saved up beyond the quota, in microseconds",
        ),
        Flag::value(
            "cpu-share",
            "CPU shares (relative weight against other containers)",
        ),
        Flag::value("cpu-rt-period", "CPU realtime period in microseconds"),
        Flag::value(
            "cpu-rt-runtime",
            "CPU realtime time allowed in a period, in microseconds",
        ),
        Flag::value("cpuset-cpus", "CPUs to use, such as 0-3,7"),
        Flag::value("cpuset-mems", "memory nodes to use"),
        Flag::value(
            "cpu-idle",
            "1 to run only when nothing else wants the CPU, 0 to undo that",
        ),
        Flag::value(
            "kernel-memory",
            "ignored: Linux has no kernel memory limit since 5.4",
        ),
        Flag::value("kernel-memory-tcp", "ignored, as kernel-memory"),
        Flag::value("memory", "memory limit; -1 for none"),
        Flag::value("memory-reservation", "memory reservation or soft limit"),
        Flag::value("memory-swap", "memory plus swap; -1 for no limit"),
        Flag::value(
            "pids-limit",
            "processes allowed in the container; -1 for no limit",
        ),
        Flag::value(
            "l3-cache-schema",
            "share of the L3 cache, as Intel RDT/CAT has it: L3:0=f;1=f",
        ),
        Flag::value(
            "mem-bw-schema",
            "share of the memory bandwidth, as Intel RDT/MBA has it: MB:0=20;1=70",
        ),
    ],
    run,
    ..ON_ONE_CONTAINER
};

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let (resources, rdt) = match parsed.path("resources") {
        Some(file) => {
            if let Some(ignored) = parsed.given().find(|name| *name != "resources") {
                log::warn(format_args!("--{ignored}: ignored beside --resources"));
            }
            (from_file(&file).context("--resources")?, Update::default())
        }
        None => from_flags(parsed)?,
    };
    container::update_with_rdt(&global.state_root(), &super::id(parsed)?, &resources, &rdt)?;
    Ok(0)
}

fn from_file(file: &Path) -> Result<LinuxResources> {
    let raw = if file == Path::new("-") {
        let mut raw = Vec::new();
        std::io::stdin()
            .lock()
            .take(bundle::MAX_CONFIG_SIZE)
            .read_to_end(&mut raw)
            .context("read standard input")?;
        raw
    } else {
        bundle::read_config(file, bundle::MAX_CONFIG_SIZE)?
    };
    let resources = bundle::parse_json(&raw)?;
    bundle::check_resources(&resources)?;
    Ok(resources)
}

fn from_flags(parsed: &Parsed) -> Result<(LinuxResources, Update)> {
    let rdt = rdt(parsed)?;
    for flag in ["kernel-memory", "kernel-memory-tcp"] {
        if parsed.text(flag)?.is_some_and(|value| !value.is_empty()) {
            log::warn(format_args!(
                "--{flag}: ignored, Linux has no such limit since 5.4"
            ));
        }
    }
    let mut resources = LinuxResourcesBuilder::default();
    if let Some(memory) = memory(parsed)? {
        resources = resources.memory(memory);
    }
    if let Some(cpu) = cpu(parsed)? {
        resources = resources.cpu(cpu);
    }
    if let Some(limit) = parsed.number::<i64>("pids-limit")? {
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    if let Some(weight) = parsed
        .number::<u16>("blkio-weight")?
        .filter(|weight| *weight != 0)
    {
        resources = resources.block_io(LinuxBlockIoBuilder::default().weight(weight).build()?);
    }
    let resources = resources.build()?;
    if resources == LinuxResourcesBuilder::default().build()? && rdt == Update::default() {
        bail!("nothing to update: give a limit");
    }
    bundle::check_resources(&resources)?;
    Ok((resources, rdt))
}

/// Shares of caches and bandwidth, one line each.
fn rdt(parsed: &Parsed) -> Result<Update> {
    let line = |flag: &str, start: &str| -> Result<Option<String>> {
        let Some(line) = parsed.text(flag)?.filter(|line| !line.is_empty()) else {
            return Ok(None);
        };
        if !line.starts_with(start) || !line.contains(':') || line.contains('\n') {
            bail!("--{flag}: {line:?}: must be one line that starts with {start:?}, such as {start}:0=10");
        }
        Ok(Some(line.to_owned()))
    };
    Ok(Update {
        l3_cache_schema: line("l3-cache-schema", "L3")?,
        mem_bw_schema: line("mem-bw-schema", "MB")?,
    })
}

fn memory(parsed: &Parsed) -> Result<Option<oci_spec::runtime::LinuxMemory>> {
    let mut memory = LinuxMemoryBuilder::default();
    let sizes = [
        size(parsed, "memory")?,
        size(parsed, "memory-reservation")?,
        size(parsed, "memory-swap")?,
    ];
    if sizes == [None; 3] {
        return Ok(None);
    }
    if let Some(limit) = sizes[0] {
        memory = memory.limit(limit);
    }
    if let Some(reservation) = sizes[1] {
        memory = memory.reservation(reservation);
    }
    if let Some(swap) = sizes[2] {
        memory = memory.swap(swap);
    }
    Ok(Some(memory.build()?))
}

fn cpu(parsed: &Parsed) -> Result<Option<oci_spec::runtime::LinuxCpu>> {
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = parsed.number::<u64>("cpu-share")? {
        cpu = cpu.shares(shares);
    }
    if let Some(period) = parsed.number::<u64>("cpu-period")? {
        cpu = cpu.period(period);
    }
    if let Some(quota) = parsed.number::<i64>("cpu-quota")? {
        cpu = cpu.quota(quota);
    }
    if let Some(burst) = parsed.number::<u64>("cpu-burst")? {
        cpu = cpu.burst(burst);
    }
    if let Some(period) = parsed.number::<u64>("cpu-rt-period")? {
        cpu = cpu.realtime_period(period);
    }
    if let Some(runtime) = parsed.number::<i64>("cpu-rt-runtime")? {
        cpu = cpu.realtime_runtime(runtime);
    }
    if let Some(idle) = parsed.number::<i64>("cpu-idle")? {
        cpu = cpu.idle(idle);
    }
    if let Some(cpus) = parsed.text("cpuset-cpus")?.filter(|list| !list.is_empty()) {
        cpu = cpu.cpus(cpus);
    }
    if let Some(mems) = parsed.text("cpuset-mems")?.filter(|list| !list.is_empty()) {
        cpu = cpu.mems(mems);
    }
    let cpu = cpu.build()?;
    Ok((cpu != LinuxCpuBuilder::default().build()?).then_some(cpu))
}

fn size(parsed: &Parsed, flag: &str) -> Result<Option<i64>> {
    let text = parsed.text(flag)?.filter(|text| !text.is_empty());
    text.map(|text| {
        bytes(text).ok_or_else(|| anyhow!("--{flag}: {text:?}: must be a size such as 512m, or -1"))
    })
    .transpose()
}

/// A size in bytes: digits and at most one of `b k m g t p` in either case, `kb` and `kib` alike; `-1` as it is.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" if !lower.ends_with('i') && !lower.ends_with("ib") && !lower.ends_with("bb") => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::commands::arguments::parse;

    fn flags(arguments: &[&str]) -> Result<LinuxResources> {
        all(arguments).map(|(resources, _)| resources)
    }

    fn all(arguments: &[&str]) -> Result<(LinuxResources, Update)> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        from_flags(&parse(&[COMMAND.flags], &arguments, COMMAND.order).unwrap())
    }

    #[test]
    fn sizes_have_suffixes_of_1024() {
        for (text, value) in [
            ("0", 0),
            ("100", 100),
            ("1k", 1024),
            ("2M", 2 << 20),
            ("3gb", 3 << 30),
            ("1KiB", 1024),
            ("-1", -1),
            ("5b", 5),
        ] {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for text in [
            "",
            "k",
            "-2",
            "1.5g",
            "1x",
            "1kk",
            "9223372036854775807k",
            " 1",
            "+1",
            "1i",
            "1bb",
            "1kx",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_is_given_is_set() {
        let resources = flags(&["--memory", "64m", "--cpu-quota=-1", "--pids-limit", "-1"]).unwrap();
        let json = serde_json::to_value(&resources).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"memory": {"limit": 67_108_864}, "cpu": {"quota": -1}, "pids": {"limit": -1}})
        );
    }

    #[test]
    fn mistakes_are_named() {
        let error = |arguments: &[&str]| format!("{:#}", flags(arguments).unwrap_err());
        assert_eq!(error(&[]), "nothing to update: give a limit");
        assert_eq!(
            error(&["--memory", "1x"]),
            "--memory: \"1x\": must be a size such as 512m, or -1"
        );
        assert_eq!(
            error(&["--memory=2m", "--memory-swap=1m"]),
            "memory.swap: 1048576: is memory plus swap, must not be below memory.limit, 2097152"
        );
        assert_eq!(
            error(&["--blkio-weight", "5"]),
            "blockIO.weight: 5: must be between 10 and 1000"
        );
        assert_eq!(
            error(&["--cpuset-cpus", "a"]),
            "cpu.cpus: \"a\": must be a list such as 0-3,7"
        );
        assert_eq!(
            error(&["--l3-cache-schema", "x"]),
            "--l3-cache-schema: \"x\": must be one line that starts with \"L3\", such as L3:0=10"
        );
        assert!(error(&["--mem-bw-schema", "MB:0=1\nL3:0=1"]).starts_with("--mem-bw-schema: "));
    }

    #[test]
    fn shares_of_caches_alone_are_enough() {
        let (resources, rdt) = all(&["--l3-cache-schema", "L3:0=f", "--mem-bw-schema="]).unwrap();
        assert_eq!(resources, LinuxResourcesBuilder::default().build().unwrap());
        assert_eq!(rdt.l3_cache_schema.as_deref(), Some("L3:0=f"));
        assert_eq!(rdt.mem_bw_schema, None);
    }
}
