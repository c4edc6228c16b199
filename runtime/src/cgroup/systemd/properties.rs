//! `linux.resources` as properties of a systemd unit (systemd.resource-control(5)).
//!
//! systemd writes the same files as we do. What it has no property for is written by us alone, and kept by it: the
//! unit is delegated. What it has one for is told to it, or a reload of its configuration would take it back.
//!
//! The devices are another matter: [`pin`](super::pin).

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::super::limits::{Memory, v2};
use super::message::{Property, Value};

/// The properties for the limits, in the order they are to be set: what `unified` says comes last.
///
/// `idle_known`: whether systemd can have idle units; it is asked only where one is wanted.
pub(super) fn of_resources(
    resources: &LinuxResources,
    idle_known: impl Fn() -> Result<bool>,
) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    if let Some(memory) = resources.memory() {
        let memory = Memory::of(memory)?;
        let all = [
            ("MemoryMax", memory.limit),
            ("MemoryLow", memory.reservation),
            ("MemorySwapMax", v2::swap(&memory)?),
        ];
        properties.extend(
            all.into_iter()
                .filter_map(|(name, value)| Some((name, or_infinity(value?)))),
        );
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, &idle_known, &mut properties)?;
    }
    if let Some(pids) = resources.pids() {
        // As in the file: systemd can't have 0.
        let limit = if pids.limit() == 0 { 1 } else { pids.limit() };
        properties.push(("TasksMax", or_infinity(limit)));
    }
    if let Some(io) = resources.block_io() {
        of_io(io, &mut properties);
    }
    if let Some(files) = resources.unified() {
        of_unified(files, &idle_known, &mut properties)?;
    }
    Ok(properties)
}

/// Any negative number is no limit.
fn or_infinity(value: i64) -> Value {
    Value::Uint64(u64::try_from(value).unwrap_or(u64::MAX))
}

fn of_cpu(
    cpu: &LinuxCpu,
    idle_known: &impl Fn() -> Result<bool>,
    properties: &mut Vec<Property>,
) -> Result<()> {
    if cpu.idle() == Some(1) && idle_known()? {
        properties.push(("CPUWeight", Value::Uint64(0)));
    } else if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        properties.push(("CPUWeight", Value::Uint64(v2::weight(shares))));
    }
    of_quota(cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0), properties);
    for (name, list, field) in [
        ("AllowedCPUs", cpu.cpus(), "linux.resources.cpu.cpus"),
        ("AllowedMemoryNodes", cpu.mems(), "linux.resources.cpu.mems"),
    ] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            properties.push((
                name,
                Value::Bytes(bits(list).with_context(|| format!("{field}: {list:?}"))?),
            ));
        }
    }
    Ok(())
}

/// systemd counts in percent of a processor.
fn of_quota(quota: i64, period: u64, properties: &mut Vec<Property>) {
    if period != 0 {
        properties.push(("CPUQuotaPeriodUSec", Value::Uint64(period)));
    }
    if quota != 0 || period != 0 {
        let each_second = u64::try_from(quota)
            .ok()
            .filter(|quota| *quota != 0)
            .map_or(u64::MAX, |quota| each_second(quota, period));
        properties.push(("CPUQuotaPerSecUSec", Value::Uint64(each_second)));
    }
}

/// Rounded up to a percent, so that a cgroup within can have what was asked for.
fn each_second(quota: u64, period: u64) -> u64 {
    const PERCENT: u64 = 10_000;
    let period = if period == 0 { v2::DEFAULT_PERIOD } else { period };
    (quota.saturating_mul(1_000_000) / period).next_multiple_of(PERCENT)
}

/// The quota as systemd has it, where that is another: the file gets the same (as in runc), or the next reload of systemd
/// would change it.
pub(in crate::cgroup) fn rounded_quota(cpu: &LinuxCpu) -> Option<i64> {
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota != 0)?;
    let period = cpu
        .period()
        .filter(|period| *period != 0)
        .unwrap_or(v2::DEFAULT_PERIOD);
    let rounded = u128::from(each_second(quota, period)) * u128::from(period) / 1_000_000;
    i64::try_from(rounded)
        .ok()
        .filter(|rounded| rounded.unsigned_abs() > quota)
}

/// A list like `0-2,7` as bits, the lowest first.
fn bits(list: &str) -> Result<Vec<u8>> {
    const MOST: usize = 8192;
    let mut bits = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number < MOST);
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            bail!("must be a list like 0-2,7")
        };
        if first > last {
            bail!("must be a list like 0-2,7: {part} goes backwards");
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    if bits.is_empty() {
        bail!("must be a list like 0-2,7: is empty");
    }
    Ok(bits)
}

fn of_io(io: &LinuxBlockIo, properties: &mut Vec<Property>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        properties.push(("IOWeight", Value::Uint64(v2::io_weight(weight))));
    }
    let device = |major: i64, minor: i64| format!("/dev/block/{major}:{minor}");
    let weights: Vec<_> = io
        .weight_device()
        .iter()
        .flatten()
        .filter_map(|limit| {
            let weight = limit.weight().filter(|weight| *weight != 0)?;
            Some((device(limit.major(), limit.minor()), v2::io_weight(weight)))
        })
        .collect();
    let throttle = |list: &Option<Vec<LinuxThrottleDevice>>| {
        let all = list.iter().flatten();
        all.map(|limit| (device(limit.major(), limit.minor()), limit.rate()))
            .collect::<Vec<_>>()
    };
    for (name, limits) in [
        ("IODeviceWeight", weights),
        ("IOReadBandwidthMax", throttle(io.throttle_read_bps_device())),
        ("IOWriteBandwidthMax", throttle(io.throttle_write_bps_device())),
        ("IOReadIOPSMax", throttle(io.throttle_read_iops_device())),
        ("IOWriteIOPSMax", throttle(io.throttle_write_iops_device())),
    ] {
        if !limits.is_empty() {
            properties.push((name, Value::Limits(limits)));
        }
    }
}

/// The files that systemd would write too; of the others it knows nothing, and leaves them.
fn of_unified(
    files: &HashMap<String, String>,
    idle_known: &impl Fn() -> Result<bool>,
    properties: &mut Vec<Property>,
) -> Result<()> {
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_unstable();
    let idle = files.get("cpu.idle").is_some_and(|idle| idle.trim() == "1") && idle_known()?;
    for (file, value) in sorted {
        let value = value.trim();
        let number = || match value {
            "max" => Ok(Value::Uint64(u64::MAX)),
            value => value.parse().map(Value::Uint64),
        };
        let name = match file.as_str() {
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "memory.zswap.max" => "MemoryZSwapMax",
            "pids.max" if value == "0" => {
                properties.push(("TasksMax", Value::Uint64(1)));
                continue;
            }
            "pids.max" => "TasksMax",
            // One for each device and a default; systemd has the default.
            "io.weight" => match value.strip_prefix("default ").unwrap_or(value).trim().parse() {
                Ok(weight) => {
                    properties.push(("IOWeight", Value::Uint64(weight)));
                    continue;
                }
                Err(_) => continue,
            },
            "cpu.weight" if !idle => "CPUWeight",
            "cpu.idle" if idle => {
                properties.push(("CPUWeight", Value::Uint64(0)));
                continue;
            }
            "cpuset.cpus" | "cpuset.mems" => {
                let name = if file == "cpuset.cpus" {
                    "AllowedCPUs"
                } else {
                    "AllowedMemoryNodes"
                };
                let bits = bits(value).with_context(|| format!("{}[{file:?}]: {value:?}", v2::UNIFIED))?;
                properties.push((name, Value::Bytes(bits)));
                continue;
            }
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
                let quota = if quota == "max" { Ok(-1) } else { quota.parse() };
                let (Ok(quota), Ok(period)) = (quota, period.trim().parse()) else {
                    bail!(
                        "{}[{file:?}]: unified resource {file:?} value invalid: {value:?}",
                        v2::UNIFIED
                    );
                };
                of_quota(quota, period, properties);
                continue;
            }
            _ => continue,
        };
        let Ok(number) = number() else {
            bail!(
                "{}[{file:?}]: unified resource {file:?} value conversion error: {value:?}",
                v2::UNIFIED
            );
        };
        properties.push((name, number));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(json: &str) -> Vec<String> {
        let resources = serde_json::from_str(json).unwrap();
        let properties = of_resources(&resources, || Ok(true)).unwrap();
        properties
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect()
    }

    #[test]
    fn limits_are_told_to_systemd() {
        assert_eq!(
            properties(
                r#"{"memory":{"limit":100,"swap":300,"reservation":-1},"pids":{"limit":0},
                "cpu":{"shares":1024,"quota":2500,"period":10000,"cpus":"0-2,9","mems":"0"}}"#
            ),
            [
                "MemoryMax=100",
                "MemoryLow=max",
                "MemorySwapMax=200",
                "CPUWeight=100",
                "CPUQuotaPeriodUSec=10000",
                "CPUQuotaPerSecUSec=250000",
                "AllowedCPUs=[7, 2]",
                "AllowedMemoryNodes=[1]",
                "TasksMax=1",
            ]
        );
        assert!(properties("{}").is_empty());
    }

    #[test]
    fn a_quota_is_rounded_up_to_a_percent() {
        assert_eq!(
            properties(r#"{"cpu":{"quota":12345}}"#),
            ["CPUQuotaPerSecUSec=130000"]
        );
        assert_eq!(properties(r#"{"cpu":{"quota":-1}}"#), ["CPUQuotaPerSecUSec=max"]);
        let period = properties(r#"{"cpu":{"period":50000}}"#);
        assert_eq!(period, ["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=max"]);
    }

    #[test]
    fn the_file_gets_the_quota_that_systemd_makes_of_it() {
        let rounded = |json: &str| rounded_quota(&serde_json::from_str(json).unwrap());
        assert_eq!(rounded(r#"{"quota":12345}"#), Some(13_000));
        assert_eq!(rounded(r#"{"quota":5001,"period":50000}"#), Some(5_500));
        for as_it_is in [
            r#"{"quota":30000}"#,
            r#"{"quota":-1,"period":5000}"#,
            r#"{"quota":0}"#,
            "{}",
        ] {
            assert_eq!(rounded(as_it_is), None, "{as_it_is}");
        }
    }

    #[test]
    fn idle_is_a_weight_of_zero_where_systemd_knows_it() {
        assert_eq!(properties(r#"{"cpu":{"shares":1024,"idle":1}}"#), ["CPUWeight=0"]);
        let resources = serde_json::from_str(r#"{"cpu":{"shares":1024,"idle":1}}"#).unwrap();
        let old = of_resources(&resources, || Ok(false)).unwrap();
        assert_eq!(format!("{old:?}"), r#"[("CPUWeight", 100)]"#);
    }

    #[test]
    fn block_devices_are_named_by_their_numbers() {
        assert_eq!(
            properties(
                r#"{"blockIO":{"weight":1000,"weightDevice":[{"major":8,"minor":0,"weight":10}],
                "throttleReadBpsDevice":[{"major":8,"minor":16,"rate":5}]}}"#
            ),
            [
                "IOWeight=10000",
                r#"IODeviceWeight=[("/dev/block/8:0", 1)]"#,
                r#"IOReadBandwidthMax=[("/dev/block/8:16", 5)]"#,
            ]
        );
    }

    #[test]
    fn unified_files_that_systemd_writes_are_told_to_it() {
        assert_eq!(
            properties(
                r#"{"unified":{"memory.high":" 5 ","pids.max":"max","cpu.max":"max 5000","cpuset.cpus":"1",
                "cpu.weight":"7","memory.oom.group":"1","io.max":"8:0 rbps=1","io.weight":"default 9",
                "memory.zswap.max":"3"}}"#
            ),
            [
                "CPUQuotaPeriodUSec=5000",
                "CPUQuotaPerSecUSec=max",
                "CPUWeight=7",
                "AllowedCPUs=[2]",
                "IOWeight=9",
                "MemoryHigh=5",
                "MemoryZSwapMax=3",
                "TasksMax=max",
            ]
        );
        assert_eq!(
            properties(r#"{"unified":{"cpu.idle":"1","cpu.weight":"7"}}"#),
            ["CPUWeight=0"]
        );
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for list in ["a", "3-1", "0-99999999", ","] {
            bits(list).unwrap_err();
        }
    }
}
