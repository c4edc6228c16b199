//! A container: its init, its processes of exec, and the verbs that change it.
//!
//! The verbs that change it are serial ([`Container::turn`]); State, Wait, Kill, Pids and Stats never wait for one of them.
//! A start of an exec is no change of the container, so that one that hangs holds up no other.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use containerd_shim_protos::api::{CheckpointTaskRequest, CreateTaskRequest};
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskIO, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::topics;
use oci_spec::runtime::LinuxResources;
use rtc_runtime::bundle;
use rtc_runtime::cgroup::Cgroup;
use rtc_runtime::container::ContainerId;

use crate::confinement::{IdMaps, Needs};
use crate::error::{Error, Kind, Result};
use crate::io::{Io, Request};
use crate::log;
use crate::options::Options;
use crate::process::{Ended, Phase, Process, Stdio, UNKNOWN_STATUS, Verb};
use crate::runtime::{Create, Created, EXEC_PATIENCE, Exec, Runtime, Started};
use crate::shim::Shim;
use crate::{confinement, exits, oom};

/// How many cgroups of execs are tried to be removed after one.
const LEFT_AT_ONCE: usize = 8;

/// A container of the pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) init: Arc<Process>,
    /// Owner and group of what is made for standard input and output.
    io_owner: (u32, u32),
    /// Known with the configuration.
    id_maps: OnceLock<IdMaps>,
    execs: Mutex<Vec<Exe>>,
    /// Names of the cgroups of execs that have ended, but not all that they started.
    left: Mutex<VecDeque<String>>,
    /// Whose turn it is to change the container.
    turn: tokio::sync::Mutex<()>,
    made: Mutex<Option<Made>>,
    /// Init was collected: no exec may start any more.
    init_ended: AtomicBool,
    /// The kernel killed in it for want of memory, since its start.
    pub(crate) out_of_memory: Arc<AtomicBool>,
}

/// What create made.
#[derive(Debug)]
struct Made {
    cgroup: Cgroup,
    owns_pids: bool,
}

/// A process of exec.
#[derive(Debug)]
struct Exe {
    process: Arc<Process>,
    /// What to start, as JSON, until it is started.
    spec: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container that is about to be created as the request says.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub(crate) fn new(request: &CreateTaskRequest, namespace: &str) -> Result<Arc<Self>> {
        let invalid = |error: anyhow::Error| Error::new(Kind::InvalidArgument, error);
        let id: ContainerId = request.id.parse().map_err(invalid)?;
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(Error::text(
                Kind::InvalidArgument,
                format_args!("bundle: {:?}: must be an absolute path", request.bundle),
            ));
        }
        let options = Options::parse(request.options.as_ref())?;
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        Ok(Arc::new(Self {
            id,
            bundle,
            runtime: Runtime::new(&options, namespace)?,
            init: Arc::new(Process::new(String::new(), stdio, Phase::Creating)),
            io_owner: (options.io_uid, options.io_gid),
            id_maps: OnceLock::new(),
            execs: Mutex::default(),
            left: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            made: Mutex::default(),
            init_ended: AtomicBool::new(false),
            out_of_memory: Arc::default(),
        }))
    }

    /// Creates it, and tells of it. Returns init's pid.
    ///
    /// # Errors
    ///
    /// Nothing is left of it.
    pub(crate) async fn create(self: &Arc<Self>, shim: &Shim, request: CreateTaskRequest) -> Result<u32> {
        let _turn = self.turn.lock().await;
        let checkpoint = (!request.checkpoint.is_empty()).then(|| PathBuf::from(&request.checkpoint));
        let (needs, id_maps) = confinement::of_bundle(&self.bundle)?;
        // Create is called once.
        let _ = self.id_maps.set(id_maps);
        let (io, stdio) = Io::open(&self.io_request(&shim.namespace, &self.init, needs)).await?;
        let create = Create {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            pod: shim.pod()?,
            rootfs: request.rootfs.clone(),
            checkpoint,
            stdio,
            terminal: request.terminal,
        };
        let Created {
            init,
            master,
            cgroup,
            owns_pids,
        } = self.runtime.create(create).await.inspect_err(|_| io.close())?;
        let child = init.pid;
        let pidfd = self.init.born(init, None);
        *lock(&self.made) = Some(Made { cgroup, owns_pids });
        connect(&self.init, io, master);
        self.init.advance(Phase::Created);
        let pid = self.init.pid();
        shim.events.send(
            topics::TASK_CREATE_EVENT_TOPIC,
            &TaskCreate {
                container_id: self.id.to_string(),
                bundle: request.bundle,
                rootfs: request.rootfs,
                io: Some(TaskIO {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                    ..TaskIO::default()
                })
                .into(),
                pid,
                ..TaskCreate::default()
            },
        );
        oom::watch(self, &shim.events);
        exits::watch_init(self, &shim.events, child, pidfd);
        Ok(pid)
    }

    fn io_request(&self, namespace: &str, process: &Process, needs: Needs) -> Request {
        let Stdio {
            stdin,
            stdout,
            stderr,
            terminal,
        } = process.stdio.clone();
        let id = if process.exec_id.is_empty() {
            self.id.as_str()
        } else {
            &process.exec_id
        };
        // The options say it for root: what a runtime does afterwards is to give it to the process' user.
        let or = |own: u32, option: u32| if own == 0 { option } else { own };
        Request {
            stdin,
            stdout,
            stderr,
            terminal,
            owner: (
                or(needs.owner.0, self.io_owner.0),
                or(needs.owner.1, self.io_owner.1),
            ),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            pipes: needs.pipes,
        }
    }

    /// Its init, or a process of exec.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = lock(&self.execs);
        let found = execs.iter().find(|exec| exec.process.exec_id == exec_id);
        found
            .map(|exec| Arc::clone(&exec.process))
            .ok_or_else(|| Error::text(Kind::NotFound, format_args!("process does not exist {exec_id:?}")))
    }

    /// The processes of exec.
    pub(crate) fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs)
            .iter()
            .map(|exec| Arc::clone(&exec.process))
            .collect()
    }

    /// The phase that a process shows: that of its container, where that is frozen.
    pub(crate) fn phase_of(&self, process: &Process) -> Phase {
        match (self.init.phase(), process.phase()) {
            (_, ended @ (Phase::Stopped(_) | Phase::Deleted(_))) => ended,
            (frozen @ (Phase::Pausing | Phase::Paused), _) => frozen,
            (_, own) => own,
        }
    }

    /// Looks at its cgroup.
    ///
    /// # Errors
    ///
    /// Those of `look`; `FailedPrecondition` where it has none yet.
    pub(crate) fn with_cgroup<T>(&self, look: impl FnOnce(&Cgroup) -> anyhow::Result<T>) -> Result<T> {
        match &*lock(&self.made) {
            Some(made) => Ok(look(&made.cgroup)?),
            None => Err(Error::text(Kind::FailedPrecondition, "it has no cgroup yet")),
        }
    }

    /// Removes the cgroup of an exec that has ended. What that has left in the background lives on in it: then it is tried
    /// again after later execs, so that a probe that leaves something each time does not fill the container with cgroups.
    pub(crate) fn remove_exec_cgroup(&self, name: &str) {
        let mut left = lock(&self.left);
        left.push_front(name.to_owned());
        for _ in 0..left.len().min(LEFT_AT_ONCE) {
            let Some(name) = left.pop_front() else { break };
            let removed = self.with_cgroup(|cgroup| match cgroup.exec_cgroup(&name)? {
                Some(own) => own.remove(),
                None => Ok(true),
            });
            match removed {
                Ok(true) => {}
                Ok(false) => left.push_back(name),
                Err(error) => log::warn(format_args!("container {}: {error}", self.id)),
            }
        }
    }

    /// Kills all in the cgroup of an exec. Returns whether there is such a cgroup.
    pub(crate) fn kill_exec_cgroup(&self, name: &str) -> bool {
        let killed = self.with_cgroup(|cgroup| match cgroup.exec_cgroup(name)? {
            Some(own) => own.kill().map(|()| true),
            None => Ok(false),
        });
        killed.unwrap_or(false)
    }

    /// Whether all its processes end with init.
    pub(crate) fn owns_pids(&self) -> bool {
        lock(&self.made).as_ref().is_some_and(|made| made.owns_pids)
    }

    /// Init was collected.
    pub(crate) fn note_end_of_init(&self) {
        self.init_ended.store(true, Ordering::Relaxed);
    }

    /// Starts init. Returns its pid.
    ///
    /// # Errors
    ///
    /// The program can't be run, or a poststart hook failed: then init ends.
    pub(crate) async fn start(&self, shim: &Shim) -> Result<u32> {
        self.init.phase().allows(Verb::Start)?;
        let _turn = self.turn.lock().await;
        self.init.begin(Verb::Start, Phase::Starting)?;
        let pid = self.init.pid();
        let input = self.init.io().map_or(Ok(()), |io| io.starting());
        let started = match input {
            Ok(()) => self.runtime.start(&self.id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            // From here its end may be told.
            self.init.advance(Phase::Created);
            return Err(error);
        }
        shim.events.send(
            topics::TASK_START_EVENT_TOPIC,
            &TaskStart {
                container_id: self.id.to_string(),
                pid,
                ..TaskStart::default()
            },
        );
        self.init.advance(Phase::Running);
        self.runtime.started(&self.id).await?;
        Ok(pid)
    }

    /// Deletes it. Returns init's pid and end. One that is being created is waited for: containerd asks for this when it
    /// gave its Create up, and forgets the container and the shim if there is nothing to delete.
    ///
    /// # Errors
    ///
    /// It runs, or something is left; then it can be deleted again.
    pub(crate) async fn delete(self: &Arc<Self>, shim: &Shim) -> Result<(u32, Ended)> {
        if self.init.phase() != Phase::Creating {
            self.init.phase().allows(Verb::Delete)?;
        }
        let _turn = self.turn.lock().await;
        if self.init.phase() == Phase::Creating {
            // It failed, and nothing is left.
            return Err(Error::text(
                Kind::NotFound,
                format_args!("container {:?} not created", self.id.as_str()),
            ));
        }
        self.init.phase().allows(Verb::Delete)?;
        self.runtime.delete(&self.id, &self.bundle).await?;
        // One that was created was killed just now.
        let ended = self.init.wait().await;
        self.init.disconnect();
        for exec in lock(&self.execs).drain(..) {
            exec.process.disconnect();
        }
        self.init.advance(Phase::Deleted(ended));
        shim.forget(self);
        let pid = self.init.pid();
        shim.events.send(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: self.id.to_string(),
                pid,
                exit_status: ended.status,
                exited_at: ended.timestamp(),
                ..TaskDelete::default()
            },
        );
        Ok((pid, ended))
    }

    /// Makes a process of exec known.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, or the container is in no phase for it.
    pub(crate) fn add_exec(&self, shim: &Shim, exec_id: &str, stdio: Stdio, spec: Vec<u8>) -> Result<()> {
        exec_id.parse::<ContainerId>().map_err(|_| {
            Error::text(
                Kind::InvalidArgument,
                format_args!("exec_id: {exec_id:?}: use letters, digits and _ + . -"),
            )
        })?;
        self.init.phase().allows(Verb::Exec)?;
        let mut execs = lock(&self.execs);
        if execs.iter().any(|exec| exec.process.exec_id == exec_id) {
            return Err(Error::text(
                Kind::AlreadyExists,
                format_args!("exec_id {exec_id:?} already exists"),
            ));
        }
        let process = Arc::new(Process::new(exec_id.to_owned(), stdio, Phase::Added));
        execs.push(Exe { process, spec });
        shim.events.send(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded {
                container_id: self.id.to_string(),
                exec_id: exec_id.to_owned(),
                ..TaskExecAdded::default()
            },
        );
        Ok(())
    }

    /// Whether a process may be started in it now.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`.
    pub(crate) fn may_exec(&self) -> Result<()> {
        self.init.phase().allows(Verb::StartExec)?;
        if self.init_ended.load(Ordering::Relaxed) {
            return Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("the init process of container {} has ended", self.id),
            ));
        }
        Ok(())
    }

    /// Starts a process of exec. Returns its pid.
    ///
    /// # Errors
    ///
    /// It can't be run: it has ended then, with no exit told.
    pub(crate) async fn start_exec(self: &Arc<Self>, shim: &Shim, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        self.may_exec()?;
        process.begin(Verb::Start, Phase::Starting)?;
        let started = self.run_exec(&shim.namespace, &process).await;
        let Started {
            process: child,
            cgroup,
            ..
        } = started.inspect_err(|_| {
            process.disconnect();
            process.advance(Phase::Stopped(Ended {
                status: UNKNOWN_STATUS,
                at: None,
            }));
        })?;
        let raw_pid = child.pid;
        let pidfd = process.born(child, cgroup);
        let pid = process.pid();
        shim.events.send(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            &TaskExecStarted {
                container_id: self.id.to_string(),
                exec_id: exec_id.to_owned(),
                pid,
                ..TaskExecStarted::default()
            },
        );
        process.advance(Phase::Running);
        exits::watch_exec(self, process, &shim.events, raw_pid, pidfd);
        Ok(pid)
    }

    async fn run_exec(&self, namespace: &str, process: &Process) -> Result<Started> {
        let spec = {
            let mut execs = lock(&self.execs);
            let exec = execs
                .iter_mut()
                .find(|exec| exec.process.exec_id == process.exec_id);
            exec.map(|exec| std::mem::take(&mut exec.spec))
                .unwrap_or_default()
        };
        // The worker checks it again, whose errors have no kind.
        bundle::parse_process(spec.clone())
            .map_err(|error| Error::new(Kind::InvalidArgument, error.context("spec")))?;
        let needs = confinement::of_process(&spec, self.id_maps.get_or_init(IdMaps::default))?;
        let (io, stdio) = Io::open(&self.io_request(namespace, process, needs)).await?;
        io.starting()?;
        let exec = Exec {
            container: self.id.clone(),
            process: spec,
            stdio,
            terminal: process.stdio.terminal,
            patience: EXEC_PATIENCE,
        };
        let mut started = self.runtime.exec(exec).await.inspect_err(|_| io.close())?;
        connect(process, io, started.master.take());
        Ok(started)
    }

    /// Forgets a process of exec. Returns its pid and end.
    ///
    /// # Errors
    ///
    /// It runs.
    pub(crate) fn delete_exec(&self, exec_id: &str) -> Result<(u32, Ended)> {
        let process = self.process(exec_id)?;
        process.phase().allows(Verb::Delete)?;
        let ended = process.phase().ended().unwrap_or(Ended { status: 0, at: None });
        process.disconnect();
        process.advance(Phase::Deleted(ended));
        lock(&self.execs).retain(|exec| !Arc::ptr_eq(&exec.process, &process));
        Ok((process.pid(), ended))
    }

    /// Freezes it.
    ///
    /// # Errors
    ///
    /// It does not run, or can't be frozen.
    pub(crate) async fn pause(&self, shim: &Shim) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.init.begin(Verb::Pause, Phase::Pausing)?;
        let paused = self.runtime.pause(&self.id).await;
        self.init.advance(if paused.is_ok() {
            Phase::Paused
        } else {
            Phase::Running
        });
        paused?;
        shim.events.send(
            topics::TASK_PAUSED_EVENT_TOPIC,
            &TaskPaused {
                container_id: self.id.to_string(),
                ..TaskPaused::default()
            },
        );
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    ///
    /// It is not frozen.
    pub(crate) async fn resume(&self, shim: &Shim) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.init.phase().allows(Verb::Resume)?;
        self.runtime.resume(&self.id).await?;
        self.init.advance(Phase::Running);
        shim.events.send(
            topics::TASK_RESUMED_EVENT_TOPIC,
            &TaskResumed {
                container_id: self.id.to_string(),
                ..TaskResumed::default()
            },
        );
        Ok(())
    }

    /// Writes its processes to files. They go on unless the options say otherwise.
    ///
    /// # Errors
    ///
    /// It does not run, the runtime can't, or the options are no `containerd.runc.v1.CheckpointOptions`.
    pub(crate) async fn checkpoint(&self, shim: &Shim, request: &CheckpointTaskRequest) -> Result<()> {
        let options = match request.options.as_ref() {
            None => CheckpointOptions::default(),
            Some(options) => CheckpointOptions::parse_from_bytes(&options.value)
                .map_err(|error| Error::new(Kind::InvalidArgument, error))?,
        };
        let _turn = self.turn.lock().await;
        self.init.phase().allows(Verb::Checkpoint)?;
        let image = Path::new(&request.path);
        self.runtime.checkpoint(&self.id, image, &options).await?;
        shim.events.send(
            topics::TASK_CHECKPOINTED_EVENT_TOPIC,
            &TaskCheckpointed {
                container_id: self.id.to_string(),
                checkpoint: request.path.clone(),
                ..TaskCheckpointed::default()
            },
        );
        Ok(())
    }

    /// Changes its limits.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what can't be right, else what the kernel says.
    pub(crate) async fn update(&self, resources: LinuxResources) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.init.phase().allows(Verb::Update)?;
        self.runtime.update(&self.id, resources).await
    }
}

/// Relays the terminal, and keeps the io with the process.
fn connect(process: &Process, io: Io, master: Option<std::os::fd::OwnedFd>) {
    if let Some(master) = master
        && let Err(error) = io.attach_terminal(master)
    {
        log::warn(format_args!("relay the terminal: {error}"));
    }
    process.connect(Arc::new(io));
}
