//! A node: a real kubelet without an API server (`staticPodPath`) over a CRI server, with a registry and CNI's bridge.
//!
//! ```text
//! kubelet ──CRI──> rtc-cri, or containerd ──> the shim under test
//!    │ /pods, /stats/summary                       │ pulls from docker-registry on 127.0.0.1:5000
//!    └ manifests in a directory of the test's      └ eth0 of a pod: bridge cni0, 10.88.0.0/16
//! ```
//!
//! All of it is in a network and a mount namespace of the test's, where `/var/lib`, `/var/log` and the servers'
//! directories in `/run` are the test's own. What is not: the cgroup `kubepods.slice`, which is systemd's and whose name
//! is part of what is shown; so one node runs at a time, and the slice is gone when it ends.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{cgroup, process};
use crate::output::Output;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::{until, within};

/// Where the kubelet has its pods.
pub(crate) const SLICE: &str = "/sys/fs/cgroup/kubepods.slice";
/// Pods' network namespaces.
pub(crate) const NETNS: &str = "/run/netns";

/// A kubelet on an emulated machine takes its time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const REGISTRY: &str = "127.0.0.1:5000";
const NODE_IP: &str = "192.0.2.10";
const READ_ONLY: &str = "127.0.0.1:10255";

/// The CRI server under the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Ours.
    RtcCri,
    /// The peer, with the shim under test.
    Containerd,
}

impl Backend {
    fn socket(self) -> &'static str {
        match self {
            Self::RtcCri => "/run/rtc-cri/rtc-cri.sock",
            Self::Containerd => "/run/containerd/containerd.sock",
        }
    }

    /// What its scopes' names begin with, before the container's id.
    pub(crate) fn scope_prefix(self) -> &'static str {
        match self {
            Self::RtcCri => "rtc",
            Self::Containerd => "cri-containerd",
        }
    }
}

/// A running node.
pub(crate) struct Node<'t> {
    pub(crate) t: &'t Test,
    pub(crate) backend: Backend,
    peers: PathBuf,
    directory: PathBuf,
    server: RefCell<Option<Child>>,
    others: RefCell<Vec<(&'static str, Child)>>,
    /// One node at a time.
    _turn: Flock<File>,
}

/// Skips where a kubelet could not run.
fn needs_a_node(t: &Test) -> Result<PathBuf> {
    if !Path::new("/run/systemd/system").exists() {
        t.skip("systemd does not run")?;
    }
    t.needs_cgroup_v2()?;
    t.needs_controller("cpuset")?;
    let peers = crate::containerd::peers(t)?;
    if !peers.join("kubelet/bin/kubelet").exists() {
        t.skip("no kubelet (hack/peers build kubelet)")?;
    }
    Ok(peers)
}

impl<'t> Node<'t> {
    /// Starts all of it, and waits until the kubelet has found the server ready.
    pub(crate) fn start(t: &'t Test, backend: Backend) -> Result<Self> {
        let peers = needs_a_node(t)?;
        let turn = File::create("/run/rtc-tests-kubelet.lock")?;
        let turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if let Ok(events) = fs::read_to_string(Path::new(SLICE).join("cgroup.events")) {
            ensure!(
                events.contains("populated 0"),
                "this machine runs a kubelet's pods: {SLICE}"
            );
            remove_slice()?;
        }
        let node = Self {
            t,
            backend,
            peers,
            directory: t.path("node"),
            server: RefCell::default(),
            others: RefCell::default(),
            _turn: turn,
        };
        own_places(&node.directory)?;
        own_network(t)?;
        node.configure()?;
        node.start_other("docker-registry", &[&"serve", &node.file("registry.yml")])?;
        node.start_server()?;
        node.start_kubelet()?;
        Ok(node)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn configure(&self) -> Result {
        let (directory, peers) = (self.directory.display(), self.peers.display());
        for made in ["manifests", "certs.d/_default", "net.d", "bin"] {
            fs::create_dir_all(self.directory.join(made))?;
        }
        fs::write(
            self.file("registry.yml"),
            format!(
                "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {peers}/images/storage}}, maintenance: {{readonly: {{enabled: true}}}}}}\n\
                 http: {{addr: {REGISTRY}}}\n"
            ),
        )?;
        fs::write(
            self.file("certs.d/_default/hosts.toml"),
            format!("[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
        )?;
        fs::write(
            self.file("net.d/10-bridge.conflist"),
            format!(
                r#"{{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
                {{ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                  "ipam": {{ "type": "host-local", "dataDir": "{directory}/addresses",
                    "ranges": [[{{ "subnet": "10.88.0.0/16" }}]], "routes": [{{ "dst": "0.0.0.0/0" }}] }} }},
                {{ "type": "portmap", "capabilities": {{ "portMappings": true }} }} ] }}"#
            ),
        )?;
        let socket = self.backend.socket();
        fs::write(
            self.file("kubelet.yml"),
            format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                 staticPodPath: {directory}/manifests\nfileCheckFrequency: 1s\nsyncFrequency: 2s\n\
                 authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
                 authorization: {{mode: AlwaysAllow}}\n\
                 cgroupDriver: systemd\nfailSwapOn: false\nmakeIPTablesUtilChains: false\n\
                 containerRuntimeEndpoint: unix://{socket}\nimageServiceEndpoint: unix://{socket}\n\
                 address: 127.0.0.1\nreadOnlyPort: 10255\nhealthzPort: 0\n\
                 crashLoopBackOff: {{maxContainerRestartPeriod: 1s}}\n\
                 evictionHard: {{memory.available: 1Mi}}\nimageGCHighThresholdPercent: 100\n"
            ),
        )?;
        fs::write(self.file("server.toml"), self.server_configuration())?;
        // Under containerd a shim of the name that its systemd driver is bound to.
        let shim = self.directory.join("bin").join(match self.backend {
            Backend::RtcCri => "containerd-shim-rtc-v2",
            Backend::Containerd => "containerd-shim-runc-v2",
        });
        Ok(symlink(&self.t.shim, shim)?)
    }

    fn server_configuration(&self) -> String {
        let (directory, peers) = (self.directory.display(), self.peers.display());
        match self.backend {
            Backend::RtcCri => format!(
                "shim = \"{directory}/bin/containerd-shim-rtc-v2\"\n\
                 [cni]\nconf_dir = \"{directory}/net.d\"\nbin_dirs = [\"{peers}/registry/cni\"]\n\
                 [images]\ncerts_dir = \"{directory}/certs.d\"\n"
            ),
            Backend::Containerd => {
                let (images, runtime) = (
                    "plugins.\"io.containerd.cri.v1.images\"",
                    "plugins.\"io.containerd.cri.v1.runtime\"",
                );
                format!(
                    "version = 3\n\
                     [{images}.pinned_images]\n  sandbox = \"registry.k8s.io/pause:3.10\"\n\
                     [{images}.registry]\n  config_path = \"{directory}/certs.d\"\n\
                     [{runtime}.cni]\n  bin_dirs = [\"{peers}/registry/cni\"]\n  conf_dir = \"{directory}/net.d\"\n\
                     [{runtime}.containerd]\n  default_runtime_name = \"tested\"\n\
                     [{runtime}.containerd.runtimes.tested]\n  runtime_type = \"io.containerd.runc.v2\"\n\
                     \x20 runtime_path = \"{directory}/bin/containerd-shim-runc-v2\"\n\
                     [{runtime}.containerd.runtimes.tested.options]\n  SystemdCgroup = true\n"
                )
            }
        }
    }

    /// Starts the CRI server, and waits until it answers.
    pub(crate) fn start_server(&self) -> Result {
        let program = match self.backend {
            Backend::RtcCri => rtc_cri(self.t)?,
            Backend::Containerd => self.peers.join("containerd-2.4/bin/containerd"),
        };
        let child = self.spawn("server", &program, &[&"--config", &self.file("server.toml")])?;
        let pid = child.id().cast_signed();
        *self.server.borrow_mut() = Some(child);
        within(PATIENCE, "the CRI server to answer", || {
            ensure!(process::is_alive(pid), "the CRI server ended");
            Ok((self.crictl(&["version"])?.code == 0).then_some(()))
        })
    }

    /// Ends the CRI server as `systemctl stop` does; what it started goes on.
    pub(crate) fn stop_server(&self) -> Result {
        let mut server = self.server.take().context("no CRI server runs")?;
        kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM)?;
        server.wait()?;
        Ok(())
    }

    fn start_kubelet(&self) -> Result {
        self.start_other(
            "kubelet",
            &[
                &"--config",
                &self.file("kubelet.yml"),
                &"--hostname-override",
                &"node",
                &"--node-ip",
                &NODE_IP,
            ],
        )?;
        within(PATIENCE, "the kubelet to find the CRI server ready", || {
            Ok(get("/healthz").or_else(|_| get("/pods")).ok().map(drop))
        })
    }

    fn start_other(&self, name: &'static str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Result {
        let part = if name == "docker-registry" {
            "registry"
        } else {
            name
        };
        let program = self.peers.join(part).join("bin").join(name);
        let child = self.spawn(name, &program, args)?;
        self.others.borrow_mut().push((name, child));
        Ok(())
    }

    fn spawn(&self, name: &str, program: &Path, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log(name))?;
        let mut command = Command::new(program);
        for arg in args {
            command.arg(arg);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let path = format!(
            "{}/bin:{}/runc/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.directory.display(),
            self.peers.display()
        );
        command.env("PATH", path);
        command.spawn().with_context(|| program.display().to_string())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// `crictl ARGS`, to its end.
    pub(crate) fn crictl(&self, args: &[&str]) -> Result<Output> {
        let endpoint = format!("unix://{}", self.backend.socket());
        let options = ["--runtime-endpoint", &endpoint, "--timeout", "60s"];
        let command = self
            .t
            .bare(options)
            .program(self.peers.join("cri-tools/bin/crictl"));
        command.args(args).run()
    }

    /// `crictl exec` in a container, without a terminal; what it printed.
    pub(crate) fn exec(&self, container: &str, script: &str) -> Result<String> {
        let output = self
            .crictl(&["exec", "--sync", container, "sh", "-c", script])?
            .ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Has the kubelet run this pod.
    pub(crate) fn run(&self, pod: &Value) -> Result {
        let name = pod["metadata"]["name"].as_str().context("a pod's name")?;
        // Whole or not at all: the kubelet reads what it finds.
        let hidden = self.file(&format!("{name}.json"));
        fs::write(&hidden, pod.to_string())?;
        Ok(fs::rename(hidden, self.manifest(name))?)
    }

    /// Has the kubelet end the pod of this name.
    pub(crate) fn withdraw(&self, name: &str) -> Result {
        Ok(fs::remove_file(self.manifest(name))?)
    }

    fn manifest(&self, name: &str) -> String {
        self.file(&format!("manifests/{name}.json"))
    }

    /// What the kubelet says of a pod; `None` where it has none of this name.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Value>> {
        let name = format!("{name}-node");
        let list = get("/pods")?;
        let found = list["items"].as_array().into_iter().flatten();
        Ok(found
            .into_iter()
            .find(|pod| pod["metadata"]["name"] == *name)
            .cloned())
    }

    /// Waits until what the kubelet says of a pod satisfies the probe.
    pub(crate) fn until_pod(&self, name: &str, what: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        within(PATIENCE, &format!("pod {name} {what}"), || {
            last = self.pod(name)?.unwrap_or_default();
            Ok(probe(&last).then_some(()))
        })
        .with_context(|| format!("the kubelet says: {}", last["status"]))?;
        Ok(last)
    }

    /// `/stats/summary`.
    pub(crate) fn summary(&self) -> Result<Value> {
        get("/stats/summary")
    }

    /// Directory of CNI's records of addresses in use, one file for each.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let all = names(&self.directory.join("addresses/pods"));
        all.into_iter().filter(|name| name.starts_with("10.")).collect()
    }

    /// Ends everything; with the last pod nothing of it may be left.
    pub(crate) fn end(&self) -> Result {
        let nothing_left = within(PATIENCE, "nothing left of the pods", || {
            Ok(self.leftovers().is_empty().then_some(()))
        });
        nothing_left.with_context(|| format!("left: {:?}", self.leftovers()))?;
        self.stop_server()?;
        for (name, mut child) in self.others.take().into_iter().rev() {
            child.kill().with_context(|| name.to_owned())?;
            child.wait()?;
        }
        remove_slice()
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.addresses();
        found.extend(names(Path::new(NETNS)));
        found.extend(pod_cgroups());
        found.extend(self.shims());
        found
    }

    /// The shims that serve its pods.
    pub(crate) fn shims(&self) -> Vec<String> {
        let all = process::descendants(std::os::unix::process::parent_id().cast_signed());
        let mut shims: Vec<i32> = all.into_iter().filter(|&pid| is_shim(pid)).collect();
        // Copies of a shim that write its logs are its children.
        let parent_of = |pid| process::parent_and_state(pid).map_or(0, |(parent, _)| parent);
        shims.retain(|&pid| !is_shim(parent_of(pid)));
        shims.into_iter().map(process::describe).collect()
    }

    /// The ends of all logs, for the report of a failure.
    pub(crate) fn last_words(&self) -> String {
        let logs = ["server", "kubelet"].map(|name| {
            let text = fs::read_to_string(self.log(name)).unwrap_or_default();
            let telling = |line: &&str| !line.contains("level=info") && !line.starts_with('I');
            let lines: Vec<_> = text.lines().filter(telling).collect();
            let last = &lines[lines.len().saturating_sub(25)..];
            format!("--- {name} ({:?})\n{}\n", self.backend, last.join("\n"))
        });
        logs.concat()
    }
}

fn is_shim(pid: i32) -> bool {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words
        .split('\0')
        .next()
        .is_some_and(|program| program.contains("/containerd-shim-"))
}

/// `rtc-cri` beside the shim under test.
fn rtc_cri(t: &Test) -> Result<PathBuf> {
    let path = std::env::var_os("CRI").map_or_else(|| t.shim.with_file_name("rtc-cri"), PathBuf::from);
    if !path.exists() {
        bail!("no rtc-cri beside {}", t.shim.display());
    }
    Ok(path)
}

/// What the kubelet and the servers hard-code is, in this mount namespace, a directory of the test's.
fn own_places(directory: &Path) -> Result {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let change = |flags: MsFlags| {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | flags,
            None::<&str>,
        )
    };
    change(MsFlags::MS_SLAVE).context("mount(/, MS_SLAVE)")?;
    // Servers share what they mount with what they start.
    change(MsFlags::MS_SHARED).context("mount(/, MS_SHARED)")?;
    for place in ["/var/lib", "/var/log"] {
        let own = directory.join(place.trim_start_matches('/').replace('/', "-"));
        fs::create_dir_all(&own)?;
        mount(Some(&own), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).context(place)?;
    }
    for place in [NETNS, "/run/rtc-cri", "/run/containerd"] {
        fs::create_dir_all(place)?;
        mount(
            Some("tmpfs"),
            place,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .context(place)?;
    }
    Ok(())
}

/// A network of this process's own, in which the node has an address and a default route.
fn own_network(t: &Test) -> Result {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    // A new sysfs would be needed to see it there; nothing here looks.
    for command in [
        "link set lo up",
        "link add up0 type dummy",
        &format!("addr add {NODE_IP}/24 dev up0"),
        "link set up0 up",
        "route add default via 192.0.2.1",
    ] {
        t.bare(command.split(' ')).program("/sbin/ip").run()?.ok()?;
    }
    Ok(())
}

/// GET of the kubelet's read-only port.
fn get(path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(READ_ONLY)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    ensure!(head.contains(" 200 "), "{path}: {head}");
    serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
}

/// Names in a directory; none where it is not there.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Cgroups below the kubelet's slice that belong to a pod.
fn pod_cgroups() -> Vec<String> {
    let mut found = Vec::new();
    for parent in ["", "kubepods-besteffort.slice", "kubepods-burstable.slice"] {
        let all = names(&Path::new(SLICE).join(parent));
        found.extend(all.into_iter().filter(|name| name.contains("-pod")));
    }
    found
}

/// The kubelet's own slices outlive it.
fn remove_slice() -> Result {
    Command::new("systemctl")
        .args(["stop", "kubepods.slice"])
        .status()?;
    until("kubepods.slice to go", || {
        Ok((!Path::new(SLICE).exists()).then_some(()))
    })?;
    ensure!(cgroup::is_unified());
    Ok(())
}
