//! What `create` is asked for, and what it decides before it makes anything in the kernel: the terminal, the root, what the
//! child becomes.

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Linux, Process, Spec};

use crate::annotations::Annotations;
use crate::bundle::Bundle;
use crate::cgroup::Driver;
use crate::container::id::ContainerId;
use crate::namespace::{IdMaps, Namespaces};
use crate::process::identity::Identity;
use crate::process::init::Root;
use crate::process::payload::Payload;
use crate::process::program::Program;
use crate::process::terminal::TerminalRequest;
use crate::process::worker::Reporter;
use crate::rootless::{self, Rootless};
use crate::sys::clone::{CLONE_NEWNS, CLONE_NEWUSER};
use crate::sys::tty;
use crate::{log, rootfs, seccomp};

/// What `create` and `run` are asked for.
#[derive(Debug)]
pub struct CreateOptions<'a> {
    /// The new container's id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: Bundle,
    /// Where the master of the terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Where a pidfd of init is sent.
    pub pidfd_socket: Option<PathBuf>,
    /// A file for init's pid.
    pub pid_file: Option<PathBuf>,
    /// Do not pivot into the root (a root on an initramfs can't be).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that init keeps.
    pub preserve_fds: u32,
    /// How many of them are sockets of socket activation (sd_listen_fds(3)), which init is told of.
    pub listen_fds: u32,
    /// Let systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// Whether a cgroup that can't be made is done without.
    pub rootless: Rootless,
    /// In a worker of the shim: where init and the master of its terminal are reported. Nobody waits for init here.
    pub reporter: Option<&'a Reporter>,
}

/// The terminal a process asks for. Whose console socket gets it sets it up to his liking; ours to relay ends its lines
/// as runc has it, with \n alone.
pub(super) fn terminal_of(process: Option<&Process>, for_socket: bool) -> Option<TerminalRequest> {
    let process = process.filter(|process| process.terminal().unwrap_or(false))?;
    let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
    let size = process
        .console_size()
        .filter(|size| size.height() != 0 && size.width() != 0);
    Some(TerminalRequest {
        size: size.map(|size| tty::Size {
            rows: cells(size.height()),
            columns: cells(size.width()),
        }),
        bare_newlines: !for_socket,
    })
}

/// Whether somebody will hold the terminal, where the process has one, and there is one for the socket.
///
/// # Errors
///
/// In runc's words.
pub(crate) fn check_terminal(terminal: bool, console_socket: bool, detach: bool) -> Result<()> {
    if terminal && detach && !console_socket {
        bail!("cannot allocate tty if rtc will detach without setting console socket; give --console-socket");
    }
    if console_socket && !(terminal && detach) {
        bail!("--console-socket: cannot use console socket if rtc will not detach or allocate tty");
    }
    Ok(())
}

/// Whether init has to wait before it does anything: for its ids, for its cgroup, for what it gets of the machine, or,
/// where it will run hooks, which may take any time, for being recorded.
pub(super) fn waits_for_parent(spec: &Spec, namespaces: &Namespaces, driver: Driver) -> bool {
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.create_container().as_ref());
    let given = spec.linux().as_ref().is_some_and(|linux| {
        let devices = linux.net_devices().as_ref();
        linux.intel_rdt().is_some() || devices.is_some_and(|devices| !devices.is_empty())
    });
    namespaces.has(CLONE_NEWUSER)
        || driver == Driver::Systemd
        || given
        || hooks.is_some_and(|hooks| !hooks.is_empty())
}

/// Where its root is, and with a mount namespace all that is mounted there.
pub(crate) fn plan_root<'a>(
    bundle: &'a Bundle,
    namespaces: &Namespaces,
    context: &rootfs::Context,
) -> Result<Root<'a>> {
    if namespaces.has(CLONE_NEWNS) {
        let plan = rootfs::Plan::new(&bundle.spec, &bundle.dir, &bundle.rootfs, context)?;
        return Ok(Root::Mounted(Box::new(plan)));
    }
    if bundle
        .spec
        .mounts()
        .as_ref()
        .is_some_and(|mounts| !mounts.is_empty())
    {
        bail!("mounts: a container without a mount namespace can't have any; add one to linux.namespaces");
    }
    Ok(Root::Directory(&bundle.rootfs))
}

/// Whether the caller is an ordinary user, and the container's user namespace is of its making: then the child is open to
/// that user, whose its files in `/proc` are (its ids are mapped through them), as no other process is in there.
pub(super) fn opens_to_user(namespaces: &Namespaces) -> bool {
    namespaces.makes(CLONE_NEWUSER) && rootless::ordinary_user().is_some()
}

/// What the child becomes, prepared.
pub(super) fn payload(
    process: &Process,
    linux: &Linux,
    namespaces: &Namespaces,
    options: &CreateOptions<'_>,
) -> Result<Payload> {
    if namespaces.makes(CLONE_NEWUSER) {
        IdMaps::new(linux).check_ids(process.user().uid(), process.user().gid())?;
    }
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?;
    let annotations = match options.bundle.spec.annotations() {
        Some(all) => Annotations::read(all.iter())?.0,
        None => Annotations::default(),
    };
    if let Some(filter) = &filter
        && !filter.unknown.is_empty()
    {
        if annotations.seccomp_fail_unknown {
            bail!(
                "linux.seccomp.syscalls: unknown system calls: {} (annotation run.oci.seccomp_fail_unknown_syscall)",
                filter.unknown.join(", ")
            );
        }
        log::debug(|| {
            format!(
                "seccomp: unknown system calls are ignored: {}",
                filter.unknown.join(" ")
            )
        });
    }
    let keyring = (!options.no_new_keyring)
        .then(|| CString::new(format!("_ses.{}", options.id)).context("the name of the keyring"))
        .transpose()?;
    let mut program = Program::new(process)?;
    if options.listen_fds > 0 {
        program.set_variable("LISTEN_FDS", &options.listen_fds.to_string())?;
        // Init is process 1 of its namespace; where it has none, it would take the sockets for another's.
        program.set_variable("LISTEN_PID", "1")?;
    }
    let mut identity = Identity::new(process, linux)?;
    if annotations.keep_original_groups {
        identity.keep_original_groups();
    }
    Ok(Payload {
        identity,
        program,
        filter,
        keyring,
        terminal: terminal_of(
            Some(process),
            options.console_socket.is_some() || options.reporter.is_some(),
        ),
        preserve_fds: options.preserve_fds,
        open_to_user: opens_to_user(namespaces),
    })
}
