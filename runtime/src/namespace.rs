//! Namespaces of a container: which are made, which are joined, and the id maps of a user namespace.
//!
//! Made ones are flags of the one `clone3`. Joined ones are opened by the parent, so that the child never follows a
//! path: first all others, the user namespace last, because root outside has every capability over the namespaces of
//! its descendants but loses those over its own by entering one (user_namespaces(7)). An ordinary user is the other way
//! round: it has no capability before it has entered. A cgroup namespace is made by the child after it is in its cgroup,
//! which becomes the namespace's root (cgroup_namespaces(7)).

mod id_maps;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use libc::c_int;
use oci_spec::runtime::{Linux, LinuxNamespaceType as Type, LinuxTimeOffset, Spec};

use crate::rootless;
use crate::sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER,
    CLONE_NEWUTS,
};
use crate::sys::process;

pub use id_maps::IdMaps;

/// The namespaces of a new container.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW*` of those to make.
    made: c_int,
    /// Those to join, in order: the user namespace last, for an ordinary user first.
    joined: Vec<Joined>,
    /// The caller is no root: what is made or joined needs the container's user namespace first.
    user_first: bool,
    /// Lines for `/proc/self/timens_offsets`; empty where the time namespace keeps the clocks.
    time_offsets: String,
    /// All of a container's at once, for `exec`.
    container: Option<OfContainer>,
}

/// The namespaces of a container, by its init.
#[derive(Debug)]
struct OfContainer {
    /// A pidfd.
    init: OwnedFd,
    /// Which of its namespaces are not the runtime's.
    flags: c_int,
    /// Its root, where it has no mount namespace of its own.
    root: Option<OwnedFd>,
}

#[derive(Debug)]
struct Joined {
    flag: c_int,
    namespace: OwnedFd,
}

impl Namespaces {
    /// Opens the namespaces that `linux.namespaces` joins and checks that each is of its kind.
    ///
    /// # Errors
    ///
    /// A path that is missing, no namespace, or one of another kind.
    pub fn open(linux: &Linux) -> Result<Self> {
        let mut namespaces = Self::default();
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let flag = flag(namespace.typ());
            let Some(path) = namespace
                .path()
                .as_deref()
                .filter(|path| !path.as_os_str().is_empty())
            else {
                namespaces.made |= flag;
                continue;
            };
            let namespace = open(path, flag).with_context(|| {
                format!(
                    "linux.namespaces[{index}].path: join {} namespace {}",
                    name(flag),
                    path.display()
                )
            })?;
            namespaces.joined.push(Joined { flag, namespace });
        }
        namespaces.user_first = rootless::ordinary_user().is_some();
        let user_first = namespaces.user_first;
        namespaces
            .joined
            .sort_by_key(|joined| (joined.flag == CLONE_NEWUSER) != user_first);
        if let Some(offsets) = linux.time_offsets() {
            for clock in ["monotonic", "boottime"] {
                if let Some(offset) = offsets.get(clock) {
                    namespaces.time_offsets += &time_offset(clock, offset);
                }
            }
        }
        Ok(namespaces)
    }

    /// Those of a container whose init is behind the pidfd, but for the cgroup namespace: from inside that, the kernel
    /// finds no cgroup outside to clone from, so the child joins it itself.
    #[must_use]
    pub fn of_container(init: OwnedFd, flags: c_int, root: Option<OwnedFd>) -> Self {
        Self {
            container: Some(OfContainer { init, flags, root }),
            ..Self::default()
        }
    }

    /// Checks that what is set in a namespace by its name is not set in the runtime's own, which a path may lead to.
    ///
    /// # Errors
    ///
    /// `hostname`, `domainname` or a sysctl would change the host.
    pub fn check_names(&self, spec: &Spec) -> Result<()> {
        const SYSCTLS: [(c_int, &str, &[&str]); 3] = [
            (CLONE_NEWNET, "/proc/self/ns/net", &["net."]),
            (
                CLONE_NEWIPC,
                "/proc/self/ns/ipc",
                &["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."],
            ),
            (
                CLONE_NEWUTS,
                "/proc/self/ns/uts",
                &["kernel.domainname", "kernel.hostname"],
            ),
        ];
        for (flag, own, prefixes) in SYSCTLS {
            let Some(joined) = self.joined(flag) else { continue };
            let joined = nix::sys::stat::fstat(joined).context("fstat a namespace")?;
            let own = nix::sys::stat::stat(own).with_context(|| format!("stat {own}"))?;
            if (joined.st_dev, joined.st_ino) != (own.st_dev, own.st_ino) {
                continue;
            }
            let sysctls = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
            for key in sysctls.into_iter().flatten().map(|(key, _)| key) {
                let dotted = key.replace('/', ".");
                if prefixes.iter().any(|prefix| dotted.starts_with(prefix)) {
                    bail!(
                        "linux.sysctl: sysctl {key:?} not allowed in host {} namespace",
                        name(flag)
                    );
                }
            }
            if flag == CLONE_NEWUTS && (spec.hostname().is_some() || spec.domainname().is_some()) {
                bail!("hostname, domainname: not allowed in host uts namespace: the host would be renamed");
            }
        }
        Ok(())
    }

    /// Checks that the caller can have them: an ordinary user only with a user namespace, in which it has the power to.
    ///
    /// # Errors
    ///
    /// In runc's words.
    pub fn check_caller(&self) -> Result<()> {
        if !self.user_first || self.has(CLONE_NEWUSER) {
            return Ok(());
        }
        bail!(
            "linux.namespaces: rootless container requires user namespaces: add one of type \"user\", with \
             linux.uidMappings and linux.gidMappings (see rtc spec --rootless), or run rtc as root"
        )
    }

    /// What must stay open until [`Namespaces::enter`].
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let joined = self.joined.iter().map(|joined| joined.namespace.as_fd());
        let container = self.container.iter();
        joined.chain(container.flat_map(|container| {
            [
                Some(container.init.as_fd()),
                container.root.as_ref().map(AsFd::as_fd),
            ]
            .into_iter()
            .flatten()
        }))
    }

    /// Whether the container gets its own, new, namespace of this kind.
    #[must_use]
    pub fn makes(&self, flag: c_int) -> bool {
        self.made & flag != 0
    }

    /// Whether it joins an existing one of this kind.
    #[must_use]
    pub fn joins(&self, flag: c_int) -> bool {
        self.joined.iter().any(|joined| joined.flag == flag)
    }

    /// Whether it has one that is not the runtime's.
    #[must_use]
    pub fn has(&self, flag: c_int) -> bool {
        let of_container = self.container.as_ref().map_or(0, |container| container.flags);
        self.makes(flag) || self.joins(flag) || of_container & flag != 0
    }

    /// The namespace of this kind that is joined.
    #[must_use]
    pub fn joined(&self, flag: c_int) -> Option<BorrowedFd<'_>> {
        self.joined
            .iter()
            .find(|joined| joined.flag == flag)
            .map(|joined| joined.namespace.as_fd())
    }

    /// Whether the process that clones must enter namespaces itself first, and so can't be the runtime: it could not
    /// come back from a user namespace.
    #[must_use]
    pub fn need_helper(&self) -> bool {
        self.container.is_some()
            || self.joins(CLONE_NEWUSER)
            || (self.makes(CLONE_NEWUSER) && !self.joined.is_empty())
    }

    /// Flags of the clone: all that are made but the cgroup namespace.
    #[must_use]
    pub fn clone_flags(&self) -> c_int {
        // A time namespace is made before the clone, where its offsets can still be set.
        self.made & !CLONE_NEWCGROUP & !CLONE_NEWTIME
    }

    /// What only the children of the caller enter: a joined PID namespace, a new time namespace with its offsets.
    ///
    /// # Errors
    ///
    /// As setns(2), unshare(2); a clock offset the kernel refuses.
    pub fn enter_for_children(&self) -> Result<()> {
        if let Some(namespace) = self.joined(CLONE_NEWUSER).filter(|_| self.user_first) {
            process::setns(namespace, CLONE_NEWUSER).context("join the user namespace")?;
        }
        if let Some(namespace) = self.joined(CLONE_NEWPID) {
            process::setns(namespace, CLONE_NEWPID).context("join the PID namespace")?;
        }
        if self.makes(CLONE_NEWTIME) && !self.makes_time_inside() {
            self.make_time_namespace()?;
        }
        Ok(())
    }

    fn make_time_namespace(&self) -> Result<()> {
        process::unshare(CLONE_NEWTIME).context("make a time namespace (Linux 5.6)")?;
        if !self.time_offsets.is_empty() {
            fs::write("/proc/self/timens_offsets", &self.time_offsets)
                .with_context(|| format!("linux.timeOffsets: set {:?}", self.time_offsets))?;
        }
        Ok(())
    }

    /// Whether the time namespace is made by the child, since only in its user namespace that is permitted.
    fn makes_time_inside(&self) -> bool {
        self.user_first && self.makes(CLONE_NEWTIME) && self.makes(CLONE_NEWUSER)
    }

    /// In the child, once it is root of its user namespace: makes the time namespace where its parent could not.
    ///
    /// # Errors
    ///
    /// As unshare(2), setns(2); a clock offset the kernel refuses.
    pub fn make_time_namespace_inside(&self) -> Result<()> {
        if !self.makes_time_inside() {
            return Ok(());
        }
        // The offsets' file is root's where a change of the user has made this process undumpable.
        process::set_dumpable(true)?;
        self.make_time_namespace()?;
        let path = Path::new("/proc/self/ns/time_for_children");
        let own = open(path, CLONE_NEWTIME).with_context(|| format!("open {}", path.display()))?;
        process::setns(own, CLONE_NEWTIME).context("enter the time namespace")
    }

    /// The caller's way back from [`Namespaces::enter_for_children`]: what must be opened before it.
    pub fn way_back(&self) -> Result<Vec<(OwnedFd, c_int)>> {
        let mut way = Vec::new();
        let makes_time = self.makes(CLONE_NEWTIME) && !self.makes_time_inside();
        for (needed, path, flag) in [
            (self.joins(CLONE_NEWPID), "/proc/self/ns/pid", CLONE_NEWPID),
            (makes_time, "/proc/self/ns/time", CLONE_NEWTIME),
        ] {
            if needed {
                way.push((
                    open(Path::new(path), flag).with_context(|| format!("open {path}"))?,
                    flag,
                ));
            }
        }
        Ok(way)
    }

    /// Enters all joined namespaces but the PID namespace, the user namespace last (an ordinary user's is entered
    /// already).
    ///
    /// # Errors
    ///
    /// As setns(2).
    pub fn enter(&self) -> Result<()> {
        if let Some(OfContainer { init, flags, root }) = &self.container {
            let flags = flags & !CLONE_NEWCGROUP;
            if flags != 0 {
                // The kernel finds the order (Linux 5.8); the PID namespace is for our children.
                process::setns(init, flags).context("join the container's namespaces")?;
            }
            if let Some(root) = root {
                nix::unistd::fchdir(root)
                    .and_then(|()| nix::unistd::chroot("."))
                    .context("enter the container's root")?;
            }
        }
        let entered = |flag| flag == CLONE_NEWPID || (flag == CLONE_NEWUSER && self.user_first);
        for Joined { flag, namespace } in self.joined.iter().filter(|joined| !entered(joined.flag)) {
            process::setns(namespace, *flag)
                .with_context(|| format!("join the {} namespace", name(*flag)))?;
        }
        Ok(())
    }
}

impl Namespaces {
    /// In the child of `exec`: enters the container's cgroup namespace, where it has one.
    ///
    /// # Errors
    ///
    /// As setns(2).
    pub fn enter_cgroup_namespace(&self) -> Result<()> {
        match &self.container {
            Some(OfContainer { init, flags, .. }) if flags & CLONE_NEWCGROUP != 0 => {
                process::setns(init, CLONE_NEWCGROUP).context("join the container's cgroup namespace")
            }
            _ => Ok(()),
        }
    }
}

/// Opens a namespace and checks its kind.
fn open(path: &Path, flag: c_int) -> Result<OwnedFd> {
    let file = File::open(path).context("open")?;
    let kind = process::namespace_kind(&file).context("not a namespace")?;
    if kind != flag {
        bail!("it is a {} namespace", name(kind));
    }
    Ok(file.into())
}

/// The `CLONE_NEW*` flag of a namespace type.
#[must_use]
pub fn flag(kind: Type) -> c_int {
    match kind {
        Type::Mount => CLONE_NEWNS,
        Type::Cgroup => CLONE_NEWCGROUP,
        Type::Uts => CLONE_NEWUTS,
        Type::Ipc => CLONE_NEWIPC,
        Type::User => CLONE_NEWUSER,
        Type::Pid => CLONE_NEWPID,
        Type::Network => CLONE_NEWNET,
        Type::Time => CLONE_NEWTIME,
    }
}

/// The runtime-spec's name of a namespace flag.
fn name(flag: c_int) -> &'static str {
    match flag {
        CLONE_NEWNS => "mount",
        CLONE_NEWCGROUP => "cgroup",
        CLONE_NEWUTS => "uts",
        CLONE_NEWIPC => "ipc",
        CLONE_NEWUSER => "user",
        CLONE_NEWPID => "pid",
        CLONE_NEWNET => "network",
        CLONE_NEWTIME => "time",
        _ => "unknown",
    }
}

fn time_offset(clock: &str, offset: &LinuxTimeOffset) -> String {
    format!(
        "{clock} {} {}\n",
        offset.secs().unwrap_or(0),
        offset.nanosecs().unwrap_or(0)
    )
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder};

    use super::*;

    fn linux(kind: Type, path: Option<&str>) -> Linux {
        let mut namespace = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            namespace = namespace.path(path);
        }
        LinuxBuilder::default()
            .namespaces(vec![namespace.build().unwrap()])
            .build()
            .unwrap()
    }

    #[test]
    fn a_namespace_without_a_path_is_made_and_one_with_a_path_is_joined() {
        let made = Namespaces::open(&linux(Type::Network, None)).unwrap();
        assert!(made.makes(CLONE_NEWNET) && !made.joins(CLONE_NEWNET));
        let joined = Namespaces::open(&linux(Type::Network, Some("/proc/self/ns/net"))).unwrap();
        assert!(joined.joins(CLONE_NEWNET) && !joined.makes(CLONE_NEWNET));
    }

    #[test]
    fn a_path_to_another_kind_of_namespace_is_refused_with_what_it_is() {
        let error = Namespaces::open(&linux(Type::Network, Some("/proc/self/ns/uts"))).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("linux.namespaces[0].path") && text.contains("it is a uts namespace"),
            "{text}"
        );
    }

    #[test]
    fn a_path_that_is_no_namespace_is_refused() {
        let error = Namespaces::open(&linux(Type::Pid, Some("/etc/passwd"))).unwrap_err();
        assert!(format!("{error:#}").contains("not a namespace"), "{error:#}");
    }

    #[test]
    fn the_cgroup_namespace_is_not_made_by_the_clone() {
        assert_eq!(
            Namespaces::open(&linux(Type::Cgroup, None))
                .unwrap()
                .clone_flags(),
            0
        );
    }
}
