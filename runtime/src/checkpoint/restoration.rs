//! A container that is being made of an image: the steps of [`super::restore`], and how they are taken back.
//!
//! ```text
//! 2 the configuration is kept, namespaces that are joined are opened
//! 3 record, make the cgroup, set its limits           from here on a kill -9 of the runtime leaves what delete finds
//! 4 rehearse: the mounts are made in a mount namespace that ends with the process in it: what stays is their mount points
//! 5 CRIU, in the cgroup, with the root mounted in a mount namespace of its own, which ends with it
//! 6 its notifications: hooks, terminal, init's pid; all is compared with the configuration before init runs
//! 7 record that it runs, pid file
//! ```

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, Process};

use super::criu::{Criu, Program, Start};
use super::image::Directory;
use super::message::{Kind, Message, Response, option, request};
use super::restore::RestoreOptions;
use super::stdio::Names;
use super::verify::verify;
use super::{CgroupMode, external_key, path_bytes};
use crate::bundle::Bundle;
use crate::cgroup::{Cgroup, Driver, JoinTarget, Layout, Scope};
use crate::container::create::{CGROUP_DEADLINE, first_record, set_limits};
use crate::container::delete::run_poststop_hooks;
use crate::container::handover::{send_master, write_pid_file};
use crate::container::plan::plan_root;
use crate::container::state::{Locked, Record, process_stat};
use crate::container::{CreateOptions, cgroup_view::cgroup_view};
use crate::namespace::Namespaces;
use crate::process::channel::{Channel, Message as Word};
use crate::process::init::Root;
use crate::process::spawn::live;
use crate::resctrl::Group;
use crate::rootfs::{self, NULL, Outside, outside};
use crate::sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER,
    CLONE_NEWUTS, Child, Cloned, clone3,
};
use crate::sys::process::{self, pidfd_open};
use crate::{hooks, log, netdev};

/// CRIU's log.
pub(super) const LOG: &str = "restore.log";
/// Where CRIU has the root mounted, in the container's state directory.
const POINT: &str = "criu-root";

/// A container that is being made of an image.
pub(super) struct Restoration<'a> {
    options: &'a CreateOptions<'a>,
    restore: &'a RestoreOptions,
    image: &'a Directory,
    work: Option<&'a Directory>,
    names: Names,
    directory: Locked,
    /// There is one once the cgroup is ours.
    record: Option<Record>,
    /// CRIU's process.
    criu: Option<Pid>,
    init: Option<Child>,
    master: Option<OwnedFd>,
    point: PathBuf,
    hook_state: hooks::State,
    hook_output: hooks::Output,
    /// Network devices of the host that were moved into it.
    devices: Option<netdev::Moved>,
    ran_hooks: bool,
}

/// A container that was made, and runs.
pub(super) struct Restored {
    pub(super) record: Record,
    pub(super) init: Child,
    /// The master of its terminal, where no console socket took it.
    pub(super) master: Option<OwnedFd>,
}

impl<'a> Restoration<'a> {
    /// Of an image, in a directory where CRIU works or in the image's own; the id is claimed.
    pub(super) fn new(
        options: &'a CreateOptions<'a>,
        restore: &'a RestoreOptions,
        directories: (&'a Directory, Option<&'a Directory>),
        names: Names,
        directory: Locked,
    ) -> Self {
        let Bundle { dir, spec, .. } = &options.bundle;
        let annotations = spec.annotations().iter().flatten();
        let (image, work) = directories;
        Self {
            point: directory.path().join(POINT),
            hook_state: hooks::State::new(options.id.as_str(), spec.version(), dir, annotations),
            options,
            restore,
            image,
            work,
            names,
            directory,
            record: None,
            criu: None,
            init: None,
            master: None,
            hook_output: hooks::Output::default(),
            devices: None,
            ran_hooks: false,
        }
    }

    /// Steps 2 to 7.
    pub(super) fn run(&mut self, program: &Program) -> Result<()> {
        let options = self.options;
        let Bundle { spec, raw, .. } = &options.bundle;
        self.directory.save_config(raw)?;
        self.hook_output = hooks::Output::open(spec.annotations().iter().flatten())?;
        let default = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&default);
        let namespaces = Namespaces::open(linux)?;
        namespaces.check_names(spec)?;
        let layout = Layout::detect()?;
        self.make_cgroup(linux, &namespaces, &layout)?;
        let view = cgroup_view(&layout, &self.record()?.cgroup);
        let outside = outside(spec, &options.bundle.dir, &view)?;
        self.rehearse(&namespaces, view)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&self.point)
            .context("the mount point of CRIU's root")?;
        self.restore_by(program, &namespaces, &outside)?;
        fs::remove_dir(&self.point).context("the mount point of CRIU's root")?;
        let record = self.record.as_mut().context("the record")?;
        record.set_up = true;
        self.directory.save(record)?;
        match &options.pid_file {
            Some(path) => write_pid_file(path, self.record()?.pid),
            None => Ok(()),
        }
    }

    fn record(&self) -> Result<&Record> {
        self.record.as_ref().context("the record")
    }

    fn driver(&self) -> Driver {
        if self.options.systemd_cgroup {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        }
    }

    /// Step 3. With systemd's driver the cgroup is made around CRIU, later.
    fn make_cgroup(&mut self, linux: &Linux, namespaces: &Namespaces, layout: &Layout) -> Result<()> {
        let path = linux.cgroups_path().as_deref();
        let cgroup = Cgroup::place(path, self.options.id.as_str(), layout, self.driver())?;
        let mut record = first_record(self.options, cgroup, false, namespaces.makes(CLONE_NEWPID));
        let rdt = linux.intel_rdt().as_ref();
        record.intel_rdt = rdt
            .map(|config| Group::plan(config, self.options.id.as_str()))
            .transpose()?;
        self.directory.save(&record)?;
        // What it made it has removed. One that is there already is another's: not ours to empty.
        record.cgroup.make()?;
        let record = self.record.insert(record);
        if record.cgroup.driver() == Driver::Cgroupfs {
            set_limits(&record.cgroup, linux)?;
        }
        Ok(())
    }

    /// Step 4: CRIU mounts where the image says, and makes no mount points that the root has lost, or never had: it may be
    /// another copy of the container's image.
    fn rehearse(&self, namespaces: &Namespaces, cgroups: rootfs::Cgroups) -> Result<()> {
        let context = rootfs::Context {
            cgroups,
            no_pivot: self.options.no_pivot,
        };
        let Root::Mounted(mut plan) = plan_root(&self.options.bundle, namespaces, &context)? else {
            bail!("linux.namespaces: a container without a mount namespace can't be restored; add one");
        };
        in_a_child(|| {
            process::unshare(CLONE_NEWNS)?;
            plan.prepare()
        })
        .context("make the mount points")
    }

    /// Steps 5 and 6.
    fn restore_by(&mut self, program: &Program, namespaces: &Namespaces, outside: &[Outside]) -> Result<()> {
        let given: Vec<BorrowedFd<'_>> = [CLONE_NEWNET, CLONE_NEWPID]
            .into_iter()
            .filter_map(|kind| namespaces.joined(kind))
            .collect();
        let join = self.record()?.cgroup.join_target()?;
        let none = JoinTarget::V1(Vec::new());
        let by_systemd = self.driver() == Driver::Systemd;
        let directories: Vec<&Directory> = std::iter::once(self.image).chain(self.work).collect();
        let start = Start {
            keeps_stdio: true,
            given: &given,
            directories: &directories,
            cgroup: Some(if by_systemd { &none } else { &join }),
            root: Some((&self.options.bundle.rootfs, &self.point)),
            waits: true,
            ends_with_us: true,
            reporter: self.options.reporter,
        };
        let mut criu = program.start(&start)?;
        let image = start.first_directory();
        let numbers = (image, self.work.map(|_| image + 1));
        let restored = self.converse(&mut criu, numbers, namespaces, outside);
        if let Err(error) = restored {
            criu.kill(self.options.reporter);
            return Err(error);
        }
        criu.end(self.options.reporter)
    }

    fn converse(
        &mut self,
        criu: &mut Criu,
        directories: (u64, Option<u64>),
        namespaces: &Namespaces,
        outside: &[Outside],
    ) -> Result<()> {
        self.note_process(criu.child.pid)?;
        self.criu = Some(criu.child.pid);
        let record = self.record()?;
        let default = Linux::default();
        let linux = self.options.bundle.spec.linux().as_ref().unwrap_or(&default);
        if record.cgroup.driver() == Driver::Systemd {
            let resources = linux.resources().clone().unwrap_or_default();
            let devices = resources.devices().clone().unwrap_or_default();
            let scope = Scope {
                resources,
                annotations: self.options.bundle.spec.annotations().as_ref(),
                devices: Some(&devices),
            };
            record.cgroup.attach(criu.child.pid, &scope)?;
            set_limits(&record.cgroup, linux)?;
        }
        if let Some(config) = linux.intel_rdt() {
            let group = self.record.as_mut().and_then(|record| record.intel_rdt.as_mut());
            group.context("the resctrl group")?.make(config, criu.child.pid)?;
            self.directory.save(self.record()?)?;
        }
        criu.go()?;
        let request = self.request(criu.child.pid, directories, namespaces, outside)?;
        criu.converse(&request, |response, descriptor| {
            self.notified(response, descriptor, namespaces)
        })?;
        self.init
            .as_ref()
            .map(|_| ())
            .context("CRIU did not tell of init")
    }

    /// A process of the container's that `delete` is to find.
    fn note_process(&mut self, pid: Pid) -> Result<()> {
        let record = self.record.as_mut().context("the record")?;
        record.pid = pid.as_raw();
        (_, record.start_time) = process_stat(pid).context("the process has ended")?;
        self.directory.save(record)
    }

    fn request(
        &self,
        criu: Pid,
        directories: (u64, Option<u64>),
        namespaces: &Namespaces,
        outside: &[Outside],
    ) -> Result<Vec<u8>> {
        let RestoreOptions {
            common,
            lsm_profile,
            lsm_mount_context,
        } = self.restore;
        let mut message = super::options(common, directories, &self.options.bundle.spec, LOG)?
            .flag(option::EVASIVE_DEVICES, true)
            .flag(option::RST_SIBLING, true)
            .text(option::ROOT, path_bytes(&self.point))
            .text_if(option::LSM_PROFILE, lsm_profile.as_deref())
            .text_if(option::LSM_MOUNT_CONTEXT, lsm_mount_context.as_deref());
        message = self.joined_namespaces(message, namespaces)?;
        for mount in outside {
            message = message.pair(option::EXT_MNT, &mount.destination, path_bytes(&mount.source));
        }
        // As `notify::prepare` has put it into the mounts, it is among those above.
        message = message.pair(option::EXT_MNT, NULL, NULL);
        for (descriptor, name) in self.names.inherited() {
            message = message.inherit(name, descriptor);
        }
        for (controllers, path) in cgroups_of(criu)? {
            for controller in controllers.split(',') {
                message = message.pair(option::CG_ROOT, controller, &path);
            }
        }
        Ok(request(Kind::Restore, &message))
    }

    /// Those that config.json joins by a path: CRIU gets what we have opened and looked at.
    fn joined_namespaces(&self, mut message: Message, namespaces: &Namespaces) -> Result<Message> {
        let mut next = Start::FIRST_GIVEN;
        for (kind, name) in [
            (CLONE_NEWNET, "net"),
            (CLONE_NEWPID, "pid"),
            (CLONE_NEWIPC, "ipc"),
            (CLONE_NEWUTS, "uts"),
            (CLONE_NEWUSER, "user"),
            (CLONE_NEWNS, "mount"),
            (CLONE_NEWCGROUP, "cgroup"),
            (CLONE_NEWTIME, "time"),
        ] {
            let Some(joined) = namespaces.joined(kind) else {
                continue;
            };
            match kind {
                CLONE_NEWNET | CLONE_NEWPID => {
                    message = message.inherit(external_key(name), next);
                    next += 1;
                }
                CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWUSER => {
                    let path = format!("/proc/{}/fd/{}", std::process::id(), joined.as_raw_fd());
                    message = message.pair(option::JOIN_NS, name, path);
                }
                _ => bail!(
                    "linux.namespaces: {name}: path: CRIU can't restore a container into a {name} namespace that is there already; leave the path out"
                ),
            }
        }
        Ok(message)
    }

    fn notified(
        &mut self,
        response: &Response,
        descriptor: Option<OwnedFd>,
        namespaces: &Namespaces,
    ) -> Result<()> {
        match response.notification.as_str() {
            "setup-namespaces" => self.set_up_namespaces(Pid::from_raw(response.pid), namespaces),
            "orphan-pts-master" => {
                self.hand_over(descriptor.context("the terminal's descriptor is missing")?)
            }
            "post-restore" => self.note_init(Pid::from_raw(response.pid)),
            "pre-resume" => self.verify(namespaces),
            _ => Ok(()),
        }
    }

    /// The namespaces are there and empty: what `create` does in them.
    fn set_up_namespaces(&mut self, pid: Pid, namespaces: &Namespaces) -> Result<()> {
        if namespaces.makes(CLONE_NEWNET) {
            let path = format!("/proc/{pid}/ns/net");
            let network = fs::File::open(&path).with_context(|| path.clone())?;
            in_a_child(|| {
                process::setns(&network, CLONE_NEWNET)?;
                Ok(process::bring_up_loopback()?)
            })
            .context("bring up the loopback interface")?;
            // In one that is joined they still are.
            let linux = self.options.bundle.spec.linux().as_ref();
            let devices = linux.and_then(|linux| linux.net_devices().as_ref());
            if let Some(devices) = devices.filter(|devices| !devices.is_empty()) {
                self.devices = Some(netdev::move_into(network.into(), devices)?);
            }
        }
        let Some(hooks) = self.options.bundle.spec.hooks() else {
            return Ok(());
        };
        self.ran_hooks = true;
        let init = pidfd_open(pid)?;
        let state = self.hook_state.json("creating", pid.as_raw());
        let place = hooks::Place::Runtime {
            bundle: &self.options.bundle.dir,
            init: Some(init.as_fd()),
            output: &self.hook_output,
        };
        let prestart = hooks.prestart();
        hooks::run("prestart", prestart.as_ref(), &state, &place)?;
        hooks::run("createRuntime", hooks.create_runtime().as_ref(), &state, &place)
    }

    fn hand_over(&mut self, master: OwnedFd) -> Result<()> {
        let process = self.options.bundle.spec.process().as_ref();
        if !process.and_then(Process::terminal).unwrap_or(false) {
            bail!(
                "config.json: process.terminal: false: the processes in the image have a terminal; set it to true"
            );
        }
        match (&self.options.console_socket, self.options.reporter) {
            (Some(path), _) => send_master(path, &master)?,
            (None, Some(reporter)) => reporter.terminal(&master)?,
            (None, None) => self.master = Some(master),
        }
        Ok(())
    }

    /// All processes are there, and stopped.
    fn note_init(&mut self, pid: Pid) -> Result<()> {
        let init = Child {
            pidfd: pidfd_open(pid).context("init")?,
            pid,
        };
        if let Some(reporter) = self.options.reporter {
            reporter.born(&init).context("report the container's process")?;
        }
        self.init = Some(init);
        let clocks = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
        let record = self.record.as_mut().context("the record")?;
        record.time_namespace = clocks(&pid.to_string()) != clocks("self");
        self.note_process(pid)
    }

    /// All processes are what they will be, and are about to run. A refusal does not keep CRIU from letting them: their end does.
    fn verify(&self, namespaces: &Namespaces) -> Result<()> {
        let record = self.record()?;
        let verified = self.verify_processes(record, namespaces);
        if verified.is_err() {
            record.cgroup.kill()?;
        }
        verified.context("the image does not fit the configuration")
    }

    fn verify_processes(&self, record: &Record, namespaces: &Namespaces) -> Result<()> {
        let init = self.init.as_ref().context("CRIU did not tell of init")?.pid;
        let mut all = record.cgroup.processes()?;
        all.retain(|process| Some(*process) != self.criu);
        if !all.contains(&init) {
            let _ = record.signal(libc::SIGKILL);
            bail!("CRIU has put init into another cgroup than the container's");
        }
        let with_cgroup = self.restore.common.manage_cgroups != CgroupMode::Ignore;
        verify(&self.options.bundle.spec, namespaces, with_cgroup, (init, &all))
    }

    pub(super) fn into_parts(self) -> Result<(Locked, Restored)> {
        let (record, init) = self.record.zip(self.init).context("the container's process")?;
        Ok((
            self.directory,
            Restored {
                record,
                init,
                master: self.master,
            },
        ))
    }

    /// Removes all there is. A failure here is only told: the first error is what counts.
    pub(super) fn undo(self) {
        let by_shim = self.options.reporter.is_some();
        if let Some(devices) = self.devices {
            devices.undo();
        }
        let mut record = self.record;
        if let Some(Record {
            cgroup, intel_rdt, ..
        }) = &mut record
        {
            // Thaws it, and ends what CRIU has made of the image so far.
            let _ = cgroup.kill();
            if let Some(init) = &self.init
                && process::has_ended(&init.pidfd, CGROUP_DEADLINE).unwrap_or(true)
                && !by_shim
            {
                let _ = process::wait(&init.pidfd);
            }
            if !by_shim {
                // An init that we were not told of is our child, too.
                process::reap_orphans(Pid::from_raw(-1));
            }
            let group = intel_rdt.as_ref().map_or(Ok(()), Group::remove);
            let removed = cgroup.remove(Instant::now() + CGROUP_DEADLINE);
            for error in [group, removed].into_iter().filter_map(Result::err) {
                log::warn(format_args!("clean up: {error:#}"));
            }
            cgroup.undo();
        }
        if let Err(error) = self.directory.remove() {
            log::warn(format_args!("clean up: {error:#}"));
        }
        let hooks = self.options.bundle.spec.hooks().as_ref();
        if let (Some(record), true, Some(hooks)) = (&record, self.ran_hooks, hooks) {
            let poststop = hooks.poststop().as_deref().unwrap_or_default();
            run_poststop_hooks(poststop, &self.options.id, record);
        }
    }
}

/// The cgroups of a process, for each tree: its controllers and the path in it.
fn cgroups_of(pid: Pid) -> Result<Vec<(String, String)>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(parse_cgroups(&text))
}

fn parse_cgroups(text: &str) -> Vec<(String, String)> {
    let lines = text
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'));
    lines
        .map(|(controllers, path)| (controllers.to_owned(), path.to_owned()))
        .collect()
}

/// Runs something in a child of its own, and waits for it: what it changes in itself goes with it.
fn in_a_child(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let (hear, tell) = Channel::pair()?;
    let child = match clone3(0, None)? {
        Cloned::Child => {
            drop(hear);
            live(&tell, || {
                process::set_parent_death_signal(libc::SIGKILL)?;
                body()?;
                process::exit(0)
            })
        }
        Cloned::Parent(child) => child,
    };
    drop(tell);
    let told = hear.receive();
    let exit = process::wait(&child.pidfd)?;
    match told? {
        None if exit == process::Exit::Code(0) => Ok(()),
        None => Err(anyhow!("{exit}")),
        Some(Word::Failed(text)) => Err(anyhow!(text)),
        Some(other) => bail!("an unexpected message: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_read_for_each_tree() {
        let text = "12:cpu,cpuacct:/a:b\n1:name=systemd:/c\n0::/\n";
        let expected = [("cpu,cpuacct", "/a:b"), ("name=systemd", "/c"), ("", "/")];
        let expected = expected.map(|(controllers, path)| (controllers.to_owned(), path.to_owned()));
        assert_eq!(parse_cgroups(text), expected);
    }

    #[test]
    fn what_fails_in_a_child_is_told() {
        in_a_child(|| Ok(())).unwrap();
        let error = in_a_child(|| bail!("no such thing")).unwrap_err();
        assert_eq!(error.to_string(), "no such thing");
    }
}
