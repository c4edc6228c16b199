//! The benchmark of CRI servers: rtc-cri and containerd, by turns, in one run.
//!
//! Each server has a cgroup of its own, with its shims and its pods below: CPU time is that of all of them, CNI plugins
//! too (the pod in the host's network has none). Wall times are medians. Nothing here asserts.

pub(crate) mod drivers;
mod streams;

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rtc_cri::proto::*;

use crate::cri::{Container, Cri, Pod, Setup, check, namespaces, place};
use crate::host::cgroup::{Cgroup, hierarchy_of};
use crate::host::{self, process};
use crate::image_registry::ImageRegistry;
use crate::leftovers::Belongings;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::until;

/// Rounds of what is done one at a time.
const ROUNDS: usize = 15;
const EXECS: usize = 40;
/// Images that are pulled.
const PULLS: usize = 3;
const CLIENTS: usize = 8;
/// Pods when the server is killed.
const SURVIVORS: usize = 20;

/// A server, and what was measured of it: name, milliseconds or another unit.
struct Column<'t> {
    cri: Cri<'t>,
    rows: Vec<(&'static str, Vec<f64>)>,
}

/// `rtc-tests bench-cri PODS`, or `streams` for these alone; the programs are in the environment.
pub(crate) fn main(pods: &str) -> Result<ExitCode> {
    let pods: Option<usize> = match pods {
        "streams" => None,
        pods => Some(pods.parse().context("PODS")?),
    };
    nix::sys::prctl::set_child_subreaper(true)?;
    let base = std::env::temp_dir().join(format!("rtc-bench-{}", host::random_name(8)?));
    fs::create_dir_all(&base)?;
    place::enter()?;
    let mut tests = Vec::new();
    for (number, peer) in ["", "containerd"].into_iter().enumerate() {
        let id = host::random_name(8)?;
        let directory = base.join(number.to_string());
        tests.push(Test::of_benchmark(&directory, &format!("/rtc-bench-{id}"), peer)?);
    }
    let result = measure(&tests, pods);
    for test in &tests {
        let belongings = Belongings {
            directory: &base,
            root: &test.root,
            cgroup: test.cgroup.clone(),
        };
        belongings
            .clean(true)
            .iter()
            .for_each(|what| eprintln!("left behind: {what}"));
    }
    let _ = fs::remove_dir_all(&base);
    print(&result?);
    Ok(ExitCode::SUCCESS)
}

fn measure(tests: &[Test], pods: Option<usize>) -> Result<Vec<Column<'_>>> {
    let mut columns = Vec::new();
    for (number, test) in tests.iter().enumerate() {
        let cri = Cri::start(test, setup(test, number)?)?;
        let mut column = Column {
            cri,
            rows: Vec::new(),
        };
        column.memory("server's RSS, idle, MB");
        column.cri.busybox()?;
        column.pod_life(true)?;
        column.rows.retain(|(name, _)| name.contains("RSS")); // the first pod was to warm up
        columns.push(column);
    }
    eprintln!("Exec, PortForward");
    streams::measure(&mut columns)?;
    if let Some(pods) = pods {
        calls(&mut columns, pods)?;
    }
    for column in &columns {
        column.cri.remove_pods()?;
        column.cri.end()?;
    }
    Ok(columns)
}

/// All but streams.
fn calls(columns: &mut [Column<'_>], pods: usize) -> Result {
    eprintln!("pods, one at a time");
    for round in 0..ROUNDS {
        // By turns: what disturbs the machine disturbs all.
        for column in &mut *columns {
            column.pod_life(true)?;
            if round % 2 == 0 {
                column.pod_life(false)?;
            }
        }
    }
    eprintln!("ExecSync");
    exec(columns)?;
    eprintln!("PullImage");
    pull(columns)?;
    for column in &mut *columns {
        eprintln!("{pods} pods, {}", column.name());
        column.many(pods)?;
        column.starts()?;
    }
    Ok(())
}

/// A bridge, a subnet and a cgroup of its own.
fn setup(test: &Test, number: usize) -> Result<Setup> {
    let mut setup = Setup::default();
    let network = setup.network.take().context("no network")?;
    let subnet = format!("10.{}.0.0/16", 88 + number);
    setup.network = Some(
        network
            .replace("cni0", &format!("cni{number}"))
            .replace("10.88.0.0/16", &subnet),
    );
    let server = Cgroup {
        path: format!("{}/server", test.cgroup.path),
    };
    let directory = server.directory("cpuacct").or_else(|_| server.directory("cpu"))?;
    fs::create_dir_all(&directory)?;
    setup.own_cgroup = Some(directory.join("cgroup.procs"));
    Ok(setup)
}

impl Column<'_> {
    fn name(&self) -> &'static str {
        if self.cri.is_ours() {
            "rtc-cri"
        } else {
            "containerd"
        }
    }

    fn add(&mut self, row: &'static str, value: f64) {
        match self.rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, values)) => values.push(value),
            None => self.rows.push((row, vec![value])),
        }
    }

    /// CPU time of the server and all that it started, in milliseconds.
    fn cpu(&self) -> f64 {
        let path = self.cri.t.cgroup.path.trim_start_matches('/');
        let read = |controller: &str, file: &str| -> Option<String> {
            fs::read_to_string(hierarchy_of(controller)?.join(path).join(file)).ok()
        };
        if let Some(usage) = read("cpuacct", "cpuacct.usage") {
            return usage.trim().parse::<f64>().unwrap_or_default() / 1e6;
        }
        let stat = read("cpu", "cpu.stat").unwrap_or_default();
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        usage
            .and_then(|usage| usage.parse::<f64>().ok())
            .unwrap_or_default()
            / 1e3
    }

    fn pod(&self, bridge: bool) -> Result<(Pod<'_, '_>, Container<'_, '_>, [f64; 2])> {
        let began = Instant::now();
        let pod = self.cri.pod_with(|config| {
            if !bridge {
                config.hostname.clear();
                namespaces(config).network = NamespaceMode::Node.into();
            }
        })?;
        let run = milliseconds(began);
        let began = Instant::now();
        let web = pod.run_with(
            "web",
            "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done",
            |config| {
                let linux = config.linux.get_or_insert_default();
                linux.resources = Some(LinuxContainerResources {
                    cpu_shares: 100,
                    memory_limit_in_bytes: 256 << 20,
                    ..LinuxContainerResources::default()
                });
                let security = linux.security_context.get_or_insert_default();
                security.seccomp = Some(SecurityProfile {
                    profile_type: security_profile::ProfileType::RuntimeDefault.into(),
                    ..SecurityProfile::default()
                });
            },
        )?;
        Ok((pod, web, [run, milliseconds(began)]))
    }

    /// One pod, up and down.
    fn pod_life(&mut self, bridge: bool) -> Result {
        let cpu = self.cpu();
        let (up, [run, start]);
        let down;
        let cpu_up;
        {
            let began = Instant::now();
            let (pod, web, parts) = self.pod(bridge)?;
            up = milliseconds(began);
            [run, start] = parts;
            cpu_up = self.cpu();
            // The shell is to have its trap.
            std::thread::sleep(Duration::from_millis(50));
            let began = Instant::now();
            web.stop(10)?;
            web.remove()?;
            pod.stop()?;
            pod.remove()?;
            down = milliseconds(began);
        }
        let cpu_down = self.cpu();
        if bridge {
            self.add("RunPodSandbox, bridge, ms", run);
            self.add("CreateContainer + StartContainer, ms", start);
            self.add("pod up, ms", up);
            self.add("pod up, CPU with CNI's, ms", cpu_up - cpu);
            self.add("pod down, ms", down);
            self.add("pod down, CPU with CNI's, ms", cpu_down - cpu_up);
        } else {
            self.add("RunPodSandbox, host network, ms", run);
            self.add("pod up, host network: CPU, ms", cpu_up - cpu);
            self.add("pod down, host network: CPU, ms", cpu_down - cpu_up);
        }
        Ok(())
    }

    /// Pods by several clients at once; then what they cost while they are there.
    fn many(&mut self, pods: usize) -> Result {
        let (began, cpu) = (Instant::now(), self.cpu());
        let configs: Vec<_> = (0..pods).map(|_| self.cri.pod_config()).collect::<Result<_>>()?;
        let mut requests = Vec::new();
        for config in configs {
            let pod = Pod {
                cri: &self.cri,
                id: String::new(),
                config: config.clone(),
            };
            requests.push((
                config,
                pod.container_config("web", "exec sleep 100000")?,
                pod.container_config("log", "exec sleep 100000")?,
            ));
        }
        let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(CLIENTS));
        self.cri.wait(async {
            let mut calls = Vec::new();
            for (pod, web, _) in requests.clone() {
                let (turns, mut client) = (turns.clone(), self.cri.runtime());
                calls.push(tokio::spawn(async move {
                    let _turn = turns.acquire_owned().await?;
                    let request = RunPodSandboxRequest {
                        config: Some(pod.clone()),
                        runtime_handler: String::new(),
                    };
                    let id = check("RunPodSandbox", client.run_pod_sandbox(request).await)?
                        .into_inner()
                        .pod_sandbox_id;
                    start(&mut client, id, web, pod).await
                }));
            }
            for call in calls {
                call.await??;
            }
            Result::Ok(())
        })?;
        self.add(
            "pods by 8 clients, per second",
            pods as f64 / began.elapsed().as_secs_f64(),
        );
        self.add(
            "pods by 8 clients, CPU of each, ms",
            (self.cpu() - cpu) / pods as f64,
        );
        self.overhead(pods);
        // Shims give memory back after ten seconds without an event.
        std::thread::sleep(Duration::from_secs(15));
        let cpu = self.cpu();
        std::thread::sleep(Duration::from_secs(10));
        self.add("idle with these pods, CPU ms per s", (self.cpu() - cpu) / 10.0);
        let list = check(
            "ListPodSandbox",
            self.cri.list_pod_sandbox(ListPodSandboxRequest::default()),
        )?;
        for pod in list.items {
            let found = requests
                .iter()
                .find(|(config, ..)| config.metadata == pod.metadata);
            let Some((config, _, log)) = found else { continue };
            let mut client = self.cri.runtime();
            self.cri
                .wait(start(&mut client, pod.id, log.clone(), config.clone()))?;
        }
        self.memory("server's RSS, twice as many containers, MB");
        self.lists()?;
        self.cri.remove_pods()
    }

    fn lists(&mut self) -> Result {
        for _ in 0..50 {
            let began = Instant::now();
            check(
                "ListContainers",
                self.cri.list_containers(ListContainersRequest::default()),
            )?;
            self.add("ListContainers of these, ms", milliseconds(began));
        }
        for _ in 0..10 {
            let (began, cpu) = (Instant::now(), self.cpu());
            check(
                "ListContainerStats",
                self.cri
                    .list_container_stats(ListContainerStatsRequest::default()),
            )?;
            self.add("ListContainerStats of these, ms", milliseconds(began));
            self.add("ListContainerStats of these, CPU ms", self.cpu() - cpu);
        }
        for _ in 0..3 {
            let began = Instant::now();
            check(
                "ListPodSandboxMetrics",
                self.cri.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}),
            )?;
            self.add("ListPodSandboxMetrics of these, ms", milliseconds(began));
        }
        Ok(())
    }

    /// What a pod costs in shims and pause containers.
    fn overhead(&mut self, pods: usize) {
        let mut bytes = 0.0;
        let mut threads = 0.0;
        for pid in process::descendants(std::process::id().cast_signed()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if !own.contains(&self.cri.t.cgroup.path)
                || Some(pid) == self.cri.pid().ok()
                || name.trim() == "sleep"
            {
                continue;
            }
            let private = ["Private_Clean:", "Private_Dirty:"].map(|field| rollup(pid, field));
            bytes += private.iter().sum::<f64>();
            let count = process::status_field(pid, "Threads").unwrap_or_default();
            threads += count.parse::<f64>().unwrap_or_default();
        }
        self.add(
            "memory per pod (USS of shim and pause), MB",
            bytes / 1024.0 / pods as f64,
        );
        self.add("threads per pod", threads / pods as f64);
    }

    fn memory(&mut self, row: &'static str) {
        let rss = self.cri.pid().map(|pid| rollup(pid, "Rss:")).unwrap_or_default();
        self.add(row, rss / 1024.0);
    }

    /// From its start to Ready; and after a violent death, to all pods listed.
    fn starts(&mut self) -> Result {
        for _ in 0..5 {
            self.cri.signal(Signal::SIGTERM)?;
            let began = Instant::now();
            self.cri.start_server()?;
            until("ready", || {
                let status = self
                    .cri
                    .status(StatusRequest::default())
                    .ok()
                    .and_then(|answer| answer.status);
                let conditions = status.unwrap_or_default().conditions;
                let ready = |name: &str| {
                    conditions
                        .iter()
                        .any(|found| found.r#type == name && found.status)
                };
                Ok((ready("RuntimeReady") && ready("NetworkReady")).then_some(()))
            })?;
            self.add("start to Ready, ms", milliseconds(began));
        }
        for _ in 0..SURVIVORS {
            self.pod(true)?;
        }
        for _ in 0..3 {
            self.cri.signal(Signal::SIGKILL)?;
            let began = Instant::now();
            self.cri.start_server()?;
            until("all containers", || {
                let list = self.cri.list_containers(ListContainersRequest::default()).ok();
                let containers = list.unwrap_or_default().containers;
                let running = containers
                    .iter()
                    .filter(|found| found.state() == ContainerState::ContainerRunning);
                Ok((running.count() >= SURVIVORS).then_some(()))
            })?;
            self.add("kill -9 with 20 pods to all listed, ms", milliseconds(began));
        }
        self.cri.remove_pods()
    }
}

async fn start(
    client: &mut runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    pod_sandbox_id: String,
    config: ContainerConfig,
    sandbox: PodSandboxConfig,
) -> Result {
    let mut config = config;
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
    let request = CreateContainerRequest {
        pod_sandbox_id,
        config: Some(config),
        sandbox_config: Some(sandbox),
    };
    let container_id = check("CreateContainer", client.create_container(request).await)?
        .into_inner()
        .container_id;
    check(
        "StartContainer",
        client
            .start_container(StartContainerRequest { container_id })
            .await,
    )?;
    Ok(())
}

fn exec(columns: &mut [Column<'_>]) -> Result {
    let mut measured = vec![Vec::new(); columns.len()];
    {
        let running: Vec<_> = columns
            .iter()
            .map(|column| column.pod(true))
            .collect::<Result<_>>()?;
        for _ in 0..EXECS {
            for (number, column) in columns.iter().enumerate() {
                let (began, cpu) = (Instant::now(), column.cpu());
                running[number].1.exec(&["true"])?;
                measured[number].push((milliseconds(began), column.cpu() - cpu));
            }
        }
        for (pod, ..) in &running {
            pod.stop()?;
            pod.remove()?;
        }
    }
    for (column, measured) in columns.iter_mut().zip(measured) {
        for (wall, cpu) in measured {
            column.add("ExecSync(true), ms", wall);
            column.add("ExecSync(true), CPU ms", cpu);
        }
    }
    Ok(())
}

/// Images that nobody has seen before, 100 MB each.
fn pull(columns: &mut [Column<'_>]) -> Result {
    let registry = ImageRegistry::start()?;
    let mut random = fs::File::open("/dev/urandom")?;
    for round in 0..PULLS {
        let mut layers = Vec::new();
        for _ in 0..5 {
            let mut bytes = vec![0; 20 << 20];
            random.read_exact(&mut bytes)?;
            layers.push(bytes);
        }
        let files: Vec<_> = layers.iter().map(|bytes| [("file", bytes.as_slice())]).collect();
        let layers: Vec<&[(&str, &[u8])]> = files.iter().map(<[_; 1]>::as_slice).collect();
        let tag = format!("round-{round}");
        registry.push("bench", &tag, &layers);
        for column in &mut *columns {
            let (began, cpu) = (Instant::now(), column.cpu());
            column.cri.pull(&registry.name(&format!("bench:{tag}")))?;
            column.add(
                "pull of 5 layers of 20 MB, not compressed, ms",
                milliseconds(began),
            );
            column.add("pull of 5 layers of 20 MB, CPU ms", column.cpu() - cpu);
        }
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A field of `smaps_rollup`, in KiB.
fn rollup(pid: i32, field: &str) -> f64 {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or_default()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn print(columns: &[Column<'_>]) {
    let names: Vec<_> = columns.iter().map(Column::name).collect();
    println!("| median of one run, by turns | {} | part |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len() + 1));
    for (row, values) in &columns[0].rows {
        let cells: Vec<f64> = columns
            .iter()
            .map(|column| {
                let found = column.rows.iter().find(|(name, _)| name == row);
                found.map(|(_, values)| median(values)).unwrap_or_default()
            })
            .collect();
        let shown: Vec<_> = cells.iter().map(|value| format!("{value:.1}")).collect();
        let part = cells[0] / cells[cells.len() - 1].max(0.001);
        println!("| {row} ({}) | {} | {part:.2} |", values.len(), shown.join(" | "));
    }
}
