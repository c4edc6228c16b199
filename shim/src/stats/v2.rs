//! `io.containerd.cgroups.v2.Metrics`: what the library counts for runc's `events`, and the few files it has no use for.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
};
use containerd_shim_protos::protobuf::MessageField;
use rtc_runtime::cgroup::{Blkio, Cpu, Memory, Pressure, Psi, Stats};

use super::{Table, number};

pub(super) fn metrics(stats: &Stats, directory: &Path) -> Metrics {
    let events = Table::read(directory, "memory.events");
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| HugeTlbStat {
        current: pages.usage,
        max: number(directory, &format!("hugetlb.{size}.max")),
        pagesize: size.clone(),
        failcnt: pages.failcnt,
        ..HugeTlbStat::default()
    });
    Metrics {
        pids: MessageField::some(PidsStat {
            current: stats.pids.current,
            limit: number(directory, "pids.max"),
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(&stats.cpu, directory)),
        memory: MessageField::some(memory(&stats.memory, directory)),
        io: MessageField::some(io(&stats.blkio)),
        hugetlb: hugetlb.collect(),
        memory_events: MessageField::some(MemoryEvents {
            low: events.of("low"),
            high: events.of("high"),
            max: events.of("max"),
            oom: events.of("oom"),
            oom_kill: events.of("oom_kill"),
            oom_group_kill: events.of("oom_group_kill"),
            ..MemoryEvents::default()
        }),
        ..Metrics::default()
    }
}

fn cpu(cpu: &Cpu, directory: &Path) -> CPUStat {
    let table = Table::read(directory, "cpu.stat");
    CPUStat {
        usage_usec: cpu.usage.total / 1000,
        user_usec: cpu.usage.user / 1000,
        system_usec: cpu.usage.kernel / 1000,
        nr_periods: cpu.throttling.periods,
        nr_throttled: cpu.throttling.throttled_periods,
        throttled_usec: cpu.throttling.throttled_time / 1000,
        nr_bursts: table.of("nr_bursts"),
        burst_usec: table.of("burst_usec"),
        psi: psi(cpu.psi.as_ref()),
        ..CPUStat::default()
    }
}

fn memory(memory: &Memory, directory: &Path) -> MemoryStat {
    let raw: &BTreeMap<String, u64> = &memory.raw;
    let of = |key: &str| raw.get(key).copied().unwrap_or(0);
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault"),
        workingset_activate: of("workingset_activate"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max,
        // The library tells memory and swap together, as runc does.
        swap_usage: number(directory, "memory.swap.current"),
        swap_limit: number(directory, "memory.swap.max"),
        swap_max_usage: number(directory, "memory.swap.peak"),
        psi: psi(memory.psi.as_ref()),
        ..MemoryStat::default()
    }
}

/// An entry for each device, from a count for each device and direction.
fn io(blkio: &Blkio) -> IOStat {
    let mut devices: BTreeMap<(u64, u64), IOEntry> = BTreeMap::new();
    let counts = [(&blkio.service_bytes, false), (&blkio.serviced, true)];
    for (count, operations) in counts
        .into_iter()
        .flat_map(|(counts, operations)| counts.iter().map(move |count| (count, operations)))
    {
        let device = devices.entry((count.major, count.minor)).or_default();
        match (count.op.as_str(), operations) {
            ("Read", false) => device.rbytes = count.value,
            ("Write", false) => device.wbytes = count.value,
            ("Read", true) => device.rios = count.value,
            ("Write", true) => device.wios = count.value,
            _ => {}
        }
    }
    let usage = devices.into_iter().map(|((major, minor), entry)| IOEntry {
        major,
        minor,
        ..entry
    });
    IOStat {
        usage: usage.collect(),
        psi: psi(blkio.psi.as_ref()),
        ..IOStat::default()
    }
}

fn psi(psi: Option<&Psi>) -> MessageField<PSIStats> {
    let data = |pressure: &Pressure| {
        MessageField::some(PSIData {
            avg10: pressure.avg10,
            avg60: pressure.avg60,
            avg300: pressure.avg300,
            total: pressure.total,
            ..PSIData::default()
        })
    };
    psi.map(|psi| PSIStats {
        some: data(&psi.some),
        full: data(&psi.full),
        ..PSIStats::default()
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_runtime::cgroup::BlkioEntry;

    #[test]
    fn counts_of_a_device_come_together() {
        let count = |op: &str, value| BlkioEntry {
            major: 8,
            minor: 16,
            op: op.to_owned(),
            value,
        };
        let blkio = Blkio {
            service_bytes: vec![count("Read", 1), count("Write", 2), count("Discard", 9)],
            serviced: vec![count("Read", 3), count("Write", 4)],
            psi: None,
        };
        let usage = io(&blkio).usage;
        assert_eq!(usage.len(), 1);
        let entry = &usage[0];
        assert_eq!((entry.major, entry.minor), (8, 16));
        assert_eq!((entry.rbytes, entry.wbytes, entry.rios, entry.wios), (1, 2, 3, 4));
    }

    #[test]
    fn a_missing_controller_is_all_zeroes() {
        let metrics = metrics(&Stats::default(), Path::new("/nonexistent"));
        assert_eq!(metrics.memory.usage, 0);
        assert_eq!(metrics.cpu.usage_usec, 0);
        assert!(metrics.cpu.psi.is_none());
    }
}
