//! Statistics of cgroup v1.

use std::path::Path;

use anyhow::Result;

use super::{
    Blkio, BlkioEntry, Cpu, CpuSet, CpuUsage, HugeTlb, Memory, MemoryEntry, Stats, Throttling, number,
    page_sizes, pids, table, text,
};

/// `cpuacct.stat` counts in clock ticks, 100 a second for every architecture (`USER_HZ`).
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn read<'a>(dir: impl Fn(&str) -> Option<&'a Path>) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(dir) = dir("cpu") {
        stats.cpu.throttling = throttling(&text(dir, "cpu.stat")?);
    }
    if let Some(dir) = dir("cpuacct") {
        stats.cpu = Cpu {
            usage: usage(dir)?,
            ..stats.cpu
        };
    }
    if let Some(dir) = dir("cpuset") {
        stats.cpuset = cpuset(dir)?;
    }
    if let Some(dir) = dir("memory") {
        stats.memory = memory(dir)?;
    }
    if let Some(dir) = dir("pids") {
        stats.pids = pids(dir)?;
    }
    if let Some(dir) = dir("blkio") {
        stats.blkio = blkio(dir)?;
    }
    if let Some(dir) = dir("hugetlb") {
        for size in page_sizes() {
            let kind = if dir.join(format!("hugetlb.{size}.rsvd.usage_in_bytes")).exists() {
                ".rsvd"
            } else {
                ""
            };
            let number = |name: &str| number(dir, &format!("hugetlb.{size}{kind}.{name}"));
            let entry = HugeTlb {
                usage: number("usage_in_bytes")?,
                max: number("max_usage_in_bytes")?,
                failcnt: number("failcnt")?,
            };
            stats.hugetlb.insert(size, entry);
        }
    }
    Ok(stats)
}

fn throttling(stat: &str) -> Throttling {
    let table = table(stat);
    let of = |key| table.get(key).copied().unwrap_or(0);
    Throttling {
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_time: of("throttled_time"),
    }
}

fn usage(dir: &Path) -> Result<CpuUsage> {
    let ticks = table(&text(dir, "cpuacct.stat")?);
    let of = |key| ticks.get(key).copied().unwrap_or(0) * NANOSECONDS_PER_TICK;
    let mut usage = CpuUsage {
        total: number(dir, "cpuacct.usage")?,
        percpu: numbers(&text(dir, "cpuacct.usage_percpu")?),
        kernel: of("system"),
        user: of("user"),
        ..CpuUsage::default()
    };
    // "cpu user system", then a line for each processor.
    for line in text(dir, "cpuacct.usage_all")?.lines().skip(1) {
        if let [_, user, system] = numbers(line)[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(system);
        }
    }
    Ok(usage)
}

fn numbers(line: &str) -> Vec<u64> {
    line.split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn cpuset(dir: &Path) -> Result<CpuSet> {
    let flag = |name: &str| number(dir, &format!("cpuset.{name}"));
    Ok(CpuSet {
        cpus: list(&text(dir, "cpuset.cpus")?),
        cpu_exclusive: flag("cpu_exclusive")?,
        mems: list(&text(dir, "cpuset.mems")?),
        mem_hardwall: flag("mem_hardwall")?,
        mem_exclusive: flag("mem_exclusive")?,
        memory_migrate: flag("memory_migrate")?,
        memory_spread_page: flag("memory_spread_page")?,
        memory_spread_slab: flag("memory_spread_slab")?,
        memory_pressure: flag("memory_pressure")?,
        sched_load_balance: flag("sched_load_balance")?,
        sched_relax_domain_level: text(dir, "cpuset.sched_relax_domain_level")?
            .trim()
            .parse()
            .unwrap_or(0),
    })
}

/// `0-2,7`.
fn list(text: &str) -> Vec<u16> {
    let mut found = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse()) {
            found.extend(first..=last);
        }
    }
    found
}

fn memory(dir: &Path) -> Result<Memory> {
    let raw = table(&text(dir, "memory.stat")?);
    let entry = |kind: &str| -> Result<MemoryEntry> {
        let number = |name: &str| number(dir, &format!("memory.{kind}{name}"));
        Ok(MemoryEntry {
            limit: number("limit_in_bytes")?,
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        })
    };
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry("")?,
        swap: entry("memsw.")?,
        kernel: entry("kmem.")?,
        kernel_tcp: entry("kmem.tcp.")?,
        raw,
        psi: None,
    })
}

/// The counters of the BFQ scheduler where it counts, else those of the throttling layer.
fn blkio(dir: &Path) -> Result<Blkio> {
    let first = |names: [&str; 3]| -> Result<Vec<BlkioEntry>> {
        for name in names {
            let found = entries(&text(dir, name)?);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    };
    Ok(Blkio {
        service_bytes: first([
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes",
        ])?,
        serviced: first([
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
            "blkio.throttle.io_serviced",
        ])?,
        psi: None,
    })
}

/// Lines `major:minor operation count`; the sum over all devices is left out, as in runc.
fn entries(content: &str) -> Vec<BlkioEntry> {
    content
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (major, minor) = fields.next()?.split_once(':')?;
            let op = fields.next()?.to_owned();
            let value = fields.next()?.parse().ok()?;
            Some(BlkioEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                op,
                value,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_expanded() {
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert!(list("\n").is_empty());
    }

    #[test]
    fn counts_of_devices_leave_the_last_sum_out() {
        let found = entries("8:0 Read 100\n8:0 Total 100\nTotal 100\n");
        let entry = |op: &str| BlkioEntry {
            major: 8,
            minor: 0,
            op: op.to_owned(),
            value: 100,
        };
        assert_eq!(found, [entry("Read"), entry("Total")]);
    }
}
