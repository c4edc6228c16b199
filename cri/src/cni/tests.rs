//! Networks against plugins that are scripts: each writes down what it was given, and does what the test says. What needs
//! root and namespaces is in `tests/src/areas/cri_network.rs`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Addresses, Cni, Pod};
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::proto::{PortMapping, Protocol};

/// A directory that goes with its value.
pub(super) struct Directory {
    pub(super) path: PathBuf,
}

impl Directory {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rtc-cni-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self { path }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `calls` has a line for each call, `<plugin>.<verb>.in` its stdin, `.env` its environment; `<plugin>.<verb>` is what it
/// does, where it is there.
const PLUGIN: &str = r#"#!/bin/sh
me=$(basename "$0")
cd "$(dirname "$0")/.." || exit 1
cat > "$me.$CNI_COMMAND.in"
env | grep ^CNI_ | sort > "$me.$CNI_COMMAND.env"
echo "$CNI_COMMAND $me $CNI_CONTAINERID" >> calls
[ ! -e "$me.$CNI_COMMAND" ] || . "./$me.$CNI_COMMAND"
[ "$CNI_COMMAND" != ADD ] || cat result
"#;

const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
    {"type": "calico", "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log",
     "datastore_type": "kubernetes", "nodename": "node-1", "mtu": 0, "ipam": {"type": "calico-ipam"},
     "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}"#;

const CILIUM: &str = r#"{"cniVersion": "0.3.1", "name": "cilium", "plugins": [
    {"type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log"}]}"#;

/// A node with plugins.
struct Node {
    directory: Directory,
    cni: Cni,
}

impl Node {
    fn new(conflist: &str, plugins: &[&str]) -> Self {
        let directory = Directory::new();
        for name in ["net.d", "bin"] {
            fs::create_dir(directory.path.join(name)).unwrap();
        }
        for name in plugins {
            let path = directory.path.join("bin").join(name);
            fs::write(&path, PLUGIN).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let cni = Self::open(&directory.path);
        let node = Self { directory, cni };
        node.write("net.d/10-net.conflist", conflist);
        node.write(
            "result",
            r#"{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.244.1.5/24"}]}"#,
        );
        node
    }

    fn open(path: &Path) -> Cni {
        let mut config = Config {
            root: path.join("root"),
            ..Config::default()
        };
        config.cni.conf_dir = path.join("net.d");
        config.cni.bin_dirs = vec![path.join("nothing"), path.join("bin")];
        config.cni.cache_dir = path.join("cache");
        config.cni.timeout_seconds = 2;
        Cni::open(&config).unwrap()
    }

    /// As after a restart.
    fn reopen(&mut self) {
        self.cni = Self::open(&self.directory.path);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn input(&self, plugin: &str, verb: &str) -> Value {
        serde_json::from_str(&self.read(&format!("{plugin}.{verb}.in"))).unwrap()
    }

    /// The calls since this was asked last.
    fn calls(&self) -> Vec<String> {
        let calls = self.read("calls").lines().map(str::to_owned).collect();
        let _ = fs::remove_file(self.path("calls"));
        calls
    }

    async fn add(&self, id: &str) -> Result<Addresses> {
        let annotations = BTreeMap::from([("kubernetes.io/egress-bandwidth".to_owned(), "1M".to_owned())]);
        self.cni
            .add(&Pod {
                id,
                name: "web-0",
                namespace: "shop",
                uid: "u-1",
                netns: Path::new("/proc/self/ns/net"),
                port_mappings: &[PortMapping {
                    protocol: Protocol::Tcp.into(),
                    container_port: 80,
                    host_port: 8080,
                    host_ip: String::new(),
                }],
                dns: None,
                cgroup_parent: "",
                annotations: &annotations,
            })
            .await
    }
}

#[tokio::test]
async fn flannel_gets_what_its_conflist_and_the_pod_say() {
    let node = Node::new(FLANNEL, &["flannel", "portmap"]);
    node.cni.ready().await.unwrap();
    let addresses = node.add("abc").await.unwrap();
    assert_eq!(addresses.ips, ["10.244.1.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.calls(), ["ADD flannel abc", "ADD portmap abc"]);
    assert_eq!(
        node.input("flannel", "ADD"),
        json!({
            "name": "cbr0", "cniVersion": "0.3.1", "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        })
    );
    assert_eq!(
        node.input("portmap", "ADD"),
        json!({
            "name": "cbr0", "cniVersion": "0.3.1", "type": "portmap",
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            "prevResult": {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.244.1.5/24"}], "dns": {}},
        })
    );
    let path = format!(
        "{}:{}",
        node.path("nothing").display(),
        node.path("bin").display()
    );
    assert_eq!(
        node.read("portmap.ADD.env"),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1\n\
             CNI_COMMAND=ADD\nCNI_CONTAINERID=abc\nCNI_IFNAME=eth0\nCNI_NETNS=/proc/self/ns/net\nCNI_PATH={path}\n"
        )
    );
    node.cni.delete("abc").await.unwrap();
    assert_eq!(node.calls(), ["DEL portmap abc", "DEL flannel abc"]);
    assert!(node.input("portmap", "DEL")["runtimeConfig"]["portMappings"].is_array());
    // Once.
    node.cni.delete("abc").await.unwrap();
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn calicos_plugins_are_told_what_each_wants() {
    let node = Node::new(CALICO, &["calico", "portmap", "bandwidth"]);
    node.add("abc").await.unwrap();
    assert_eq!(
        node.calls(),
        ["ADD calico abc", "ADD portmap abc", "ADD bandwidth abc"]
    );
    let calico = node.input("calico", "ADD");
    assert_eq!(calico["ipam"]["type"], "calico-ipam");
    assert!(calico.get("runtimeConfig").is_none() && calico.get("prevResult").is_none());
    let portmap = node.input("portmap", "ADD");
    assert_eq!(portmap["snat"], true);
    assert!(portmap.get("capabilities").is_none() && portmap["runtimeConfig"].get("bandwidth").is_none());
    assert_eq!(
        node.input("bandwidth", "ADD")["runtimeConfig"],
        json!({"bandwidth": {"egressRate": 1_000_000, "egressBurst": u32::MAX}})
    );
}

#[tokio::test]
async fn cilium_gets_its_fields_untouched() {
    let node = Node::new(CILIUM, &["cilium-cni"]);
    node.add("abc").await.unwrap();
    let input = node.input("cilium-cni", "ADD");
    assert_eq!(input["enable-debug"], false);
    assert_eq!(input["log-file"], "/var/run/cilium/cilium-cni.log");
    assert_eq!(input["cniVersion"], "0.3.1");
}

#[tokio::test]
async fn from_0_4_on_del_and_check_get_the_last_result_even_after_a_restart() {
    let mut node = Node::new(&FLANNEL.replace("0.3.1", "1.0.0"), &["flannel", "portmap"]);
    node.write("result", r#"{"interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "fd00::5/64", "interface": 0}], "dns": {"domain": "d"}}"#);
    node.add("abc").await.unwrap();
    node.reopen();
    assert!(node.cni.check("abc").await.unwrap());
    node.cni.delete("abc").await.unwrap();
    assert_eq!(
        node.calls(),
        [
            "ADD flannel abc",
            "ADD portmap abc",
            "CHECK flannel abc",
            "CHECK portmap abc",
            "DEL portmap abc",
            "DEL flannel abc"
        ]
    );
    for (plugin, verb) in [("flannel", "CHECK"), ("portmap", "DEL"), ("flannel", "DEL")] {
        assert_eq!(
            node.input(plugin, verb)["prevResult"],
            json!({
                "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
                "ips": [{"address": "fd00::5/64", "interface": 0}], "dns": {"domain": "d"},
            }),
            "{plugin} {verb}"
        );
    }
    assert_eq!(node.cni.check("abc").await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test]
async fn what_fails_is_undone_last_to_first_and_forgotten() {
    let mut node = Node::new(CALICO, &["calico", "portmap", "bandwidth"]);
    node.write(
        "portmap.ADD",
        r#"echo '{"code": 11, "msg": "xtables", "details": "locked"}'; exit 1"#,
    );
    let error = node.add("abc").await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert_eq!(
        error.to_string(),
        "network \"k8s-pod-network\": CNI plugin \"portmap\": ADD: xtables; locked (code 11)"
    );
    let undone = ["DEL bandwidth abc", "DEL portmap abc", "DEL calico abc"];
    assert_eq!(node.calls()[2..], undone);
    node.reopen();
    node.cni.delete("abc").await.unwrap();
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let node = Node::new(CILIUM, &["cilium-cni"]);
    node.write("cilium-cni.ADD", "sleep 98765 & echo $! > child; sleep 98766");
    let begun = Instant::now();
    let error = node.add("abc").await.unwrap_err();
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let child = PathBuf::from("/proc")
        .join(node.read("child").trim())
        .join("cmdline");
    let gone = || !fs::read_to_string(&child).unwrap_or_default().contains("98765");
    for _ in 0..100 {
        if gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(gone());
    assert_eq!(node.calls(), ["ADD cilium-cni abc", "DEL cilium-cni abc"]);
}

#[tokio::test]
async fn nonsense_is_an_error_that_shows_it() {
    let node = Node::new(CILIUM, &["cilium-cni"]);
    for (script, message) in [
        ("echo Segmentation fault; exit 139", "Segmentation fault"),
        ("echo out of memory >&2; exit 2", "exit status: 2: out of memory"),
        ("kill -9 $$", "signal: 9"),
        ("exit 3", "without a message"),
        ("echo hello; exit 0", "is no JSON"),
        ("echo '{}'; exit 0", "no address of eth0"),
        (
            "echo '{\"ips\": [{\"address\": \"10.0.0.1/8\", \"interface\": 7}]}'; exit 0",
            "ips[0].interface: 7",
        ),
        ("head -c 2000000 /dev/zero; exit 0", "wrote more than"),
        ("echo '{\"cniVersion\": \"7.0.0\"}'; exit 0", "newer"),
    ] {
        node.write("cilium-cni.ADD", script);
        let error = node.add("abc").await.unwrap_err().to_string();
        assert!(error.contains(message), "{script}: {error}");
        assert_eq!(node.calls().last().unwrap(), "DEL cilium-cni abc", "{script}");
    }
    let results = fs::read_dir(node.path("cache/results")).map_or(0, Iterator::count);
    assert_eq!(results, 0);
}

#[tokio::test]
async fn a_failed_del_is_tried_again_by_the_caller_or_in_the_background() {
    let mut node = Node::new(FLANNEL, &["flannel", "portmap"]);
    node.add("abc").await.unwrap();
    node.calls();
    node.write("portmap.DEL", "exit 1");
    assert!(node.cni.delete("abc").await.is_err());
    // What comes before it is still in use.
    assert_eq!(node.calls(), ["DEL portmap abc"]);
    node.reopen();
    assert!(node.cni.delete("abc").await.is_err());
    fs::remove_file(node.path("portmap.DEL")).unwrap();
    let begun = Instant::now();
    while node.calls().last().is_none_or(|call| call != "DEL flannel abc") {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.cni.delete("abc").await.unwrap();
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn pods_that_are_no_more_lose_their_network_at_start_with_the_configuration_of_their_add() {
    let mut node = Node::new(FLANNEL, &["flannel", "portmap", "cilium-cni"]);
    for pod in ["dead", "alive"] {
        node.add(pod).await.unwrap();
    }
    node.calls();
    fs::remove_file(node.path("net.d/10-net.conflist")).unwrap();
    node.write("net.d/05-cilium.conflist", CILIUM);
    node.reopen();
    node.cni.reconcile(&HashSet::from(["alive".to_owned()])).await;
    assert_eq!(node.calls(), ["DEL portmap dead", "DEL flannel dead"]);
    node.add("new").await.unwrap();
    assert_eq!(node.calls(), ["ADD cilium-cni new"]);
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_not_named_and_not_missed() {
    let node = Node::new(FLANNEL, &["flannel", "portmap"]);
    let none = BTreeMap::new();
    let pod = Pod {
        id: "abc",
        name: "a",
        namespace: "b",
        uid: "c",
        netns: &node.path("gone"),
        port_mappings: &[],
        dns: None,
        cgroup_parent: "",
        annotations: &none,
    };
    node.cni.add(&pod).await.unwrap();
    node.write(
        "flannel.DEL",
        r#"echo '{"code": 100, "msg": "open netns: no such file or directory"}'; exit 1"#,
    );
    node.write("portmap.DEL", r#"echo '{"code": 3, "msg": "who?"}'; exit 1"#);
    node.cni.delete("abc").await.unwrap();
    assert!(node.read("flannel.DEL.env").contains("CNI_NETNS=\n"));
}

#[tokio::test]
async fn a_lost_journal_is_made_up_for_by_the_cache() {
    let mut node = Node::new(FLANNEL, &["flannel", "portmap"]);
    let none = BTreeMap::new();
    let pod = Pod {
        id: "abc",
        name: "a",
        namespace: "b",
        uid: "c",
        netns: Path::new("/run/netns/rtc-abc"),
        port_mappings: &[],
        dns: None,
        cgroup_parent: "",
        annotations: &none,
    };
    node.cni.add(&pod).await.unwrap();
    fs::remove_file(node.path("root/attachments.journal")).unwrap();
    node.calls();
    node.reopen();
    node.cni.reconcile(&HashSet::new()).await;
    assert_eq!(node.calls(), ["DEL portmap abc", "DEL flannel abc"]);
}

#[tokio::test]
async fn a_configuration_that_comes_or_changes_is_seen_at_once() {
    let node = Node::new(FLANNEL, &["flannel", "portmap", "cilium-cni"]);
    fs::remove_dir_all(node.path("net.d")).unwrap();
    let error = node.cni.ready().await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("no network configuration"), "{error}");
    fs::create_dir(node.path("net.d")).unwrap();
    node.write("net.d/20-flannel.conflist", FLANNEL);
    node.cni.ready().await.unwrap();
    node.write(
        "net.d/20-flannel.conflist",
        &FLANNEL.replace("portmap", "missing"),
    );
    let error = node.cni.ready().await.unwrap_err().to_string();
    assert!(error.contains("\"missing\": no such program in"), "{error}");
    node.write("net.d/10-single.conf", r#"{"name": "one", "type": "cilium-cni"}"#);
    node.cni.ready().await.unwrap();
    // 0.1.0: its results have ip4.
    node.write("result", r#"{"ip4": {"ip": "10.0.0.7/8"}}"#);
    assert_eq!(node.add("def").await.unwrap().ips.len(), 1);
    node.write("net.d/10-single.conf", "{");
    let error = node.cni.ready().await.unwrap_err().to_string();
    assert!(error.contains("10-single.conf: is no JSON"), "{error}");
}

#[tokio::test]
async fn the_best_version_that_all_plugins_know_is_spoken_and_asked_for_once() {
    let conflist = FLANNEL.replace(
        r#""cniVersion": "0.3.1""#,
        r#""cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.0.0", "1.1.0", "9.9.9"]"#,
    );
    let node = Node::new(&conflist, &["flannel", "portmap"]);
    node.write(
        "flannel.VERSION",
        r#"echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}'"#,
    );
    node.write(
        "portmap.VERSION",
        r#"echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}'"#,
    );
    node.cni.ready().await.unwrap();
    assert_eq!(node.calls(), ["VERSION flannel ", "VERSION portmap "]);
    node.add("abc").await.unwrap();
    assert_eq!(node.input("flannel", "ADD")["cniVersion"], "1.0.0");
    assert_eq!(node.calls().len(), 2);
    node.write(
        "portmap.VERSION",
        r#"echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}'"#,
    );
    let script = node.read("bin/portmap");
    fs::remove_file(node.path("bin/portmap")).unwrap();
    node.write("bin/portmap", &format!("{script}\n# another\n"));
    fs::set_permissions(node.path("bin/portmap"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = node.cni.ready().await.unwrap_err().to_string();
    assert!(error.contains("none of 1.1.0, 1.0.0, 0.4.0, 0.3.1"), "{error}");
}

#[tokio::test]
async fn a_plugin_that_is_not_ready_makes_the_node_not_ready() {
    let node = Node::new(&FLANNEL.replace("0.3.1", "1.1.0"), &["flannel", "portmap"]);
    node.cni.ready().await.unwrap();
    node.cni.ready().await.unwrap();
    assert_eq!(node.calls(), ["STATUS flannel ", "STATUS portmap "]);
    // A change is another network: its answer is another.
    node.write(
        "net.d/10-net.conflist",
        &FLANNEL.replace("0.3.1", "1.1.0").replace("cbr0", "cbr1"),
    );
    node.write(
        "flannel.STATUS",
        r#"echo '{"code": 50, "msg": "no subnet yet"}'; exit 1"#,
    );
    let error = node.cni.ready().await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("no subnet yet (code 50)"), "{error}");
}

#[tokio::test]
async fn gc_is_told_of_all_that_is_attached_and_not_called_where_it_is_disabled() {
    let conflist = FLANNEL.replace("0.3.1", "1.1.0");
    let mut node = Node::new(&conflist, &["flannel", "portmap"]);
    node.write("result", r#"{"ips": [{"address": "10.244.1.5/24"}]}"#);
    node.add("abc").await.unwrap();
    node.calls();
    node.reopen();
    node.cni.reconcile(&HashSet::from(["abc".to_owned()])).await;
    assert_eq!(node.calls(), ["GC flannel ", "GC portmap "]);
    assert!(node.cni.check("abc").await.unwrap());
    assert_eq!(node.calls(), ["CHECK flannel abc", "CHECK portmap abc"]);
    let input = node.input("portmap", "GC");
    assert_eq!(
        input["cni.dev/valid-attachments"],
        json!([{"containerID": "abc", "ifname": "eth0"}])
    );
    assert!(input.get("prevResult").is_none() && input.get("runtimeConfig").is_none());
    node.write(
        "net.d/10-net.conflist",
        &conflist.replace(
            r#""plugins""#,
            r#""disableGC": true, "disableCheck": true, "plugins""#,
        ),
    );
    node.reopen();
    node.cni.reconcile(&HashSet::from(["abc".to_owned()])).await;
    assert!(!node.cni.check("abc").await.unwrap());
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn gc_is_daily_and_one_that_had_to_give_way_is_made_up_for_in_minutes() {
    let node = Node::new(&FLANNEL.replace("0.3.1", "1.1.0"), &["flannel", "portmap"]);
    let later = async |minutes: u64| {
        // Plugins need real time.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(minutes * 60)).await;
        tokio::time::resume();
        node.calls();
        node.cni.ready().await.unwrap();
        // What was begun behind it has the network until it is done.
        tokio::task::yield_now().await;
        let _over = node.cni.node.in_use.write().await;
        node.calls().iter().filter(|call| call.starts_with("GC")).count()
    };
    let busy = node.cni.node.in_use.read().await;
    node.cni.reconcile(&HashSet::new()).await;
    drop(busy);
    assert_eq!(later(4).await, 0);
    assert_eq!(later(2).await, 2);
    assert_eq!(later(23 * 60).await, 0);
    assert_eq!(later(61).await, 2);
    assert_eq!(later(10).await, 0);
}

#[tokio::test]
async fn pods_do_not_wait_for_each_other_and_a_pod_waits_for_itself() {
    let node = Node::new(CILIUM, &["cilium-cni"]);
    node.write("cilium-cni.ADD", "sleep 0.4");
    let begun = Instant::now();
    let (one, other) = tokio::join!(node.add("one"), node.add("other"));
    one.unwrap();
    other.unwrap();
    assert!(
        begun.elapsed() < Duration::from_millis(780),
        "{:?}",
        begun.elapsed()
    );
    node.calls();
    let (first, second) = tokio::join!(node.add("same"), node.cni.delete("same"));
    first.unwrap();
    second.unwrap();
    assert_eq!(node.calls(), ["ADD cilium-cni same", "DEL cilium-cni same"]);
    // Never twice without a DEL between.
    node.add("one").await.unwrap();
    assert_eq!(node.calls(), ["DEL cilium-cni one", "ADD cilium-cni one"]);
}

#[tokio::test]
async fn pod_ranges_of_the_kubelet_are_kept_and_given_to_who_wants_them() {
    let conflist = FLANNEL.replace(
        r#""delegate""#,
        r#""capabilities": {"ipRanges": true}, "delegate""#,
    );
    let mut node = Node::new(&conflist, &["flannel", "portmap"]);
    node.cni.set_pod_cidrs("10.244.1.0/24,fd00::/64").unwrap();
    node.cni.set_pod_cidrs("").unwrap();
    assert!(node.cni.set_pod_cidrs("x").is_err());
    node.reopen();
    node.add("abc").await.unwrap();
    assert_eq!(
        node.input("flannel", "ADD")["runtimeConfig"],
        json!({"ipRanges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00::/64"}]]})
    );
}
