//! dockerd with a containerd of its own (it starts one), and the runtime under test by daemon.json.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::engine::IMAGE;
use super::{Engine, Programs, enter};
use crate::host::process;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::until;

/// The runtime's name in daemon.json.
pub(crate) const RUNTIME: &str = "tested";
/// First major version without `--oom-score-adjust` and the key file.
const WITHOUT_KEY: u32 = 24;

/// A running dockerd.
pub(crate) struct Docker<'t> {
    pub(crate) engine: Engine<'t>,
    directory: PathBuf,
    programs: Programs,
    process: RefCell<Option<Child>>,
}

/// Runs the body with a dockerd that has the image `busybox`; nothing may be left when it is over.
pub(crate) fn with_docker(t: &Test, body: impl FnOnce(&Docker<'_>) -> Result) -> Result {
    with_configured(t, &json!({}), body)
}

/// [`with_docker`], with these settings in daemon.json, too.
pub(crate) fn with_configured(
    t: &Test,
    settings: &Value,
    body: impl FnOnce(&Docker<'_>) -> Result,
) -> Result {
    let docker = Docker::new(t, settings)?;
    body(&docker).with_context(|| docker.last_words())?;
    docker.end().with_context(|| docker.last_words())
}

impl<'t> Docker<'t> {
    fn new(t: &'t Test, settings: &Value) -> Result<Self> {
        let programs = Programs::of(t, "dockerd")?;
        enter(t, &programs)?;
        let directory = t.path("docker");
        fs::create_dir(&directory)?;
        let own = |name: &str| directory.join(name).display().to_string();
        let engine = Engine {
            t,
            name: "docker",
            program: programs.path("docker")?,
            options: vec!["--host".to_owned(), format!("unix://{}", own("d.sock"))],
            creating: Vec::new(),
            environment: vec![
                ("DOCKER_CONFIG".to_owned(), own("client")),
                ("PATH".to_owned(), programs.path_variable()),
                ("DOCKER_BUILDKIT".to_owned(), "0".to_owned()),
            ],
        };
        let docker = Self {
            engine,
            directory,
            programs,
            process: RefCell::default(),
        };
        // What BuildKit runs, whatever the default runtime is.
        fs::create_dir(docker.own_bin())?;
        symlink(&t.rtc, docker.own_bin().join("runc"))?;
        docker.configure(settings)?;
        docker.start_daemon()?;
        let archive = docker.engine.archive()?;
        docker
            .engine
            .call(&["import", "--change", "ENV PATH=/bin", &archive, IMAGE])?
            .ok()?;
        Ok(docker)
    }

    /// dockerd's version, its first number.
    pub(crate) fn major(&self) -> Result<u32> {
        let output = Command::new(self.programs.path("dockerd")?)
            .arg("--version")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // `Docker version 26.1.5+dfsg1, build a72d7cd`
        let major = text
            .split_whitespace()
            .nth(2)
            .and_then(|word| word.split('.').next()?.parse().ok());
        major.context(text)
    }

    fn configure(&self, settings: &Value) -> Result {
        let t = self.engine.t;
        let own = |name: &str| self.directory.join(name);
        let mut text = json!({
            "hosts": [format!("unix://{}", own("d.sock").display())],
            "data-root": own("data"),
            "exec-root": own("exec"),
            "pidfile": own("pid"),
            "storage-driver": "vfs",
            "runtimes": {RUNTIME: {"path": t.rtc}},
            "default-runtime": RUNTIME,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "cgroup-parent": t.cgroup.path,
            "init-path": self.programs.path("tini-static").unwrap_or_default(),
            // In the test's network namespace.
            "bip": "172.30.0.1/24",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "ip-masq": false,
            "userland-proxy": false,
        });
        if self.major()? < WITHOUT_KEY {
            text["oom-score-adjust"] = json!(0);
            text["deprecated-key-path"] = json!(own("key.json"));
        }
        for (name, value) in settings.as_object().into_iter().flatten() {
            text[name] = value.clone();
        }
        Ok(fs::write(own("daemon.json"), text.to_string())?)
    }

    /// Starts it, and waits until it answers. Also after [`Docker::kill`].
    pub(crate) fn start_daemon(&self) -> Result {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))?;
        let mut command = Command::new(self.programs.path("dockerd")?);
        command
            .arg("--config-file")
            .arg(self.directory.join("daemon.json"));
        let path = format!("{}:{}", self.own_bin().display(), self.programs.path_variable());
        command.env("PATH", path);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Not the test's: a terminal's signals are none of its business.
        command.process_group(0);
        *self.process.borrow_mut() = Some(command.spawn().context("start dockerd")?);
        until("dockerd to answer", || {
            ensure!(process::is_alive(self.pid()?), "dockerd ended");
            Ok((self.engine.call(&["version"])?.code == 0).then_some(()))
        })
        .with_context(|| self.last_words())
    }

    /// First in dockerd's `PATH`.
    fn own_bin(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// dockerd's pid.
    pub(crate) fn pid(&self) -> Result<i32> {
        let process = self.process.borrow();
        Ok(process
            .as_ref()
            .context("dockerd does not run")?
            .id()
            .cast_signed())
    }

    /// Ends dockerd alone, in the middle of whatever it does.
    pub(crate) fn kill(&self) -> Result {
        self.signal(Signal::SIGKILL)
    }

    fn signal(&self, signal: Signal) -> Result {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| signal.to_string())?;
        if let Some(mut child) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Ends it; no container, shim or state of the runtime may be left.
    fn end(&self) -> Result {
        self.engine.nothing_left()?;
        self.signal(Signal::SIGTERM)?;
        until("nothing left of Docker's containers", || {
            Ok(self.leftovers().is_empty().then_some(()))
        })
        .with_context(|| format!("left: {:?}", self.leftovers()))?;
        for directory in self.engine.t.cgroup.directories()? {
            // BuildKit's parent of its steps' cgroups, which no runtime removes.
            let _ = fs::remove_dir(directory.join("buildkit"));
        }
        Ok(())
    }

    fn leftovers(&self) -> Vec<String> {
        let supervisor = std::os::unix::process::parent_id().cast_signed();
        let own = std::process::id().cast_signed();
        let others = process::descendants(supervisor)
            .into_iter()
            .filter(|&pid| pid != own);
        let mut found: Vec<_> = others.map(process::describe).collect();
        // `--root` of the runtime: `runtime-tested/moby` until Docker 23, `runtime-runc/moby` since.
        for entry in entries(&self.directory.join("exec")) {
            if entry
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("runtime-"))
            {
                found.extend(
                    entries(&entry.join("moby"))
                        .iter()
                        .map(|path| path.display().to_string()),
                );
            }
        }
        found
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("level=info")).collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        format!("--- dockerd:\n{}\n---", last.join("\n"))
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
