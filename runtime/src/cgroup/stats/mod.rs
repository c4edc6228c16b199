//! What a container has used, in the form of runc's `events --stats` (its `types.Stats`), for both versions.
//!
//! A file that this kernel or machine does not have leaves its part empty: a controller may be missing without harm.
//! Single values, pids and pressure are read by `libcgroups::stats`.

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use libcgroups::common::WrappedIoError;
use libcgroups::stats::{ParseNestedKeyedDataError, parse_nested_keyed_data, parse_single_value};
use serde::Serialize;

use super::Cgroup;
use crate::resctrl::RdtStats;

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    /// Time on the processors.
    pub cpu: Cpu,
    /// Which processors and memory nodes (v1).
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by their size (`2MB`).
    pub hugetlb: BTreeMap<String, HugeTlb>,
    /// Cache and memory bandwidth, where the container has a resctrl group. Not of the cgroup: it is left empty here.
    pub intel_rdt: RdtStats,
    /// Always `null`, as in runc for containers whose network is made by others.
    pub network_interfaces: Option<Empty>,
}

/// `{}`.
#[derive(Debug, Default, Serialize)]
pub struct Empty {}

/// Time on the processors.
#[derive(Debug, Default, Serialize)]
pub struct Cpu {
    /// Used, in nanoseconds.
    pub usage: CpuUsage,
    /// Waited for the next period because the quota was used up.
    pub throttling: Throttling,
    /// Pressure, where the kernel measures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Nanoseconds used.
#[derive(Debug, Default, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// On each processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// On each processor, in the kernel (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// On each processor, in user space (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
}

/// Effect of `cpu.quota`.
#[derive(Debug, Default, Serialize)]
pub struct Throttling {
    /// Periods that have passed.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Those in which the quota was used up.
    #[serde(rename = "throttledPeriods", skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Nanoseconds waited.
    #[serde(rename = "throttledTime", skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// The cpuset of v1.
#[derive(Debug, Default, Serialize)]
pub struct CpuSet {
    /// Processors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// `cpuset.cpu_exclusive`.
    pub cpu_exclusive: u64,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    /// `cpuset.mem_hardwall`.
    pub mem_hardwall: u64,
    /// `cpuset.mem_exclusive`.
    pub mem_exclusive: u64,
    /// `cpuset.memory_migrate`.
    pub memory_migrate: u64,
    /// `cpuset.memory_spread_page`.
    pub memory_spread_page: u64,
    /// `cpuset.memory_spread_slab`.
    pub memory_spread_slab: u64,
    /// `cpuset.memory_pressure`.
    pub memory_pressure: u64,
    /// `cpuset.sched_load_balance`.
    pub sched_load_balance: u64,
    /// `cpuset.sched_relax_domain_level`.
    pub sched_relax_domain_level: i64,
}

/// Memory, in bytes.
#[derive(Debug, Default, Serialize)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// The kernel's memory (v1).
    pub kernel: MemoryEntry,
    /// The kernel's buffers of TCP (v1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Pressure, where the kernel measures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// One kind of memory, in bytes.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct MemoryEntry {
    /// The limit; the largest number where there is none.
    pub limit: u64,
    /// Used now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that was used.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was met (v1).
    pub failcnt: u64,
}

/// Tasks.
#[derive(Debug, Default, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// At most; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Block devices. What only the CFQ scheduler (gone with Linux 5.0) counted is left out, as runc leaves out what is
/// empty.
#[derive(Debug, Default, Serialize)]
pub struct Blkio {
    /// Bytes.
    #[serde(rename = "ioServiceBytesRecursive", skip_serializing_if = "Vec::is_empty")]
    pub service_bytes: Vec<BlkioEntry>,
    /// Operations.
    #[serde(rename = "ioServicedRecursive", skip_serializing_if = "Vec::is_empty")]
    pub serviced: Vec<BlkioEntry>,
    /// Pressure, where the kernel measures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// A count for a device and a kind of operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    /// Number of the device.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// Number of the device.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// `Read`, `Write`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The count.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Default, Serialize)]
pub struct HugeTlb {
    /// Used now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that was used (v1).
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst of the kernel).
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// At least one task waited.
    pub some: Pressure,
    /// All tasks waited.
    pub full: Pressure,
}

/// Shares of the time, in percent, and microseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Over 10 seconds.
    pub avg10: f64,
    /// Over a minute.
    pub avg60: f64,
    /// Over five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

impl Cgroup {
    /// What the container has used up to now.
    ///
    /// # Errors
    ///
    /// Where a file can't be read or understood; not where it is missing.
    pub fn stats(&self) -> Result<Stats> {
        if self.is_v2() {
            return v2::read(&self.main()?.path);
        }
        self.main()?;
        v1::read(|controller| self.tree(controller).ok().map(|tree| tree.path.as_path()))
    }
}

/// Nothing where the file is missing, or the kernel can't do what it stands for.
fn optional<T>(read: Result<T, WrappedIoError>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(error.inner()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
    )
}

/// A file that holds one number; 0 where it is missing.
fn number(dir: &Path, file: &str) -> Result<u64> {
    Ok(optional(parse_single_value(&dir.join(file)))?.unwrap_or(0))
}

fn text(dir: &Path, file: &str) -> Result<String> {
    Ok(optional(libcgroups::common::read_cgroup_file(dir.join(file)))?.unwrap_or_default())
}

/// Lines `key value`; a number that is too large for us (a counter below zero) is left out.
fn table(content: &str) -> BTreeMap<String, u64> {
    content
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn pids(dir: &Path) -> Result<Pids> {
    let limit = number(dir, "pids.max")?;
    Ok(Pids {
        current: number(dir, "pids.current")?,
        limit: if limit == u64::MAX { 0 } else { limit },
    })
}

fn pressure(dir: &Path, file: &str) -> Result<Option<Psi>> {
    let lines = match parse_nested_keyed_data(&dir.join(file)) {
        Ok(lines) => lines,
        Err(ParseNestedKeyedDataError::WrappedIo(error)) if is_missing(error.inner()) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let line = |name: &str| {
        let mut pressure = Pressure::default();
        for (key, value) in lines
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|field| field.split_once('='))
        {
            match key {
                "avg10" => pressure.avg10 = value.parse().unwrap_or_default(),
                "avg60" => pressure.avg60 = value.parse().unwrap_or_default(),
                "avg300" => pressure.avg300 = value.parse().unwrap_or_default(),
                "total" => pressure.total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        pressure
    };
    Ok(Some(Psi {
        some: line("some"),
        full: line("full"),
    }))
}

/// The sizes of huge pages this machine has, as the files are named.
fn page_sizes() -> Vec<String> {
    libcgroups::stats::supported_page_sizes().unwrap_or_default()
}
