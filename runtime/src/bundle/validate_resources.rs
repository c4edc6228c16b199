//! `linux.resources`: of a configuration, and of `update`.

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};

use super::validate_process::cpu_list;

/// Checks limits whose fields are named with `prefix` (`linux.resources.` or nothing).
pub(super) fn resources(resources: &LinuxResources, prefix: &str) -> Result<()> {
    for (i, rule) in resources.devices().iter().flatten().enumerate() {
        device(i, rule, prefix)?;
    }
    if let Some(memory) = resources.memory() {
        self::memory(memory, prefix)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(cpu, prefix)?;
    }
    if let Some(pids) = resources.pids() {
        at_least_minus_one(prefix, "pids.limit", Some(pids.limit()))?;
    }
    if let Some(io) = resources.block_io() {
        block_io(io, prefix)?;
    }
    for (i, hugepage) in resources.hugepage_limits().iter().flatten().enumerate() {
        let size = hugepage.page_size();
        let digits = size.trim_end_matches("B").trim_end_matches(['K', 'M', 'G']);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || !size.ends_with("B") {
            bail!("{prefix}hugepageLimits[{i}].pageSize: {size:?}: must be a size such as 2MB");
        }
    }
    for key in resources.unified().iter().flatten().map(|(key, _)| key) {
        if key.is_empty() || key.contains('/') || key.contains('\0') || !key.contains('.') {
            bail!("{prefix}unified[{key:?}]: must be the name of a cgroup v2 file such as memory.high");
        }
    }
    Ok(())
}

fn device(i: usize, rule: &LinuxDeviceCgroup, prefix: &str) -> Result<()> {
    for (key, number) in [("major", rule.major()), ("minor", rule.minor())] {
        // -1 is runc's wildcard, as is a missing number.
        if let Some(number) = number.filter(|n| *n < -1 || *n > i64::from(u32::MAX)) {
            bail!("{prefix}devices[{i}].{key}: {number}: must be a device number, or -1 for all");
        }
    }
    if let Some(access) = rule
        .access()
        .as_deref()
        .filter(|access| !access.bytes().all(|b| b"rwm".contains(&b)))
    {
        bail!("{prefix}devices[{i}].access: {access:?}: must be made of r, w and m");
    }
    if let Some(typ) = rule.typ().filter(|typ| !matches!(typ.as_str(), "a" | "b" | "c")) {
        bail!("{prefix}devices[{i}].type: {:?}: must be a, b or c", typ.as_str());
    }
    Ok(())
}

fn memory(memory: &LinuxMemory, prefix: &str) -> Result<()> {
    at_least_minus_one(prefix, "memory.limit", memory.limit())?;
    at_least_minus_one(prefix, "memory.reservation", memory.reservation())?;
    at_least_minus_one(prefix, "memory.swap", memory.swap())?;
    if let Some(swappiness) = memory.swappiness().filter(|s| *s > 100) {
        bail!("{prefix}memory.swappiness: {swappiness}: must be at most 100");
    }
    let limit = memory.limit().unwrap_or(0);
    if let Some(swap) = memory
        .swap()
        .filter(|swap| *swap > 0 && limit > 0 && *swap < limit)
    {
        bail!("{prefix}memory.swap: {swap}: is memory plus swap, must not be below memory.limit, {limit}");
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, prefix: &str) -> Result<()> {
    at_least_minus_one(prefix, "cpu.quota", cpu.quota())?;
    if let Some(idle) = cpu.idle().filter(|idle| !(0..=1).contains(idle)) {
        bail!("{prefix}cpu.idle: {idle}: must be 0 or 1");
    }
    for (field, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            cpu_list(list).map_err(|what| anyhow::anyhow!("{prefix}cpu.{field}: {list:?}: {what}"))?;
        }
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo, prefix: &str) -> Result<()> {
    let weight = |field: &str, weight: Option<u16>| -> Result<()> {
        match weight {
            Some(weight) if weight != 0 && !(10..=1000).contains(&weight) => {
                bail!("{prefix}blockIO.{field}: {weight}: must be between 10 and 1000")
            }
            _ => Ok(()),
        }
    };
    weight("weight", io.weight())?;
    weight("leafWeight", io.leaf_weight())?;
    for (i, device) in io.weight_device().iter().flatten().enumerate() {
        weight(&format!("weightDevice[{i}].weight"), device.weight())?;
        weight(&format!("weightDevice[{i}].leafWeight"), device.leaf_weight())?;
    }
    Ok(())
}

fn at_least_minus_one(prefix: &str, field: &str, value: Option<i64>) -> Result<()> {
    match value {
        Some(value) if value < -1 => bail!("{prefix}{field}: {value}: must be -1 (no limit) or more"),
        _ => Ok(()),
    }
}
