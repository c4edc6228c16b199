//! Pods of a CRI server: what they are made of, their states, and that nothing of them stays.

use std::fs;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::cri::proto::*;
use crate::cri::{Code, Cri, check, namespaces, only_ours, place, refused, with};
use crate::host::process;
use crate::registry::Result;
use crate::test;

fn listed(cri: &Cri<'_>, filter: PodSandboxFilter) -> Result<Vec<String>> {
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let list = check("ListPodSandbox", cri.list_pod_sandbox(request))?;
    let mut ids: Vec<_> = list.items.into_iter().map(|pod| pod.id).collect();
    ids.sort();
    Ok(ids)
}

test!(
    fn a_server_names_its_version(t: &Test) -> Result {
        with(t, |cri| {
            let version = check("Version", cri.version(VersionRequest::default()))?;
            ensure!(version.runtime_api_version == "v1", "{version:?}");
            ensure!(
                !version.runtime_name.is_empty() && !version.runtime_version.is_empty(),
                "{version:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn runtime_and_network_become_ready(t: &Test) -> Result {
        with(t, |cri| {
            let answer = check("Status", cri.status(StatusRequest { verbose: true }))?;
            let conditions = answer.status.context("no status")?.conditions;
            for name in ["RuntimeReady", "NetworkReady"] {
                let found = conditions.iter().find(|condition| condition.r#type == name);
                ensure!(found.is_some_and(|condition| condition.status), "{conditions:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn the_cgroup_driver_is_told_to_the_kubelet(t: &Test) -> Result {
        with(t, |cri| {
            let answer = check("RuntimeConfig", cri.runtime_config(RuntimeConfigRequest {}))?;
            let linux = answer.linux.context("no linux")?;
            ensure!(linux.cgroup_driver() == CgroupDriver::Cgroupfs, "{linux:?}");
            Ok(())
        })
    }
);

test!(
    fn a_pod_is_ready_then_not_ready_then_gone(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| {
                config.labels.insert("app".into(), "web".into());
                config.annotations.insert("note".into(), "kept".into());
            })?;
            let status = pod.status()?;
            ensure!(status.state() == PodSandboxState::SandboxReady, "{status:?}");
            ensure!(status.metadata == pod.config.metadata, "{status:?}");
            ensure!(
                status.labels.get("app").is_some_and(|app| app == "web"),
                "{status:?}"
            );
            ensure!(
                status.annotations.get("note").is_some_and(|note| note == "kept"),
                "{status:?}"
            );
            ensure!(status.created_at > 0, "{status:?}");
            pod.stop()?;
            ensure!(
                pod.status()?.state() == PodSandboxState::SandboxNotready,
                "after StopPodSandbox"
            );
            pod.remove()?;
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: pod.id.clone(),
                verbose: false,
            };
            refused(cri.pod_sandbox_status(request), Code::NotFound, &[&pod.id])
        })
    }
);

test!(
    fn stopping_and_removing_twice_is_no_error(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            web.stop(0)?;
            web.stop(0)?;
            web.remove()?;
            web.remove()?;
            pod.stop()?;
            pod.stop()?;
            pod.remove()?;
            pod.remove()
        })
    }
);

test!(
    fn stopping_what_never_was_is_no_error(t: &Test) -> Result {
        with(t, |cri| {
            let id = "f".repeat(64);
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            check("StopPodSandbox", cri.stop_pod_sandbox(stop))?;
            let remove = RemovePodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            check("RemovePodSandbox", cri.remove_pod_sandbox(remove))?;
            let stop = StopContainerRequest {
                container_id: id.clone(),
                timeout: 1,
            };
            check("StopContainer", cri.stop_container(stop))?;
            check(
                "RemoveContainer",
                cri.remove_container(RemoveContainerRequest { container_id: id }),
            )?;
            Ok(())
        })
    }
);

test!(
    fn pods_are_listed_by_id_state_and_label(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod_with(|config| drop(config.labels.insert("app".into(), "web".into())))?;
            let database =
                cri.pod_with(|config| drop(config.labels.insert("app".into(), "database".into())))?;
            database.stop()?;
            let by_id = PodSandboxFilter {
                id: web.id.clone(),
                ..PodSandboxFilter::default()
            };
            ensure!(listed(cri, by_id)? == std::slice::from_ref(&web.id));
            let by_label = PodSandboxFilter {
                label_selector: [("app".to_owned(), "database".to_owned())].into(),
                ..PodSandboxFilter::default()
            };
            ensure!(listed(cri, by_label.clone())? == std::slice::from_ref(&database.id));
            let ready = PodSandboxStateValue {
                state: PodSandboxState::SandboxReady.into(),
            };
            let by_state = PodSandboxFilter {
                state: Some(ready),
                ..PodSandboxFilter::default()
            };
            ensure!(listed(cri, by_state)? == std::slice::from_ref(&web.id));
            let by_both = PodSandboxFilter {
                state: Some(ready),
                ..by_label
            };
            ensure!(listed(cri, by_both)?.is_empty());
            let mut all = vec![web.id.clone(), database.id.clone()];
            all.sort();
            ensure!(listed(cri, PodSandboxFilter::default())? == all);
            Ok(())
        })
    }
);

test!(
    fn stopping_a_pod_stops_its_containers_and_frees_its_address(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "trap '' TERM; sleep 1000")?;
            let ip = pod.ip()?;
            ensure!(
                cri.addresses().join("pods").join(&ip).exists(),
                "no {ip} in host-local"
            );
            pod.stop()?;
            web.is(ContainerState::ContainerExited)?;
            ensure!(
                !cri.addresses().join("pods").join(&ip).exists(),
                "{ip} is still in use"
            );
            Ok(())
        })
    }
);

test!(
    fn removing_a_running_pod_removes_all_of_it(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            pod.run("web", "sleep 1000")?;
            pod.run("log", "sleep 1000")?;
            pod.remove()?;
            ensure!(cri.containers()?.is_empty(), "containers are left");
            Ok(())
        })
    }
);

test!(
    fn containers_of_a_pod_share_network_host_name_and_ipc(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| config.hostname = "the-host".into())?;
            let one = pod.run("one", "sleep 1000")?;
            let other = pod.run("other", "sleep 1000")?;
            let namespace = |kind: &str| format!("readlink /proc/self/ns/{kind}");
            for kind in ["net", "ipc", "uts"] {
                ensure!(one.sh(&namespace(kind))? == other.sh(&namespace(kind))?, "{kind}");
                let host = process::namespace("self", kind)?;
                ensure!(one.sh(&namespace(kind))? != host, "{kind} is the host's");
            }
            for kind in ["pid", "mnt"] {
                ensure!(one.sh(&namespace(kind))? != other.sh(&namespace(kind))?, "{kind}");
            }
            one.exec(&["hostname"])?.prints("the-host")?;
            one.exec(&["cat", "/etc/hostname"])?.prints("the-host")?;
            one.sh("echo shared >/dev/shm/file")?;
            other.exec(&["cat", "/dev/shm/file"])?.prints("shared")?;
            let ip = pod.ip()?;
            ensure!(one.sh("ip -4 addr show eth0")?.contains(&ip), "eth0 has no {ip}");
            ensure!(one.sh("ip link show lo")?.contains("UP"), "lo is down");
            Ok(())
        })
    }
);

test!(
    fn a_shared_pid_namespace_shows_all_processes_of_the_pod(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| namespaces(config).pid = NamespaceMode::Pod.into())?;
            let one = pod.run("one", "sleep 1234")?;
            let other = pod.run("other", "sleep 4321")?;
            ensure!(other.sh("ps")?.contains("sleep 1234"), "{}", other.sh("ps")?);
            ensure!(one.sh("ps")?.contains("sleep 4321"), "{}", one.sh("ps")?);
            // The end of one is not the other's.
            one.stop(0)?;
            other.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_container_can_target_the_pid_namespace_of_another(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1234")?;
            let debug = pod.run_with("debug", "sleep 4321", |config| {
                let security = crate::cri::security(config);
                let namespaces = security.namespace_options.get_or_insert_default();
                namespaces.pid = NamespaceMode::Target.into();
                namespaces.target_id = web.id.clone();
            })?;
            ensure!(debug.sh("ps")?.contains("sleep 1234"), "{}", debug.sh("ps")?);
            Ok(())
        })
    }
);

test!(
    fn a_pod_in_the_hosts_namespaces_has_none_of_its_own(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| {
                config.hostname.clear();
                let namespaces = namespaces(config);
                namespaces.network = NamespaceMode::Node.into();
                namespaces.pid = NamespaceMode::Node.into();
                namespaces.ipc = NamespaceMode::Node.into();
            })?;
            let web = pod.run("web", "sleep 1000")?;
            for kind in ["net", "ipc", "pid", "uts"] {
                let host = process::namespace("self", kind)?;
                ensure!(
                    web.sh(&format!("readlink /proc/self/ns/{kind}"))? == host,
                    "{kind}"
                );
            }
            let network = pod.status()?.network.unwrap_or_default();
            ensure!(
                network.ip.is_empty(),
                "the host's address is the kubelet's to say: {network:?}"
            );
            ensure!(
                fs::read_dir(cri.addresses())?.count() == 0,
                "an address was taken"
            );
            Ok(())
        })
    }
);

test!(
    fn sysctls_of_the_pod_are_set(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| {
                let linux = config.linux.get_or_insert_default();
                linux
                    .sysctls
                    .insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
                linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
            })?;
            let web = pod.run("web", "sleep 1000")?;
            web.exec(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"])?
                .prints("80")?;
            web.exec(&["cat", "/proc/sys/kernel/shm_rmid_forced"])?
                .prints("1")?;
            Ok(())
        })
    }
);

test!(
    fn dns_of_the_pod_is_in_resolv_conf(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod_with(|config| {
                config.dns_config = Some(DnsConfig {
                    servers: vec!["10.96.0.10".into()],
                    searches: vec!["tests.svc.cluster.local".into(), "cluster.local".into()],
                    options: vec!["ndots:5".into()],
                });
            })?;
            let text = pod.run("web", "sleep 1000")?.sh("cat /etc/resolv.conf")?;
            for line in [
                "nameserver 10.96.0.10",
                "search tests.svc.cluster.local cluster.local",
                "options ndots:5",
            ] {
                ensure!(text.lines().any(|found| found == line), "no {line:?} in {text:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn running_a_pod_again_gives_the_same_pod(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let again = check("RunPodSandbox", cri.run_pod(&pod.config))?;
            ensure!(again == pod.id, "{again} is not {}", pod.id);
            let mut next = pod.config.clone();
            next.metadata.get_or_insert_default().attempt += 1;
            let next = check("RunPodSandbox", cri.run_pod(&next))?;
            ensure!(next != pod.id, "another attempt is another pod");
            Ok(())
        })
    }
);

test!(
    fn a_removed_pods_name_is_free(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            pod.remove()?;
            let again = check("RunPodSandbox", cri.run_pod(&pod.config))?;
            ensure!(again != pod.id, "the id of a pod that is gone");
            Ok(())
        })
    }
);

test!(
    fn eight_pods_are_made_and_removed_at_once(t: &Test) -> Result {
        with(t, |cri| {
            cri.busybox()?;
            let configs: Vec<_> = (0..8).map(|_| cri.pod_config()).collect::<Result<_>>()?;
            let ids: Vec<String> = cri.wait(async {
                let calls = configs.iter().map(|config| {
                    let (mut client, config) = (cri.runtime(), config.clone());
                    tokio::spawn(async move {
                        let request = RunPodSandboxRequest {
                            config: Some(config),
                            runtime_handler: String::new(),
                        };
                        let answer = client.run_pod_sandbox(request).await;
                        answer.map(|answer| answer.into_inner().pod_sandbox_id)
                    })
                });
                let calls: Vec<_> = calls.collect();
                let mut ids = Vec::new();
                for call in calls {
                    ids.push(check("RunPodSandbox", call.await?)?);
                }
                Result::Ok(ids)
            })?;
            let mut addresses: Vec<String> = Vec::new();
            for id in &ids {
                let request = PodSandboxStatusRequest {
                    pod_sandbox_id: id.clone(),
                    verbose: false,
                };
                let status = check("PodSandboxStatus", cri.pod_sandbox_status(request))?.status;
                let network = status.and_then(|status| status.network).context("no network")?;
                addresses.push(network.ip);
            }
            addresses.sort();
            addresses.dedup();
            ensure!(addresses.len() == 8, "{addresses:?}");
            cri.wait(async {
                let calls = ids.iter().map(|id| {
                    let (mut client, pod_sandbox_id) = (cri.runtime(), id.clone());
                    tokio::spawn(async move {
                        client
                            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
                            .await
                    })
                });
                for call in calls.collect::<Vec<_>>() {
                    check("RemovePodSandbox", call.await?)?;
                }
                Ok(())
            })
        })
    }
);

test!(
    fn a_pod_is_stopped_though_nothing_can_be_written_down(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.signal(Signal::SIGTERM)?;
            let state = cri.state().display().to_string();
            place::busybox(&["mount", "-t", "tmpfs", "-o", "size=4m,mode=711", "state", &state])?;
            cri.start_server()?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let filler = cri.state().join("filler");
            let full = fs::write(&filler, vec![0; 8 << 20]);
            ensure!(full.is_err(), "there is room");
            // All is ended; that it could not be written down is said, once.
            if pod.stop().is_err() {
                pod.stop()?;
            }
            ensure!(pod.status()?.state() == PodSandboxState::SandboxNotready);
            web.is(ContainerState::ContainerExited)?;
            ensure!(!fs::exists(format!("/run/netns/rtc-{}", pod.id))?);
            fs::remove_file(&filler)?;
            pod.remove()?;
            ensure!(cri.containers()?.is_empty());
            cri.signal(Signal::SIGTERM)?;
            place::busybox(&["umount", "-l", &state])?;
            cri.start_server()
        })
    }
);
