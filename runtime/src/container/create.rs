//! `create`: a container whose init waits at the gate. The first half of `run`, too.
//!
//! What is done when, and why in this order:
//!
//! ```text
//!  1 claim the id, keep the configuration      a second create of the id stops here
//!  2 open namespaces, compile the filter, plan the mounts, connect sockets
//!  3 record, make the cgroup, set its limits   from here on a kill -9 of the runtime leaves what delete finds
//!  4 clone                                     the child is on its way (process::init)
//!  5 record init                               it ends by itself if the runtime is killed before that
//!  6 map ids, give the scope its limits, network devices, a resctrl group; let the child go
//!  7 serve the child: hooks, terminal, listener, until it is ready
//!  8 pid file, publish the gate
//! ```
//!
//! A failure undoes what was made, in reverse: [`Unfinished`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::{Linux, Process};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, Driver, JoinTarget, Layout, Scope};
use crate::container::cgroup_view::{cgroup_view, delegated_to};
use crate::container::delete::run_poststop_hooks;
use crate::container::handover::{send_listener, send_master, send_pidfd, write_pid_file};
use crate::container::notify::{self, Notify};
use crate::container::plan::{
    CreateOptions, check_terminal, opens_to_user, payload, plan_root, waits_for_parent,
};
use crate::container::state::{Locked, Record, StateRoot, process_stat};
use crate::namespace::{IdMaps, Namespaces};
use crate::process::channel::{Channel, Message};
use crate::process::gate::Gate;
use crate::process::identity;
use crate::process::init::{Init, runs_in_runtime};
use crate::process::label::set_oom_score;
use crate::process::spawn::{Birth, Spawned, spawn};
use crate::procfs::Procfs;
use crate::resctrl::Group;
use crate::sys::clone::{CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, Child};
use crate::sys::process::has_ended;
use crate::{hooks, log, netdev, rootfs, rootless, sys};

/// How long a cgroup is given to become empty after its processes were killed.
pub(crate) const CGROUP_DEADLINE: Duration = Duration::from_secs(10);

/// What became of `create`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Created {
    /// Init, in the runtime's PID namespace.
    pub pid: i32,
    /// Its start time, as in [`Record`].
    pub start_time: u64,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Whether the configuration has any hooks.
    pub has_hooks: bool,
}

/// Makes a container whose init waits for `start`.
///
/// # Errors
///
/// Nothing is left behind.
pub fn create(root: &StateRoot, options: &mut CreateOptions<'_>) -> Result<Created> {
    let terminal = options
        .bundle
        .spec
        .process()
        .as_ref()
        .and_then(Process::terminal)
        .unwrap_or(false);
    check_terminal(
        terminal,
        options.console_socket.is_some(),
        options.reporter.is_none(),
    )?;
    let mut unfinished = Unfinished::begin(root, options, true)?;
    if let Err(error) = unfinished.finish() {
        return Err(unfinished.undo(error));
    }
    let record = unfinished.record.take().context("the record")?;
    Ok(Created {
        pid: record.pid,
        start_time: record.start_time,
        cgroup: record.cgroup,
        has_hooks: record.has_hooks,
    })
}

/// A container that is being made, and what there is of it to undo.
#[derive(Debug)]
pub(super) struct Unfinished<'a> {
    options: &'a CreateOptions<'a>,
    directory: Option<Locked>,
    record: Option<Record>,
    spawned: Option<Spawned>,
    notify: Option<Notify>,
    hook_state: hooks::State,
    hook_output: hooks::Output,
    /// Network devices that were given to the container.
    devices: Option<netdev::Moved>,
}

/// What the child handed over on its way.
#[derive(Debug, Default)]
pub(super) struct HandedOver {
    /// The master of its terminal, where no console socket took it.
    pub(super) master: Option<OwnedFd>,
    /// Where its program reports that it is ready, where a service manager waits for that.
    pub(super) notify: Option<Notify>,
}

impl<'a> Unfinished<'a> {
    /// Steps 1 to 6.
    pub(super) fn begin(root: &StateRoot, options: &'a mut CreateOptions<'_>, gated: bool) -> Result<Self> {
        let directory = root.claim(&options.id)?;
        // What the shim was started by is no service manager of its containers.
        let prepared = match options.reporter {
            Some(_) => Ok(()),
            None => notify::prepare(&directory, &mut options.bundle.spec),
        };
        // `start` binds the socket of a container that waits for it.
        let notify = prepared.and_then(|()| if gated { Ok(None) } else { Notify::bind(&directory) });
        let options: &'a CreateOptions<'_> = options;
        let Bundle { dir, spec, .. } = &options.bundle;
        let annotations = spec.annotations().iter().flatten();
        let mut unfinished = Self {
            options,
            directory: Some(directory),
            record: None,
            spawned: None,
            notify: None,
            devices: None,
            hook_output: hooks::Output::default(),
            hook_state: hooks::State::new(options.id.as_str(), spec.version(), dir, annotations),
        };
        let started = notify.and_then(|notify| {
            unfinished.notify = notify;
            unfinished.start_child(gated)
        });
        match started {
            Ok(()) => Ok(unfinished),
            Err(error) => Err(unfinished.undo(error)),
        }
    }

    fn directory(&self) -> Result<&Locked> {
        self.directory.as_ref().context("the state directory")
    }

    fn start_child(&mut self, gated: bool) -> Result<()> {
        let options = self.options;
        let Bundle { spec, raw, .. } = &options.bundle;
        self.directory()?.save_config(raw)?;
        if let (Some(_), Some(annotations)) = (spec.hooks(), spec.annotations()) {
            self.hook_output = hooks::Output::open(annotations.iter())?;
        }
        let default = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&default);
        let process = spec
            .process()
            .as_ref()
            .context("config.json: process is missing; nothing could be started")?;
        let namespaces = Namespaces::open(linux)?;
        namespaces.check_caller()?;
        namespaces.check_names(spec)?;
        let payload = payload(process, linux, &namespaces, options)?;
        let (layout, cgroup) = self.place_cgroup(linux)?;
        let driver = cgroup.driver();
        let mut record = first_record(options, cgroup, gated, namespaces.makes(CLONE_NEWPID));
        record.intel_rdt = linux
            .intel_rdt()
            .as_ref()
            .map(|config| Group::plan(config, options.id.as_str()))
            .transpose()?;
        self.record = Some(record);
        self.save()?;
        if let Err(error) = self.record.as_mut().context("the record")?.cgroup.make() {
            // What it made it has removed. A cgroup that is there now is another's: not ours to empty, see `undo`.
            self.record = None;
            return Err(error);
        }
        let cgroup = &mut self.record.as_mut().context("the record")?.cgroup;
        let context = rootfs::Context {
            cgroups: cgroup_view(&layout, cgroup),
            no_pivot: options.no_pivot,
        };
        let root = plan_root(&options.bundle, &namespaces, &context)?;
        let join = match driver {
            Driver::Cgroupfs => {
                set_limits(cgroup, linux)?;
                cgroup.join_target()?
            }
            Driver::Systemd => JoinTarget::V1(Vec::new()),
        };
        let (born_in, procs) = match &join {
            JoinTarget::V2(directory) => (Some(directory.as_fd()), &[][..]),
            JoinTarget::V1(procs) => (None, procs.as_slice()),
        };
        let wait_for_parent = waits_for_parent(spec, &namespaces, driver);
        let init = Init {
            spec,
            namespaces: &namespaces,
            root,
            payload,
            wait_for_parent,
            gate: gated
                .then(|| Gate::create(self.directory.as_ref().context("the state directory")?))
                .transpose()?,
            hook_state: &self.hook_state,
            hook_output: &self.hook_output,
        };
        let birth = Birth {
            namespaces: &namespaces,
            cgroup: born_in,
            cgroup_procs: procs,
            before_entering: &|| Ok(()),
            not_shared: &self.directory()?.descriptors(),
            keep_only: None,
            reporter: options.reporter,
        };
        if opens_to_user(&namespaces) {
            // The child is born so, and we can't write its maps otherwise.
            sys::process::set_dumpable(true)?;
        }
        self.spawned = Some(spawn(&birth, |channel| init.run(channel))?);
        self.record_child()?;
        self.release(linux, &namespaces, driver)?;
        if opens_to_user(&namespaces) {
            sys::process::set_dumpable(false)?;
        }
        Ok(())
    }

    /// Where its cgroup will be. A machine without any has none for rootless containers.
    fn place_cgroup(&self, linux: &Linux) -> Result<(Layout, Cgroup)> {
        let options = self.options;
        let driver = if options.systemd_cgroup {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        };
        let path = linux.cgroups_path().as_deref();
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let layout = match Layout::detect() {
            Err(error) if path.is_none() && driver == Driver::Cgroupfs && options.rootless.excuses() => {
                log::debug(|| format!("no cgroup: {error:#}"));
                Layout::V1(Vec::new())
            }
            layout => layout?,
        };
        let mut cgroup = Cgroup::place(path, options.id.as_str(), &layout, driver)?;
        cgroup.excuse(options.rootless, path.is_none());
        Ok((layout, cgroup))
    }

    fn save(&self) -> Result<()> {
        self.directory()?
            .save(self.record.as_ref().context("the record")?)
    }

    /// Step 5.
    fn record_child(&mut self) -> Result<()> {
        let pid = self.child()?.pid;
        let record = self.record.as_mut().context("the record")?;
        record.pid = pid.as_raw();
        (_, record.start_time) = process_stat(pid).context("the container's process has ended")?;
        if self.options.reporter.is_some() {
            // Not ours to collect: only if it is still there, be it as a zombie, the pid was not another's.
            sys::process::pidfd_send_signal(&self.child()?.pidfd, 0).context("the container's process")?;
        }
        self.save()?;
        match &self.options.pidfd_socket {
            Some(path) => send_pidfd(path, self.child()?),
            None => Ok(()),
        }
    }

    /// Step 6: what only the parent may do to the child, which waits for it.
    fn release(&mut self, linux: &Linux, namespaces: &Namespaces, driver: Driver) -> Result<()> {
        self.give_of_the_machine(linux, namespaces)?;
        let Some(Spawned { child, channel }) = &self.spawned else {
            bail!("no child")
        };
        if namespaces.makes(CLONE_NEWUSER) {
            IdMaps::new(linux).write(child.pid)?;
        }
        if namespaces.joins(CLONE_NEWUSER) {
            IdMaps::new(linux).check(child.pid)?;
        }
        if namespaces.has(CLONE_NEWUSER)
            && let Some(process) = self.options.bundle.spec.process()
        {
            // From inside the namespace no hard limit can be raised.
            identity::set_rlimits(child.pid, process)?;
        }
        if namespaces.has(CLONE_NEWUSER)
            && let Some(score) = self
                .options
                .bundle
                .spec
                .process()
                .as_ref()
                .and_then(Process::oom_score_adj)
        {
            set_oom_score(&Procfs::open()?, &child.pid.to_string(), score)?;
        }
        if driver == Driver::Systemd {
            let cgroup = &self.record.as_ref().context("the record")?.cgroup;
            let resources = linux.resources().clone().unwrap_or_default();
            let devices = resources.devices().clone().unwrap_or_default();
            let scope = Scope {
                resources,
                annotations: self.options.bundle.spec.annotations().as_ref(),
                devices: Some(&devices),
            };
            cgroup.attach(child.pid, &scope)?;
            set_limits(cgroup, linux)?;
        }
        if let (Some(owner), Some(record)) = (delegated_to(&self.options.bundle.spec), &self.record) {
            let given = record.cgroup.delegate(owner).context("delegate the cgroup");
            match given {
                // Of an ordinary user: to an id that newuidmap gave it.
                Err(error) if rootless::was_refused(&error) && self.options.rootless.excuses() => {
                    log::warn(format_args!("{error:#}"));
                }
                given => given?,
            }
        }
        if waits_for_parent(&self.options.bundle.spec, namespaces, driver) {
            channel.go()
        } else {
            Ok(())
        }
    }

    /// A share of the caches, and network devices.
    fn give_of_the_machine(&mut self, linux: &Linux, namespaces: &Namespaces) -> Result<()> {
        if let Some(config) = linux.intel_rdt() {
            let pid = self.child()?.pid;
            let group = self.record.as_mut().and_then(|record| record.intel_rdt.as_mut());
            group.context("the resctrl group")?.make(config, pid)?;
            self.save()?;
        }
        let devices = linux.net_devices().as_ref().filter(|devices| !devices.is_empty());
        if let Some(devices) = devices {
            let namespace = match namespaces.joined(CLONE_NEWNET) {
                Some(joined) => joined.try_clone_to_owned().context("dup")?,
                None => {
                    let path = format!("/proc/{}/ns/net", self.child()?.pid);
                    File::open(&path).with_context(|| format!("open {path}"))?.into()
                }
            };
            self.devices = Some(netdev::move_into(namespace, devices)?);
        }
        Ok(())
    }

    fn child(&self) -> Result<&Child> {
        self.spawned
            .as_ref()
            .map(|spawned| &spawned.child)
            .context("the container's process")
    }

    /// Steps 7 and 8, the latter for a container that waits for `start`.
    pub(super) fn finish(&mut self) -> Result<HandedOver> {
        let mut handed_over = self.serve()?;
        handed_over.notify = self.notify.take();
        if self.record.as_ref().is_some_and(|record| record.gated) {
            self.write_pid_file()?;
            Gate::publish(self.directory()?)?;
            let Some(Spawned { channel, .. }) = &self.spawned else {
                bail!("no child")
            };
            channel.go()?;
        }
        Ok(handed_over)
    }

    /// Step 8 for a container that runs its program already.
    pub(super) fn set_up(&mut self) -> Result<()> {
        self.record.as_mut().context("the record")?.set_up = true;
        self.save()?;
        self.write_pid_file()
    }

    fn write_pid_file(&self) -> Result<()> {
        match &self.options.pid_file {
            Some(path) => write_pid_file(path, self.child()?.pid.as_raw()),
            None => Ok(()),
        }
    }

    /// The child.
    pub(super) fn spawned(&self) -> Option<&Spawned> {
        self.spawned.as_ref()
    }

    /// Gives up what is a container now.
    pub(super) fn into_parts(self) -> Result<(Locked, Record, Spawned)> {
        let parts = self.directory.zip(self.record).zip(self.spawned);
        let ((directory, record), spawned) = parts.context("the container's process")?;
        Ok((directory, record, spawned))
    }

    /// Does what the child asks for, until it is ready.
    fn serve(&self) -> Result<HandedOver> {
        let Some(Spawned { child, channel }) = &self.spawned else {
            bail!("no child")
        };
        let mut handed_over = HandedOver::default();
        loop {
            match channel.receive()? {
                Some(Message::Ready) => return Ok(handed_over),
                Some(Message::Executing) => bail!("the container's process ran ahead"),
                Some(Message::Warning(text)) => log::warn(text),
                Some(Message::Failed(text)) => return Err(anyhow!(text)),
                Some(Message::Prepared) => {
                    self.run_hooks_in_runtime(child)?;
                    channel.go()?;
                }
                Some(Message::Terminal(master)) => {
                    match (&self.options.console_socket, self.options.reporter) {
                        (Some(path), _) => send_master(path, &master)?,
                        (None, Some(reporter)) => reporter.terminal(&master)?,
                        (None, None) => handed_over.master = Some(master),
                    }
                }
                Some(Message::SeccompListener(listener)) => {
                    self.send_listener(&listener, child, channel)?;
                }
                None if self.options.reporter.is_some() => {
                    bail!("the container's process ended before it was ready")
                }
                None => bail!(
                    "the container's process ended before it was ready: {}",
                    sys::process::wait(&child.pidfd)?
                ),
            }
        }
    }

    fn run_hooks_in_runtime(&self, child: &Child) -> Result<()> {
        let Some(hooks) = self.options.bundle.spec.hooks() else {
            return Ok(());
        };
        if !runs_in_runtime(hooks) {
            return Ok(());
        }
        let state = self.hook_state.json("creating", child.pid.as_raw());
        let prestart = hooks.prestart();
        let place = hooks::Place::Runtime {
            bundle: &self.options.bundle.dir,
            init: Some(child.pidfd.as_fd()),
            output: &self.hook_output,
        };
        hooks::run("prestart", prestart.as_ref(), &state, &place)?;
        hooks::run("createRuntime", hooks.create_runtime().as_ref(), &state, &place)
    }

    fn send_listener(&self, listener: &OwnedFd, child: &Child, channel: &Channel) -> Result<()> {
        send_listener(
            &self.options.bundle.spec,
            listener,
            child,
            &self.hook_state.json("creating", child.pid.as_raw()),
        )?;
        channel.go()
    }

    /// Removes all there is, and passes the error on. A failure here is only told: the first error is what counts.
    pub(super) fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        if let Some(devices) = self.devices.take() {
            devices.undo();
        }
        let spawned = self.spawned.take();
        if let Some(Spawned { child, .. }) = &spawned {
            let _ = sys::process::pidfd_send_signal(&child.pidfd, libc::SIGKILL);
            if let Some(record) = &self.record {
                // Thaws it, and ends what the child left in it, like a hook.
                let _ = record.cgroup.kill();
            }
            let ended = has_ended(&child.pidfd, CGROUP_DEADLINE).unwrap_or(true);
            if ended && self.options.reporter.is_none() {
                let _ = sys::process::wait(&child.pidfd);
            }
        }
        let mut record = self.record.take();
        if let Some(Record {
            cgroup, intel_rdt, ..
        }) = &mut record
        {
            let group = intel_rdt.as_ref().map_or(Ok(()), Group::remove);
            let removed = cgroup.remove(Instant::now() + CGROUP_DEADLINE);
            for error in [group, removed].into_iter().filter_map(Result::err) {
                log::warn(format_args!("clean up: {error:#}"));
            }
            cgroup.undo();
        }
        if let Some(directory) = self.directory.take()
            && let Err(error) = directory.remove()
        {
            log::warn(format_args!("clean up: {error:#}"));
        }
        // They take back what the hooks before did, which the one that failed may have followed (runtime-spec,
        // "Lifecycle": an aborted create goes on with the poststop hooks; so does runc).
        let hooks = self.options.bundle.spec.hooks().as_ref();
        if let (Some(record), Some(_), Some(hooks)) = (&record, &spawned, hooks) {
            let poststop = hooks.poststop().as_deref().unwrap_or_default();
            run_poststop_hooks(poststop, &self.options.id, record);
        }
        error
    }
}

/// What is known before anything is made in the kernel: a runtime killed from here on leaves what delete finds.
pub(crate) fn first_record(
    options: &CreateOptions<'_>,
    cgroup: Cgroup,
    gated: bool,
    owns_pids: bool,
) -> Record {
    let Bundle {
        dir, rootfs, spec, ..
    } = &options.bundle;
    let annotations = spec.annotations().iter().flatten();
    Record {
        oci_version: spec.version().clone(),
        bundle: dir.clone(),
        rootfs: rootfs.clone(),
        pid: 0,
        start_time: 0,
        created: log::timestamp(std::time::SystemTime::now()),
        owner: nix::unistd::getuid().as_raw(),
        annotations: annotations
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        cgroup,
        gated,
        set_up: gated,
        no_new_keyring: options.no_new_keyring,
        has_hooks: spec.hooks().is_some(),
        owns_pids,
        time_namespace: false,
        intel_rdt: None,
    }
}

/// The limits and device rules of `linux.resources`.
pub(crate) fn set_limits(cgroup: &Cgroup, linux: &Linux) -> Result<()> {
    let resources = linux.resources().as_ref();
    if let Some(resources) = resources {
        cgroup.apply(resources)?;
    }
    // Also without any rule: what is not allowed is denied.
    let devices = resources.and_then(|resources| resources.devices().as_deref());
    cgroup.apply_devices(devices.unwrap_or_default())
}
