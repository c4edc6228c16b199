//! `exec`: a process beside a container's init.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::annotations::Annotations;
use crate::bundle;
use crate::cgroup::{ExecCgroup, JoinTarget};
use crate::container::cgroup_view::writes_cgroup;
use crate::container::exec_process::ExecProcess;
use crate::container::handover::{send_listener, send_master, send_pidfd, write_pid_file};
use crate::container::id::ContainerId;
use crate::container::plan::{check_terminal, terminal_of};
use crate::container::state::{Directory, Operation, Record, StateRoot};
use crate::namespace::{self, Namespaces};
use crate::process::channel::Message;
use crate::process::foreground::{self, Signals};
use crate::process::identity::{self, Identity, cpu_mask};
use crate::process::join::Join;
use crate::process::label::{Labels, set_oom_score};
use crate::process::payload::Payload;
use crate::process::program::Program;
use crate::process::spawn::{Birth, Spawned, spawn};
use crate::process::worker::Reporter;
use crate::procfs::Procfs;
use crate::sys::clone::{CLONE_NEWNS, CLONE_NEWTIME, CLONE_NEWUSER};
use crate::sys::process;
use crate::{log, rootless, seccomp, sys};

/// What `exec` is asked for.
#[derive(Debug)]
pub struct ExecOptions<'a> {
    /// The process.
    pub process: ExecProcess,
    /// Where the master of its terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Where its pidfd is sent.
    pub pidfd_socket: Option<PathBuf>,
    /// A file for its pid.
    pub pid_file: Option<PathBuf>,
    /// Return once it runs.
    pub detach: bool,
    /// Descriptors from 3 on that it keeps.
    pub preserve_fds: u32,
    /// Cgroups below the container's, as `exec --cgroup` takes them.
    pub cgroup: Vec<String>,
    /// Give it a cgroup of its own, where that is possible.
    pub own_cgroup: bool,
    /// Exec also into a paused container; the process runs once it is resumed.
    pub ignore_paused: bool,
    /// In a worker of the shim: where the process, what helped to make it, and the master of its terminal are reported.
    /// Nobody waits for it here, as with `detach`.
    pub reporter: Option<&'a Reporter>,
}

/// What became of an `exec`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Executed {
    /// The status of the process; 0 where nobody waited for it.
    pub status: i32,
    /// The name of its own cgroup, where it has one ([`crate::cgroup::Cgroup::exec_cgroup`]).
    pub cgroup: Option<String>,
}

/// Runs a process in a container.
///
/// # Errors
///
/// The container is in no status for it, or the process can't be run.
pub fn exec(root: &StateRoot, id: &ContainerId, mut options: ExecOptions<'_>) -> Result<Executed> {
    let directory = root.open(id)?;
    let record = directory.complete_record()?;
    let operation = if options.ignore_paused {
        Operation::ExecPaused
    } else {
        Operation::Exec
    };
    directory.status(&record)?.allows(operation, id)?;
    let spec = bundle::parse_kept(&directory.config()?)?;
    let given = std::mem::replace(&mut options.process, ExecProcess::Overrides(Box::default()));
    let process = given.resolve(spec.process().as_ref())?;
    check_terminal(
        process.terminal().unwrap_or(false),
        options.console_socket.is_some(),
        options.detach && options.reporter.is_none(),
    )?;
    let detach = options.detach || options.reporter.is_some();
    let signals = (!detach).then(Signals::block).transpose()?;
    let container = Container {
        directory: &directory,
        record: &record,
        spec: &spec,
    };
    let mut cgroup = container.own_cgroup(&options)?;
    let (spawned, master) = match container.start(&process, &options, &mut cgroup) {
        Ok(started) => started,
        Err(error) => {
            if let Some(cgroup) = cgroup {
                cgroup.discard();
            }
            return Err(error);
        }
    };
    let cgroup = cgroup.map(|cgroup| cgroup.name().to_owned());
    let Some(signals) = signals else {
        return Ok(Executed { status: 0, cgroup });
    };
    let exit = foreground::wait(&spawned.child, &signals, master, NOTHING)?;
    Ok(Executed {
        status: exit.status(),
        cgroup,
    })
}

/// An exec reports to no service manager.
const NOTHING: foreground::Watched<'static, fn() -> bool> = None;

/// The container that the process joins.
#[derive(Debug)]
struct Container<'a> {
    directory: &'a Directory,
    record: &'a Record,
    spec: &'a Spec,
}

impl Container<'_> {
    /// A cgroup of its own for the process, where it is asked for and the container leaves its cgroup to us.
    fn own_cgroup(&self, options: &ExecOptions<'_>) -> Result<Option<ExecCgroup>> {
        if !options.own_cgroup || !options.cgroup.is_empty() || writes_cgroup(self.spec) {
            return Ok(None);
        }
        self.record.cgroup.make_exec_cgroup()
    }

    /// Makes the process and serves it until it executes its program; returns the master of its terminal, where that is ours
    /// to relay. The cgroup is taken away where it can't be used.
    fn start(
        &self,
        process: &Process,
        options: &ExecOptions<'_>,
        cgroup: &mut Option<ExecCgroup>,
    ) -> Result<(Spawned, Option<OwnedFd>)> {
        let spawned = self.spawn(process, options, cgroup)?;
        match self.serve(&spawned, options) {
            Ok(master) => Ok((spawned, master)),
            Err(error) => {
                let _ = process::pidfd_send_signal(&spawned.child.pidfd, libc::SIGKILL);
                if options.reporter.is_none() {
                    let _ = process::wait(&spawned.child.pidfd);
                }
                Err(error)
            }
        }
    }

    fn spawn(
        &self,
        process: &Process,
        options: &ExecOptions<'_>,
        own_cgroup: &mut Option<ExecCgroup>,
    ) -> Result<Spawned> {
        let namespaces = self.namespaces()?;
        let in_user_namespace = namespaces.has(CLONE_NEWUSER);
        let before_entering = || {
            if in_user_namespace {
                // From inside the namespace no hard limit can be raised; children inherit ours.
                identity::set_rlimits(Pid::from_raw(0), process)?;
            }
            if let Some(group) = &self.record.intel_rdt {
                group.join()?;
            }
            apply_to_ourselves(process)
        };
        let mut join = Some(Join {
            namespaces: &namespaces,
            in_user_namespace,
            payload: self.payload(process, options)?,
        });
        let mut spawn_into = |target: &JoinTarget| {
            let (cgroup, cgroup_procs) = match target {
                JoinTarget::V2(directory) => (Some(directory.as_fd()), &[][..]),
                JoinTarget::V1(procs) => (None, procs.as_slice()),
            };
            let birth = Birth {
                namespaces: &namespaces,
                cgroup,
                cgroup_procs,
                before_entering: &before_entering,
                not_shared: &[],
                keep_only: Some(options.preserve_fds),
                reporter: options.reporter,
            };
            spawn(&birth, |channel| {
                join.take().context("the process was made before")?.run(channel)
            })
        };
        if let Some(cgroup) = own_cgroup {
            match spawn_into(&cgroup.join_target()?) {
                Err(error) if is_busy(&error) => {}
                spawned => return spawned,
            }
        }
        // The container has begun to use its cgroup meanwhile.
        if let Some(unused) = own_cgroup.take() {
            unused.discard();
        }
        let cgroup = &self.record.cgroup;
        if !options.cgroup.is_empty() {
            return spawn_into(&cgroup.join_target_below(&options.cgroup)?);
        }
        match spawn_into(&cgroup.join_target()?) {
            // It has passed its controllers on to cgroups below, and takes no processes any more.
            Err(error) if is_busy(&error) => {
                spawn_into(&cgroup.join_target_of_init(Pid::from_raw(self.record.pid))?)
            }
            spawned => spawned,
        }
    }

    /// Those of init.
    fn namespaces(&self) -> Result<Namespaces> {
        let init = self
            .record
            .pidfd()?
            .ok_or_else(|| anyhow!("cannot exec in a stopped container"))?;
        let default = Linux::default();
        let linux = self.spec.linux().as_ref().unwrap_or(&default);
        let flags = linux
            .namespaces()
            .iter()
            .flatten()
            .fold(0, |flags, namespace| flags | namespace::flag(namespace.typ()));
        let flags = if self.record.time_namespace {
            flags | CLONE_NEWTIME
        } else {
            flags
        };
        let root = (flags & CLONE_NEWNS == 0)
            .then(|| self.open_root(&init))
            .transpose()?;
        Ok(Namespaces::of_container(init, flags, root))
    }

    /// What the process becomes.
    fn payload(&self, process: &Process, options: &ExecOptions<'_>) -> Result<Payload> {
        let default = Linux::default();
        let linux = self.spec.linux().as_ref().unwrap_or(&default);
        let keyring = (!self.record.no_new_keyring)
            .then(|| CString::new(format!("_ses.{}", self.directory.id())).context("the name of the keyring"))
            .transpose()?;
        let for_socket = options.console_socket.is_some() || options.reporter.is_some();
        let mut identity = Identity::new(process, linux)?;
        if Annotations::read(self.record.annotations.iter())?
            .0
            .keep_original_groups
        {
            identity.keep_original_groups();
        }
        Ok(Payload {
            identity,
            program: Program::new(process)?,
            filter: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
            keyring,
            terminal: terminal_of(Some(process), for_socket),
            preserve_fds: options.preserve_fds,
            open_to_user: false,
        })
    }

    /// The root of a container without a mount namespace of its own.
    fn open_root(&self, init: &OwnedFd) -> Result<OwnedFd> {
        let path = format!("/proc/{}/root", self.record.pid);
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&path);
        let root = root.with_context(|| format!("open {path}"))?;
        // Still there: the path was that of init, not of a process that got its pid.
        process::pidfd_send_signal(init, 0).context("the container's init")?;
        Ok(root.into())
    }

    /// Does what the child asks for, until it executes its program. Returns the master of its terminal, where that is
    /// ours to relay.
    fn serve(&self, spawned: &Spawned, options: &ExecOptions<'_>) -> Result<Option<OwnedFd>> {
        let Spawned { child, channel } = spawned;
        if let Some(path) = &options.pidfd_socket {
            send_pidfd(path, child)?;
        }
        let mut relayed = None;
        loop {
            match channel.receive()? {
                Some(Message::Warning(text)) => log::warn(text),
                Some(Message::Failed(text)) => return Err(anyhow!(text)),
                Some(Message::Terminal(master)) => match (&options.console_socket, options.reporter) {
                    (Some(path), _) => send_master(path, &master)?,
                    (None, Some(reporter)) => reporter.terminal(&master)?,
                    (None, None) => relayed = Some(master),
                },
                Some(Message::SeccompListener(listener)) => {
                    let state = self.record.hook_state(self.directory.id());
                    send_listener(
                        self.spec,
                        &listener,
                        child,
                        &state.json("running", self.record.pid),
                    )?;
                    channel.go()?;
                }
                Some(other) => bail!("an unexpected message from the process: {other:?}"),
                None => break,
            }
        }
        if let Some(path) = &options.pid_file {
            write_pid_file(path, child.pid.as_raw())?;
        }
        Ok(relayed)
    }
}

/// What the child inherits from the helper that clones it: it can't do so itself, seeing only the container's `/proc`.
fn apply_to_ourselves(wanted: &Process) -> Result<()> {
    let initial = wanted
        .exec_cpu_affinity()
        .as_ref()
        .and_then(|affinity| affinity.initial().as_deref());
    if let Some(list) = initial.filter(|list| !list.is_empty()) {
        let mask = cpu_mask(list).with_context(|| format!("process.execCPUAffinity.initial: {list:?}"))?;
        process::set_affinity(0, &mask).context("process.execCPUAffinity.initial")?;
    }
    let labels = Labels::of(wanted);
    if wanted.oom_score_adj().is_none() && labels.is_empty() {
        return Ok(());
    }
    let procfs = Procfs::open()?;
    if let Some(score) = wanted.oom_score_adj() {
        // To an ordinary user the file is root's while this process is hidden; it has not entered anything yet.
        let hidden = rootless::ordinary_user().is_some();
        if hidden {
            process::set_dumpable(true)?;
        }
        set_oom_score(&procfs, "self", score)?;
        if hidden {
            process::set_dumpable(false)?;
        }
    }
    labels.write(&procfs)
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<sys::Error>()
            .is_some_and(|error| matches!(error.errno, sys::Errno::EBUSY | sys::Errno::EOPNOTSUPP))
    })
}
