//! A node: a real kubelet without an API server (`staticPodPath`) over a CRI server, with a registry and CNI's bridge.
//!
//! ```text
//! kubelet ──CRI──> rtc-cri, or containerd ──> shims
//!    │ /pods, /stats/summary                       │ pulls from docker-registry on 127.0.0.1:5000
//!    │ exec, attach, port-forward, logs: api.rs    └ eth0 of a pod: bridge cni0, 10.88.0.0/16
//!    └ manifests in a directory of the test's
//!
//! with(t, |node| {                                     // a node of the test's own
//!     let pod = node.up("web", json!({"containers": [busybox("main", STAY)]}))?;   // until it is up and ready
//!     node.exec(&pod, "main", "echo in")?;             // by CRI
//!     node.withdraw("web")
//! })
//! ```
//!
//! All of it is in namespaces of the test's, where `/var/lib`, `/var/log` and the servers' directories in `/run` are the
//! test's own, and, with the cgroupfs driver, in cgroups below the test's. With systemd's driver the kubelet has
//! `kubepods.slice`, whose name is part of what is shown: one node runs at a time. Which kubelet, driver and server is an
//! option of `rtc-tests`. What the body leaves is withdrawn; then nothing may be left of any pod.

mod api;
mod bench;
mod config;
mod place;
mod pod;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::cgroup::Cgroup;
use crate::host::{cgroup, process};
use crate::output::Output;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::{until, within};

pub(crate) use api::{Api, Session, WAYS, Way, escaped, of_container, of_pod};
pub(crate) use bench::main as bench;
pub(crate) use config::Setup;
pub(crate) use pod::{BUSYBOX, Pod as StaticPod, STAY, busybox, busybox_with, manifest};

/// Where the kubelet has its pods under systemd.
const SLICE: &str = "/sys/fs/cgroup/kubepods.slice";
/// Pods' network namespaces.
pub(crate) const NETNS: &str = "/run/netns";
/// The node's address.
pub(crate) const NODE_IP: &str = "192.0.2.10";

const REGISTRY: &str = "127.0.0.1:5000";
const READ_ONLY: &str = "127.0.0.1:10255";

/// Of a log, in the report of a failure: the kubelet repeats itself.
const LONGEST_LINE: usize = 500;

/// How long a condition may take: a kubelet on an emulated machine takes its time.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(if cgroup::is_unified() { 120 } else { 60 })
}

/// The CRI server under the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Ours.
    RtcCri,
    /// The peer as it is, with its own shim and runc.
    Containerd,
    /// The peer with the shim under test.
    ContainerdWithShim,
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Systemd,
    Cgroupfs,
}

impl Backend {
    fn socket(self) -> &'static str {
        match self {
            Self::RtcCri => "/run/rtc-cri/rtc-cri.sock",
            _ => "/run/containerd/containerd.sock",
        }
    }

    /// What its scopes' names begin with, before the container's id.
    fn scope_prefix(self) -> &'static str {
        match self {
            Self::RtcCri => "rtc",
            _ => "cri-containerd",
        }
    }
}

/// A running node.
pub(crate) struct Node<'t> {
    pub(crate) t: &'t Test,
    backend: Cell<Backend>,
    pub(crate) driver: Driver,
    setup: Setup,
    peers: PathBuf,
    /// `1.37`.
    version: String,
    directory: PathBuf,
    server: RefCell<Option<Child>>,
    others: RefCell<Vec<(&'static str, Child)>>,
    /// One node at a time, where the slice is all nodes'.
    _turn: Option<Flock<File>>,
}

/// Runs the body on a node of its own, over the server that is tested, and looks for what is left.
pub(crate) fn with(t: &Test, body: impl FnOnce(&Node<'_>) -> Result) -> Result {
    Setup::default().with(t, body)
}

impl Setup {
    /// [`with`], set up so.
    pub(crate) fn with(self, t: &Test, body: impl FnOnce(&Node<'_>) -> Result) -> Result {
        let backend = if t.cri_peer.is_empty() {
            Backend::RtcCri
        } else {
            Backend::Containerd
        };
        self.with_backend(t, backend, body)
    }

    /// [`with`], over this server.
    pub(crate) fn with_backend(
        self,
        t: &Test,
        backend: Backend,
        body: impl FnOnce(&Node<'_>) -> Result,
    ) -> Result {
        let node = Node::new(t, backend, self)?;
        let run = || {
            node.start()?;
            body(&node)?;
            node.end()
        };
        match run() {
            Err(error) if error.is::<crate::test::Skip>() => {
                node.end()?;
                Err(error)
            }
            result => result.with_context(|| node.last_words()),
        }
    }
}

/// Skips where a kubelet could not run; the driver, the peers and the kubelet's version.
fn needs_a_node(t: &Test) -> Result<(Driver, PathBuf, String)> {
    t.needs_controller("cpuset")?;
    let peers = crate::containerd::peers(t)?;
    let mut versions: Vec<String> = names(&peers)
        .iter()
        .filter_map(|name| name.strip_prefix("kubelet-").map(str::to_owned))
        .filter(|version| peers.join(format!("kubelet-{version}/bin/kubelet")).exists())
        .collect();
    versions.sort();
    let wanted = std::env::var("KUBELET").unwrap_or_default();
    if !wanted.is_empty() {
        ensure!(
            versions.contains(&wanted),
            "no kubelet {wanted}: there are {versions:?}"
        );
        versions = vec![wanted];
    }
    if versions.is_empty() {
        t.skip("no kubelet (hack/peers build kubelet)")?;
    }
    let has_systemd = Path::new("/run/systemd/system").exists() && cgroup::is_unified();
    let driver = match std::env::var("KUBELET_CGROUP_DRIVER").as_deref() {
        Ok("systemd") => Driver::Systemd,
        Ok("cgroupfs") => Driver::Cgroupfs,
        _ if has_systemd => Driver::Systemd,
        _ => Driver::Cgroupfs,
    };
    if driver == Driver::Systemd && !has_systemd {
        t.skip("systemd does not run")?;
    }
    Ok((driver, peers, versions.pop().unwrap_or_default()))
}

impl<'t> Node<'t> {
    fn new(t: &'t Test, backend: Backend, setup: Setup) -> Result<Self> {
        let (driver, peers, version) = needs_a_node(t)?;
        let turn = match driver {
            Driver::Systemd => Some(turn()?),
            Driver::Cgroupfs => None,
        };
        Ok(Self {
            t,
            backend: Cell::new(backend),
            driver,
            setup,
            peers,
            version,
            directory: t.path("node"),
            server: RefCell::default(),
            others: RefCell::default(),
            _turn: turn,
        })
    }

    /// Starts all of it, and waits until the kubelet has found the server ready.
    fn start(&self) -> Result {
        place::enter(&self.directory)?;
        if self.driver == Driver::Cgroupfs {
            place::make_cgroup(&self.t.cgroup)?;
        }
        self.configure()?;
        let registry = self.peers.join("registry/bin/docker-registry");
        let config = self.file("registry.yml");
        let args = ["serve", &config].map(OsStr::new);
        self.start_other("docker-registry", &registry, &args)?;
        self.start_server()?;
        self.start_kubelet()
    }

    /// The kubelet's minor version.
    pub(crate) fn minor(&self) -> u32 {
        let minor = self.version.rsplit('.').next();
        minor.and_then(|minor| minor.parse().ok()).unwrap_or_default()
    }

    /// The CRI server that it has.
    pub(crate) fn backend(&self) -> Backend {
        self.backend.get()
    }

    /// Ends the CRI server, and starts another in its place; the kubelet's next start finds it.
    pub(crate) fn change_server(&self, backend: Backend) -> Result {
        self.stop_server(Signal::SIGTERM)?;
        self.backend.set(backend);
        self.configure_server()?;
        self.configure_kubelet(&self.setup)?;
        self.start_server()
    }

    /// A file of the node's.
    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Starts the CRI server, and waits until it answers.
    pub(crate) fn start_server(&self) -> Result {
        let program = match self.backend() {
            Backend::RtcCri => self.t.cri.clone(),
            _ => self.peers.join("containerd-2.4/bin/containerd"),
        };
        ensure!(program.is_absolute(), "no rtc-cri: --cri PATH");
        let config = self.file("server.toml");
        let child = if self.setup.server_cgroup {
            place::make_cgroup(&self.server_cgroup())?;
            let procs = self.server_cgroup().directories()?;
            let procs: Vec<_> = procs
                .iter()
                .map(|each| each.join("cgroup.procs").display().to_string())
                .collect();
            let enter = format!(
                "for procs in {}; do echo $$ >$procs; done; exec \"$@\"",
                procs.join(" ")
            );
            let args = ["sh", "-c", &enter, "sh"].map(OsStr::new);
            let own = [program.as_ref(), "--config".as_ref(), config.as_ref()];
            self.spawn("server", Path::new("/bin/busybox"), &[&args[..], &own].concat())?
        } else {
            self.spawn("server", &program, &["--config".as_ref(), config.as_ref()])?
        };
        let pid = child.id().cast_signed();
        *self.server.borrow_mut() = Some(child);
        within(patience(), "the CRI server to answer", || {
            ensure!(process::is_alive(pid), "the CRI server ended");
            Ok((self.crictl(&["version"])?.code == 0).then_some(()))
        })
    }

    /// Where the server is, with `Setup::server_cgroup`.
    fn server_cgroup(&self) -> Cgroup {
        Cgroup {
            path: format!("{}/server", self.t.cgroup.path),
        }
    }

    fn server_pid(&self) -> Result<i32> {
        let server = self.server.borrow();
        Ok(server.as_ref().context("no CRI server runs")?.id().cast_signed())
    }

    pub(crate) fn kubelet_pid(&self) -> Result<i32> {
        let others = self.others.borrow();
        let kubelet = others.iter().find(|(name, _)| *name == "kubelet");
        Ok(kubelet.context("no kubelet runs")?.1.id().cast_signed())
    }

    /// Ends the CRI server by this signal; what it started goes on.
    pub(crate) fn stop_server(&self, signal: Signal) -> Result {
        let mut server = self.server.take().context("no CRI server runs")?;
        kill(Pid::from_raw(server.id().cast_signed()), signal)?;
        server.wait()?;
        Ok(())
    }

    /// Starts the kubelet, and waits until it answers.
    pub(crate) fn start_kubelet(&self) -> Result {
        let words = place::with_own_settings(&self.directory)?;
        let program = self.peers.join(format!("kubelet-{}/bin/kubelet", self.version));
        let config = self.file("kubelet.yml");
        let mut args: Vec<&OsStr> = words[1..].iter().map(AsRef::as_ref).collect();
        args.push(program.as_ref());
        args.extend(
            [
                "--config",
                &config,
                "--hostname-override",
                "node",
                "--node-ip",
                NODE_IP,
            ]
            .map(OsStr::new),
        );
        self.start_other("kubelet", Path::new(&words[0]), &args)?;
        within(patience(), "the kubelet to answer", || {
            let running = self
                .others
                .borrow_mut()
                .iter_mut()
                .all(|(_, child)| child.try_wait().is_ok_and(|status| status.is_none()));
            ensure!(running, "the kubelet or the registry ended");
            Ok(self.get("/pods").ok().map(drop))
        })
    }

    /// Ends the kubelet; pods go on.
    pub(crate) fn stop_kubelet(&self) -> Result {
        let mut others = self.others.borrow_mut();
        let place = others.iter().position(|(name, _)| *name == "kubelet");
        let (_, mut kubelet) = others.remove(place.context("no kubelet runs")?);
        kill(Pid::from_raw(kubelet.id().cast_signed()), Signal::SIGTERM)?;
        kubelet.wait()?;
        Ok(())
    }

    fn start_other(&self, name: &'static str, program: &Path, args: &[&OsStr]) -> Result {
        let child = self.spawn(name, program, args)?;
        self.others.borrow_mut().push((name, child));
        Ok(())
    }

    fn spawn(&self, name: &str, program: &Path, args: &[&OsStr]) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log(name))?;
        let mut command = Command::new(program);
        command.args(args).env("PATH", self.program_path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| program.display().to_string())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// `crictl ARGS`, to its end.
    pub(crate) fn crictl(&self, args: &[&str]) -> Result<Output> {
        let endpoint = format!("unix://{}", self.backend().socket());
        let options = ["--runtime-endpoint", &endpoint, "--timeout", "60s"];
        let command = self
            .t
            .bare(options)
            .program(self.peers.join("cri-tools/bin/crictl"));
        command.args(args).run()
    }

    /// A script in a container, by ExecSync; what it printed.
    pub(crate) fn exec(&self, pod: &StaticPod, container: &str, script: &str) -> Result<String> {
        let id = pod.id(container)?;
        let output = self.crictl(&["exec", "--sync", &id, "sh", "-c", script])?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Has the kubelet run this pod.
    pub(crate) fn run(&self, pod: &Value) -> Result {
        let name = pod["metadata"]["name"].as_str().context("a pod's name")?;
        // Whole or not at all: the kubelet reads what it finds.
        let hidden = self.file(&format!("{name}.json"));
        fs::write(&hidden, pod.to_string())?;
        Ok(fs::rename(hidden, self.manifest_path(name))?)
    }

    /// Has the kubelet end the pod of this name.
    pub(crate) fn withdraw(&self, name: &str) -> Result {
        Ok(fs::remove_file(self.manifest_path(name))?)
    }

    fn manifest_path(&self, name: &str) -> String {
        self.file(&format!("manifests/{name}.json"))
    }

    /// GET of the kubelet's read-only port, as JSON.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let text = self.get_text(path)?;
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }

    /// GET of the kubelet's read-only port.
    #[expect(clippy::unused_self, reason = "there is no kubelet without a node")]
    pub(crate) fn get_text(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(READ_ONLY)?;
        stream.set_read_timeout(Some(patience()))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("an answer without a body")?;
        ensure!(head.contains(" 200 "), "{path}: {head}");
        Ok(body.to_owned())
    }

    /// CNI's addresses in use.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let all = names(&self.directory.join("addresses/pods"));
        all.into_iter().filter(|name| name.starts_with("10.")).collect()
    }

    /// Ends everything; with the last pod nothing of it may be left.
    fn end(&self) -> Result {
        for name in names(&self.directory.join("manifests")) {
            fs::remove_file(self.directory.join("manifests").join(name))?;
        }
        let nothing_left = within(patience(), "nothing left of the pods", || {
            Ok(self.leftovers().is_empty().then_some(()))
        });
        nothing_left.with_context(|| format!("left: {:?}", self.leftovers()))?;
        self.stop_server(Signal::SIGTERM)?;
        for (name, mut child) in self.others.take().into_iter().rev() {
            child.kill().with_context(|| name.to_owned())?;
            child.wait()?;
        }
        match self.driver {
            Driver::Systemd => remove_slice(),
            Driver::Cgroupfs => self.remove_cgroups(),
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.addresses();
        found.extend(names(Path::new(NETNS)));
        found.extend(names(Path::new("/var/lib/kubelet/pods")));
        found.extend(self.pod_cgroups());
        found.extend(self.shims());
        found
    }

    /// Cgroups of the kubelet's that belong to a pod.
    fn pod_cgroups(&self) -> Vec<String> {
        let mut found = Vec::new();
        let (root, classes) = match self.driver {
            Driver::Systemd => (
                "/kubepods.slice".to_owned(),
                ["kubepods-besteffort.slice", "kubepods-burstable.slice"],
            ),
            Driver::Cgroupfs => (
                format!("{}/kubepods", self.t.cgroup.path),
                ["besteffort", "burstable"],
            ),
        };
        for directory in (Cgroup { path: root }).directories().unwrap_or_default() {
            for parent in ["", classes[0], classes[1]] {
                let all = names(&directory.join(parent));
                found.extend(
                    all.into_iter()
                        .filter(|name| name.contains("-pod") || name.starts_with("pod") && name.len() > 10),
                );
            }
        }
        found
    }

    /// What the kubelet keeps for its next pods, and the server for its next shims.
    fn remove_cgroups(&self) -> Result {
        for name in [
            "kubepods/besteffort",
            "kubepods/burstable",
            "kubepods",
            "shims",
            "server/shims",
            "server",
        ] {
            let path = format!("{}/{name}", self.t.cgroup.path);
            for directory in (Cgroup { path }).directories()? {
                fs::remove_dir(&directory).with_context(|| directory.display().to_string())?;
            }
        }
        Ok(())
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
    fn last_words(&self) -> String {
        let logs = ["server", "kubelet"].map(|name| {
            let text = fs::read_to_string(self.log(name)).unwrap_or_default();
            let telling = |line: &&str| !line.contains("level=info") && !line.starts_with('I');
            let lines: Vec<String> = text
                .lines()
                .filter(telling)
                .map(|line| line.chars().take(LONGEST_LINE).collect())
                .collect();
            let last = &lines[lines.len().saturating_sub(25)..];
            let who = format!("{:?}, kubelet {}", self.backend(), self.version);
            format!("--- {name} ({who})\n{}\n", last.join("\n"))
        });
        logs.concat()
    }
}

/// Waits for the slice to be this test's.
fn turn() -> Result<Flock<File>> {
    let turn = File::create("/run/rtc-tests-kubelet.lock")?;
    let turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if let Ok(events) = fs::read_to_string(Path::new(SLICE).join("cgroup.events")) {
        ensure!(
            events.contains("populated 0"),
            "this machine runs a kubelet's pods: {SLICE}"
        );
        remove_slice()?;
    }
    Ok(turn)
}

fn is_shim(pid: i32) -> bool {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words
        .split('\0')
        .next()
        .is_some_and(|program| program.contains("/containerd-shim-"))
}

/// Names in a directory; none where it is not there.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The kubelet's own slices outlive it.
fn remove_slice() -> Result {
    Command::new("systemctl")
        .args(["stop", "kubepods.slice"])
        .status()?;
    until("kubepods.slice to go", || {
        Ok((!Path::new(SLICE).exists()).then_some(()))
    })
}
