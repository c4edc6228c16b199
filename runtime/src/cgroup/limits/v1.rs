//! `linux.resources` as writes to cgroup v1 (Documentation/admin-guide/cgroup-v1 of the kernel).

use anyhow::{Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources};

use super::{LIMIT, Memory, Otherwise, RESERVATION, SWAP, Write, hugepages, pids, rdma, throttles};

/// The limits, in the order in which the kernel takes them.
///
/// `memory_limit` is the limit that is set now, in bytes (`u64::MAX` in a new cgroup): memory alone must at no time
/// be allowed more than memory and swap together, so it decides which of the two goes first.
pub(in crate::cgroup) fn writes(
    resources: &LinuxResources,
    memory_limit: impl FnOnce() -> u64,
) -> Result<Vec<Write>> {
    if resources
        .unified()
        .as_ref()
        .is_some_and(|unified| !unified.is_empty())
    {
        bail!(
            "linux.resources.unified: invalid configuration: cannot use unified on cgroup v1: leave it out"
        );
    }
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpuset(cpu, &mut writes);
    }
    if let Some(found) = resources.memory() {
        memory(found, memory_limit, &mut writes)?;
    }
    if let Some(found) = resources.cpu() {
        cpu(found, &mut writes)?;
    }
    if let Some(found) = resources.pids() {
        writes.push(pids(found));
    }
    if let Some(io) = resources.block_io() {
        block_io(io, &mut writes);
    }
    hugepages(
        resources.hugepage_limits().as_deref().unwrap_or(&[]),
        "limit_in_bytes",
        &mut writes,
    )?;
    if let Some(found) = resources.network() {
        network(found, &mut writes);
    }
    if let Some(devices) = resources.rdma() {
        rdma(devices, &mut writes);
    }
    Ok(writes)
}

fn cpuset(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    for (file, value, field) in [
        ("cpuset.cpus", cpu.cpus(), "linux.resources.cpu.cpus"),
        ("cpuset.mems", cpu.mems(), "linux.resources.cpu.mems"),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            writes.push(Write::new("cpuset", file, value, field));
        }
    }
}

fn memory(memory: &LinuxMemory, limit_now: impl FnOnce() -> u64, writes: &mut Vec<Write>) -> Result<()> {
    let found = Memory::of(memory)?;
    let limit = found
        .limit
        .map(|limit| Write::new("memory", "memory.limit_in_bytes", limit, LIMIT));
    let swap_file = "memory.memsw.limit_in_bytes";
    let with_swap = match (found.limit, found.with_swap) {
        // No limit of memory is no limit of both, where the kernel counts swap at all.
        (Some(-1), None) => Some(Write::new("memory", swap_file, -1, SWAP).or(Otherwise::Skip)),
        (_, with_swap) => with_swap.map(|with_swap| Write::new("memory", swap_file, with_swap, SWAP)),
    };
    match (limit, with_swap) {
        (Some(limit), Some(with_swap)) => {
            let grows = match found.with_swap {
                Some(-1) | None => true,
                Some(with_swap) => limit_now() < with_swap.unsigned_abs(),
            };
            writes.extend(if grows {
                [with_swap, limit]
            } else {
                [limit, with_swap]
            });
        }
        (limit, with_swap) => writes.extend(limit.into_iter().chain(with_swap)),
    }
    if let Some(reservation) = found.reservation {
        writes.push(Write::new(
            "memory",
            "memory.soft_limit_in_bytes",
            reservation,
            RESERVATION,
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push(Write::new(
            "memory",
            "memory.oom_control",
            1,
            "linux.resources.memory.disableOOMKiller",
        ));
    }
    match memory.swappiness() {
        // runc: -1 is "not set".
        None | Some(u64::MAX) => {}
        Some(swappiness @ 0..=100) => {
            writes.push(Write::new(
                "memory",
                "memory.swappiness",
                swappiness,
                "linux.resources.memory.swappiness",
            ));
        }
        Some(swappiness) => bail!(
            "linux.resources.memory.swappiness: invalid memory swappiness value: {swappiness} (valid range is 0-100)"
        ),
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<()> {
    match cpu.shares() {
        None | Some(0) => {}
        // The kernel takes any number and stays within these: runc reads back and says so.
        Some(1) => bail!("linux.resources.cpu.shares: 1: the minimum allowed cpu-shares is 2"),
        Some(shares @ 262_145..) => {
            bail!("linux.resources.cpu.shares: {shares}: the maximum allowed cpu-shares is 262144")
        }
        Some(shares) => writes.push(Write::new(
            "cpu",
            "cpu.shares",
            shares,
            "linux.resources.cpu.shares",
        )),
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let until_quota = |now, again| if quota.is_some() { again } else { now };
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        // A shorter period makes more of the quota that is set now, which may be more than a parent has.
        let write = Write::new("cpu", "cpu.cfs_period_us", period, "linux.resources.cpu.period");
        writes.push(write.or(until_quota(Otherwise::Fail, Otherwise::Again)));
    }
    if let Some(burst) = cpu.burst() {
        // At most the quota. Linux 5.14.
        let write = Write::new("cpu", "cpu.cfs_burst_us", burst, "linux.resources.cpu.burst");
        writes.push(write.or(until_quota(Otherwise::Skip, Otherwise::AgainOrSkip)));
    }
    if let Some(quota) = quota {
        writes.push(Write::new(
            "cpu",
            "cpu.cfs_quota_us",
            quota,
            "linux.resources.cpu.quota",
        ));
    }
    if let Some(idle) = cpu.idle() {
        writes.push(Write::new("cpu", "cpu.idle", idle, "linux.resources.cpu.idle"));
    }
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        let otherwise = if runtime.is_some() {
            Otherwise::Again
        } else {
            Otherwise::Fail
        };
        let write = Write::new(
            "cpu",
            "cpu.rt_period_us",
            period,
            "linux.resources.cpu.realtimePeriod",
        );
        writes.push(write.or(otherwise));
    }
    if let Some(runtime) = runtime {
        writes.push(Write::new(
            "cpu",
            "cpu.rt_runtime_us",
            runtime,
            "linux.resources.cpu.realtimeRuntime",
        ));
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo, writes: &mut Vec<Write>) {
    let field = |name: &str| format!("linux.resources.blockIO.{name}");
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // The CFQ scheduler and its files went with Linux 5.0; BFQ has its own.
        let write = Write::new("blkio", "blkio.weight", weight, field("weight"));
        writes.push(write.or(Otherwise::Instead("blkio.bfq.weight", weight.to_string())));
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        writes.push(Write::new(
            "blkio",
            "blkio.leaf_weight",
            weight,
            field("leafWeight"),
        ));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let number = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let value = format!("{number} {weight}");
            let write = Write::new(
                "blkio",
                "blkio.weight_device",
                &value,
                field(&format!("weightDevice[{index}].weight")),
            );
            writes.push(write.or(Otherwise::Instead("blkio.bfq.weight_device", value)));
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            let name = field(&format!("weightDevice[{index}].leafWeight"));
            writes.push(Write::new(
                "blkio",
                "blkio.leaf_weight_device",
                format!("{number} {weight}"),
                name,
            ));
        }
    }
    let files = ["read_bps", "write_bps", "read_iops", "write_iops"];
    for ((name, devices), file) in throttles(io).into_iter().zip(files) {
        for (index, device) in devices.iter().enumerate() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            let file = format!("blkio.throttle.{file}_device");
            writes.push(Write::new(
                "blkio",
                file,
                value,
                field(&format!("{name}[{index}]")),
            ));
        }
    }
}

fn network(network: &LinuxNetwork, writes: &mut Vec<Write>) {
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        writes.push(Write::new(
            "net_cls",
            "net_cls.classid",
            class,
            "linux.resources.network.classID",
        ));
    }
    for (index, priority) in network.priorities().iter().flatten().enumerate() {
        let value = format!("{} {}", priority.name(), priority.priority());
        let field = format!("linux.resources.network.priorities[{index}]");
        writes.push(Write::new("net_prio", "net_prio.ifpriomap", value, field));
    }
}
