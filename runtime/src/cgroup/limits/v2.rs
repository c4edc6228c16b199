//! `linux.resources` as writes to cgroup v2 (Documentation/admin-guide/cgroup-v2.rst of the kernel).
//!
//! What v2 has no file for is ignored, as in runc: realtime, swappiness, `disableOOMKiller`, leaf weights, network.

use std::collections::HashMap;

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{LIMIT, Memory, Otherwise, RESERVATION, SWAP, Write, hugepages, or_max, pids, rdma, throttles};

/// The kernel's own period, in microseconds.
pub(in crate::cgroup) const DEFAULT_PERIOD: u64 = 100_000;
/// What starts the field of a write of `linux.resources.unified`.
pub(in crate::cgroup) const UNIFIED: &str = "linux.resources.unified";

/// The limits, in the order in which the kernel takes them; what `unified` says comes last and wins.
pub(in crate::cgroup) fn writes(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(found) = resources.pids() {
        writes.push(pids(found));
    }
    if let Some(found) = resources.memory() {
        memory(found, &mut writes)?;
    }
    if let Some(io) = resources.block_io() {
        block_io(io, &mut writes);
    }
    if let Some(found) = resources.cpu() {
        cpu(found, &mut writes);
    }
    hugepages(
        resources.hugepage_limits().as_deref().unwrap_or(&[]),
        "max",
        &mut writes,
    )?;
    if let Some(devices) = resources.rdma() {
        rdma(devices, &mut writes);
    }
    if let Some(files) = resources.unified() {
        unified(files, &mut writes)?;
    }
    Ok(writes)
}

/// Swap alone, as v2 counts it, from memory and swap together: `None` where it is not to be set.
pub(in crate::cgroup) fn swap(memory: &Memory) -> Result<Option<i64>> {
    match (memory.limit, memory.with_swap) {
        // No limit of memory means none of swap, as it did on v1.
        (Some(-1), None) | (_, Some(-1)) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (Some(-1), Some(swap)) => Ok(Some(swap)),
        (Some(limit), Some(with_swap)) => Ok(Some(with_swap - limit)),
        (None, Some(with_swap)) => bail!(
            "{SWAP}: {with_swap}: unable to set swap limit without memory limit: \
             it counts memory and swap together: set linux.resources.memory.limit too"
        ),
    }
}

fn memory(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    let found = Memory::of(memory)?;
    if let Some(swap) = swap(&found)? {
        // A kernel that does not count swap has no limit, and none to be used either.
        let otherwise = if swap <= 0 {
            Otherwise::Skip
        } else {
            Otherwise::Fail
        };
        writes.push(Write::new("memory", "memory.swap.max", or_max(swap), SWAP).or(otherwise));
    }
    if let Some(limit) = found.limit {
        writes.push(Write::new("memory", "memory.max", or_max(limit), LIMIT));
    }
    if let Some(reservation) = found.reservation {
        writes.push(Write::new(
            "memory",
            "memory.low",
            or_max(reservation),
            RESERVATION,
        ));
    }
    Ok(())
}

/// The weight (1 to 10000, 100 by default) for v1's shares (2 to 262144, 1024 by default): a curve through both ends
/// and the default. As runc 1.3.2, crun and the kubelet have it.
pub(in crate::cgroup) fn weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1 | 2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "less than 2^18")]
            let log = (shares as f64).log2();
            let exponent = log * (log + 125.0) / 612.0 - 7.0 / 34.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10000"
            )]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

fn cpu(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    if let Some(idle) = cpu.idle() {
        writes.push(Write::new("cpu", "cpu.idle", idle, "linux.resources.cpu.idle"));
    }
    // An idle cgroup has no weight: the kernel refuses one.
    if let Some(shares) = cpu
        .shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
    {
        writes.push(Write::new(
            "cpu",
            "cpu.weight",
            weight(shares),
            "linux.resources.cpu.shares",
        ));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if let Some(burst) = cpu.burst() {
        // At most the quota. Linux 5.14.
        let otherwise = if quota.is_some() {
            Otherwise::AgainOrSkip
        } else {
            Otherwise::Skip
        };
        let write = Write::new("cpu", "cpu.max.burst", burst, "linux.resources.cpu.burst");
        writes.push(write.or(otherwise));
    }
    if quota.is_some() || period.is_some() {
        let quota = quota
            .filter(|quota| *quota > 0)
            .map_or("max".to_owned(), |quota| quota.to_string());
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
        let field = if cpu.quota().is_some() {
            "linux.resources.cpu.quota"
        } else {
            "linux.resources.cpu.period"
        };
        writes.push(Write::new("cpu", "cpu.max", value, field));
    }
    for (file, value, field) in [
        ("cpuset.cpus", cpu.cpus(), "linux.resources.cpu.cpus"),
        ("cpuset.mems", cpu.mems(), "linux.resources.cpu.mems"),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            writes.push(Write::new("cpuset", file, value, field));
        }
    }
}

/// BFQ takes v1's range, 10 to 1000, `io.weight` 1 to 10000.
pub(in crate::cgroup) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

fn block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let field = |name: &str| format!("linux.resources.blockIO.{name}");
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let write = Write::new("io", "io.bfq.weight", weight, field("weight"));
        writes.push(write.or(Otherwise::Instead("io.weight", io_weight(weight).to_string())));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let field = field(&format!("weightDevice[{index}].weight"));
            writes.push(Write::new("io", "io.bfq.weight", value, field).or(Otherwise::Skip));
        }
    }
    let keys = ["rbps", "wbps", "riops", "wiops"];
    for ((name, devices), key) in throttles(io).into_iter().zip(keys) {
        for (index, device) in devices.iter().enumerate() {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            writes.push(Write::new(
                "io",
                "io.max",
                value,
                field(&format!("{name}[{index}]")),
            ));
        }
    }
}

/// Values with several lines are several writes: the kernel takes one line of a keyed file at a time.
fn unified(files: &HashMap<String, String>, writes: &mut Vec<Write>) -> Result<()> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_unstable();
    for (file, value) in files {
        if file.contains('/') {
            bail!("{UNIFIED}: unified resource {file:?} must be a file name (no slashes)");
        }
        if !file.contains('.') || file.starts_with('.') {
            bail!("{UNIFIED}: unified resource {file:?} must be in the form CONTROLLER.PARAMETER");
        }
        let lines = value.lines().filter(|line| !line.is_empty());
        for line in lines {
            writes.push(Write::new("", file.clone(), line, format!("{UNIFIED}[{file:?}]")));
        }
    }
    Ok(())
}
