//! What a cgroup has used: the files of v1 or v2, each read once, into one buffer.
//!
//! `rtc_runtime::cgroup::stats` reads everything for `events --stats`; this reads what CRI asks for, of a hundred containers
//! while the kubelet waits.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rtc_runtime::cgroup::Layout;

use crate::proto::{PsiData, PsiStats};

const ROOT: &str = "/sys/fs/cgroup";
/// `cpuacct.stat` counts in clock ticks, 100 a second for every architecture (`USER_HZ`).
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
/// A limit above this is none (cAdvisor's `maxMemorySize`): v1 has no word for it but a large number.
const UNLIMITED: u64 = 1 << 62;

/// Where the hierarchies of this machine are.
#[derive(Debug)]
pub(crate) enum Machine {
    V2,
    V1 {
        cpu: Option<PathBuf>,
        cpuacct: Option<PathBuf>,
        memory: Option<PathBuf>,
        blkio: Option<PathBuf>,
        pids: Option<PathBuf>,
        hugetlb: Option<PathBuf>,
    },
}

/// How much is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What statistics have.
    Statistics,
    /// And what only metrics have.
    Metrics,
}

/// What was used. A part whose controller is missing is not there.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<Memory>,
    /// Of each block device.
    pub(crate) io: Vec<Io>,
    pub(crate) io_pressure: Option<PsiStats>,
    /// Threads, all of them.
    pub(crate) threads: Option<u64>,
    /// At most; 0: no limit.
    pub(crate) threads_max: u64,
    pub(crate) hugetlb: Vec<HugeTlb>,
}

/// Nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) total: u64,
    pub(crate) user: u64,
    pub(crate) system: u64,
    pub(crate) periods: u64,
    pub(crate) throttled_periods: u64,
    pub(crate) throttled: u64,
    pub(crate) pressure: Option<PsiStats>,
}

/// Bytes, but for what counts events.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) usage: u64,
    pub(crate) usage_max: u64,
    pub(crate) limit: Option<u64>,
    pub(crate) rss: u64,
    pub(crate) cache: u64,
    pub(crate) mapped_file: u64,
    pub(crate) kernel: u64,
    pub(crate) active_file: u64,
    pub(crate) inactive_file: u64,
    pub(crate) swap: u64,
    /// `None`: no limit.
    pub(crate) swap_limit: Option<u64>,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) limit_hits: u64,
    pub(crate) oom_kills: u64,
    pub(crate) pressure: Option<PsiStats>,
}

/// A block device.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Io {
    pub(crate) device: (u64, u64),
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// Huge pages of a size, in bytes.
#[derive(Debug)]
pub(crate) struct HugeTlb {
    /// As `2MB`.
    pub(crate) size: String,
    pub(crate) usage: u64,
    pub(crate) usage_max: u64,
}

impl Memory {
    /// What can't be given back without harm.
    pub(crate) fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

impl Machine {
    /// Looked at once.
    pub(crate) fn get() -> &'static Self {
        static MACHINE: OnceLock<Machine> = OnceLock::new();
        MACHINE.get_or_init(|| match Layout::detect() {
            Ok(Layout::V1(hierarchies)) => {
                let of = |controller: &str| {
                    let found = hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
                    found.map(|hierarchy| hierarchy.mount.clone())
                };
                Self::V1 {
                    cpu: of("cpu"),
                    cpuacct: of("cpuacct"),
                    memory: of("memory"),
                    blkio: of("blkio"),
                    pids: of("pids"),
                    hugetlb: of("hugetlb"),
                }
            }
            Ok(Layout::V2) | Err(_) => Self::V2,
        })
    }

    /// What a cgroup has used; `path` is below the mount point. `None`: it is not there.
    pub(crate) fn used(&self, path: &str, depth: Depth, buffer: &mut Vec<u8>) -> Option<Used> {
        let path = path.trim_start_matches('/');
        match self {
            Self::V2 => {
                let directory = Directory::open(&Path::new(ROOT).join(path))?;
                Some(v2(&mut Reader { directory, buffer }, depth))
            }
            Self::V1 { .. } => self.v1(path, depth, buffer),
        }
    }

    /// The processes in a cgroup, by any hierarchy that has it.
    pub(crate) fn processes(&self, path: &str) -> Vec<u32> {
        let path = path.trim_start_matches('/');
        let directory = match self {
            Self::V2 => Some(Path::new(ROOT)),
            Self::V1 {
                memory, pids, cpu, ..
            } => [memory, pids, cpu]
                .into_iter()
                .flatten()
                .next()
                .map(PathBuf::as_path),
        };
        let Some(text) =
            directory.and_then(|root| fs::read_to_string(root.join(path).join("cgroup.procs")).ok())
        else {
            return Vec::new();
        };
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn v1(&self, path: &str, depth: Depth, buffer: &mut Vec<u8>) -> Option<Used> {
        let Self::V1 {
            cpu,
            cpuacct,
            memory,
            blkio,
            pids,
            hugetlb,
        } = self
        else {
            return None;
        };
        let reader = |hierarchy: &Option<PathBuf>| {
            let directory = Directory::open(&hierarchy.as_ref()?.join(path))?;
            Some(directory)
        };
        let mut used = Used::default();
        let mut found = false;
        if let Some(directory) = reader(cpuacct) {
            found = true;
            used.cpu = Some(v1_cpu(&mut Reader { directory, buffer }, depth));
        }
        if depth == Depth::Metrics
            && let (Some(directory), Some(counted)) = (reader(cpu), used.cpu.as_mut())
        {
            throttling(&mut Reader { directory, buffer }, counted);
        }
        if let Some(directory) = reader(memory) {
            found = true;
            used.memory = Some(v1_memory(&mut Reader { directory, buffer }, depth));
        }
        if let Some(directory) = reader(pids) {
            found = true;
            let mut reader = Reader { directory, buffer };
            used.threads = reader.number("pids.current");
            used.threads_max = reader.number("pids.max").unwrap_or(0);
        }
        if depth == Depth::Metrics {
            if let Some(directory) = reader(blkio) {
                used.io = v1_io(&mut Reader { directory, buffer });
            }
            if let Some(directory) = reader(hugetlb) {
                used.hugetlb = huge_pages(
                    &mut Reader { directory, buffer },
                    "usage_in_bytes",
                    "max_usage_in_bytes",
                );
            }
        }
        found.then_some(used)
    }
}

fn v2(reader: &mut Reader<'_>, depth: Depth) -> Used {
    let mut used = Used {
        cpu: v2_cpu(reader),
        memory: v2_memory(reader, depth),
        io_pressure: reader.pressure("io.pressure"),
        threads: reader.number("pids.current"),
        ..Used::default()
    };
    if depth == Depth::Metrics {
        used.threads_max = reader.number("pids.max").unwrap_or(0);
        used.io = reader.text("io.stat").map(v2_io).unwrap_or_default();
        used.hugetlb = huge_pages(reader, "current", "");
    }
    used
}

fn v2_cpu(reader: &mut Reader<'_>) -> Option<Cpu> {
    let mut cpu = Cpu::default();
    for (key, value) in table(reader.text("cpu.stat")?) {
        let nanoseconds = value.saturating_mul(1000);
        match key {
            "usage_usec" => cpu.total = nanoseconds,
            "user_usec" => cpu.user = nanoseconds,
            "system_usec" => cpu.system = nanoseconds,
            "nr_periods" => cpu.periods = value,
            "nr_throttled" => cpu.throttled_periods = value,
            "throttled_usec" => cpu.throttled = nanoseconds,
            _ => {}
        }
    }
    cpu.pressure = reader.pressure("cpu.pressure");
    Some(cpu)
}

fn v2_memory(reader: &mut Reader<'_>, depth: Depth) -> Option<Memory> {
    let mut memory = Memory {
        usage: reader.number("memory.current")?,
        limit: reader.number("memory.max"),
        swap: reader.number("memory.swap.current").unwrap_or(0),
        swap_limit: reader.number("memory.swap.max"),
        pressure: reader.pressure("memory.pressure"),
        ..Memory::default()
    };
    if let Some(text) = reader.text("memory.stat") {
        for (key, value) in table(text) {
            match key {
                "anon" => memory.rss = value,
                "file" => memory.cache = value,
                "file_mapped" => memory.mapped_file = value,
                "kernel" => memory.kernel = value,
                "active_file" => memory.active_file = value,
                "inactive_file" => memory.inactive_file = value,
                "pgfault" => memory.page_faults = value,
                "pgmajfault" => memory.major_page_faults = value,
                _ => {}
            }
        }
    }
    if depth == Depth::Metrics {
        memory.usage_max = reader.number("memory.peak").unwrap_or(memory.usage);
        if let Some(text) = reader.text("memory.events") {
            for (key, value) in table(text) {
                match key {
                    "max" => memory.limit_hits = value,
                    "oom_kill" => memory.oom_kills = value,
                    _ => {}
                }
            }
        }
    }
    Some(memory)
}

/// Lines `major:minor key=value ...`. A device that did nothing may stand alone, or before the next in the same line, so
/// words are read, not lines.
fn v2_io(text: &str) -> Vec<Io> {
    let mut all: Vec<Io> = Vec::new();
    let mut device = (0, 0);
    for word in text.split_ascii_whitespace() {
        if let Some((key, value)) = word.split_once('=') {
            let value: u64 = value.parse().unwrap_or(0);
            if all.last().is_none_or(|io| io.device != device) {
                all.push(Io {
                    device,
                    ..Io::default()
                });
            }
            let Some(io) = all.last_mut() else { continue };
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        } else if let Some((major, minor)) = word.split_once(':') {
            device = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
        }
    }
    all
}

fn v1_cpu(reader: &mut Reader<'_>, depth: Depth) -> Cpu {
    let mut cpu = Cpu {
        total: reader.number("cpuacct.usage").unwrap_or(0),
        ..Cpu::default()
    };
    if depth == Depth::Metrics
        && let Some(text) = reader.text("cpuacct.stat")
    {
        for (key, value) in table(text) {
            match key {
                "user" => cpu.user = value.saturating_mul(NANOSECONDS_PER_TICK),
                "system" => cpu.system = value.saturating_mul(NANOSECONDS_PER_TICK),
                _ => {}
            }
        }
    }
    cpu
}

fn throttling(reader: &mut Reader<'_>, cpu: &mut Cpu) {
    let Some(text) = reader.text("cpu.stat") else {
        return;
    };
    for (key, value) in table(text) {
        match key {
            "nr_periods" => cpu.periods = value,
            "nr_throttled" => cpu.throttled_periods = value,
            "throttled_time" => cpu.throttled = value,
            _ => {}
        }
    }
}

fn v1_memory(reader: &mut Reader<'_>, depth: Depth) -> Memory {
    let limited = |limit: Option<u64>| limit.filter(|limit| *limit < UNLIMITED);
    let usage = reader.number("memory.usage_in_bytes").unwrap_or(0);
    let mut memory = Memory {
        usage,
        usage_max: usage,
        limit: limited(reader.number("memory.limit_in_bytes")),
        ..Memory::default()
    };
    // Memory and swap together: the limit of swap is what is left.
    let together = limited(reader.number("memory.memsw.limit_in_bytes"));
    memory.swap_limit = together.map(|both| both.saturating_sub(memory.limit.unwrap_or(both)));
    if let Some(text) = reader.text("memory.stat") {
        for (key, value) in table(text) {
            match key {
                "total_rss" => memory.rss = value,
                "total_cache" => memory.cache = value,
                "total_mapped_file" => memory.mapped_file = value,
                "total_active_file" => memory.active_file = value,
                "total_inactive_file" => memory.inactive_file = value,
                "total_swap" => memory.swap = value,
                "total_pgfault" => memory.page_faults = value,
                "total_pgmajfault" => memory.major_page_faults = value,
                _ => {}
            }
        }
    }
    if depth == Depth::Metrics {
        memory.usage_max = reader.number("memory.max_usage_in_bytes").unwrap_or(usage);
        memory.limit_hits = reader.number("memory.failcnt").unwrap_or(0);
        memory.kernel = reader.number("memory.kmem.usage_in_bytes").unwrap_or(0);
        if let Some(text) = reader.text("memory.oom_control") {
            let kills = table(text).find(|(key, _)| *key == "oom_kill");
            memory.oom_kills = kills.map_or(0, |(_, kills)| kills);
        }
    }
    memory
}

/// The counters of the BFQ scheduler where it counts, else those of the throttling layer.
fn v1_io(reader: &mut Reader<'_>) -> Vec<Io> {
    const BYTES: [&str; 3] = [
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ];
    const COUNTS: [&str; 3] = [
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
        "blkio.throttle.io_serviced",
    ];
    let mut all = Vec::new();
    for (names, bytes) in [(BYTES, true), (COUNTS, false)] {
        for name in names {
            let before = all.len();
            if reader
                .text(name)
                .is_some_and(|text| v1_io_file(text, bytes, &mut all))
                || all.len() > before
            {
                break;
            }
        }
    }
    all
}

/// Lines `major:minor operation count`; the last one is the sum of all devices. Whether there is any.
fn v1_io_file(text: &str, bytes: bool, all: &mut Vec<Io>) -> bool {
    let mut any = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(device), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some((major, minor)) = device.split_once(':') else {
            continue;
        };
        let device = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
        let value: u64 = value.parse().unwrap_or(0);
        let place = all.iter().position(|io| io.device == device).unwrap_or_else(|| {
            all.push(Io {
                device,
                ..Io::default()
            });
            all.len() - 1
        });
        let Some(io) = all.get_mut(place) else { continue };
        any = true;
        match (operation, bytes) {
            ("Read", true) => io.read_bytes = value,
            ("Write", true) => io.written_bytes = value,
            ("Read", false) => io.reads = value,
            ("Write", false) => io.writes = value,
            _ => {}
        }
    }
    any
}

/// `max` is empty where the kernel does not tell it.
fn huge_pages(reader: &mut Reader<'_>, current: &str, max: &str) -> Vec<HugeTlb> {
    let mut all = Vec::new();
    for size in page_sizes() {
        if let Some(usage) = reader.number(&format!("hugetlb.{size}.{current}")) {
            let usage_max = match max {
                "" => None,
                max => reader.number(&format!("hugetlb.{size}.{max}")),
            };
            all.push(HugeTlb {
                size: size.clone(),
                usage,
                usage_max: usage_max.unwrap_or(usage),
            });
        }
    }
    all
}

/// The sizes of huge pages that this machine has, as `2MB`; looked at once.
fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = fs::read_dir("/sys/kernel/mm/hugepages")
            .into_iter()
            .flatten()
            .flatten();
        let mut sizes: Vec<String> = entries
            .filter_map(|entry| page_size(entry.file_name().to_str()?))
            .collect();
        sizes.sort();
        sizes
    })
}

/// `hugepages-2048kB` is `2MB`.
fn page_size(name: &str) -> Option<String> {
    let mut size: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    let mut units = ["KB", "MB", "GB"].into_iter();
    let mut unit = units.next()?;
    while size >= 1024 && size.is_multiple_of(1024) {
        size /= 1024;
        unit = units.next()?;
    }
    Some(format!("{size}{unit}"))
}

/// A cgroup's directory.
struct Directory(OwnedFd);

impl Directory {
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).ok().map(Self)
    }
}

/// Reads a directory's files, one after another.
struct Reader<'a> {
    directory: Directory,
    buffer: &'a mut Vec<u8>,
}

impl Reader<'_> {
    /// A file's text; `None` where it is missing, or the kernel can't do what it stands for.
    fn text(&mut self, name: &str) -> Option<&str> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.directory.0, name, flags, Mode::empty()).ok()?;
        let mut filled = 0;
        loop {
            if self.buffer.len() - filled < 1024 {
                self.buffer.resize(self.buffer.len() + 8192, 0);
            }
            match nix::unistd::read(&file, &mut self.buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&self.buffer[..filled]).ok()
    }

    /// A file that holds one number; `None` for `max`, too.
    fn number(&mut self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    /// Pressure, where the kernel measures it.
    fn pressure(&mut self, name: &str) -> Option<PsiStats> {
        pressure(self.text(name)?)
    }
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` (Documentation/accounting/psi.rst); microseconds become
/// nanoseconds.
fn pressure(text: &str) -> Option<PsiStats> {
    let mut stats = PsiStats::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        let mut data = PsiData::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                "total" => data.total = value.parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
        match kind {
            "some" => stats.some = Some(data),
            "full" => stats.full = Some(data),
            _ => {}
        }
    }
    Some(stats).filter(|stats| stats.some.is_some())
}

/// Lines `key value`.
fn table(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests;
