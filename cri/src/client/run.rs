//! `rtc-cri pod run`: what a kubelet does for a pod, once.
//!
//! ```text
//! manifest read ── images pulled ── directories, volumes ── RunPodSandbox
//!   init containers, each to its end; sidecars, each started ── the containers ── said: id, name, addresses
//! a step fails, or Ctrl-C: all of it is taken back
//! ```

use std::fs;
use std::io::Read as _;
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
    ensure!(
        !data.exists(),
        "metadata.uid: {uid:?}: a pod has it: {} is there",
        data.display()
    );
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

impl Runner {
    /// All steps; what they made is taken back where one fails. Answers what is to be said.
    async fn whole(&self, interrupt: &mut Interrupt) -> Result<String> {
        self.refuse_another().await?;
        self.pull(interrupt).await?;
        let mut sandbox = None;
        let made = self.make(interrupt, &mut sandbox).await;
        let Err(error) = made else {
            return made;
        };
        if let Err(left) = self.undo(sandbox).await {
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

    async fn make(&self, interrupt: &mut Interrupt, made: &mut Option<PodSandbox>) -> Result<String> {
        volumes::make(&self.pod, &self.place.data)?;
        fs::create_dir_all(&self.place.logs)
            .with_context(|| format!("mkdir {}", self.place.logs.display()))?;
        let config = request::sandbox(&self.pod, &self.place);
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.pod.runtime_class.clone(),
        };
        // It can't be taken back while it is on its way.
        let id = answer("RunPodSandbox", self.server.runtime().run_pod_sandbox(run).await)?.pod_sandbox_id;
        let sandbox = made.insert(PodSandbox {
            id,
            metadata: config.metadata.clone(),
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

    async fn undo(&self, sandbox: Option<PodSandbox>) -> Result<()> {
        if let Some(sandbox) = sandbox {
            // Nobody waits for what was never whole.
            remove::remove(&self.server, &sandbox, Some(1)).await?;
        }
        volumes::remove(&self.place.data)?;
        remove::remove_logs(&self.place.logs)
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
    fn resolv_conf_is_read() {
        let dns = resolver(
            "# x\nnameserver 192.0.2.1\nnameserver ::1\nsearch a.example b.example\noptions ndots:2 rotate\n",
        );
        assert_eq!(dns.servers, ["192.0.2.1", "::1"]);
        assert_eq!(dns.searches, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
    }
}
