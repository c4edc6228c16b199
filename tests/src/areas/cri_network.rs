//! Networks of pods: Debian's CNI plugins in a network of the test's own, and plugins that are scripts where it matters
//! what they are told, or what becomes of one that fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cri::proto::*;
use crate::cri::{Code, Cri, Setup, check, names, namespaces, only_ours, refused, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// Writes down what it is told, and does what the file `<name>.<verb>` says, then what a plugin does: it gives the pod
/// 10.99.0.7, or passes on the result that it got.
const STUB: &str = r#"#!/bin/sh
me=${0##*/}
cd STUBS || exit 1
cat > "$me.$CNI_COMMAND.in"
env | grep ^CNI_ > "$me.$CNI_COMMAND.env"
echo "$CNI_COMMAND $me" >> calls
[ ! -e "$me.$CNI_COMMAND" ] || . "./$me.$CNI_COMMAND"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "VERSION", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],
  "ips": [{"version": "4", "address": "10.99.0.7/24", "interface": 0}]}'
"#;

const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
    {"type": "calico", "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log",
     "datastore_type": "kubernetes", "nodename": "node-1", "mtu": 0, "ipam": {"type": "calico-ipam"},
     "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}"#;

/// Debian's, with ports of the host and both kinds of addresses.
const DUAL: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
     "ipam": {"type": "host-local", "dataDir": "ADDRESSES",
              "ranges": [[{"subnet": "fd00:88::/64"}], [{"subnet": "10.88.0.0/16"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

/// A server with these stubs for plugins.
struct Stubs<'c, 't> {
    cri: &'c Cri<'t>,
}

impl<'c, 't> Stubs<'c, 't> {
    fn new(cri: &'c Cri<'t>, plugins: &[&str], version: &str) -> Result<Self> {
        let stubs = Self { cri };
        fs::create_dir_all(cri.directory.join("stubs"))?;
        let directory = cri.directory.join("stubs").display().to_string();
        let text = STUB.replace("STUBS", &directory).replace("VERSION", version);
        for plugin in plugins {
            let path = cri.directory.join("bin").join(plugin);
            fs::write(&path, &text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(stubs)
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.cri.directory.join("stubs").join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// What a plugin does, a line of shell; empty: the usual.
    fn does(&self, name: &str, script: &str) -> Result {
        Ok(fs::write(self.cri.directory.join("stubs").join(name), script)?)
    }

    fn input(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.read(&format!("{name}.in"))?)?)
    }

    /// The calls since this was asked last.
    fn calls(&self) -> Result<Vec<String>> {
        let calls = self.read("calls").unwrap_or_default();
        self.does("calls", "")?;
        Ok(calls.lines().map(str::to_owned).collect())
    }
}

fn stubbed(network: &str) -> Setup {
    Setup {
        network: Some(network.to_owned()),
        cni: "timeout_seconds = 2".into(),
        ..Setup::default()
    }
}

/// How many addresses host-local has given out.
fn addresses(cri: &Cri<'_>) -> usize {
    let networks = fs::read_dir(cri.addresses()).into_iter().flatten().flatten();
    networks
        .flat_map(|network| fs::read_dir(network.path()).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().contains(['.', ':']))
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with("last_reserved"))
        .count()
}

fn network_condition(cri: &Cri<'_>) -> Result<RuntimeCondition> {
    let status = check("Status", cri.status(StatusRequest::default()))?.status;
    let conditions = status.context("no status")?.conditions;
    let network = conditions
        .into_iter()
        .find(|condition| condition.r#type == "NetworkReady");
    network.context("no NetworkReady")
}

test!(
    fn calicos_conflist_gives_each_plugin_what_it_asks_for(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            let pod = cri.pod_with(|config| {
                config.port_mappings.push(PortMapping {
                    protocol: Protocol::Sctp.into(),
                    container_port: 80,
                    host_port: 8080,
                    host_ip: "127.0.0.1".into(),
                });
                let annotations = &mut config.annotations;
                annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
            })?;
            ensure!(pod.ip()? == "10.99.0.7");
            ensure!(stubs.calls()? == ["ADD calico", "ADD portmap", "ADD bandwidth"]);
            let calico = stubs.input("calico.ADD")?;
            ensure!(
                calico["policy"]["type"] == "k8s" && calico["cniVersion"] == "0.3.1",
                "{calico}"
            );
            ensure!(
                calico.get("prevResult").is_none() && calico.get("runtimeConfig").is_none(),
                "{calico}"
            );
            let portmap = stubs.input("portmap.ADD")?;
            let ports = json!({"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "127.0.0.1"}]});
            ensure!(portmap["runtimeConfig"] == ports, "{portmap}");
            ensure!(
                portmap["prevResult"]["ips"][0]["address"] == "10.99.0.7/24",
                "{portmap}"
            );
            let bandwidth = &stubs.input("bandwidth.ADD")?["runtimeConfig"]["bandwidth"];
            ensure!(bandwidth["ingressRate"] == 10_000_000, "{bandwidth}");
            let environment = stubs.read("calico.ADD.env")?;
            names(
                &environment,
                &[
                    &format!("CNI_CONTAINERID={}\n", pod.id),
                    &format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
                    "K8S_POD_NAMESPACE=tests;",
                    "IgnoreUnknown=1",
                    "CNI_IFNAME=eth0\n",
                    "CNI_NETNS=/run/netns/",
                ],
            )?;
            pod.stop()?;
            pod.stop()?;
            pod.remove()?;
            ensure!(stubs.calls()? == ["DEL bandwidth", "DEL portmap", "DEL calico"]);
            Ok(())
        })
    }
);

test!(
    fn a_plugin_that_fails_fails_the_pod_and_leaves_nothing(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            for (script, code, why) in [
                (
                    r#"echo '{"code": 11, "msg": "no lock"}'; exit 1"#,
                    Code::Unavailable,
                    "no lock (code 11)",
                ),
                ("echo broken; exit 7", Code::Unknown, "broken"),
                ("echo broken; exit 0", Code::Unknown, "no JSON"),
                ("kill -SEGV $$", Code::Unknown, "signal"),
                (
                    "head -c 3000000 /dev/zero; exit 0",
                    Code::Unknown,
                    "wrote more than",
                ),
                (
                    "sleep 1000 & sleep 1000",
                    Code::DeadlineExceeded,
                    "its time was up",
                ),
            ] {
                stubs.does("portmap.ADD", script)?;
                let begun = Instant::now();
                refused(
                    cri.run_pod(&cri.pod_config()?).map(drop),
                    code,
                    &["portmap", "ADD", why],
                )?;
                ensure!(
                    begun.elapsed() < Duration::from_secs(10),
                    "{script}: {:?}",
                    begun.elapsed()
                );
                let calls = stubs.calls()?;
                let undone = [
                    "ADD calico",
                    "ADD portmap",
                    "DEL bandwidth",
                    "DEL portmap",
                    "DEL calico",
                ];
                ensure!(calls == undone, "{script}: {calls:?}");
                let pods = check(
                    "ListPodSandbox",
                    cri.list_pod_sandbox(ListPodSandboxRequest::default()),
                )?;
                ensure!(pods.items.is_empty(), "{pods:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn a_stop_whose_plugin_fails_is_said_and_done_again(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            let pod = cri.pod()?;
            stubs.calls()?;
            stubs.does("calico.DEL", "exit 1")?;
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            };
            refused(cri.stop_pod_sandbox(stop), Code::Unknown, &["calico", "DEL"])?;
            stubs.does("calico.DEL", "")?;
            pod.stop()?;
            let calls = stubs.calls()?;
            ensure!(calls.last().is_some_and(|call| call == "DEL calico"), "{calls:?}");
            Ok(())
        })
    }
);

test!(
    fn what_add_left_is_deleted_in_the_background_when_del_failed_too(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            stubs.does("bandwidth.ADD", "exit 1")?;
            stubs.does("calico.DEL", "exit 1")?;
            refused(
                cri.run_pod(&cri.pod_config()?).map(drop),
                Code::Unknown,
                &["bandwidth", "ADD"],
            )?;
            stubs.calls()?;
            stubs.does("calico.DEL", "")?;
            until("the second DEL", || {
                let calls = stubs.read("calls").unwrap_or_default();
                Ok(calls.contains("DEL calico").then_some(()))
            })
        })
    }
);

test!(
    fn the_node_is_ready_when_its_network_is(t: &Test) -> Result {
        only_ours(t)?;
        let setup = Setup {
            network: None,
            ..Setup::default()
        };
        setup.with(t, |cri| {
            let none = network_condition(cri)?;
            ensure!(
                !none.status && none.message.contains("no network configuration"),
                "{none:?}"
            );
            refused(
                cri.run_pod(&cri.pod_config()?).map(drop),
                Code::Unavailable,
                &["no network configuration"],
            )?;
            let stubs = Stubs::new(cri, &["cilium-cni"], "1.1.0")?;
            let text = r#"{"cniVersion": "1.1.0", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}"#;
            cri.set_network(&text.replace("cilium-cni", "missing"))?;
            let missing = network_condition(cri)?;
            ensure!(
                !missing.status && missing.message.contains("\"missing\""),
                "{missing:?}"
            );
            cri.set_network("{ not json")?;
            let wrong = network_condition(cri)?;
            ensure!(
                !wrong.status && wrong.message.contains("10-net.conflist: is no JSON"),
                "{wrong:?}"
            );
            stubs.does(
                "cilium-cni.STATUS",
                r#"echo '{"code": 50, "msg": "agent is away"}'; exit 1"#,
            )?;
            cri.set_network(text)?;
            let away = network_condition(cri)?;
            ensure!(!away.status && away.message.contains("agent is away"), "{away:?}");
            stubs.does("cilium-cni.STATUS", "")?;
            until("the network to be ready", || {
                Ok(network_condition(cri)?.status.then_some(()))
            })?;
            let pod = cri.pod()?;
            ensure!(pod.ip()? == "10.99.0.7");
            Ok(())
        })
    }
);

test!(
    fn a_pod_has_its_addresses_ipv4_first_and_gives_them_back(t: &Test) -> Result {
        only_ours(t)?;
        let setup = Setup {
            network: Some(DUAL.into()),
            ..Setup::default()
        };
        setup.with(t, |cri| {
            let pod = cri.pod()?;
            let network = pod.status()?.network.context("no network")?;
            ensure!(network.ip.starts_with("10.88."), "{network:?}");
            let others = &network.additional_ips;
            ensure!(
                others.len() == 1 && others[0].ip.starts_with("fd00:88:"),
                "{network:?}"
            );
            ensure!(addresses(cri) == 2, "{} addresses", addresses(cri));
            let web = pod.run("web", "sleep 1000")?;
            names(&web.sh("ip addr show eth0")?, &[&network.ip, &others[0].ip])?;
            pod.stop()?;
            ensure!(addresses(cri) == 0, "{} addresses", addresses(cri));
            Ok(())
        })
    }
);

test!(
    fn a_port_of_the_host_leads_to_the_pod(t: &Test) -> Result {
        only_ours(t)?;
        // To list a table that can't be is no error to iptables over nf_tables; to write it is.
        let nat = Command::new("unshare")
            .args(["--net", "iptables", "-t", "nat", "-N", "RTC-TEST"])
            .output();
        if !nat.is_ok_and(|output| output.status.success()) {
            t.skip("no address translation")?;
        }
        let setup = Setup {
            network: Some(DUAL.into()),
            ..Setup::default()
        };
        setup.with(t, |cri| {
            let pod = cri.pod_with(|config| {
                config.port_mappings.push(PortMapping {
                    container_port: 80,
                    host_port: 8080,
                    ..PortMapping::default()
                });
            })?;
            pod.run("web", "echo found > /tmp/index.html; httpd -f -p 80 -h /tmp")?;
            // From the host's side of the bridge; 127.0.0.1 would need route_localnet.
            until("an answer through the host's port", || {
                let Ok(mut stream) = TcpStream::connect("10.88.0.1:8080") else {
                    return Ok(None);
                };
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                Ok(answer.contains("found").then_some(()))
            })
        })
    }
);

test!(
    fn a_pod_on_the_hosts_network_needs_no_plugin(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            stubs.does("calico.ADD", "exit 1")?;
            let pod = cri.pod_with(|config| {
                namespaces(config).network = NamespaceMode::Node.into();
                config.port_mappings.push(PortMapping {
                    container_port: 80,
                    host_port: 80,
                    ..PortMapping::default()
                });
            })?;
            pod.stop()?;
            ensure!(stubs.calls()?.is_empty());
            Ok(())
        })
    }
);

test!(
    fn a_pods_network_outlives_the_server_and_is_deleted_with_the_configuration_of_its_add(
        t: &Test,
    ) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth", "cilium-cni"], "0.3.1")?;
            let pod = cri.pod()?;
            stubs.calls()?;
            cri.signal(Signal::SIGKILL)?;
            cri.set_network(
                r#"{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni"}]}"#,
            )?;
            cri.start_server()?;
            ensure!(pod.ip()? == "10.99.0.7");
            ensure!(
                stubs.calls()?.is_empty(),
                "the network of a living pod is left alone"
            );
            pod.stop()?;
            ensure!(stubs.calls()? == ["DEL bandwidth", "DEL portmap", "DEL calico"]);
            Ok(())
        })
    }
);

test!(
    fn attachments_of_a_boot_before_are_deleted_at_start(t: &Test) -> Result {
        only_ours(t)?;
        stubbed(CALICO).with(t, |cri| {
            let stubs = Stubs::new(cri, &["calico", "portmap", "bandwidth"], "0.3.1")?;
            let pod = cri.pod()?;
            let journal = cri.root().join("attachments.journal");
            let recorded = fs::read(&journal)?;
            pod.stop()?;
            pod.remove()?;
            cri.signal(Signal::SIGKILL)?;
            // As a machine that lost its power left it: attached, and no pod.
            fs::write(&journal, recorded)?;
            stubs.calls()?;
            cri.start_server()?;
            until("DEL of all its plugins", || {
                let calls = stubs.read("calls")?;
                Ok((calls == "DEL bandwidth\nDEL portmap\nDEL calico\n").then_some(()))
            })?;
            names(
                &stubs.read("calico.DEL.env")?,
                &["CNI_NETNS=\n", &format!("CNI_CONTAINERID={}\n", pod.id)],
            )
        })
    }
);

test!(
    fn many_pods_at_once_have_each_an_address_and_leave_none(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let mut pods = Vec::new();
            let answers: Vec<_> = std::thread::scope(|scope| {
                let configs: Result<Vec<_>> = (0..8).map(|_| cri.pod_config()).collect();
                let threads: Vec<_> = configs?
                    .into_iter()
                    .map(|config| {
                        let client = cri.another_client()?;
                        Ok(scope.spawn(move || {
                            client.run_pod_sandbox(RunPodSandboxRequest {
                                config: Some(config),
                                runtime_handler: String::new(),
                            })
                        }))
                    })
                    .collect::<Result<_>>()?;
                Result::<_>::Ok(
                    threads
                        .into_iter()
                        .map(std::thread::ScopedJoinHandle::join)
                        .collect(),
                )
            })?;
            for answer in answers {
                let answer = answer.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                pods.push(check("RunPodSandbox", answer)?.pod_sandbox_id);
            }
            ensure!(addresses(cri) == pods.len(), "{} addresses", addresses(cri));
            cri.remove_pods()?;
            ensure!(addresses(cri) == 0, "{} addresses", addresses(cri));
            Ok(())
        })
    }
);

test!(
    fn ports_and_bandwidth_that_can_not_be_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let mut config = cri.pod_config()?;
            config.port_mappings.push(PortMapping {
                container_port: 70000,
                host_port: 80,
                ..PortMapping::default()
            });
            refused(
                cri.run_pod(&config).map(drop),
                Code::InvalidArgument,
                &["port_mappings[0]", "container_port", "70000"],
            )?;
            let mut config = cri.pod_config()?;
            let key = "kubernetes.io/egress-bandwidth";
            config.annotations.insert(key.into(), "1".into());
            refused(
                cri.run_pod(&config).map(drop),
                Code::InvalidArgument,
                &[key, "\"1\""],
            )?;
            let mut config = cri.pod_config()?;
            if let Some(metadata) = &mut config.metadata {
                metadata.name = "x;K8S_POD_NAMESPACE=kube-system".into();
            }
            refused(
                cri.run_pod(&config).map(drop),
                Code::InvalidArgument,
                &["metadata.name"],
            )
        })
    }
);
