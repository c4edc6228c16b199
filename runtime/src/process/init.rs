//! The child of `create` and `run`: from fresh namespaces to the user's program, without another process or re-exec.
//!
//! All that can be read, checked, compiled or opened was done by the parent. What is left is this list; why each step
//! stands where it does is said at the step.

use std::convert::Infallible;
use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{Hooks, Spec};

use crate::hooks;
use crate::namespace::Namespaces;
use crate::process::channel::{Channel, Message};
use crate::process::gate::Gate;
use crate::process::label::{Labels, set_oom_score};
use crate::process::payload::Payload;
use crate::process::terminal::Terminal;
use crate::procfs::{self, Procfs};
use crate::rootfs;
use crate::sys::clone::{CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWUSER};
use crate::sys::entry::forget_caller;
use crate::sys::{Named, process};

/// Everything the child needs.
#[derive(Debug)]
pub struct Init<'a> {
    /// The checked configuration.
    pub spec: &'a Spec,
    /// Where it is.
    pub namespaces: &'a Namespaces,
    /// Its root.
    pub root: Root<'a>,
    /// What it becomes.
    pub payload: Payload,
    /// Whether the parent has to do something first: map ids, put it into a cgroup.
    pub wait_for_parent: bool,
    /// Where it waits for `start`; `run` has none.
    pub gate: Option<Gate>,
    /// The state that hooks are told, by status and pid.
    pub hook_state: &'a hooks::State,
    /// Where what createContainer hooks print goes. Those of startContainer run when no descriptor of the host is open any
    /// more.
    pub hook_output: &'a hooks::Output,
}

/// The container's root.
#[derive(Debug)]
pub enum Root<'a> {
    /// Made in a mount namespace.
    Mounted(Box<rootfs::Plan>),
    /// A directory of the runtime's own mount namespace, for a container that has none: nothing is mounted.
    Directory(&'a Path),
}

impl Root<'_> {
    fn prepare(&mut self) -> Result<()> {
        match self {
            Self::Mounted(plan) => plan.prepare(),
            Self::Directory(_) => Ok(()),
        }
    }

    fn enter(&mut self) -> Result<()> {
        match self {
            Self::Mounted(plan) => plan.pivot(),
            Self::Directory(path) => {
                nix::unistd::chroot(*path).call(|| format!("chroot({path:?})"))?;
                Ok(nix::unistd::chdir("/").call(|| "chdir(\"/\")".into())?)
            }
        }
    }

    fn console(&self, terminal: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::Mounted(plan) => plan.console(terminal),
            Self::Directory(_) => Ok(()),
        }
    }

    fn seal(&mut self) -> Result<()> {
        match self {
            Self::Mounted(plan) => plan.seal(),
            Self::Directory(_) => Ok(()),
        }
    }
}

impl Init<'_> {
    /// Runs the program. Returns only with an error, which the parent is told by the caller, or `start` by the gate.
    ///
    /// # Errors
    ///
    /// Any step of the list.
    pub fn run(self, channel: &Channel) -> Result<Infallible> {
        // Descriptors are closed under the feet of their owners, so nothing of this may be dropped.
        ManuallyDrop::new(self).go(channel)
    }

    fn go(&mut self, channel: &Channel) -> Result<Infallible> {
        // Whoever makes us may be killed; then we end, also in the middle of a hook.
        process::set_parent_death_signal(libc::SIGKILL)?;
        process::unblock_signals()?;
        forget_caller();
        if self.wait_for_parent {
            channel.wait_for_go()?;
        }
        self.enter_namespaces()?;
        self.root.prepare()?;
        self.write_proc()?;
        self.run_hooks_before_the_root(channel)?;
        self.root.enter()?;
        let terminal = self.make_terminal(channel)?;
        self.root.seal()?;
        self.payload.program.make_cwd()?;
        if let Some(slave) = terminal {
            Terminal::attach(slave)?;
        }
        self.set_host_names()?;
        let mut kept = vec![channel.as_fd().as_raw_fd()];
        kept.extend(self.gate.iter().flat_map(Gate::descriptors));
        let file = self.payload.become_the_user(channel, &kept)?;
        if self.gate.is_some() {
            process::exit_when_asked();
        }
        // From here on the runtime may go.
        process::set_parent_death_signal(0)?;
        channel
            .send(&Message::Ready)
            .context("tell the runtime that all is set up")?;
        let Some(mut gate) = self.gate.take().map(ManuallyDrop::new) else {
            return self.execute(&file, || Ok(channel.send(&Message::Executing)?));
        };
        // The runtime is told first and answers last: it has recorded everything, or it has died and so do we.
        channel.wait_for_go()?;
        gate.wait()?;
        let Err(error) = self.execute(&file, || gate.executing());
        gate.fail(&format!("{error:#}"));
        Err(error)
    }

    /// What the namespaces need before anything is mounted.
    fn enter_namespaces(&mut self) -> Result<()> {
        if self.namespaces.has(CLONE_NEWUSER) {
            self.payload.identity.become_root()?;
            // A change of the user forgets it.
            process::set_parent_death_signal(libc::SIGKILL)?;
            self.namespaces.make_time_namespace_inside()?;
        }
        if self.namespaces.makes(CLONE_NEWCGROUP) {
            // Only now is this process in its cgroup, which becomes the root of the namespace.
            process::unshare(CLONE_NEWCGROUP).context("make a cgroup namespace")?;
        }
        self.payload.identity.apply_affinity()?;
        nix::unistd::setsid().call(|| "setsid".into())?;
        self.label_keys()?;
        self.payload.join_keyring(true)?;
        if self.namespaces.makes(CLONE_NEWNET) {
            process::bring_up_loopback()?;
        }
        Ok(())
    }

    /// A new keyring gets the label of the process.
    fn label_keys(&self) -> Result<()> {
        let labels = self.spec.process().as_ref().map(Labels::of).unwrap_or_default();
        if self.payload.keyring.is_none() || labels.is_empty() {
            return Ok(());
        }
        labels.write_for_keys(&Procfs::open()?)
    }

    /// Writes below /proc, as long as that is the runtime's own.
    fn write_proc(&self) -> Result<()> {
        let linux = self.spec.linux().as_ref();
        let sysctls = linux.and_then(|linux| linux.sysctl().as_ref());
        let process = self.spec.process().as_ref();
        // In a user namespace the parent has done it: the child may not.
        let oom = process
            .and_then(oci_spec::runtime::Process::oom_score_adj)
            .filter(|_| !self.namespaces.has(CLONE_NEWUSER));
        let labels = process.map(Labels::of).unwrap_or_default();
        if sysctls.is_none_or(std::collections::HashMap::is_empty) && oom.is_none() && labels.is_empty() {
            return Ok(());
        }
        let procfs = Procfs::open()?;
        for (name, value) in sysctls.into_iter().flatten() {
            procfs
                .write(&procfs::sysctl_path(name), value)
                .with_context(|| format!("linux.sysctl.{name}"))?;
        }
        if let Some(score) = oom {
            set_oom_score(&procfs, "self", score)?;
        }
        labels.write(&procfs)
    }

    /// Waits for the hooks of the runtime namespace, then runs those of the container's.
    fn run_hooks_before_the_root(&self, channel: &Channel) -> Result<()> {
        let Some(hooks) = self.spec.hooks() else {
            return Ok(());
        };
        if runs_in_runtime(hooks) {
            channel
                .send(&Message::Prepared)
                .context("tell the runtime that hooks can run")?;
            channel.wait_for_go()?;
        }
        let hooks = hooks.create_container().as_ref();
        self.run_hooks("createContainer", hooks, "creating", self.hook_output)
    }

    fn run_hooks(
        &self,
        kind: &str,
        hooks: Option<&Vec<oci_spec::runtime::Hook>>,
        status: &str,
        output: &hooks::Output,
    ) -> Result<()> {
        if hooks.is_none_or(Vec::is_empty) {
            return Ok(());
        }
        let state = self.hook_state.json(status, std::process::id().cast_signed());
        hooks::run(
            kind,
            hooks,
            &state,
            &hooks::Place::Container {
                environment: self.payload.program.environment(),
                output,
            },
        )
    }

    /// Makes the terminal in the container's devpts and shows it as /dev/console.
    fn make_terminal(&self, channel: &Channel) -> Result<Option<OwnedFd>> {
        let slave = self.payload.open_terminal(channel)?;
        if let Some(slave) = &slave {
            self.root.console(slave.as_fd())?;
        }
        Ok(slave)
    }

    fn set_host_names(&self) -> Result<()> {
        if let Some(name) = self.spec.hostname() {
            nix::unistd::sethostname(name)
                .call(|| format!("sethostname({name:?})"))
                .context("hostname")?;
        }
        if let Some(name) = self.spec.domainname() {
            process::set_domainname(name).context("domainname")?;
        }
        Ok(())
    }

    /// The last hooks, and the program. `tell` says that nothing is left but that.
    fn execute(&self, file: &CString, tell: impl FnOnce() -> Result<()>) -> Result<Infallible> {
        if let Some(hooks) = self.spec.hooks() {
            let hooks = hooks.start_container().as_ref();
            self.run_hooks("startContainer", hooks, "created", &hooks::Output::default())?;
        }
        tell()?;
        self.payload.program.execute(file)
    }
}

/// Whether the child has to wait for hooks that the parent runs.
#[must_use]
pub fn runs_in_runtime(hooks: &Hooks) -> bool {
    let prestart = hooks.prestart();
    [prestart, hooks.create_runtime()]
        .into_iter()
        .flatten()
        .any(|hooks| !hooks.is_empty())
}
