//! A pod's namespaces: made by a worker of the shim, held by descriptor, joined by the pod's containers.
//!
//! ```text
//! shim <-- Namespace + fd, ... -- worker                       maker (a child of the shim)           pod init (the same)
//!                                  setns: a network given          |
//!                                  clone3(NEWUSER|NEWNET|...) ---> Prepared, waits
//!                                  maps ids, opens /proc/<maker>/ns/*
//!                                  Go ---------------------------> host name, lo, sysctls
//!      <-- Born + pidfd ---------- <------------------------------ clone3(NEWPID|NEWNS) -----------> hardens itself
//!                                  <------------------------------ Ready, exits                      |
//!      <-- Namespace(pid) -------- <---------------------------------------- Ready, then the end --- waits for SIGTERM
//! ```
//!
//! With a user namespace all others are made by the same clone, which makes it their owner. A network namespace that was
//! made before belongs to whoever made it, so what is set in it is set from outside. If that is another user namespace than
//! the caller's (containerd makes one for the network of a pod with users of its own), that one is the pod's too: only its
//! root may mount sysfs. Then the maker enters it, and makes the others inside.
//!
//! All but the PID namespace live by a descriptor. That one lives by its first process, the pod init ([`init`]): it gets
//! no member before it has nothing left to show.

mod init;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::mem::discriminant;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use libc::c_int;
use nix::sys::stat::{FileStat, fstat, stat};

use crate::namespace::IdMaps;
use crate::process::channel::{Channel, Message};
use crate::process::spawn::{close, hear_of_child, live, tell_of_child};
use crate::process::worker::Reporter;
use crate::procfs::{Procfs, sysctl_path};
use crate::seccomp::Filter;
use crate::sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
    CLONE_PARENT, Child, Cloned, clone3,
};
use crate::sys::{Named, process};
use crate::{bundle, log};

/// The namespaces a pod is to have of its own.
#[derive(Debug, Default)]
pub struct PodOptions<'a> {
    /// A user namespace with these ids. It is the one that owns the network namespace, where that is not the caller's.
    pub user: Option<IdMaps>,
    /// The network namespace.
    pub network: Network<'a>,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace.
    pub uts: bool,
    /// A PID namespace, with a pod init.
    pub pid: bool,
    /// The host name, in the UTS namespace.
    pub hostname: Option<String>,
    /// Kernel parameters of these namespaces.
    pub sysctls: BTreeMap<String, String>,
}

/// Where a pod's network is.
#[derive(Debug, Default)]
pub enum Network<'a> {
    /// In the namespace of the caller.
    #[default]
    Host,
    /// In a new one, with its loopback interface up.
    New,
    /// In this one, opened by the caller, where the loopback interface is brought up too.
    Joined(BorrowedFd<'a>),
}

impl PodOptions<'_> {
    /// Those to make, but for the PID namespace.
    fn made(&self) -> c_int {
        [
            (self.user.is_some(), CLONE_NEWUSER),
            (matches!(self.network, Network::New), CLONE_NEWNET),
            (self.ipc, CLONE_NEWIPC),
            (self.uts, CLONE_NEWUTS),
        ]
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
    }

    /// Checks what would change the host.
    ///
    /// # Errors
    ///
    /// Names the field.
    pub fn check(&self) -> Result<()> {
        let network = match self.network {
            Network::Host => 0,
            Network::New => CLONE_NEWNET,
            Network::Joined(network) => {
                check_network(network)?;
                CLONE_NEWNET
            }
        };
        for (name, value) in &self.sysctls {
            bundle::check_sysctl(name, value, self.made() | network)?;
        }
        if self.hostname.is_some() && !self.uts {
            bail!("hostname: needs a UTS namespace of the pod's own: the host would be renamed");
        }
        Ok(())
    }

    /// The user namespace of a given network, where the pod's users are to be those of another than the caller's.
    fn owner_of_network(&self) -> Result<Option<OwnedFd>> {
        let (Network::Joined(network), Some(_)) = (&self.network, &self.user) else {
            return Ok(None);
        };
        let owner =
            process::owner_of_namespace(network).context("the owner of the pod's network namespace")?;
        let is_own = is_same(&fstat(&owner)?, &stat("/proc/self/ns/user")?);
        Ok((!is_own).then_some(owner))
    }

    /// The parameters of the network namespace, or the others.
    fn sysctls_of_network(&self, wanted: bool) -> impl Iterator<Item = (&String, &String)> {
        let of_network = |name: &str| sysctl_path(name).starts_with("sys/net/");
        self.sysctls
            .iter()
            .filter(move |(name, _)| of_network(name) == wanted)
    }
}

/// Whether it is a network namespace, and not the caller's own.
fn check_network(network: BorrowedFd<'_>) -> Result<()> {
    if process::namespace_kind(network).context("the pod's network namespace")? != CLONE_NEWNET {
        bail!("the pod's network namespace: it is one of another kind");
    }
    if is_same(&fstat(network)?, &stat("/proc/self/ns/net")?) {
        bail!("the pod's network namespace: it is the host's: use the host's network instead");
    }
    Ok(())
}

fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Makes them, in a worker: the calling process is left in the pod's network namespace. Each is reported; the pod init is
/// reported as born, and it is ready once its namespace is reported. When it is killed all processes of its PID namespace
/// are, and it has ended once they are collected, whoever has to do that.
///
/// # Errors
///
/// Something can't be made or set. What was reported is to be dropped, and the pod init killed.
pub fn make(options: &PodOptions<'_>, reporter: &Reporter) -> Result<()> {
    options.check()?;
    if let Network::Joined(network) = options.network {
        process::setns(network, CLONE_NEWNET).context("enter the pod's network namespace")?;
        process::bring_up_loopback()?;
        write_sysctls(options.sysctls_of_network(true))?;
    }
    let made = options.made();
    if made == 0 && !options.pid {
        return Ok(());
    }
    let owner = options.owner_of_network()?;
    let filter = init::filter()?;
    let maker = Maker {
        options,
        owner: owner.as_ref(),
        filter: &filter,
        to_worker: Channel::pair()?,
        of_init: Channel::pair()?,
    };
    // Inside of another user namespace they are made there.
    let flags = if owner.is_some() { 0 } else { made };
    let cloned = clone3(flags | CLONE_PARENT, None).context("make the pod's namespaces")?;
    let child = match cloned {
        Cloned::Child => maker.run(reporter),
        Cloned::Parent(child) => child,
    };
    reporter.helper(&child.pidfd)?;
    let Maker {
        to_worker: (channel, theirs),
        of_init: (init_channel, theirs_too),
        ..
    } = maker;
    drop((theirs, theirs_too));
    expect(&channel, &Message::Prepared, "the pod's namespaces")?;
    match &options.user {
        Some(maps) if owner.is_some() => maps
            .check(child.pid)
            .context("the user namespace of the pod's network")?,
        Some(maps) => maps.write(child.pid)?,
        None => {}
    }
    let mut namespaces = open_namespaces(&child, made)?;
    // Somebody else collects it: only if it still waits for us, its pid was not another's.
    process::pidfd_send_signal(&child.pidfd, 0).context("the process that makes the pod's namespaces")?;
    channel.go()?;
    if options.pid {
        let init = hear_of_child(&channel)?;
        reporter.born(&init)?;
        expect(&channel, &Message::Ready, "the pod's namespaces")?;
        init_is_ready(&init, &init_channel)?;
        namespaces.extend(open_namespaces(&init, CLONE_NEWPID)?);
    } else {
        expect(&channel, &Message::Ready, "the pod's namespaces")?;
    }
    for (flag, namespace) in namespaces {
        reporter.namespace(flag, namespace)?;
    }
    Ok(())
}

/// Those of the process that has them.
fn open_namespaces(child: &Child, flags: c_int) -> Result<Vec<(c_int, OwnedFd)>> {
    let names = [
        (CLONE_NEWUSER, "user"),
        (CLONE_NEWNET, "net"),
        (CLONE_NEWIPC, "ipc"),
        (CLONE_NEWUTS, "uts"),
        (CLONE_NEWPID, "pid"),
    ];
    names
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(flag, name)| {
            let path = format!("/proc/{}/ns/{name}", child.pid);
            let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
            Ok((*flag, namespace.into()))
        })
        .collect()
}

fn expect(channel: &Channel, wanted: &Message, what: &str) -> Result<()> {
    match channel.receive()? {
        Some(Message::Failed(text)) => Err(anyhow!(text)),
        Some(message) if discriminant(&message) == discriminant(wanted) => Ok(()),
        Some(other) => bail!("{what}: an unexpected message: {other:?}"),
        None => bail!("{what}: the process that makes them has died"),
    }
}

/// It has said so and closed its last descriptor, and lives.
fn init_is_ready(init: &Child, channel: &Channel) -> Result<()> {
    expect(channel, &Message::Ready, "the pod init")?;
    if let Some(message) = channel.receive()? {
        bail!("the pod init: {message:?}");
    }
    if process::has_ended(&init.pidfd, Duration::ZERO)? {
        bail!("the pod init has ended");
    }
    Ok(())
}

/// The process that is in the new namespaces, and what it needs. Of each channel the worker's end is the first.
struct Maker<'a> {
    options: &'a PodOptions<'a>,
    /// A user namespace to enter.
    owner: Option<&'a OwnedFd>,
    filter: &'a Filter,
    to_worker: (Channel, Channel),
    of_init: (Channel, Channel),
}

impl Maker<'_> {
    fn run(&self, reporter: &Reporter) -> ! {
        log::disable();
        let of_worker = [
            self.to_worker.0.as_fd().as_raw_fd(),
            self.of_init.0.as_fd().as_raw_fd(),
            reporter.as_fd().as_raw_fd(),
        ];
        close(&of_worker);
        live(&self.to_worker.1, || self.set_up())
    }

    fn set_up(&self) -> Result<Infallible> {
        let (options, channel) = (self.options, &self.to_worker.1);
        if let Some(owner) = self.owner {
            process::setns(owner, CLONE_NEWUSER).context("enter the user namespace of the pod's network")?;
            process::unshare(options.made() & !CLONE_NEWUSER)?;
        }
        channel.send(&Message::Prepared)?;
        channel.wait_for_go()?;
        if options.user.is_some() {
            process::set_ids(0, 0, Some(&[])).context("become root of the pod's user namespace")?;
        }
        if let Some(name) = &options.hostname {
            nix::unistd::sethostname(name)
                .call(|| format!("sethostname({name:?})"))
                .context("hostname")?;
        }
        if matches!(options.network, Network::New) {
            process::bring_up_loopback()?;
            write_sysctls(options.sysctls_of_network(true))?;
        }
        write_sysctls(options.sysctls_of_network(false))?;
        if options.pid {
            self.make_init()?;
        }
        channel.send(&Message::Ready)?;
        process::exit(0)
    }

    fn make_init(&self) -> Result<()> {
        // A container with CAP_SYS_ADMIN may enter the namespaces of process 1: also the cgroup namespace must not be the host's.
        let flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_PARENT;
        match clone3(flags, None).context("make the pod init")? {
            Cloned::Child => {
                close(&[self.to_worker.1.as_fd().as_raw_fd()]);
                let channel = &self.of_init.1;
                live(channel, || {
                    init::run(self.options.user.as_ref(), self.filter, channel)
                })
            }
            Cloned::Parent(child) => tell_of_child(&self.to_worker.1, child),
        }
    }
}

fn write_sysctls<'a>(sysctls: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    let mut procfs = None;
    for (name, value) in sysctls {
        let procfs = match &mut procfs {
            Some(procfs) => procfs,
            none => none.insert(Procfs::open()?),
        };
        procfs
            .write(&sysctl_path(name), value)
            .with_context(|| format!("sysctl {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_the_host_is_refused() {
        let sysctls = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let error = |options: PodOptions<'_>| format!("{:#}", options.check().unwrap_err());
        let options = PodOptions {
            sysctls: sysctls("net.core.somaxconn"),
            ..PodOptions::default()
        };
        assert!(error(options).contains("needs a namespace of type \"network\""));
        let options = PodOptions {
            sysctls: sysctls("kernel.panic"),
            uts: true,
            ipc: true,
            network: Network::New,
            ..PodOptions::default()
        };
        assert!(error(options).contains("would change the host"));
        let options = PodOptions {
            hostname: Some("web".into()),
            ..PodOptions::default()
        };
        assert!(error(options).starts_with("hostname: needs"));
        let own = File::open("/proc/self/ns/net").unwrap();
        let options = PodOptions {
            network: Network::Joined(own.as_fd()),
            ..PodOptions::default()
        };
        assert!(error(options).contains("it is the host's"));
        let options = PodOptions {
            sysctls: sysctls("net.core.somaxconn"),
            network: Network::New,
            ..PodOptions::default()
        };
        options.check().unwrap();
    }
}
