//! A foreign OCI runtime (runc, crun, youki, or `rtc` itself) by its command line.
//!
//! ```text
//! shim --worker--> runtime create --pid-file --> init          the runtime inherits what is to be init's stdio
//!                     `- exits: init is now the shim's child (PR_SET_CHILD_SUBREAPER), waited for by its pidfd
//! ```

mod orphans;
mod run;
mod scratch;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use nix::unistd::{Pid, getpid, getppid};
use oci_spec::runtime::{LinuxResources, Spec};
use rtc_runtime::cgroup::{Cgroup, Layout};
use rtc_runtime::container::ContainerId;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process;
use rtc_runtime::{bundle, log};

use orphans::InFlight;
use run::Invocation;
use scratch::{child_of, detached_tmpfs, listen, memory_file, path_of, receive_master};

use super::{CHECKPOINT, Create, Created, Exec, Started};
use crate::error::{Error, Kind, Result};
use crate::options::Options;
use crate::{reaper, record, rootfs, worker};

/// Where the state of containers is without `options.root`: as with containerd's own shim for runc, so that
/// `runc --root /run/containerd/runc/<namespace> list` shows them.
const ROOT: &str = "/run/containerd/runc";

/// For what runs hooks, reads an image or asks systemd.
const SLOW: Duration = Duration::from_secs(120);
/// For what the kernel does by itself.
const QUICK: Duration = Duration::from_secs(30);

/// The runtime and what it is told every time.
#[derive(Debug)]
pub(crate) struct Command {
    program: PathBuf,
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot: bool,
    no_new_keyring: bool,
    criu_image_path: Option<PathBuf>,
    criu_work_path: Option<PathBuf>,
    /// A tmpfs that is mounted nowhere.
    scratch: OwnedFd,
    serial: AtomicU64,
    /// The container was made of a checkpoint, and runs.
    restored: AtomicBool,
}

impl Command {
    /// For the containers of a containerd namespace. Makes this process a subreaper.
    ///
    /// # Errors
    ///
    /// A kernel without what is needed (Linux 5.4).
    pub(super) fn new(program: &Path, options: &Options, namespace: &str) -> Result<Self> {
        orphans::adopt_all()?;
        Ok(Self {
            program: program.to_owned(),
            root: options.root.as_deref().unwrap_or(Path::new(ROOT)).join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            criu_image_path: options.criu_image_path.clone(),
            criu_work_path: options.criu_work_path.clone(),
            scratch: detached_tmpfs()?,
            serial: AtomicU64::new(0),
            restored: AtomicBool::new(false),
        })
    }

    pub(super) async fn create(&self, wanted: Create) -> Result<Created> {
        let shim = getpid();
        let preparing = worker::start(None, &[], |_| {
            // What it mounts after the shim's death nobody would unmount: `delete` comes right then.
            process::set_parent_death_signal(nix::libc::SIGKILL)?;
            if getppid() != shim {
                bail!("the shim has died");
            }
            self.record(&wanted.id, getppid()).save(&wanted.bundle)?;
            if let Some(pod) = &wanted.pod {
                pod.rewrite(&wanted.bundle)?;
            }
            rootfs::mount_all(&wanted.bundle, &wanted.rootfs)?;
            let owns_pids = look_at(&wanted.bundle);
            if owns_pids.is_err() {
                undo_mounts(&wanted.bundle);
            }
            Ok(vec![owns_pids?.into()])
        })?;
        let prepared = worker::outcome(preparing).await.map_err(anyhow::Error::from)?;
        let bundle = wanted.bundle.clone();
        let id = wanted.id.clone();
        let made = self.make_init(wanted).await;
        match made {
            Ok((init, master, cgroup)) => {
                let cgroup = self.record(&id, getpid()).save_made(&bundle, init.pid, cgroup);
                Ok(Created {
                    init,
                    master,
                    cgroup,
                    owns_pids: prepared.result == [1],
                })
            }
            Err(error) => {
                if error.kind == Kind::AlreadyExists {
                    record::Container::take_back(&bundle);
                }
                if error.kind == Kind::DeadlineExceeded
                    && let Err(error) = self.say("delete", &["--force".into()], &id, SLOW).await
                {
                    log::warn(format_args!("clean up: {error}"));
                }
                worker::outcome(worker::start(None, &[], |_| {
                    undo_mounts(&bundle);
                    Ok(Vec::new())
                })?)
                .await
                .map_err(anyhow::Error::from)?;
                Err(error)
            }
        }
    }

    /// For the shim's `delete`.
    fn record(&self, id: &ContainerId, shim: Pid) -> record::Container {
        record::Container::new(id, &self.root, Some(&self.program), shim)
    }

    /// `create`, or `restore` where it is to be made from a checkpoint: its processes run on then.
    async fn make_init(&self, wanted: Create) -> Result<(Child, Option<OwnedFd>, Cgroup)> {
        let bundle = wanted.bundle.clone();
        let makes = Some(bundle.clone());
        let mut arguments: Vec<OsString> = vec!["--bundle".into(), wanted.bundle.into()];
        let verb = match &wanted.checkpoint {
            None => "create",
            Some(image) => {
                arguments.extend(["--detach".into(), "--image-path".into(), image.into()]);
                if let Some(work) = &self.criu_work_path {
                    arguments.extend(["--work-path".into(), work.into()]);
                }
                "restore"
            }
        };
        if self.no_pivot {
            arguments.push("--no-pivot".into());
        }
        if self.no_new_keyring && verb == "create" {
            arguments.push("--no-new-keyring".into());
        }
        let invocation = Invocation {
            verb,
            arguments,
            stdio: Some(wanted.stdio),
            patience: if verb == "create" { SLOW } else { CHECKPOINT },
            makes,
        };
        let made = self.make_process(invocation, &wanted.id, wanted.terminal).await;
        record::Maker::ended(&bundle);
        let (init, master) = made?;
        let cgroup = cgroup_of(init.pid);
        match cgroup {
            Ok(cgroup) => {
                self.restored.store(verb == "restore", Ordering::Relaxed);
                Ok((init, master, cgroup))
            }
            Err(error) => {
                end(init);
                // `created` still, or running: either way it is not to be.
                self.say("delete", &["--force".into()], &wanted.id, SLOW).await?;
                Err(error.context("the cgroup of the container's init").into())
            }
        }
    }

    pub(super) async fn start(&self, id: &ContainerId) -> Result<()> {
        if self.restored.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.say("start", &[], id, SLOW).await
    }

    pub(super) async fn exec(&self, wanted: Exec) -> Result<Started> {
        let specification = memory_file(&wanted.process)?;
        let invocation = Invocation {
            verb: "exec",
            arguments: vec![
                "--process".into(),
                path_of(&specification).into(),
                "--detach".into(),
            ],
            stdio: Some(wanted.stdio),
            patience: wanted.patience.min(SLOW),
            makes: None,
        };
        let (process, master) = self
            .make_process(invocation, &wanted.container, wanted.terminal)
            .await?;
        Ok(Started {
            process,
            master,
            cgroup: None,
        })
    }

    pub(super) async fn kill_all(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let killed = self
            .run(Invocation {
                verb: "kill",
                arguments: vec!["--all".into(), id.as_str().into(), signal.to_string().into()],
                stdio: None,
                patience: QUICK,
                makes: None,
            })
            .await;
        match killed {
            // They have ended, which is what was wanted.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::FailedPrecondition) => Ok(()),
            // In the same moment they were deleted, and their cgroup with them.
            Err(error) if error.to_string().contains("no such file or directory") => Ok(()),
            killed => killed,
        }
    }

    pub(super) async fn delete(&self, id: &ContainerId, bundle: &Path) -> Result<()> {
        match self.say("delete", &[], id, SLOW).await {
            Err(error) if error.kind != Kind::NotFound => return Err(error),
            _ => {}
        }
        let unmounting = worker::start(None, &[], |_| rootfs::unmount(bundle).map(|()| Vec::new()))?;
        worker::patiently(unmounting, SLOW).await.map(drop)
    }

    pub(super) async fn pause(&self, id: &ContainerId) -> Result<()> {
        self.say("pause", &[], id, QUICK).await
    }

    pub(super) async fn resume(&self, id: &ContainerId) -> Result<()> {
        self.say("resume", &[], id, QUICK).await
    }

    pub(super) async fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        let resources = serde_json::to_vec(resources).map_err(|error| Error::new(Kind::Unknown, error))?;
        let resources = memory_file(&resources)?;
        let arguments = ["--resources".into(), path_of(&resources).into()];
        self.say("update", &arguments, id, SLOW).await
    }

    pub(super) async fn checkpoint(
        &self,
        id: &ContainerId,
        image: &Path,
        options: &CheckpointOptions,
    ) -> Result<()> {
        let (image, work) =
            super::checkpoint_paths(image, options, &self.criu_image_path, &self.criu_work_path)?;
        let arguments = checkpoint_arguments(image, work, options);
        self.say("checkpoint", &arguments, id, CHECKPOINT).await
    }

    /// A verb with its flags and the container's id.
    async fn say(
        &self,
        verb: &'static str,
        flags: &[OsString],
        id: &ContainerId,
        patience: Duration,
    ) -> Result<()> {
        let mut arguments = flags.to_vec();
        arguments.push(id.as_str().into());
        self.run(Invocation {
            verb,
            arguments,
            stdio: None,
            patience,
            makes: None,
        })
        .await
    }

    /// Runs a verb that leaves a process behind: a child of this one by now, and known as such.
    async fn make_process(
        &self,
        mut invocation: Invocation,
        id: &ContainerId,
        terminal: bool,
    ) -> Result<(Child, Option<OwnedFd>)> {
        let _orphans_wait = InFlight::begin();
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let scratch = path_of(&self.scratch);
        let pid_file = scratch.join(format!("{number}.pid"));
        let console = scratch.join(format!("{number}.sock"));
        let arguments = &mut invocation.arguments;
        arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
        let listener = terminal.then(|| listen(&console)).transpose()?;
        if listener.is_some() {
            arguments.extend(["--console-socket".into(), console.clone().into()]);
        }
        arguments.push(id.as_str().into());
        let done = self.run(invocation).await;
        let child = done.and_then(|()| Ok(child_of(&pid_file)?));
        let master = listener.map(receive_master).transpose();
        for name in [&pid_file, &console] {
            // There may be none.
            let _ = std::fs::remove_file(name);
        }
        let child = child?;
        reaper::adopt(child.pid);
        match master {
            Ok(master) => Ok((child, master)),
            Err(error) => {
                end(child);
                Err(error.context("the master of the terminal").into())
            }
        }
    }
}

/// The cgroup that the runtime made for a container: whatever is in it is killed with the container.
///
/// # Errors
///
/// It made none, so that its init is where the shim is.
fn cgroup_of(init: Pid) -> anyhow::Result<Cgroup> {
    let layout = Layout::detect()?;
    let cgroup = Cgroup::of_process(init, &layout)?;
    // The root, for one, is no cgroup of ours.
    let own = Cgroup::of_process(getpid(), &layout).ok();
    anyhow::ensure!(
        own.as_ref().and_then(Cgroup::path) != cgroup.path(),
        "it is that of the shim: the runtime made none"
    );
    Ok(cgroup)
}

/// Kills a process that is not to be.
fn end(child: Child) {
    // One that has ended is what is wanted.
    let _ = process::pidfd_send_signal(&child.pidfd, nix::libc::SIGKILL);
    reaper::collect_behind(child);
}

/// Whether init is the first process of a PID namespace of its own.
fn look_at(bundle: &Path) -> anyhow::Result<bool> {
    let path = bundle.join("config.json");
    let config = std::fs::read(&path).with_context(|| format!("read {path:?}"))?;
    let spec: Spec = bundle::parse_json(&config).context("config.json")?;
    Ok(super::owns_pids(&spec))
}

fn undo_mounts(bundle: &Path) {
    if let Err(error) = rootfs::unmount(bundle) {
        log::warn(format_args!("clean up: {error:#}"));
    }
}

fn checkpoint_arguments(image: &Path, work: Option<&Path>, options: &CheckpointOptions) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--image-path".into(), image.into()];
    if let Some(work) = work {
        arguments.extend(["--work-path".into(), work.into()]);
    }
    let flags = [
        (!options.exit, "--leave-running"),
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    arguments.extend(
        flags
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, flag)| OsString::from(flag)),
    );
    if !options.cgroups_mode.is_empty() {
        arguments.extend(["--manage-cgroups-mode".into(), (&*options.cgroups_mode).into()]);
    }
    for namespace in &options.empty_namespaces {
        arguments.extend(["--empty-ns".into(), OsStr::new(namespace).to_owned()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_leaves_running_unless_told_to_exit() {
        let mut options = CheckpointOptions {
            open_tcp: true,
            empty_namespaces: vec!["network".into()],
            ..CheckpointOptions::default()
        };
        let arguments = checkpoint_arguments(Path::new("/i"), Some(Path::new("/w")), &options);
        assert_eq!(
            arguments,
            [
                "--image-path",
                "/i",
                "--work-path",
                "/w",
                "--leave-running",
                "--tcp-established",
                "--empty-ns",
                "network"
            ]
        );
        options = CheckpointOptions {
            exit: true,
            ..CheckpointOptions::default()
        };
        assert_eq!(
            checkpoint_arguments(Path::new("/i"), None, &options),
            ["--image-path", "/i"]
        );
    }
}
