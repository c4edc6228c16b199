//! The server itself: its files, its start and end, and what stands beside it.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::net::TcpStream;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtc_cri::proto::*;

use super::client::{Client, check};
use super::{BUSYBOX, pod::Pod};
use crate::containerd::peers;
use crate::host::{cgroup::Cgroup, process};
use crate::output::Output;
use crate::registry::Result;
use crate::test::{Rtc, Test};
use crate::wait;

/// Where the registry of the peers listens, in the test's own network.
const REGISTRY: &str = "127.0.0.1:5000";

/// A bridge without iptables, which is quick.
const BRIDGE: &str = r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": { "type": "host-local", "dataDir": "ADDRESSES", "ranges": [[{ "subnet": "10.88.0.0/16" }]],
              "routes": [{ "dst": "0.0.0.0/0" }] } } ] }"#;

/// What differs from the usual.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Keys of config.toml before its tables.
    pub(crate) keys: String,
    /// Further keys of `[cni]`.
    pub(crate) cni: String,
    /// Further keys of `[images]`.
    pub(crate) images: String,
    /// Further tables.
    pub(crate) tables: String,
    /// The network's conflist, where `ADDRESSES` is `Cri::addresses`; `None`: there is none.
    pub(crate) network: Option<String>,
    /// The `cgroup.procs` that the server enters; `None`: the test's own.
    pub(crate) own_cgroup: Option<PathBuf>,
    /// Variables of the server.
    pub(crate) environment: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            keys: String::new(),
            cni: String::new(),
            images: String::new(),
            tables: String::new(),
            network: Some(BRIDGE.to_owned()),
            own_cgroup: None,
            environment: Vec::new(),
        }
    }
}

/// A running CRI server; its calls are its client's.
pub(crate) struct Cri<'t> {
    pub(crate) t: &'t Test,
    /// All its files: `config.toml`, `root`, `state`, `net.d`, `certs.d`, `addresses`, `logs`.
    pub(crate) directory: PathBuf,
    pub(crate) setup: Setup,
    peers: PathBuf,
    client: Client,
    process: RefCell<Option<Child>>,
    registry: RefCell<Option<Child>>,
    has_busybox: Cell<bool>,
}

impl Deref for Cri<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl<'t> Cri<'t> {
    /// Starts it in the namespaces that this process is in.
    pub(crate) fn start(t: &'t Test, setup: Setup) -> Result<Self> {
        let cri = Self::configured(t, setup)?;
        cri.start_server()?;
        Ok(cri)
    }

    /// With all its files, and not started.
    pub(crate) fn configured(t: &'t Test, setup: Setup) -> Result<Self> {
        let directory = t.path("c");
        let cri = Self {
            t,
            peers: peers(t)?,
            client: Client::new(&directory.join("s"))?,
            directory,
            setup,
            process: RefCell::default(),
            registry: RefCell::default(),
            has_busybox: Cell::new(false),
        };
        for name in ["net.d", "certs.d/_default", "logs", "bin", "addresses"] {
            fs::create_dir_all(cri.directory.join(name))?;
        }
        let mirror = format!("[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        fs::write(cri.directory.join("certs.d/_default/hosts.toml"), mirror)?;
        if let Some(network) = &cri.setup.network {
            cri.set_network(network)?;
        }
        let text = if t.cri_peer.is_empty() {
            cri.configuration()
        } else {
            cri.configuration_of_containerd()
        };
        fs::write(cri.config(), text)?;
        Ok(cri)
    }

    /// Whether it is rtc-cri, not a peer.
    pub(crate) fn is_ours(&self) -> bool {
        self.t.cri_peer.is_empty()
    }

    /// Its config.toml.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("config.toml")
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    /// What it writes on standard error.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What outlives a boot.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// What dies with the boot.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where host-local has a file for each address that is in use.
    pub(crate) fn addresses(&self) -> PathBuf {
        self.directory.join("addresses")
    }

    /// Makes this the network: the one conflist there is.
    pub(crate) fn set_network(&self, conflist: &str) -> Result {
        let text = conflist.replace("ADDRESSES", &self.addresses().to_string_lossy());
        Ok(fs::write(self.directory.join("net.d/10-net.conflist"), text)?)
    }

    /// Where its shims are.
    pub(crate) fn shim_cgroup(&self) -> Cgroup {
        Cgroup {
            path: format!("{}/shims", self.t.cgroup.path),
        }
    }

    fn configuration(&self) -> String {
        let (directory, setup) = (self.directory.display(), &self.setup);
        format!(
            "socket = \"{directory}/s\"\nroot = \"{directory}/root\"\nstate = \"{directory}/state\"\n\
             cgroup_driver = \"cgroupfs\"\nshim = \"{}\"\ndebug = true\n\
             shim_cgroup = \"{}\"\n{}\n\
             [cni]\nconf_dir = \"{directory}/net.d\"\nbin_dirs = [\"{directory}/bin\", \"{}\"]\n\
             cache_dir = \"{directory}/cni\"\n{}\n\
             [images]\ncerts_dir = \"{directory}/certs.d\"\n{}\n{}",
            self.t.shim.display(),
            self.shim_cgroup().path,
            setup.keys,
            self.peer_file("registry/cni"),
            setup.cni,
            setup.images,
            setup.tables,
        )
    }

    fn configuration_of_containerd(&self) -> String {
        let directory = self.directory.display();
        let (images, runtime) = (
            "plugins.\"io.containerd.cri.v1.images\"",
            "plugins.\"io.containerd.cri.v1.runtime\"",
        );
        format!(
            "version = 3\nroot = \"{directory}/root\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.nri.v1.nri\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\n  address = \"{directory}/s\"\n\
             [{images}.pinned_images]\n  sandbox = \"registry.k8s.io/pause:3.10\"\n\
             [{images}.registry]\n  config_path = \"{directory}/certs.d\"\n\
             [{runtime}]\n  restrict_oom_score_adj = true\n\
             [{runtime}.cni]\n  bin_dirs = [\"{directory}/bin\", \"{}\"]\n  conf_dir = \"{directory}/net.d\"\n",
            self.peer_file("registry/cni"),
        )
    }

    /// A file of the peers.
    pub(crate) fn peer_file(&self, name: &str) -> String {
        self.peers.join(name).display().to_string()
    }

    /// The server's command line, its output in its log.
    pub(crate) fn command(&self) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let version = match self.t.cri_peer.as_str() {
            "containerd" => "containerd-2.4",
            other => other,
        };
        let mut path = vec![self.peer_file("runc/bin")];
        let program = if version.is_empty() {
            ensure!(
                self.t.cri.is_absolute(),
                "no rtc-cri: cargo build --profile server -p rtc-cri, or --cri PATH"
            );
            self.t.cri.clone()
        } else {
            path.insert(0, self.peer_file(&format!("{version}/bin")));
            Path::new(&path[0]).join("containerd")
        };
        let mut command = match &self.setup.own_cgroup {
            None => Command::new(program),
            Some(procs) => {
                let mut command = Command::new("/bin/busybox");
                command.args(["sh", "-c", "echo $$ >\"$0\" && exec \"$@\""]);
                command.arg(procs).arg(program);
                command
            }
        };
        path.push("/usr/sbin:/usr/bin:/sbin:/bin".into());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("PATH", path.join(":")).env("RUST_BACKTRACE", "1");
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Starts it, and waits until it answers. Also after [`Cri::signal`].
    pub(crate) fn start_server(&self) -> Result {
        if !self.is_ours() {
            self.start_registry()?; // for the image of the pause container
        }
        let mut command = self.command()?;
        command.arg("--config").arg(self.config());
        *self.process.borrow_mut() = Some(command.spawn().context("start the server")?);
        self.await_server()
    }

    fn await_server(&self) -> Result {
        wait::until("the server to answer", || {
            if !process::is_alive(self.pid()?) {
                bail!("the server ended\n{}", self.last_words());
            }
            // Another file than the one that a killed server left.
            Ok(self.version(VersionRequest::default()).ok())
        })?;
        Ok(())
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> Result<i32> {
        let process = self.process.borrow();
        Ok(process
            .as_ref()
            .context("the server does not run")?
            .id()
            .cast_signed())
    }

    /// Ends it by this signal; pods go on.
    pub(crate) fn signal(&self, signal: Signal) -> Result {
        // It would wait for its clients, and this one does not listen meanwhile.
        self.hang_up();
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| signal.to_string())?;
        if let Some(mut child) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// The registry of the peers, with what critest's images are: started once. Its address.
    pub(crate) fn start_registry(&self) -> Result<&'static str> {
        if self.registry.borrow().is_some() {
            return Ok(REGISTRY);
        }
        let config = self.directory.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\n\
             http: {{addr: {REGISTRY}}}\n",
            self.peer_file("images/storage")
        );
        fs::write(&config, text)?;
        let log = File::create(self.directory.join("registry.log"))?;
        let child = Command::new(self.peer_file("registry/bin/docker-registry"))
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("docker-registry")?;
        *self.registry.borrow_mut() = Some(child);
        wait::until("the registry to listen", || Ok(TcpStream::connect(REGISTRY).ok()))?;
        Ok(REGISTRY)
    }

    /// Pulls an image of the peers' registry; its id.
    pub(crate) fn pull(&self, image: &str) -> Result<String> {
        self.start_registry()?;
        let request = PullImageRequest {
            image: Some(image_spec(image)),
            ..PullImageRequest::default()
        };
        Ok(check("PullImage", self.pull_image(request))?.image_ref)
    }

    /// The image of most containers, pulled once.
    pub(crate) fn busybox(&self) -> Result<&'static str> {
        if !self.has_busybox.replace(true) {
            self.pull(BUSYBOX)?;
        }
        Ok(BUSYBOX)
    }

    /// `crictl ARGS`, to its end.
    pub(crate) fn crictl(&self, args: &[&str]) -> Result<Output> {
        self.crictl_command(args).run()
    }

    /// `crictl ARGS`, to be started.
    pub(crate) fn crictl_command(&self, args: &[&str]) -> Rtc<'_> {
        let endpoint = format!("unix://{}", self.socket().display());
        let options = [
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
            "--timeout",
            "60s",
        ];
        let command = self
            .t
            .bare(options)
            .program(self.peer_file("cri-tools/bin/crictl"));
        command.args(args)
    }

    /// RunPodSandbox with the usual configuration.
    pub(crate) fn pod(&self) -> Result<Pod<'_, 't>> {
        self.pod_with(|_| {})
    }

    /// RunPodSandbox, its configuration changed first.
    pub(crate) fn pod_with(&self, change: impl FnOnce(&mut PodSandboxConfig)) -> Result<Pod<'_, 't>> {
        let mut config = self.pod_config()?;
        change(&mut config);
        Pod::run_sandbox(self, config)
    }

    /// A connection of its own, as another client has one.
    pub(crate) fn another_client(&self) -> Result<Client> {
        Client::new(&self.socket())
    }

    /// Stops and removes all pods, as the kubelet of a drained node.
    pub(crate) fn remove_pods(&self) -> Result {
        let list = check(
            "ListPodSandbox",
            self.list_pod_sandbox(ListPodSandboxRequest::default()),
        )?;
        for pod in list.items {
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            };
            check("StopPodSandbox", self.stop_pod_sandbox(stop))?;
            let remove = RemovePodSandboxRequest {
                pod_sandbox_id: pod.id,
            };
            check("RemovePodSandbox", self.remove_pod_sandbox(remove))?;
        }
        Ok(())
    }

    /// Ends the server and the registry; the supervisor looks for processes and cgroups then.
    pub(crate) fn end(&self) -> Result {
        if self.process.borrow().is_some() {
            self.signal(Signal::SIGTERM)?;
        }
        if let Some(mut registry) = self.registry.take() {
            registry.kill()?;
            registry.wait()?;
        }
        // The server keeps it for its next shims.
        for directory in self.shim_cgroup().directories()? {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("level=info")).collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("--- the server:\n{}\n---", last.join("\n"))
    }
}

/// An image by its name.
pub(crate) fn image_spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..ImageSpec::default()
    }
}
