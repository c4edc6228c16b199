//! Namespaces of a container: which are made, which are joined, and the id maps of a user namespace.
//!
//! Made ones are flags of the one `clone3`. Joined ones are opened by the parent, so that the child never follows a
//! path: first all others, the user namespace last, because root outside has every capability over the namespaces of
//! its descendants but loses those over its own by entering one (user_namespaces(7)). A cgroup namespace is made by the
//! child after it is in its cgroup, which becomes the namespace's root (cgroup_namespaces(7)).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use libc::c_int;
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType as Type, LinuxTimeOffset, Spec};

use crate::sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER,
    CLONE_NEWUTS,
};
use crate::sys::process;

/// The namespaces of a new container.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW*` of those to make.
    made: c_int,
    /// Those to join, the user namespace last.
    joined: Vec<Joined>,
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
        namespaces
            .joined
            .sort_by_key(|joined| joined.flag == CLONE_NEWUSER);
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
        if let Some(namespace) = self.joined(CLONE_NEWPID) {
            process::setns(namespace, CLONE_NEWPID).context("join the PID namespace")?;
        }
        if self.makes(CLONE_NEWTIME) {
            process::unshare(CLONE_NEWTIME).context("make a time namespace (Linux 5.6)")?;
            if !self.time_offsets.is_empty() {
                fs::write("/proc/self/timens_offsets", &self.time_offsets)
                    .with_context(|| format!("linux.timeOffsets: set {:?}", self.time_offsets))?;
            }
        }
        Ok(())
    }

    /// The caller's way back from [`Namespaces::enter_for_children`]: what must be opened before it.
    pub fn way_back(&self) -> Result<Vec<(OwnedFd, c_int)>> {
        let mut way = Vec::new();
        for (needed, path, flag) in [
            (self.joins(CLONE_NEWPID), "/proc/self/ns/pid", CLONE_NEWPID),
            (self.makes(CLONE_NEWTIME), "/proc/self/ns/time", CLONE_NEWTIME),
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

    /// Enters all joined namespaces but the PID namespace, the user namespace last.
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
        for Joined { flag, namespace } in self.joined.iter().filter(|joined| joined.flag != CLONE_NEWPID) {
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

/// The id maps of a new user namespace, as the kernel reads them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    uid_map: String,
    gid_map: String,
}

impl IdMaps {
    /// From `linux.uidMappings` and `linux.gidMappings`.
    #[must_use]
    pub fn new(linux: &Linux) -> Self {
        Self {
            uid_map: lines(linux.uid_mappings().as_deref().unwrap_or_default()),
            gid_map: lines(linux.gid_mappings().as_deref().unwrap_or_default()),
        }
    }

    /// From mappings of users and of groups.
    #[must_use]
    pub fn of(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Self {
        Self {
            uid_map: lines(users),
            gid_map: lines(groups),
        }
    }

    /// The user and group of this number, or where it is not mapped, those of the greatest number that is.
    pub(crate) fn nearest(&self, id: u32) -> (u32, u32) {
        (nearest(&self.uid_map, id), nearest(&self.gid_map, id))
    }

    /// Checks that a process in a joined user namespace has these maps; where none are configured, any will do.
    ///
    /// # Errors
    ///
    /// It has others: files would be made for the wrong users.
    pub fn check(&self, pid: Pid) -> Result<()> {
        for (file, map, field) in [
            ("uid_map", &self.uid_map, "uidMappings"),
            ("gid_map", &self.gid_map, "gidMappings"),
        ] {
            let path = format!("/proc/{pid}/{file}");
            let found = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            // The kernel pads the numbers.
            if !map.is_empty() && !map.split_whitespace().eq(found.split_whitespace()) {
                bail!(
                    "linux.{field}: {:?}: the user namespace that is joined has {:?}; leave the mappings out, or give its own",
                    map.trim_end(),
                    found.split_whitespace().collect::<Vec<_>>().join(" ")
                );
            }
        }
        Ok(())
    }

    /// Maps the ids of a process that has just been cloned into its user namespace.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SETUID` or `CAP_SETGID` over the ids, `EINVAL` for overlapping ranges.
    pub fn write(&self, pid: Pid) -> Result<()> {
        for (file, map, field) in [
            ("uid_map", &self.uid_map, "uidMappings"),
            ("gid_map", &self.gid_map, "gidMappings"),
        ] {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, map)
                .with_context(|| format!("linux.{field}: write {:?} to {path}", map.trim_end()))?;
        }
        Ok(())
    }
}

/// In a map as the kernel reads it.
fn nearest(map: &str, id: u32) -> u32 {
    let mut last = 0;
    for line in map.lines() {
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap_or(0));
        let (first, size): (u32, u32) = (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0));
        let end = first.saturating_add(size);
        if (first..end).contains(&id) {
            return id;
        }
        last = last.max(end.saturating_sub(1));
    }
    last
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    let mut lines = String::new();
    for map in mappings {
        // Writing to a string can't fail.
        let _ = writeln!(lines, "{} {} {}", map.container_id(), map.host_id(), map.size());
    }
    lines
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxBuilder, LinuxIdMappingBuilder, LinuxNamespaceBuilder};

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
    fn the_nearest_id_is_the_id_itself_where_it_is_mapped() {
        assert_eq!(nearest("0 100000 65536\n", 65535), 65535);
        assert_eq!(nearest("0 100000 1000\n2000 300000 10\n", 65535), 2009);
        assert_eq!(nearest("0 1000 1\n", 65535), 0);
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

    #[test]
    fn id_maps_have_a_line_for_each_range() {
        let range = |container: u32, host: u32| {
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(10u32)
                .build()
                .unwrap()
        };
        assert_eq!(
            lines(&[range(0, 1000), range(10, 3000)]),
            "0 1000 10\n10 3000 10\n"
        );
    }
}
