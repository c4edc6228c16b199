//! `io.containerd.cgroups.v1.Metrics`.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics, PidsStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;
use rtc_runtime::cgroup::{self, BlkioEntry, Cpu, Memory, Stats};

use super::Table;

/// `memory` is the container's directory in the tree of that controller.
pub(super) fn metrics(stats: &Stats, memory: Option<&Path>) -> Metrics {
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| HugetlbStat {
        usage: pages.usage,
        max: pages.max,
        failcnt: pages.failcnt,
        pagesize: size.clone(),
        ..HugetlbStat::default()
    });
    let oom = memory.map(|memory| Table::read(memory, "memory.oom_control"));
    Metrics {
        hugetlb: hugetlb.collect(),
        pids: MessageField::some(PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(&stats.cpu)),
        memory: MessageField::some(self::memory(&stats.memory)),
        blkio: MessageField::some(BlkIOStat {
            io_service_bytes_recursive: stats.blkio.service_bytes.iter().map(count).collect(),
            io_serviced_recursive: stats.blkio.serviced.iter().map(count).collect(),
            ..BlkIOStat::default()
        }),
        memory_oom_control: oom
            .map(|table| MemoryOomControl {
                oom_kill_disable: table.of("oom_kill_disable"),
                under_oom: table.of("under_oom"),
                oom_kill: table.of("oom_kill"),
                ..MemoryOomControl::default()
            })
            .into(),
        ..Metrics::default()
    }
}

fn cpu(cpu: &Cpu) -> CPUStat {
    CPUStat {
        usage: MessageField::some(CPUUsage {
            total: cpu.usage.total,
            kernel: cpu.usage.kernel,
            user: cpu.usage.user,
            per_cpu: cpu.usage.percpu.clone(),
            ..CPUUsage::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: cpu.throttling.periods,
            throttled_periods: cpu.throttling.throttled_periods,
            throttled_time: cpu.throttling.throttled_time,
            ..Throttle::default()
        }),
        ..CPUStat::default()
    }
}

fn memory(memory: &Memory) -> MemoryStat {
    let of = |key: &str| memory.raw.get(key).copied().unwrap_or(0);
    MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: entry(&memory.usage),
        swap: entry(&memory.swap),
        kernel: entry(&memory.kernel),
        kernel_tcp: entry(&memory.kernel_tcp),
        ..MemoryStat::default()
    }
}

fn entry(entry: &cgroup::MemoryEntry) -> MessageField<MemoryEntry> {
    MessageField::some(MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..MemoryEntry::default()
    })
}

fn count(entry: &BlkioEntry) -> BlkIOEntry {
    BlkIOEntry {
        op: entry.op.clone(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..BlkIOEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_memory_stat_are_found_by_the_names_of_the_kernel() {
        let memory = Memory {
            raw: [("pgpgin", 1), ("hierarchical_memsw_limit", 2), ("total_rss", 3)]
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
            ..Memory::default()
        };
        let message = self::memory(&memory);
        assert_eq!(
            (
                message.pg_pg_in,
                message.hierarchical_swap_limit,
                message.total_rss
            ),
            (1, 2, 3)
        );
    }
}
