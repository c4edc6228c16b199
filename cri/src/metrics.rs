//! ListMetricDescriptors, ListPodSandboxMetrics: what cAdvisor measured, for a kubelet with `PodAndContainerStatsFromCRI`.

mod families;
mod processes;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::container::State;
use crate::error::Result;
use crate::events;
use crate::node::Node;
use crate::proto::*;
use crate::sandbox;
use crate::stats::cgroup::{Depth, Io, Machine, Memory, Used};
use crate::stats::network::{self, Interface};
use crate::stats::{Asked, blocking, containers_of};

use families::{self as family, Family};

const NANOSECONDS: u64 = 1_000_000_000;
/// The kernel's, where none is asked for (microseconds).
const PERIOD_DEFAULT: i64 = 100_000;

/// ListMetricDescriptors.
pub(crate) async fn descriptors(
    _node: &Arc<Node>,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse> {
    Ok(ListMetricDescriptorsResponse {
        descriptors: family::ALL.iter().map(|family| family.descriptor()).collect(),
    })
}

/// ListPodSandboxMetrics, of pods that are ready and their containers that run.
pub(crate) async fn sandboxes(node: &Arc<Node>) -> Result<Vec<PodSandboxMetrics>> {
    let mut records: Vec<Arc<sandbox::Record>> =
        node.sandboxes().iter().map(|sandbox| sandbox.record()).collect();
    records.retain(|record| record.state == sandbox::State::Ready);
    let mut containers = containers_of(node, &records).await?;
    let root = node.config.root.clone();
    blocking(move || {
        let namespaces = records.iter().filter_map(|record| record.netns.clone()).collect();
        let mut interfaces = network::interfaces(namespaces).into_iter();
        let mut reading = Reading {
            buffer: Vec::new(),
            devices: HashMap::new(),
            disk: Disk::of(&root),
        };
        records
            .iter()
            .map(|record| {
                let interfaces = record.netns.as_ref().and_then(|_| interfaces.next());
                let containers = containers.remove(&record.id).unwrap_or_default();
                PodSandboxMetrics {
                    pod_sandbox_id: record.id.clone(),
                    metrics: pod(record, &interfaces.unwrap_or_default()),
                    container_metrics: containers
                        .iter()
                        .filter_map(|asked| reading.container(record, asked))
                        .collect(),
                }
            })
            .collect()
    })
    .await
}

/// Metrics of something, with the labels that all of them have.
struct Metrics {
    labels: [String; family::LABELS.len()],
    timestamp: i64,
    all: Vec<Metric>,
}

impl Metrics {
    /// Of a pod, or of a container in it.
    fn of(pod: &sandbox::Record, container: &str, id: &str, image: &str) -> Self {
        let (name, namespace) = pod
            .config
            .metadata
            .as_ref()
            .map_or(("", ""), |metadata| (&metadata.name, &metadata.namespace));
        Self {
            labels: [name, namespace, container, id, image].map(str::to_owned),
            timestamp: events::now(),
            all: Vec::with_capacity(64),
        }
    }

    fn add(&mut self, family: &Family, value: u64) {
        self.add_of(family, &[], value);
    }

    /// With the labels that its family has.
    fn add_of(&mut self, family: &Family, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels = labels.iter().map(|label| (*label).to_owned());
        self.all.push(Metric {
            name: family.name.to_owned(),
            timestamp: self.timestamp,
            metric_type: family.kind.into(),
            label_values: self.labels.iter().cloned().chain(labels).collect(),
            value: Some(UInt64Value { value }),
        });
    }

    fn cpu(&mut self, used: &Used) {
        let Some(cpu) = &used.cpu else { return };
        self.add(family::CPU_USAGE, cpu.total / NANOSECONDS);
        self.add(family::CPU_USER, cpu.user / NANOSECONDS);
        self.add(family::CPU_SYSTEM, cpu.system / NANOSECONDS);
        self.add(family::CPU_PERIODS, cpu.periods);
        self.add(family::CPU_THROTTLED_PERIODS, cpu.throttled_periods);
        self.add(family::CPU_THROTTLED, cpu.throttled / NANOSECONDS);
        self.pressure(cpu.pressure, family::CPU_WAITING, family::CPU_STALLED);
    }

    fn memory(&mut self, memory: &Memory) {
        for (family, value) in [
            (family::MEMORY_USAGE, memory.usage),
            (family::MEMORY_MAX, memory.usage_max),
            (family::MEMORY_WORKING_SET, memory.working_set()),
            (family::MEMORY_RSS, memory.rss),
            (family::MEMORY_CACHE, memory.cache),
            (family::MEMORY_MAPPED, memory.mapped_file),
            (family::MEMORY_KERNEL, memory.kernel),
            (family::MEMORY_SWAP, memory.swap),
            (family::MEMORY_ACTIVE_FILE, memory.active_file),
            (family::MEMORY_INACTIVE_FILE, memory.inactive_file),
            (family::MEMORY_LIMIT_HITS, memory.limit_hits),
            (family::OOM_EVENTS, memory.oom_kills),
        ] {
            self.add(family, value);
        }
        for (kind, value) in [
            ("pgfault", memory.page_faults),
            ("pgmajfault", memory.major_page_faults),
        ] {
            // Containers have no cgroups below theirs that anybody counts apart.
            for scope in ["container", "hierarchy"] {
                self.add_of(family::MEMORY_FAILURES, &[kind, scope], value);
            }
        }
        self.pressure(memory.pressure, family::MEMORY_WAITING, family::MEMORY_STALLED);
    }

    fn io(&mut self, io: &Io, device: &str) {
        let (major, minor) = (io.device.0.to_string(), io.device.1.to_string());
        self.add_of(family::FS_READ_BYTES, &[device], io.read_bytes);
        self.add_of(family::FS_READS, &[device], io.reads);
        self.add_of(family::FS_WRITTEN_BYTES, &[device], io.written_bytes);
        self.add_of(family::FS_WRITES, &[device], io.writes);
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            self.add_of(family::BLKIO_USAGE, &[device, &major, &minor, operation], bytes);
        }
    }

    fn pressure(&mut self, pressure: Option<PsiStats>, waiting: &Family, stalled: &Family) {
        let Some(pressure) = pressure else { return };
        for (data, family) in [(pressure.some, waiting), (pressure.full, stalled)] {
            if let Some(data) = data {
                self.add(family, data.total / NANOSECONDS);
            }
        }
    }

    fn interface(&mut self, interface: &Interface) {
        let name = [interface.name.as_str()];
        let (received, sent) = (interface.received, interface.sent);
        self.add_of(family::NETWORK_RECEIVED_BYTES, &name, received.bytes);
        self.add_of(family::NETWORK_RECEIVED, &name, received.packets);
        self.add_of(family::NETWORK_RECEIVE_DROPPED, &name, received.dropped);
        self.add_of(family::NETWORK_RECEIVE_ERRORS, &name, received.errors);
        self.add_of(family::NETWORK_SENT_BYTES, &name, sent.bytes);
        self.add_of(family::NETWORK_SENT, &name, sent.packets);
        self.add_of(family::NETWORK_SEND_DROPPED, &name, sent.dropped);
        self.add_of(family::NETWORK_SEND_ERRORS, &name, sent.errors);
    }

    fn processes(&mut self, cgroup: &str, first: u32, used: &Used) {
        let processes = Machine::get().processes(cgroup);
        let open = processes::open_by(&processes);
        let count = u64::try_from(processes.len()).unwrap_or(u64::MAX);
        self.add(family::PROCESSES, count);
        // Without a pids controller there is at least one for each process.
        self.add(family::THREADS, used.threads.unwrap_or(count));
        self.add(family::THREADS_MAX, used.threads_max);
        self.add(family::FILE_DESCRIPTORS, open.descriptors);
        self.add(family::SOCKETS, open.sockets);
        if let Some(most) = processes::descriptors_max(first) {
            self.add_of(family::ULIMITS, &["max_open_files"], most);
        }
    }

    fn spec(&mut self, config: &ContainerConfig) {
        let linux = config.linux.as_ref();
        let resources = linux
            .and_then(|linux| linux.resources.clone())
            .unwrap_or_default();
        let period = match resources.cpu_period {
            0 => PERIOD_DEFAULT,
            period => period,
        };
        let protected = ["memory.low", "memory.min"]
            .into_iter()
            .filter_map(|key| resources.unified.get(key)?.parse().ok())
            .max();
        // 0 and -1 are no limits.
        let limit = |value: i64| u64::try_from(value).unwrap_or(0);
        self.add(family::SPEC_CPU_PERIOD, limit(period));
        if resources.cpu_quota > 0 {
            self.add(family::SPEC_CPU_QUOTA, limit(resources.cpu_quota));
        }
        self.add(family::SPEC_CPU_SHARES, limit(resources.cpu_shares));
        self.add(family::SPEC_MEMORY_LIMIT, limit(resources.memory_limit_in_bytes));
        self.add(family::SPEC_MEMORY_RESERVATION, protected.unwrap_or(0));
        self.add(
            family::SPEC_MEMORY_SWAP,
            limit(resources.memory_swap_limit_in_bytes),
        );
    }
}

fn pod(record: &sandbox::Record, interfaces: &[Interface]) -> Vec<Metric> {
    let mut metrics = Metrics::of(record, "", &record.id, "");
    for interface in interfaces {
        metrics.interface(interface);
    }
    metrics.all
}

/// What is read once for all containers.
struct Reading {
    buffer: Vec<u8>,
    /// Names of block devices, by number.
    devices: HashMap<(u64, u64), String>,
    disk: Disk,
}

impl Reading {
    /// `None`: it does not run.
    fn container(&mut self, pod: &sandbox::Record, asked: &Asked) -> Option<ContainerMetrics> {
        let record = &asked.record;
        let State::Running { pid, started_at } = record.state else {
            return None;
        };
        let used = asked.used(Depth::Metrics, &mut self.buffer)?;
        let config = &record.config;
        let name = config
            .metadata
            .as_ref()
            .map_or("", |metadata| metadata.name.as_str());
        let image = config.image.as_ref().map_or("", |image| {
            let said = image.user_specified_image.as_str();
            if said.is_empty() {
                image.image.as_str()
            } else {
                said
            }
        });
        let mut metrics = Metrics::of(pod, name, &record.id, image);
        metrics.add(family::LAST_SEEN, seconds(metrics.timestamp));
        metrics.add(family::START_TIME, seconds(started_at));
        metrics.cpu(&used);
        if let Some(memory) = &used.memory {
            metrics.memory(memory);
        }
        for pages in &used.hugetlb {
            metrics.add_of(family::HUGETLB_USAGE, &[&pages.size], pages.usage);
            metrics.add_of(family::HUGETLB_MAX, &[&pages.size], pages.usage_max);
        }
        for io in &used.io {
            let device = self
                .devices
                .entry(io.device)
                .or_insert_with(|| device_name(io.device));
            metrics.io(io, device);
        }
        metrics.pressure(used.io_pressure, family::IO_WAITING, family::IO_STALLED);
        self.disk.add(&mut metrics, asked);
        metrics.processes(&record.cgroup, pid, &used);
        metrics.spec(config);
        Some(ContainerMetrics {
            container_id: record.id.clone(),
            metrics: metrics.all,
        })
    }
}

/// The file system of writable layers.
struct Disk {
    device: String,
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Disk {
    fn of(root: &Path) -> Self {
        let stat = nix::sys::statvfs::statvfs(root).ok();
        let device = nix::sys::stat::stat(root).ok().map(|found| {
            let (major, minor) = (
                nix::sys::stat::major(found.st_dev),
                nix::sys::stat::minor(found.st_dev),
            );
            device_name((major, minor))
        });
        Self {
            device: device.unwrap_or_default(),
            bytes: stat.map_or(0, |stat| stat.blocks().saturating_mul(stat.fragment_size())),
            inodes: stat.map_or(0, |stat| stat.files()),
            inodes_free: stat.map_or(0, |stat| stat.files_free()),
        }
    }

    fn add(&self, metrics: &mut Metrics, asked: &Asked) {
        let device = [self.device.as_str()];
        metrics.add_of(
            family::FS_USAGE,
            &device,
            asked.layer.map_or(0, |layer| layer.bytes),
        );
        metrics.add_of(family::FS_LIMIT, &device, self.bytes);
        metrics.add_of(family::FS_INODES, &device, self.inodes);
        metrics.add_of(family::FS_INODES_FREE, &device, self.inodes_free);
    }
}

/// `/dev/sda`; the numbers of one that sysfs does not know.
fn device_name((major, minor): (u64, u64)) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    match link.as_ref().ok().and_then(|link| link.file_name()) {
        Some(name) => format!("/dev/{}", name.to_string_lossy()),
        None => format!("{major}:{minor}"),
    }
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / NANOSECONDS
}
