//! The runtime inside of the shim: `rtc_runtime`, called in workers for all that may wait.
//!
//! ```text
//! create   worker: mount the root, container::create ----> init is a child of the shim, and waits at its gate
//! start    here: open the gate, wait for the program (a FIFO); a worker for poststart hooks only
//! exec     worker: container::exec ----------------------> the process is a child of the shim
//! delete   worker: container::delete, unmount the root
//! pause, resume, update, kill of all, checkpoint: workers
//! create from a checkpoint: as create; its processes run on at once, and start has nothing to do
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Process};
use rtc_runtime::bundle::{self, Bundle};
use rtc_runtime::checkpoint::{self, CgroupMode, DumpOptions, RestoreOptions};
use rtc_runtime::container::start::Starting;
use rtc_runtime::container::{
    self, ContainerId, CreateOptions, ExecOptions, ExecProcess, NotFound, StateRoot,
};
use rtc_runtime::process::worker::Reporter;
use rtc_runtime::rootless::Rootless;
use tokio::io::Interest;

use super::{CHECKPOINT, Create, Created, Exec, Started};
use crate::error::{Error, Kind, Result};
use crate::io::ChildEnds;
use crate::options::Options;
use crate::pollable::wait_for;
use crate::record;
use crate::rootfs;
use crate::worker::{self, Failure};

/// Where the state of containers is unless the options say otherwise.
const ROOT: &str = "/run/containerd/rtc";
/// How often a start asks again for the lock of a container that another process changes.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long it asks.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a delete may take before its caller hears that it is not done: longer than the library waits for processes,
/// and than most hooks.
const DELETE_PATIENCE: Duration = Duration::from_secs(60);

/// How long the cgroup of an exec that was given up is waited for to be empty.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// `rtc_runtime`, with what the options of a container say.
#[derive(Debug)]
pub(crate) struct Embedded {
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot: bool,
    no_new_keyring: bool,
    criu_image_path: Option<PathBuf>,
    criu_work_path: Option<PathBuf>,
    /// The container was made of a checkpoint, and runs.
    restored: AtomicBool,
}

impl Embedded {
    /// For the containers of a namespace of containerd.
    pub(crate) fn new(options: &Options, namespace: &str) -> Self {
        let root = options.root.as_deref().unwrap_or(Path::new(ROOT));
        Self {
            root: root.join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            criu_image_path: options.criu_image_path.clone(),
            criu_work_path: options.criu_work_path.clone(),
            restored: AtomicBool::new(false),
        }
    }

    fn state(&self) -> StateRoot {
        StateRoot::new(self.root.clone())
    }

    pub(super) async fn create(&self, create: Create) -> Result<Created> {
        let restores = create.checkpoint.is_some();
        let patience = restores.then_some(CHECKPOINT);
        let working = worker::start_for(patience, Some(borrowed(&create.stdio)), &[], |reporter| {
            self.create_in_worker(&create, reporter)
        })?;
        let Create {
            id, bundle, stdio, ..
        } = create;
        // Init has them: without ours it sees their other ends close.
        drop(stdio);
        let outcome = worker::outcome(working).await;
        if let Err(Failure::Died(_)) = &outcome
            && let Err(error) = self.force_delete(&id, &bundle).await
        {
            crate::log::warn(format_args!("clean up: {error}"));
        }
        let outcome = outcome
            .map_err(anyhow::Error::from)
            .context("OCI runtime create failed")?;
        self.restored.store(restores, Ordering::Relaxed);
        let (cgroup, owns_pids) = serde_json::from_slice(&outcome.result).context("the worker's result")?;
        Ok(Created {
            init: outcome.born.context("the worker reported no init")?,
            master: outcome.terminal,
            cgroup,
            owns_pids,
        })
    }

    fn create_in_worker(&self, create: &Create, reporter: &Reporter) -> anyhow::Result<Vec<u8>> {
        let shim = nix::unistd::getppid();
        record::Container::new(&create.id, &self.root, None, shim).save(&create.bundle)?;
        if let Some(pod) = &create.pod {
            pod.rewrite(&create.bundle)?;
        }
        rootfs::mount_all(&create.bundle, &create.rootfs)?;
        let created = self.create_on_rootfs(create, reporter);
        if created.is_err()
            && let Err(error) = rootfs::unmount(&create.bundle)
        {
            rtc_runtime::log::warn(format_args!("clean up: {error:#}"));
        }
        created
    }

    fn create_on_rootfs(&self, create: &Create, reporter: &Reporter) -> anyhow::Result<Vec<u8>> {
        let bundle = Bundle::load(&create.bundle)?;
        check_terminal(bundle.spec.process().as_ref(), create.terminal)?;
        let owns_pids = super::owns_pids(&bundle.spec);
        let mut options = CreateOptions {
            id: create.id.clone(),
            bundle,
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: 0,
            listen_fds: 0,
            systemd_cgroup: self.systemd_cgroup,
            rootless: Rootless::Auto,
            reporter: Some(reporter),
        };
        let created = match &create.checkpoint {
            None => container::create(&self.state(), &mut options)?,
            Some(image) => {
                let restore = RestoreOptions {
                    common: checkpoint::Options {
                        image_path: image.clone(),
                        work_path: self.criu_work_path.clone(),
                        ..checkpoint::Options::default()
                    },
                    ..RestoreOptions::default()
                };
                checkpoint::restore_for_shim(&self.state(), &mut options, &restore)?
            }
        };
        Ok(serde_json::to_vec(&(created.cgroup, owns_pids))?)
    }

    pub(super) async fn start(&self, id: &ContainerId) -> Result<()> {
        if self.restored.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.open_gate(id)
            .await
            .context("OCI runtime start failed")
            .map_err(Error::from)
    }

    async fn open_gate(&self, id: &ContainerId) -> anyhow::Result<()> {
        let root = self.state();
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        let starting = loop {
            if let Some(starting) = Starting::begin(&root, id)? {
                break starting;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("another process changes the container, and does not come to an end");
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        };
        let mut result = wait_for(starting, Interest::READABLE)?;
        loop {
            let mut ready = result.readable_mut().await?;
            if ready.get_inner_mut().0.look()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    pub(super) async fn started(&self, id: &ContainerId) -> Result<()> {
        if self.restored.load(Ordering::Relaxed) {
            return Ok(());
        }
        let has_hooks = self.state().open(id).and_then(|directory| directory.record());
        if !matches!(has_hooks, Ok(Some(record)) if record.has_hooks) {
            return Ok(());
        }
        self.run("OCI runtime start failed", |root| {
            container::start::run_poststart(root, id)
        })
        .await
    }

    pub(super) async fn exec(&self, exec: Exec) -> Result<Started> {
        let stdio = Some(borrowed(&exec.stdio));
        let working = worker::start_for(Some(exec.patience), stdio, &[], |reporter| {
            self.exec_in_worker(&exec, reporter)
        })?;
        let (container, maker) = (exec.container.clone(), working.pid);
        drop(exec);
        let outcome = worker::outcome(working).await;
        if let Err(Failure::Died(_) | Failure::Late(_)) = &outcome
            && let Err(error) = self.remove_exec_cgroup(&container, maker)
        {
            crate::log::warn(format_args!("clean up: {error:#}"));
        }
        let outcome = outcome.map_err(|failure| {
            let kind = match failure {
                Failure::Late(_) => Kind::DeadlineExceeded,
                _ => Kind::Unknown,
            };
            Error::new(kind, failure).context("OCI runtime exec failed")
        })?;
        Ok(Started {
            process: outcome.born.context("the worker reported no process")?,
            master: outcome.terminal,
            cgroup: String::from_utf8(outcome.result)
                .ok()
                .filter(|name| !name.is_empty()),
        })
    }

    /// Removes what an exec left that was killed, once its process has ended. Nobody waits for that.
    fn remove_exec_cgroup(&self, container: &ContainerId, maker: Pid) -> anyhow::Result<()> {
        let removing = worker::start(None, &[], |_| {
            let record = self.state().open(container)?.record()?.context("no record")?;
            let deadline = Instant::now() + REMOVE_PATIENCE;
            while let Some(own) = record.cgroup.exec_cgroup_of(maker)?
                && !own.remove()?
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(Vec::new())
        });
        removing.map(drop)
    }

    fn exec_in_worker(&self, exec: &Exec, reporter: &Reporter) -> anyhow::Result<Vec<u8>> {
        let mut process: Process = bundle::parse_json(&exec.process).context("process")?;
        process.set_terminal(Some(exec.terminal));
        for warning in bundle::check_process(&process).context("process")? {
            rtc_runtime::log::warn(warning);
        }
        let options = ExecOptions {
            process: ExecProcess::Whole(Box::new(process)),
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            detach: true,
            preserve_fds: 0,
            cgroup: Vec::new(),
            own_cgroup: true,
            ignore_paused: false,
            reporter: Some(reporter),
        };
        let executed = container::exec(&self.state(), &exec.container, options)?;
        Ok(executed.cgroup.unwrap_or_default().into_bytes())
    }

    pub(super) async fn delete(&self, id: &ContainerId, bundle: &Path) -> Result<()> {
        let deleting = worker::start(None, &[], |_| {
            match container::delete(&self.state(), id, false) {
                Err(error) if !error.is::<NotFound>() => return Err(error),
                _ => {}
            }
            rootfs::unmount(bundle)?;
            Ok(Vec::new())
        })?;
        let deleted = worker::patiently(deleting, DELETE_PATIENCE).await;
        deleted
            .map_err(|error| error.context("failed to delete task"))
            .map(drop)
    }

    /// Removes what a create left that was killed.
    async fn force_delete(&self, id: &ContainerId, bundle: &Path) -> Result<()> {
        let deleting = worker::start(None, &[], |_| {
            let root = self.state();
            let deleted = match root.open(id).and_then(|directory| directory.record()) {
                // That of somebody else: the create was killed before it could find that out.
                Ok(Some(record)) if record.bundle != bundle => Ok(()),
                _ => container::delete(&root, id, true),
            };
            rootfs::unmount(bundle)?;
            deleted.map(|()| Vec::new())
        })?;
        worker::patiently(deleting, DELETE_PATIENCE).await.map(drop)
    }

    pub(super) async fn kill_all(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.run("kill all processes", |root| {
            match container::kill(root, id, signal, true) {
                // They have ended, which is what was wanted.
                Err(error) if error.is::<NotFound>() || error.to_string() == "container not running" => {
                    Ok(())
                }
                killed => killed,
            }
        })
        .await
    }

    pub(super) async fn pause(&self, id: &ContainerId) -> Result<()> {
        self.run("OCI runtime pause failed", |root| container::pause(root, id))
            .await
    }

    pub(super) async fn resume(&self, id: &ContainerId) -> Result<()> {
        self.run("OCI runtime resume failed", |root| container::resume(root, id))
            .await
    }

    pub(super) async fn update(&self, id: &ContainerId, resources: LinuxResources) -> Result<()> {
        bundle::check_resources(&resources)
            .map_err(|error| Error::new(Kind::InvalidArgument, error.context("resources")))?;
        self.run("OCI runtime update failed", |root| {
            container::update(root, id, &resources)
        })
        .await
    }

    pub(super) async fn checkpoint(
        &self,
        id: &ContainerId,
        image: &Path,
        options: &CheckpointOptions,
    ) -> Result<()> {
        let (image, work) =
            super::checkpoint_paths(image, options, &self.criu_image_path, &self.criu_work_path)?;
        if let Some(other) = options.empty_namespaces.iter().find(|kind| *kind != "network") {
            return Err(Error::text(
                Kind::InvalidArgument,
                format_args!("empty_namespaces: {other:?}: must be network"),
            ));
        }
        let mode = options.cgroups_mode.parse::<CgroupMode>();
        let mode = mode.map_err(|error| Error::new(Kind::InvalidArgument, error.context("cgroups_mode")))?;
        let dump = DumpOptions {
            common: checkpoint::Options {
                image_path: image.to_owned(),
                work_path: work.map(Path::to_owned),
                tcp_established: options.open_tcp,
                ext_unix_sk: options.external_unix_sockets,
                shell_job: options.terminal,
                file_locks: options.file_locks,
                manage_cgroups: mode,
                ..checkpoint::Options::default()
            },
            leave_running: !options.exit,
            ..DumpOptions::default()
        };
        // CRIU ends with the worker.
        let working = worker::start_for(Some(CHECKPOINT), None, &[], |_| {
            checkpoint::checkpoint(&self.state(), id, &dump).map(|()| Vec::new())
        })?;
        let outcome = worker::outcome(working).await.map_err(anyhow::Error::from);
        let outcome = outcome.context("OCI runtime checkpoint failed");
        outcome.map(drop).map_err(Error::from)
    }

    /// Runs a verb in a worker.
    async fn run(
        &self,
        failed: &'static str,
        verb: impl FnOnce(&StateRoot) -> anyhow::Result<()>,
    ) -> Result<()> {
        let working = worker::start(None, &[], |_| verb(&self.state()).map(|()| Vec::new()))?;
        let outcome = worker::outcome(working).await.map_err(anyhow::Error::from);
        outcome.context(failed).map(drop).map_err(Error::from)
    }
}

fn borrowed(ends: &ChildEnds) -> [BorrowedFd<'_>; 3] {
    [ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()]
}

/// Whether the request and the configuration agree: whoever asked for a terminal holds its other end.
fn check_terminal(process: Option<&Process>, requested: bool) -> anyhow::Result<()> {
    let configured = process.and_then(Process::terminal).unwrap_or(false);
    if configured == requested {
        return Ok(());
    }
    Err(anyhow!(
        "config.json: process.terminal: {configured}: the request says {requested}; they must agree"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_and_the_configuration_agree_on_a_terminal() {
        let process: Process =
            serde_json::from_str(r#"{"cwd": "/", "terminal": true, "user": {"uid": 0, "gid": 0}}"#).unwrap();
        assert!(check_terminal(Some(&process), true).is_ok());
        let error = check_terminal(Some(&process), false).unwrap_err();
        assert!(error.to_string().contains("process.terminal: true"));
        assert!(check_terminal(None, false).is_ok());
    }

    #[test]
    fn the_state_of_a_namespace_is_below_the_root_of_the_options() {
        let options = Options {
            root: Some("/run/x".into()),
            ..Options::default()
        };
        assert_eq!(Embedded::new(&options, "k8s.io").root, Path::new("/run/x/k8s.io"));
        assert_eq!(
            Embedded::new(&Options::default(), "moby").root,
            Path::new("/run/containerd/rtc/moby")
        );
    }
}
