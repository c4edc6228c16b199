//! Statistics and metrics of pods and containers.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cri::proto::*;
use crate::cri::{Code, Cri, check, namespaces, only_ours, refused, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// Spins, and holds 20 MB and a socket.
const BUSY: &str =
    "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; httpd -p 9 -h /dev/shm; while :; do :; done";

fn container_stats(cri: &Cri<'_>, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let stats = check("ContainerStats", cri.container_stats(request))?.stats;
    stats.context("no stats")
}

fn listed(cri: &Cri<'_>, filter: Option<ContainerStatsFilter>) -> Result<Vec<String>> {
    let request = ListContainerStatsRequest { filter };
    let list = check("ListContainerStats", cri.list_container_stats(request))?;
    let attributes = list.stats.into_iter().filter_map(|stats| stats.attributes);
    let mut ids: Vec<String> = attributes.map(|attributes| attributes.id).collect();
    ids.sort();
    Ok(ids)
}

fn number(value: Option<UInt64Value>, what: &str) -> Result<u64> {
    value
        .map(|value| value.value)
        .with_context(|| format!("no {what}"))
}

fn metrics_of(cri: &Cri<'_>, pod: &str) -> Result<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    let all = check("ListPodSandboxMetrics", cri.list_pod_sandbox_metrics(request))?.pod_metrics;
    let mut all = all.into_iter();
    all.find(|metrics| metrics.pod_sandbox_id == pod)
        .context("no metrics of the pod")
}

test!(
    fn a_container_has_used_processor_and_memory(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run_with("web", BUSY, |config| {
                config.labels.insert("app".into(), "web".into());
                let linux = config.linux.get_or_insert_default();
                linux.resources.get_or_insert_default().memory_limit_in_bytes = 64 << 20;
            })?;
            until("20 MB to be held", || {
                let memory = container_stats(cri, &web.id)?.memory.context("no memory")?;
                Ok((number(memory.working_set_bytes, "working set")? > 20 << 20).then_some(()))
            })?;
            // A rate needs two samples.
            std::thread::sleep(Duration::from_millis(1200));
            let stats = container_stats(cri, &web.id)?;
            let attributes = stats.attributes.context("no attributes")?;
            ensure!(
                attributes.id == web.id && attributes.labels.contains_key("app"),
                "{attributes:?}"
            );
            let cpu = stats.cpu.context("no cpu")?;
            ensure!(cpu.timestamp > 0, "{cpu:?}");
            ensure!(
                number(cpu.usage_core_nano_seconds, "usage")? > 100_000_000,
                "{cpu:?}"
            );
            let rate = number(cpu.usage_nano_cores, "rate")?;
            ensure!((50_000_000..2_500_000_000).contains(&rate), "{rate} nanocores");
            let memory = stats.memory.context("no memory")?;
            let used = number(memory.working_set_bytes, "working set")?;
            let left = number(memory.available_bytes, "available bytes")?;
            ensure!(used + left == 64 << 20, "{memory:?}");
            ensure!(number(memory.page_faults, "page faults")? > 0, "{memory:?}");
            Ok(())
        })
    }
);

test!(
    fn statistics_are_listed_by_id_pod_and_label(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let (one, other) = (cri.pod()?, cri.pod()?);
            let web = one.run_with("web", "sleep 1000", |config| {
                config.labels.insert("app".into(), "web".into());
            })?;
            let db = one.run("db", "sleep 1000")?;
            let far = other.run("far", "sleep 1000")?;
            let mut all = vec![web.id.clone(), db.id.clone(), far.id.clone()];
            all.sort();
            ensure!(listed(cri, None)? == all);
            let by = |change: fn(&mut ContainerStatsFilter, &str), value: &str| {
                let mut filter = ContainerStatsFilter::default();
                change(&mut filter, value);
                listed(cri, Some(filter))
            };
            ensure!(by(|filter, id| filter.id = id.into(), &db.id[..20])? == std::slice::from_ref(&db.id));
            ensure!(by(|filter, pod| filter.pod_sandbox_id = pod.into(), &other.id)? == [far.id]);
            let label = |filter: &mut ContainerStatsFilter, value: &str| {
                filter.label_selector.insert("app".into(), value.into());
            };
            ensure!(by(label, "web")? == [web.id]);
            ensure!(by(label, "db")?.is_empty());
            ensure!(by(|filter, id| filter.id = id.into(), "nobody")?.is_empty());
            let unknown = ContainerStatsRequest {
                container_id: "nobody".into(),
            };
            refused(cri.container_stats(unknown), Code::NotFound, &["nobody"])
        })
    }
);

test!(
    fn a_pods_statistics_have_its_network_its_processes_and_its_containers(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000 & sleep 1000")?;
            let host = cri.pod_with(|config| namespaces(config).network = NamespaceMode::Node.into())?;
            web.sh("ping -c 2 -W 1 10.88.0.1 >/dev/null || true")?;
            let request = ListPodSandboxStatsRequest { filter: None };
            let list = check("ListPodSandboxStats", cri.list_pod_sandbox_stats(request))?.stats;
            ensure!(list.len() == 2, "{list:?}");
            let of = |id: &str| {
                let found = list.iter().find(|stats| {
                    let attributes = stats.attributes.as_ref();
                    attributes.is_some_and(|attributes| attributes.id == id)
                });
                found
                    .and_then(|stats| stats.linux.clone())
                    .context("no statistics")
            };
            let linux = of(&pod.id)?;
            ensure!(linux.containers.len() == 1, "{linux:?}");
            let network = linux.network.context("no network")?;
            let eth0 = network.default_interface.context("no default interface")?;
            ensure!(eth0.name == "eth0", "{eth0:?}");
            ensure!(number(eth0.tx_bytes, "sent bytes")? > 0, "{eth0:?}");
            let processes = linux.process.context("no processes")?;
            ensure!(
                number(processes.process_count, "process count")? >= 2,
                "{processes:?}"
            );
            ensure!(number(linux.memory.context("no memory")?.usage_bytes, "usage")? > 0);
            ensure!(
                of(&host.id)?.network.is_none(),
                "the host's network is not a pod's"
            );
            pod.stop()?;
            let request = PodSandboxStatsRequest {
                pod_sandbox_id: pod.id.clone(),
            };
            refused(
                cri.pod_sandbox_stats(request),
                Code::Unavailable,
                &[&pod.id, "not ready"],
            )
        })
    }
);

test!(
    fn metrics_are_described_and_have_the_labels_that_they_say(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run_with("web", BUSY, |config| {
                let linux = config.linux.get_or_insert_default();
                let resources = linux.resources.get_or_insert_default();
                resources.cpu_quota = 20_000;
                resources.cpu_period = 100_000;
                resources.memory_limit_in_bytes = 64 << 20;
            })?;
            let answer = check(
                "ListMetricDescriptors",
                cri.list_metric_descriptors(ListMetricDescriptorsRequest {}),
            )?;
            let descriptors = answer.descriptors;
            let metrics = until("its socket to be there", || {
                let metrics = metrics_of(cri, &pod.id)?;
                let mut of_containers = metrics
                    .container_metrics
                    .iter()
                    .flat_map(|container| &container.metrics);
                let sockets = of_containers.find(|metric| metric.name == "container_sockets");
                let has = sockets.is_some_and(|metric| metric.value.is_some_and(|value| value.value > 0));
                Ok(has.then_some(metrics))
            })?;
            let container = metrics
                .container_metrics
                .first()
                .context("no container's metrics")?;
            ensure!(container.container_id == web.id, "{}", container.container_id);
            for metric in metrics.metrics.iter().chain(&container.metrics) {
                let descriptor = descriptors
                    .iter()
                    .find(|descriptor| descriptor.name == metric.name);
                let descriptor = descriptor.with_context(|| format!("{}: not described", metric.name))?;
                let labels = metric.label_values.len();
                ensure!(labels == descriptor.label_keys.len(), "{metric:?} {descriptor:?}");
                ensure!(metric.timestamp > 0 && metric.value.is_some(), "{metric:?}");
            }
            let value = |name: &str| {
                let mut all = metrics.metrics.iter().chain(&container.metrics);
                let found = all.find(|metric| metric.name == name);
                found
                    .and_then(|metric| metric.value)
                    .map(|value| value.value)
                    .with_context(|| name.to_owned())
            };
            for name in [
                "container_threads",
                "container_processes",
                "container_file_descriptors",
                "container_sockets",
                "container_memory_usage_bytes",
                "container_memory_working_set_bytes",
                "container_network_transmit_bytes_total",
                "container_fs_limit_bytes",
                "container_start_time_seconds",
                "container_ulimits_soft",
            ] {
                ensure!(value(name)? > 0, "{name}: 0");
            }
            ensure!(value("container_spec_cpu_quota")? == 20_000);
            ensure!(value("container_spec_memory_limit_bytes")? == 64 << 20);
            // What only some machines count: huge pages, pressure, block devices.
            let some = ["hugetlb", "pressure", "blkio", "_reads_", "_writes_"];
            for descriptor in &descriptors {
                let name = &descriptor.name;
                ensure!(
                    some.iter().any(|part| name.contains(part)) || value(name).is_ok(),
                    "{name}"
                );
            }
            Ok(())
        })
    }
);

test!(
    fn statistics_of_many_are_read_while_the_kubelet_waits(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pods: Vec<_> = (0..4).map(|_| cri.pod()).collect::<Result<_>>()?;
            for pod in &pods {
                for name in ["a", "b", "c"] {
                    pod.run(name, "sleep 1000")?;
                }
            }
            let quickest = |call: &dyn Fn() -> Result| {
                let times: Result<Vec<Duration>> = (0..5)
                    .map(|_| {
                        let begun = Instant::now();
                        call()?;
                        Ok(begun.elapsed())
                    })
                    .collect();
                times.map(|times| times.into_iter().min().unwrap_or_default())
            };
            let list = quickest(&|| listed(cri, None).map(drop))?;
            let metrics = quickest(&|| metrics_of(cri, &pods[0].id).map(drop))?;
            println!("12 containers: statistics {list:?}, metrics of 4 pods {metrics:?}");
            // Ten times what it takes on a busy machine of two processors.
            ensure!(
                list < Duration::from_millis(100),
                "statistics of 12 containers: {list:?}"
            );
            ensure!(
                metrics < Duration::from_millis(200),
                "metrics of 12 containers: {metrics:?}"
            );
            Ok(())
        })
    }
);
