//! ContainerStats, PodSandboxStats, ListContainerStats, ListPodSandboxStats: read when asked for, from cgroups and network
//! namespaces. Nothing samples in the background; the rate of processor time is that since the last time somebody asked.

pub(crate) mod cgroup;
pub(crate) mod network;
mod rates;

use std::collections::HashMap;
use std::sync::Arc;

use crate::container::{self, State};
use crate::error::{Error, Kind, Result};
use crate::events::now;
use crate::image::Usage;
use crate::node::Node;
use crate::proto::*;
use crate::sandbox;

use cgroup::{Depth, Machine, Used};
use network::Interface;
pub(crate) use rates::Rate;

/// The interface that a pod is reached by.
const DEFAULT_INTERFACE: &str = "eth0";

/// ContainerStats.
pub(crate) async fn container(
    node: &Arc<Node>,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse> {
    let container = node.container(&request.container_id)?;
    let asked = Asked::of(Arc::clone(node), container.record()).await;
    let node = Arc::clone(node);
    let stats = blocking(move || asked.stats(&node, &mut Vec::new()).0).await?;
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

/// PodSandboxStats.
pub(crate) async fn sandbox(
    node: &Arc<Node>,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let record = sandbox.record();
    if record.state != sandbox::State::Ready {
        return Err(Error::text(
            Kind::Unavailable,
            format_args!("sandbox {}: has no statistics: it is not ready", sandbox.id),
        ));
    }
    let stats = pods(node, vec![record]).await?.pop();
    Ok(PodSandboxStatsResponse { stats })
}

/// ListContainerStats. Containers that do not run have no cgroup, but a writable layer.
pub(crate) async fn containers(
    node: &Arc<Node>,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>> {
    let filter = filter.unwrap_or_default();
    // An id may be the beginning of one; one that is not there matches nothing.
    let Some(id) = whole_id(&filter.id, |id| Ok(node.container(id)?.id.clone())) else {
        return Ok(Vec::new());
    };
    let Some(pod) = whole_id(&filter.pod_sandbox_id, |id| Ok(node.sandbox(id)?.id.clone())) else {
        return Ok(Vec::new());
    };
    let asked = Asked::all(node, |record| {
        (id.is_empty() || record.id == id)
            && (pod.is_empty() || record.sandbox == pod)
            && matches(&filter.label_selector, &record.config.labels)
    });
    let asked = asked.await?;
    let node = Arc::clone(node);
    blocking(move || {
        let mut buffer = Vec::new();
        asked
            .into_iter()
            .map(|asked| asked.stats(&node, &mut buffer).0)
            .collect()
    })
    .await
}

/// ListPodSandboxStats, of those that are ready.
pub(crate) async fn sandboxes(
    node: &Arc<Node>,
    filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<PodSandboxStats>> {
    let filter = filter.unwrap_or_default();
    let Some(id) = whole_id(&filter.id, |id| Ok(node.sandbox(id)?.id.clone())) else {
        return Ok(Vec::new());
    };
    let mut records: Vec<Arc<sandbox::Record>> =
        node.sandboxes().iter().map(|sandbox| sandbox.record()).collect();
    records.retain(|record| {
        record.state == sandbox::State::Ready
            && (id.is_empty() || record.id == id)
            && matches(&filter.label_selector, &record.config.labels)
    });
    pods(node, records).await
}

async fn pods(node: &Arc<Node>, records: Vec<Arc<sandbox::Record>>) -> Result<Vec<PodSandboxStats>> {
    let mut containers = containers_of(node, &records).await?;
    let node = Arc::clone(node);
    blocking(move || {
        let namespaces = records.iter().filter_map(|record| record.netns.clone()).collect();
        let mut interfaces = network::interfaces(namespaces).into_iter();
        let mut buffer = Vec::new();
        records
            .iter()
            .map(|record| {
                let interfaces = record.netns.as_ref().and_then(|_| interfaces.next());
                let containers = containers.remove(&record.id).unwrap_or_default();
                pod(&node, record, containers, interfaces, &mut buffer)
            })
            .collect()
    })
    .await
}

/// The containers of each of these pods.
pub(crate) async fn containers_of(
    node: &Arc<Node>,
    pods: &[Arc<sandbox::Record>],
) -> Result<HashMap<String, Vec<Asked>>> {
    let mut all: HashMap<String, Vec<Asked>> = pods.iter().map(|pod| (pod.id.clone(), Vec::new())).collect();
    for asked in Asked::all(node, |record| all.contains_key(&record.sandbox)).await? {
        if let Some(of_pod) = all.get_mut(&asked.record.sandbox) {
            of_pod.push(asked);
        }
    }
    Ok(all)
}

fn pod(
    node: &Node,
    record: &sandbox::Record,
    containers: Vec<Asked>,
    interfaces: Option<Vec<Interface>>,
    buffer: &mut Vec<u8>,
) -> PodSandboxStats {
    let at = now();
    let cgroup = pod_cgroup(record, &containers);
    let used = cgroup.and_then(|path| Machine::get().used(&path, Depth::Statistics, buffer));
    let (containers, threads): (Vec<ContainerStats>, Vec<u64>) = containers
        .into_iter()
        .map(|asked| asked.stats(node, buffer))
        .unzip();
    let mut linux = LinuxPodSandboxStats {
        network: interfaces.map(|interfaces| network_usage(&interfaces, at)),
        process: Some(ProcessUsage {
            timestamp: at,
            process_count: value(threads.iter().sum()),
        }),
        ..LinuxPodSandboxStats::default()
    };
    match used {
        Some(used) => {
            let sandbox = node.sandbox(&record.id).ok();
            let rate = sandbox.and_then(|sandbox| sandbox.rate.sample(total(&used), at));
            linux.cpu = cpu(&used, at, rate);
            linux.memory = memory(&used, at);
            linux.io = io(&used, at);
        }
        // No cgroup of its own: its containers together.
        None => {
            linux.cpu = sum_cpu(&containers, at);
            linux.memory = sum_memory(&containers, at);
        }
    }
    linux.containers = containers;
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

/// A pod's cgroup is what its containers' are in, where the kubelet made it one.
fn pod_cgroup(record: &sandbox::Record, containers: &[Asked]) -> Option<String> {
    let linux = record.config.linux.as_ref()?;
    if linux.cgroup_parent.trim_matches('/').is_empty() {
        return None;
    }
    let mut paths = containers
        .iter()
        .filter_map(|asked| asked.record.cgroup.rsplit_once('/'));
    paths.next().map(|(parent, _)| parent.to_owned())
}

/// A container whose statistics are asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) record: Arc<container::Record>,
    pub(crate) layer: Option<Usage>,
}

impl Asked {
    async fn of(node: Arc<Node>, record: Arc<container::Record>) -> Self {
        let layer = node.images.usage(&record.id).await;
        Self { record, layer }
    }

    /// All containers that are made and wanted, at once: each may take a moment.
    async fn all(node: &Arc<Node>, is_wanted: impl Fn(&container::Record) -> bool) -> Result<Vec<Self>> {
        let records = node.containers().into_iter().map(|container| container.record());
        let wanted = records.filter(|record| record.state != State::Making && is_wanted(record));
        let asking: Vec<_> = wanted
            .map(|record| tokio::spawn(Self::of(Arc::clone(node), record)))
            .collect();
        let mut all = Vec::with_capacity(asking.len());
        for asked in asking {
            all.push(asked.await.map_err(|error| Error::new(Kind::Unknown, error))?);
        }
        Ok(all)
    }

    /// What it has used, where it runs.
    pub(crate) fn used(&self, depth: Depth, buffer: &mut Vec<u8>) -> Option<Used> {
        match self.record.state {
            State::Running { .. } => Machine::get().used(&self.record.cgroup, depth, buffer),
            _ => None,
        }
    }

    /// And how many threads it has.
    fn stats(&self, node: &Node, buffer: &mut Vec<u8>) -> (ContainerStats, u64) {
        let record = &self.record;
        let used = self.used(Depth::Statistics, buffer);
        let at = now();
        let mut stats = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            writable_layer: self.layer.map(|layer| FilesystemUsage {
                timestamp: layer.timestamp,
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: node.config.root.display().to_string(),
                }),
                used_bytes: value(layer.bytes),
                inodes_used: value(layer.inodes),
            }),
            ..ContainerStats::default()
        };
        if let Some(used) = &used {
            let container = node.container(&record.id).ok();
            let rate = container.and_then(|container| container.rate.sample(total(used), at));
            stats.cpu = cpu(used, at, rate);
            stats.memory = memory(used, at);
            stats.swap = swap(used, at);
            stats.io = io(used, at);
        }
        (stats, used.and_then(|used| used.threads).unwrap_or(0))
    }
}

fn total(used: &Used) -> u64 {
    used.cpu.as_ref().map_or(0, |cpu| cpu.total)
}

fn cpu(used: &Used, timestamp: i64, rate: Option<u64>) -> Option<CpuUsage> {
    let cpu = used.cpu.as_ref()?;
    Some(CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(cpu.total),
        usage_nano_cores: rate.and_then(value),
        psi: cpu.pressure,
    })
}

fn memory(used: &Used, timestamp: i64) -> Option<MemoryUsage> {
    let memory = used.memory.as_ref()?;
    let working_set = memory.working_set();
    Some(MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set),
        available_bytes: memory
            .limit
            .and_then(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.pressure,
    })
}

fn swap(used: &Used, timestamp: i64) -> Option<SwapUsage> {
    let memory = used.memory.as_ref()?;
    Some(SwapUsage {
        timestamp,
        swap_available_bytes: memory
            .swap_limit
            .and_then(|limit| value(limit.saturating_sub(memory.swap))),
        swap_usage_bytes: value(memory.swap),
    })
}

fn io(used: &Used, timestamp: i64) -> Option<IoUsage> {
    used.io_pressure.map(|psi| IoUsage {
        timestamp,
        psi: Some(psi),
    })
}

fn sum_cpu(containers: &[ContainerStats], timestamp: i64) -> Option<CpuUsage> {
    let all: Vec<&CpuUsage> = containers.iter().filter_map(|stats| stats.cpu.as_ref()).collect();
    let sum = |of: fn(&CpuUsage) -> Option<UInt64Value>| {
        all.iter().filter_map(|one| of(one)).map(|one| one.value).sum()
    };
    let rates_known = all.iter().all(|cpu| cpu.usage_nano_cores.is_some());
    (!all.is_empty()).then(|| CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(sum(|cpu| cpu.usage_core_nano_seconds)),
        usage_nano_cores: rates_known
            .then(|| value(sum(|cpu| cpu.usage_nano_cores)))
            .flatten(),
        psi: None,
    })
}

fn sum_memory(containers: &[ContainerStats], timestamp: i64) -> Option<MemoryUsage> {
    let all: Vec<&MemoryUsage> = containers
        .iter()
        .filter_map(|stats| stats.memory.as_ref())
        .collect();
    let sum = |of: fn(&MemoryUsage) -> Option<UInt64Value>| {
        value(all.iter().filter_map(|one| of(one)).map(|one| one.value).sum())
    };
    (!all.is_empty()).then(|| MemoryUsage {
        timestamp,
        working_set_bytes: sum(|memory| memory.working_set_bytes),
        available_bytes: None,
        usage_bytes: sum(|memory| memory.usage_bytes),
        rss_bytes: sum(|memory| memory.rss_bytes),
        page_faults: sum(|memory| memory.page_faults),
        major_page_faults: sum(|memory| memory.major_page_faults),
        psi: None,
    })
}

fn network_usage(interfaces: &[Interface], timestamp: i64) -> NetworkUsage {
    let usage = |interface: &Interface| NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    };
    let default = interfaces
        .iter()
        .find(|interface| interface.name == DEFAULT_INTERFACE)
        .or_else(|| interfaces.first());
    NetworkUsage {
        timestamp,
        default_interface: default.map(usage),
        interfaces: interfaces.iter().map(usage).collect(),
    }
}

/// The id that a filter means; empty: any. `None`: none that is there.
fn whole_id(id: &str, find: impl FnOnce(&str) -> Result<String>) -> Option<String> {
    if id.is_empty() {
        return Some(String::new());
    }
    find(id).ok()
}

fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "CRI wraps numbers in messages, which may be missing"
)]
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// Cgroup files are read by a thread that may wait: some count when they are read.
pub(crate) async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::new(Kind::Unknown, error))
}
