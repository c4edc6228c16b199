//! The benchmark of a node: how long pods take to start by the kubelet's own clock, and what many pods cost the node,
//! over rtc-cri and over containerd with runc. A node of each, one after the other, on the same manifests.
//!
//! The server has a cgroup of its own, with its shims, plugins and runtimes below: CPU time is that of all of them.
//! Memory is the proportional share (PSS) of the same processes, and of pause containers. Nothing here asserts.

use std::cell::RefCell;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::{Backend, Node, STAY, Setup, busybox, manifest};
use crate::host::cgroup::{Cgroup, hierarchy_of, is_unified};
use crate::host::{self, process};
use crate::leftovers::Belongings;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::within;

/// Pods that start one at a time.
const SINGLE: usize = 10;
/// For many pods at once, on a slow machine.
const LONG: Duration = Duration::from_secs(600);
/// How long the node is looked at when nothing happens.
const IDLE: Duration = Duration::from_secs(10);

type Rows = Vec<(String, f64)>;

/// `rtc-tests bench-kubelet PODS`; the programs are in the environment.
pub(crate) fn main(pods: &str) -> Result<ExitCode> {
    let pods: usize = pods.parse().context("PODS")?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut columns = Vec::new();
    for backend in [Backend::RtcCri, Backend::Containerd] {
        eprintln!("{backend:?}");
        columns.push(measure(backend, pods)?);
    }
    println!("{:58} {:>10} {:>10}", "", "rtc-cri", "containerd");
    for (number, (name, ours)) in columns[0].iter().enumerate() {
        println!("{name:58} {ours:10.1} {:10.1}", columns[1][number].1);
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(backend: Backend, pods: usize) -> Result<Rows> {
    let id = host::random_name(8)?;
    let base = std::env::temp_dir().join(format!("rtc-bench-{id}"));
    fs::create_dir_all(&base)?;
    let test = Test::of_benchmark(&base, &format!("/rtc-bench-{id}"), "")?;
    let rows = RefCell::new(Rows::new());
    let setup = Setup {
        kubelet: format!("maxPods: {}\npodsPerCore: 0\n", pods + SINGLE),
        server_cgroup: true,
        ..Setup::default()
    };
    let result = setup.with_backend(&test, backend, |node| {
        one_at_a_time(node, &mut rows.borrow_mut())?;
        many(node, pods, &mut rows.borrow_mut())
    });
    let belongings = Belongings {
        directory: &base,
        root: &test.root,
        cgroup: test.cgroup.clone(),
    };
    let left = belongings.clean(false);
    left.iter().for_each(|what| eprintln!("left behind: {what}"));
    result?;
    Ok(rows.into_inner())
}

fn small(name: &str) -> serde_json::Value {
    manifest(name, json!({"containers": [busybox("main", STAY)]}))
}

fn one_at_a_time(node: &Node<'_>, rows: &mut Rows) -> Result {
    node.run(&small("first"))?; // pulls the image
    node.until_up("first")?;
    node.withdraw("first")?;
    node.until_gone("first")?;
    let before = node.get_text("/metrics")?;
    for number in 0..SINGLE {
        let name = format!("one{number}");
        node.run(&small(&name))?;
        node.until_up(&name)?;
        node.withdraw(&name)?;
        node.until_gone(&name)?;
    }
    let after = node.get_text("/metrics")?;
    rows.push((
        "pod start, one at a time, ms (kubelet_pod_start_duration)".into(),
        mean(&before, &after, "kubelet_pod_start_duration_seconds", ""),
    ));
    for operation in [
        "run_podsandbox",
        "create_container",
        "start_container",
        "stop_podsandbox",
    ] {
        let label = format!("operation_type=\"{operation}\"");
        let name = "kubelet_runtime_operations_duration_seconds";
        rows.push((format!("  {operation}, ms"), mean(&before, &after, name, &label)));
    }
    Ok(())
}

fn many(node: &Node<'_>, pods: usize, rows: &mut Rows) -> Result {
    let (before, cpu, began) = (node.get_text("/metrics")?, Cpu::now(node)?, Instant::now());
    for number in 0..pods {
        node.run(&small(&format!("many{number}")))?;
    }
    within(LONG, "all pods to be up", || {
        std::thread::sleep(Duration::from_millis(200));
        let list = node.get("/pods")?;
        let all = list["items"].as_array().cloned().unwrap_or_default();
        let up = all
            .into_iter()
            .filter(|pod| super::StaticPod(pod.clone()).is_up());
        Ok((up.count() == pods).then_some(()))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let after = node.get_text("/metrics")?;
    rows.push((format!("{pods} pods at once: all up after, s"), seconds));
    let start = mean(&before, &after, "kubelet_pod_start_duration_seconds", "");
    rows.push((format!("{pods} pods at once: pod start, mean, ms"), start));
    cpu.since(node, "until all are up", rows)?;
    rows.push((
        format!("{pods} pods: server's memory, MB"),
        memory(&[node.server_pid()?]),
    ));
    rows.push((
        format!("{pods} pods: memory of all but kubelet and pods, MB"),
        memory(&stack(node)?),
    ));
    let cpu = Cpu::now(node)?;
    std::thread::sleep(IDLE);
    cpu.since(node, "in 10 s of rest", rows)?;
    let (cpu, began) = (Cpu::now(node)?, Instant::now());
    for number in 0..pods {
        node.withdraw(&format!("many{number}"))?;
    }
    within(LONG, "all pods to go", || {
        std::thread::sleep(Duration::from_millis(200));
        Ok(node.leftovers().is_empty().then_some(()))
    })?;
    rows.push((
        format!("{pods} pods: all gone after, s"),
        began.elapsed().as_secs_f64(),
    ));
    cpu.since(node, "until all are gone", rows)
}

/// CPU time used so far, in milliseconds.
struct Cpu {
    server: f64,
    kubelet: f64,
}

impl Cpu {
    fn now(node: &Node<'_>) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", node.kubelet_pid()?))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        // utime and stime, proc(5), in hundredths.
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let usage = if is_unified() {
            let text = fs::read_to_string(node.server_cgroup().directory("cpu")?.join("cpu.stat"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            line.context("usage_usec")?.parse::<f64>()? / 1e3
        } else {
            let root = hierarchy_of("cpuacct").context("no cpuacct")?;
            let path = root.join(node.server_cgroup().path.trim_start_matches('/'));
            let text = fs::read_to_string(path.join("cpuacct.usage"))?;
            text.trim().parse::<f64>()? / 1e6
        };
        Ok(Self {
            server: usage,
            kubelet: ticks * 10.0,
        })
    }

    fn since(&self, node: &Node<'_>, what: &str, rows: &mut Rows) -> Result {
        let now = Self::now(node)?;
        rows.push((
            format!("  CPU of server, shims, plugins {what}, ms"),
            now.server - self.server,
        ));
        rows.push((
            format!("  CPU of the kubelet {what}, ms"),
            now.kubelet - self.kubelet,
        ));
        Ok(())
    }
}

/// The server, its shims, and pause containers.
fn stack(node: &Node<'_>) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    for name in ["", "/shims"] {
        let path = format!("{}{name}", node.server_cgroup().path);
        all.extend((Cgroup { path }).processes().unwrap_or_default());
    }
    let children = process::descendants(std::process::id().cast_signed());
    all.extend(children.into_iter().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pause")
    }));
    Ok(all)
}

/// Proportional share of memory, in megabytes.
fn memory(pids: &[i32]) -> f64 {
    let of = |pid: &i32| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    pids.iter().filter_map(of).sum::<f64>() / 1024.0
}

/// Mean of what a histogram has counted between two readings, in milliseconds.
fn mean(before: &str, after: &str, name: &str, label: &str) -> f64 {
    let value = |text: &str, kind: &str| -> f64 {
        let begin = format!("{name}_{kind}");
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(&begin);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) && rest.contains(label))
        });
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let count = value(after, "count") - value(before, "count");
    (value(after, "sum") - value(before, "sum")) / count * 1e3
}
