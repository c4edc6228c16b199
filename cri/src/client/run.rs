//! `rtc-cri pod run`: what a kubelet does for a pod, once.
//!
//! ```text
//! manifest read ── images pulled ── directories, volumes ── RunPodSandbox
//!   init containers, each to its end; sidecars, each started ── the containers ── said: id, name, addresses
//! a step fails, or Ctrl-C: all of it is taken back
//! ```

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rtc_cri::proto::{
    ContainerState, CreateContainerRequest, DnsConfig, PodSandbox, PodSandboxConfig, RunPodSandboxRequest,
    StartContainerRequest,
};

use super::arguments::{Arguments, Flag};
use super::connection::{Server, answer};
use super::interrupt::{Interrupt, Interrupted};
use super::manifest::{self, Container, Pod, Pull, Role, Source};
use super::request::{self, Place};
use super::terminal::{harmless, say};
use super::{Verb, find, image, list, logs, remove, volumes};
use crate::id;

pub(super) const RUN: Verb = Verb {
    object: "pod",
    name: "run",
    operands: "FILE",
    about: "Runs a Pod of Kubernetes (v1, YAML or JSON; - for standard input): pulls its images, runs its init containers\n\
            to their end, starts the others, and prints the pod's id, name, addresses and containers. A container that\n\
            ends is not started again, and probes are not made: that needs a kubelet.",
    flags: &[
        Flag::switch("quiet", Some('q'), "print the id only, and no progress"),
        Flag::value("logs", None, "DIR", "where logs are; default /var/log/pods"),
        Flag::value(
            "data",
            None,
            "DIR",
            "where emptyDir volumes are; default /var/lib/rtc-pods",
        ),
        Flag::value(
            "cgroup-parent",
            None,
            "CGROUP",
            "the pod's cgroup; default: the server's",
        ),
    ],
};

const LOGS: &str = "/var/log/pods";
const DATA: &str = "/var/lib/rtc-pods";
/// How often it is asked whether an init container has ended: at first, and in the end.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LATER_LOOK: Duration = Duration::from_millis(500);
/// Lines that are shown of an init container that failed.
const LAST_LINES: usize = 10;

/// `pod run`.
pub(super) async fn run(socket: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let file = arguments.one("FILE")?;
    let text = read(file)?;
    let (pod, warnings) = manifest::read(&text).with_context(|| match file {
        "-" => "standard input".to_owned(),
        file => file.to_owned(),
    })?;
    let server = Server::connect(socket).await?;
    for warning in warnings {
        eprintln!("rtc-cri: warning: {}", harmless(&warning));
    }
    let runner = Runner {
        place: place(&pod, arguments)?,
        pod,
        server,
        quiet: arguments.has("quiet"),
    };
    let mut interrupt = Interrupt::listen()?;
    match runner.whole(&mut interrupt).await {
        Ok(said) => {
            say(&said);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("rtc-cri: interrupted: the pod was taken back");
            // As a shell says of SIGINT.
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error),
    }
}

fn read(file: &str) -> Result<String> {
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin()
            .take(manifest::SIZE_MAX + 1)
            .read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(manifest::SIZE_MAX + 1).read_to_string(&mut text))
    };
    let size = read.with_context(|| file.to_owned())?;
    ensure!(
        size as u64 <= manifest::SIZE_MAX,
        "{file}: more than {} bytes",
        manifest::SIZE_MAX
    );
    Ok(text)
}

fn place(pod: &Pod, arguments: &Arguments) -> Result<Place> {
    let uid = match &pod.uid {
        Some(uid) => uid.clone(),
        None => uuid()?,
    };
    let directory = |option: &str, default: &str| {
        let given = arguments.path(option).unwrap_or_else(|| default.into());
        std::path::absolute(&given).with_context(|| given.display().to_string())
    };
    let data: PathBuf = directory("data", DATA)?.join(&uid);
    // Before all is pulled in vain; what counts is `Runner::claim`.
    if data.exists() {
        return Err(taken(&uid, &data));
    }
    Ok(Place {
        logs: directory("logs", LOGS)?.join(Place::log_name(&pod.namespace, &pod.name, &uid)),
        data,
        uid,
        cgroup_parent: arguments.value("cgroup-parent").unwrap_or_default().to_owned(),
        unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        memory: memory()?,
        dns: resolver(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    })
}

fn taken(uid: &str, path: &Path) -> anyhow::Error {
    anyhow!(
        "metadata.uid: {uid:?}: a pod has it: {} is there: rtc-cri pod rm removes the pod, or give another uid",
        path.display()
    )
}

/// Makes a directory that must not be there; its parents may be. `None`: it is there.
fn make_new(path: &Path, mode: u32) -> std::io::Result<Option<()>> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(mode);
    if let Some(parent) = path.parent() {
        builder.recursive(true).create(parent)?;
    }
    match builder.recursive(false).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        made => made.map(Some),
    }
}

/// A random one (RFC 9562, version 4), as the API server gives.
fn uuid() -> Result<String> {
    let digits = id::new().map_err(|error| anyhow!("{error}"))?;
    Ok(format!(
        "{}-{}-4{}-8{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    ))
}

/// Bytes of this machine's memory.
fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.context("/proc/meminfo: no MemTotal")? << 10)
}

/// resolv.conf(5), as far as CRI has words for it.
fn resolver(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

/// One pod on its way.
struct Runner {
    pod: Pod,
    place: Place,
    server: Server,
    quiet: bool,
}

/// What a run has made so far: no more than that is its to take back.
#[derive(Debug, Default)]
struct Made {
    data: bool,
    logs: bool,
    sandbox: Option<PodSandbox>,
}

impl Runner {
    /// All steps; what they made is taken back where one fails. Answers what is to be said.
    async fn whole(&self, interrupt: &mut Interrupt) -> Result<String> {
        self.refuse_another().await?;
        self.pull(interrupt).await?;
        // That took its time.
        self.refuse_another().await?;
        let mut made = Made::default();
        let outcome = self.make(interrupt, &mut made).await;
        let Err(error) = outcome else {
            return outcome;
        };
        if let Err(left) = self.undo(made).await {
            return Err(error.context(format!("and taking it back failed: {left:#}")));
        }
        Err(error)
    }

    async fn refuse_another(&self) -> Result<()> {
        let name = format!("{}/{}", self.pod.namespace, self.pod.name);
        let pods = find::pods(&self.server).await?;
        if pods.iter().any(|pod| find::name(pod) == name) {
            bail!("pod {name}: is there already: rtc-cri pod rm {name} removes it");
        }
        Ok(())
    }

    /// Brings the images that are missing, or must be asked for anew.
    async fn pull(&self, interrupt: &mut Interrupt) -> Result<()> {
        let containers = self
            .pod
            .containers
            .iter()
            .map(|container| (container.image.as_str(), container.pull));
        let volumes = self.pod.volumes.iter().filter_map(|volume| match &volume.source {
            Source::Image { reference, pull } => Some((reference.as_str(), *pull)),
            _ => None,
        });
        let mut pulled = Vec::new();
        for (name, policy) in containers.chain(volumes) {
            if pulled.contains(&name) {
                continue;
            }
            let here = image::find(&self.server, name).await?.is_some();
            match policy {
                Pull::Never if !here => {
                    bail!(
                        "image {name}: is not here, and imagePullPolicy is Never: rtc-cri image pull {name}"
                    )
                }
                Pull::Always => {}
                _ if here => continue,
                _ => {}
            }
            let fetch = image::fetch(&self.server, name, None, None, self.quiet);
            interrupt.race(fetch).await?;
            pulled.push(name);
        }
        Ok(())
    }

    /// Makes a directory, which says that the pod's uid is this run's: one that is there is another's.
    fn claim(&self, path: &Path, mode: u32) -> Result<()> {
        let made = make_new(path, mode).with_context(|| format!("mkdir {}", path.display()))?;
        made.ok_or_else(|| taken(&self.place.uid, path))
    }

    async fn make(&self, interrupt: &mut Interrupt, made: &mut Made) -> Result<String> {
        self.claim(&self.place.data, 0o750)?;
        made.data = true;
        volumes::make(&self.pod, &self.place.data)?;
        self.claim(&self.place.logs, 0o755)?;
        made.logs = true;
        let config = request::sandbox(&self.pod, &self.place);
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.pod.runtime_class.clone(),
        };
        // It can't be taken back while it is on its way.
        let id = answer("RunPodSandbox", self.server.runtime().run_pod_sandbox(run).await)?.pod_sandbox_id;
        self.refuse_other(&id).await?;
        let sandbox = made.sandbox.insert(PodSandbox {
            id,
            metadata: config.metadata.clone(),
            annotations: config.annotations.clone(),
            ..PodSandbox::default()
        });
        for container in &self.pod.containers {
            interrupt.check().await?;
            let started = self.start(&sandbox.id, container, &config).await;
            let id = started.with_context(|| format!("container {:?}", container.name))?;
            if container.role == Role::Init {
                interrupt.race(self.await_end(&container.name, &id)).await?;
            }
        }
        self.said(sandbox).await
    }

    /// RunPodSandbox answers with the id of a pod that is there, where it has this one's name and uid: one of another
    /// client, or of a run with other directories.
    async fn refuse_other(&self, id: &str) -> Result<()> {
        let pods = find::pods(&self.server).await?;
        let data = pods
            .iter()
            .find(|pod| pod.id == id)
            .and_then(|pod| pod.annotations.get(request::DATA));
        ensure!(
            data.is_some_and(|data| Path::new(data) == self.place.data),
            "metadata.uid: {:?}: a pod has it, which was run meanwhile: {id}",
            self.place.uid
        );
        Ok(())
    }

    async fn said(&self, sandbox: &PodSandbox) -> Result<String> {
        if self.quiet {
            return Ok(format!("{}\n", sandbox.id));
        }
        let ips = list::addresses(&self.server, sandbox).await?;
        let ips = if self.pod.host_network {
            "the host's".into()
        } else {
            ips.join(", ")
        };
        let names: Vec<&str> = self
            .pod
            .containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        Ok(format!(
            "id:          {}\nname:        {}/{}\nip:          {ips}\ncontainers:  {}\n",
            sandbox.id,
            self.pod.namespace,
            self.pod.name,
            names.join(", ")
        ))
    }

    /// Answers its id.
    async fn start(&self, sandbox: &str, container: &Container, config: &PodSandboxConfig) -> Result<String> {
        self.check_user(container).await?;
        let logs = self.place.logs.join(&container.name);
        fs::create_dir_all(&logs).with_context(|| format!("mkdir {}", logs.display()))?;
        let mounts = volumes::mounts(&self.pod, container, &self.place.data)?;
        let spec = image::spec(&container.image);
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(request::container(
                &self.pod,
                container,
                &self.place,
                spec,
                mounts,
            )),
            sandbox_config: Some(config.clone()),
        };
        let mut runtime = self.server.runtime();
        let id = answer("CreateContainer", runtime.create_container(create).await)?.container_id;
        let start = StartContainerRequest {
            container_id: id.clone(),
        };
        answer("StartContainer", runtime.start_container(start).await)?;
        Ok(id)
    }

    /// `runAsNonRoot`, which is the kubelet's to check.
    async fn check_user(&self, container: &Container) -> Result<()> {
        let security = container.security.own.or(&self.pod.security.common);
        if security.run_as_non_root != Some(true) {
            return Ok(());
        }
        let image = image::find(&self.server, &container.image)
            .await?
            .unwrap_or_default();
        match (security.run_as_user, image.uid.map(|uid| uid.value)) {
            (Some(0), _) => bail!("runAsNonRoot: runAsUser is 0, which is root"),
            (Some(_), _) => Ok(()),
            (None, Some(uid)) if uid != 0 => Ok(()),
            (None, _) if !image.username.is_empty() => bail!(
                "runAsNonRoot: the image's user is {:?}, which may be root: give its number as runAsUser",
                image.username
            ),
            (None, _) => bail!("runAsNonRoot: the image's user is root: give another as runAsUser"),
        }
    }

    async fn await_end(&self, name: &str, id: &str) -> Result<()> {
        let mut pause = FIRST_LOOK;
        loop {
            let status = find::status(&self.server, id).await?;
            if status.state == i32::from(ContainerState::ContainerExited) {
                if status.exit_code == 0 {
                    return Ok(());
                }
                let said = logs::last(Path::new(&status.log_path), LAST_LINES);
                let said = if said.is_empty() {
                    said
                } else {
                    format!("; its last words:\n{said}")
                };
                bail!(
                    "init container {name:?} ended with {} ({}){}",
                    status.exit_code,
                    status.reason,
                    said.trim_end()
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LATER_LOOK);
        }
    }

    async fn undo(&self, made: Made) -> Result<()> {
        if let Some(sandbox) = made.sandbox {
            // With its directories. Nobody waits for what was never whole.
            return remove::remove(&self.server, &sandbox, Some(1)).await;
        }
        let data = made.data.then_some(self.place.data.as_path());
        let logs = made.logs.then_some(self.place.logs.as_path());
        remove::all([remove::data(data), remove::logs(logs)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_one_of_version_4() {
        let uid = uuid().unwrap();
        let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
    }

    #[test]
    fn a_directory_that_is_there_is_not_made_again() {
        let root = std::env::temp_dir().join(format!("rtc-cri-{}-claim", std::process::id()));
        let path = root.join("pods/u");
        assert_eq!(make_new(&path, 0o750).unwrap(), Some(()));
        assert_eq!(make_new(&path, 0o750).unwrap(), None);
        assert_eq!(make_new(&root.join("pods/v"), 0o750).unwrap(), Some(()));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn resolv_conf_is_read() {
        let dns = resolver(
            "# x\nnameserver 192.0.2.1\nnameserver ::1\nsearch a.example b.example\noptions ndots:2 rotate\n",
        );
        assert_eq!(dns.servers, ["192.0.2.1", "::1"]);
        assert_eq!(dns.searches, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }
}
