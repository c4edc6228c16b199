//! Where the containers of these tests are, and the shim's part of a worker's life.

use std::cell::Cell;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rtc_runtime::bundle::Bundle;
use rtc_runtime::container::{self, ContainerId, CreateOptions, Starting, StateRoot};
use rtc_runtime::process::worker::{self, Report, Reporter, Worker};
use rtc_runtime::sys::Errno;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process::{Exit, has_ended, pidfd_send_signal, wait};
use serde_json::json;

/// Where the containers of these tests are.
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) name: String,
    /// Whether the next container's cgroup is made by systemd.
    pub(crate) systemd: Cell<bool>,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let name = format!("rtc-worker-{}", std::process::id());
        let directory = Path::new("/tmp").join(&name);
        // Root of a user namespace could not make them.
        for name in ["proc", "dev", "sys/fs/cgroup"] {
            fs::create_dir_all(directory.join("bundle/rootfs").join(name))?;
        }
        fs::copy("/proc/self/exe", directory.join("bundle/rootfs/payload"))?;
        Ok(Self {
            directory,
            name,
            systemd: Cell::new(false),
        })
    }

    pub(crate) fn root(&self) -> StateRoot {
        StateRoot::new(self.directory.join("state"))
    }

    pub(crate) fn id(&self) -> ContainerId {
        self.name.parse().expect("an id")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    pub(crate) fn configure(
        &self,
        arguments: &[&str],
        change: impl FnOnce(&mut serde_json::Value),
    ) -> Result<()> {
        let mut args = vec!["/payload", "payload"];
        args.extend(arguments);
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.name),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
                ],
            },
        });
        change(&mut config);
        Ok(fs::write(self.bundle().join("config.json"), config.to_string())?)
    }

    /// What a test must not leave.
    pub(crate) fn nothing_is_left(&self) -> Result<()> {
        ensure!(worker::strays(&[])?.is_empty(), "a child is left");
        let states = self.root().ids()?;
        ensure!(states.is_empty(), "left in the state root: {states:?}");
        for tree in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let path = tree.path().join(&self.name);
            ensure!(!path.exists() && tree.file_name() != *self.name, "left: {path:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.name), "a mount is left");
        Ok(())
    }

    pub(crate) fn start_create(&self, stdio: Option<[BorrowedFd<'_>; 3]>) -> Result<Worker> {
        self.start_create_with(stdio, &[])
    }

    pub(crate) fn start_create_with(
        &self,
        stdio: Option<[BorrowedFd<'_>; 3]>,
        keep: &[RawFd],
    ) -> Result<Worker> {
        worker::fork(stdio, keep, |reporter| {
            let mut options = self.create_options(reporter)?;
            Ok(serde_json::to_vec(&container::create(
                &self.root(),
                &mut options,
            )?)?)
        })
    }

    pub(crate) fn create_options<'a>(&self, reporter: &'a Reporter) -> Result<CreateOptions<'a>> {
        Ok(CreateOptions {
            id: self.id(),
            bundle: Bundle::load(&self.bundle())?,
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            no_pivot: false,
            no_new_keyring: true,
            preserve_fds: 0,
            listen_fds: 0,
            systemd_cgroup: self.systemd.get(),
            rootless: rtc_runtime::rootless::Rootless::Auto,
            reporter: Some(reporter),
        })
    }

    pub(crate) fn start(&self) -> Result<()> {
        let mut starting = Starting::begin(&self.root(), &self.id())?.context("it is locked")?;
        ensure!(
            Starting::begin(&self.root(), &self.id())?.is_none(),
            "two starts at once"
        );
        while !starting.look()? {
            readable(&starting, Duration::from_secs(10))?;
        }
        Ok(())
    }

    pub(crate) fn delete(&self) -> Result<()> {
        let said = hear(worker::fork(None, &[], |_| {
            container::delete(&self.root(), &self.id(), true).map(|()| Vec::new())
        })?)?;
        said.result.map(drop)
    }
}

/// All that a worker said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) born: Vec<Child>,
    pub(crate) helpers: Vec<OwnedFd>,
    pub(crate) namespaces: Vec<(i32, OwnedFd)>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
    pub(crate) result: Result<Vec<u8>>,
    pub(crate) exit: Exit,
}

/// Hears a worker to its end, and collects it and its helpers.
pub(crate) fn hear(worker: Worker) -> Result<Said> {
    let mut said = Said {
        born: Vec::new(),
        helpers: Vec::new(),
        namespaces: Vec::new(),
        terminal: None,
        warnings: Vec::new(),
        result: Err(anyhow::anyhow!("no last word")),
        exit: Exit::Code(0),
    };
    loop {
        match worker.receive() {
            Ok(None) => break,
            Ok(Some(Report::Born(child))) => said.born.push(child),
            Ok(Some(Report::Helper(helper))) => said.helpers.push(helper),
            Ok(Some(Report::Terminal(master))) => said.terminal = Some(master),
            Ok(Some(Report::Warning(text))) => said.warnings.push(text),
            Ok(Some(Report::Done(bytes))) => said.result = Ok(bytes),
            Ok(Some(Report::Failed(text))) => said.result = Err(anyhow::anyhow!(text)),
            Ok(Some(Report::Namespace(flag, namespace))) => said.namespaces.push((flag, namespace)),
            Err(error) if error.errno == Errno::EAGAIN => readable(&worker, Duration::from_secs(30))?,
            Err(error) => return Err(error.into()),
        }
    }
    said.exit = wait(&worker.child.pidfd)?;
    for helper in &said.helpers {
        wait(helper)?;
    }
    Ok(said)
}

pub(crate) fn readable(fd: impl AsFd, patience: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(patience)?;
    let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    ensure!(ready > 0, "nothing after {patience:?}");
    Ok(())
}

pub(crate) fn kill_and_collect(child: &Child) -> Result<Exit> {
    pidfd_send_signal(&child.pidfd, libc::SIGKILL)?;
    Ok(wait(&child.pidfd)?)
}

/// Kills all children that are left, then collects them: the first process of a PID namespace ends only after the others
/// were collected.
pub(crate) fn end_strays() -> Result<()> {
    let strays = worker::strays(&[])?;
    for stray in &strays {
        pidfd_send_signal(&stray.pidfd, libc::SIGKILL)?;
    }
    // In any order, as the shim does.
    let mut left: Vec<Child> = strays;
    let began = Instant::now();
    while !left.is_empty() {
        ensure!(
            began.elapsed() < Duration::from_secs(10),
            "they do not end: {left:?}"
        );
        let mut waiting = Vec::new();
        for child in left {
            if has_ended(&child.pidfd, Duration::from_millis(1))? {
                wait(&child.pidfd)?;
            } else {
                waiting.push(child);
            }
        }
        left = waiting;
    }
    Ok(())
}

pub(crate) fn parent_of(pid: Pid) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("PPid")?.trim().parse()?)
}

pub(crate) fn ours() -> i32 {
    std::process::id().cast_signed()
}
