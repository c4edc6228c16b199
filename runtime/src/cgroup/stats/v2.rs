//! Statistics of cgroup v2.

use std::path::Path;

use anyhow::Result;

use super::{
    Blkio, BlkioEntry, Cpu, CpuUsage, HugeTlb, Memory, MemoryEntry, Stats, Throttling, number, page_sizes,
    pids, pressure, table, text,
};

pub(super) fn read(dir: &Path) -> Result<Stats> {
    let mut stats = Stats {
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        pids: pids(dir)?,
        blkio: blkio(dir)?,
        ..Stats::default()
    };
    for size in page_sizes() {
        let kind = [".rsvd", ""]
            .into_iter()
            .find(|kind| dir.join(format!("hugetlb.{size}{kind}.current")).exists());
        let Some(kind) = kind else { continue };
        let events = table(&text(dir, &format!("hugetlb.{size}{kind}.events"))?);
        let usage = number(dir, &format!("hugetlb.{size}{kind}.current"))?;
        let failcnt = events.get("max").copied().unwrap_or(0);
        stats.hugetlb.insert(
            size,
            HugeTlb {
                usage,
                max: 0,
                failcnt,
            },
        );
    }
    Ok(stats)
}

/// Microseconds become nanoseconds.
fn cpu(dir: &Path) -> Result<Cpu> {
    let table = table(&text(dir, "cpu.stat")?);
    let of = |key| table.get(key).copied().unwrap_or(0);
    Ok(Cpu {
        usage: CpuUsage {
            total: of("usage_usec") * 1000,
            kernel: of("system_usec") * 1000,
            user: of("user_usec") * 1000,
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: of("nr_periods"),
            throttled_periods: of("nr_throttled"),
            throttled_time: of("throttled_usec") * 1000,
        },
        psi: pressure(dir, "cpu.pressure")?,
    })
}

/// Swap is told together with memory, as on v1.
fn memory(dir: &Path) -> Result<Memory> {
    let raw = table(&text(dir, "memory.stat")?);
    let entry = |kind: &str| -> Result<MemoryEntry> {
        let number = |name: &str| number(dir, &format!("memory.{kind}{name}"));
        Ok(MemoryEntry {
            limit: number("max")?,
            usage: number("current")?,
            max: number("peak")?,
            failcnt: 0,
        })
    };
    let usage = entry("")?;
    let mut swap = entry("swap.")?;
    swap.limit = swap.limit.saturating_add(usage.limit);
    swap.usage += usage.usage;
    swap.max = 0;
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        psi: pressure(dir, "memory.pressure")?,
        ..Memory::default()
    })
}

fn blkio(dir: &Path) -> Result<Blkio> {
    let (service_bytes, serviced) = io(&text(dir, "io.stat")?);
    Ok(Blkio {
        service_bytes,
        serviced,
        psi: pressure(dir, "io.pressure")?,
    })
}

/// Lines `major:minor key=value ...`, of which bytes and operations are taken. A device that did nothing may stand
/// alone in its line, or before the next in the same line, so words are read, not lines.
fn io(content: &str) -> (Vec<BlkioEntry>, Vec<BlkioEntry>) {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    let (mut major, mut minor) = (0, 0);
    for word in content.split_ascii_whitespace() {
        if let Some((key, value)) = word.split_once('=') {
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
            });
        } else if let Some((first, second)) = word.split_once(':') {
            (major, minor) = (first.parse().unwrap_or(0), second.parse().unwrap_or(0));
        }
    }
    (bytes, operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_devices_of_io_stat_do_no_harm() {
        let (bytes, operations) = io("7:0 7:1 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 \n");
        let entry = |op: &str, value| BlkioEntry {
            major: 8,
            minor: 0,
            op: op.to_owned(),
            value,
        };
        assert_eq!(bytes, [entry("Read", 1), entry("Write", 2)]);
        assert_eq!(operations, [entry("Read", 3), entry("Write", 4)]);
    }
}
