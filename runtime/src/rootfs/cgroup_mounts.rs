//! Mounts of type `cgroup`: what a container sees of its control groups, by the host's version.
//!
//! - v2: one mount of cgroup2. Where a user namespace may not have it, a bind of the container's own cgroup (or, without
//!   a cgroup namespace, of the host's tree).
//! - v1 and hybrid: a tmpfs with a directory for each hierarchy, named as on the host, and a link for each controller
//!   that shares one (`cpu -> cpu,cpuacct`). With a cgroup namespace each is a mount of its hierarchy, which shows the
//!   container's cgroup as its root; without, a bind of the container's cgroup.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{fchdir, symlinkat};
use oci_spec::runtime::Mount;

use super::mounts::{Destination, NewFilesystem, Step};
use super::options::{self, Change, Options};
use super::path::{InsidePath, Links, Make, Root, c_string};
use super::tree::{self, Attributes, Filesystem, Source};
use crate::sys::Named;
use crate::sys::mount::{self as sys, attr};

/// The host's control groups as far as mounts of type `cgroup` need them, with the container's own.
#[derive(Debug, Clone, Default)]
pub enum Cgroups {
    /// None that are known: such a mount is left out, as on a host without them.
    #[default]
    Absent,
    /// cgroup v2 alone.
    Unified {
        /// The container's cgroup, e.g. `/sys/fs/cgroup/system.slice/web`.
        own: PathBuf,
        /// It is not the container's alone, which has none: shown, but not to be changed.
        foreign: bool,
    },
    /// cgroup v1, with or without v2 beside it.
    Legacy {
        /// Every v1 hierarchy that is mounted.
        hierarchies: Vec<Hierarchy>,
        /// Symbolic links beside them: name and target, e.g. `cpu` and `cpu,cpuacct`.
        links: Vec<(String, String)>,
    },
}

/// A v1 hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// Its directory below /sys/fs/cgroup, e.g. `cpu,cpuacct` or `systemd`.
    pub name: String,
    /// What a mount of it is asked for: `cpu,cpuacct`, or `none,name=systemd` where it has a name.
    pub options: String,
    /// The container's cgroup in it, as a path on the host.
    pub own: PathBuf,
}

/// A v1 tree to be made.
#[derive(Debug)]
pub(crate) struct Legacy {
    destination: Destination,
    hierarchies: Vec<PlannedHierarchy>,
    links: Vec<(CString, CString)>,
    tmpfs: Filesystem,
    attributes: Attributes,
    /// Of each hierarchy.
    change: Change,
    read_only: bool,
}

#[derive(Debug)]
struct PlannedHierarchy {
    name: CString,
    /// A mount of the hierarchy, or a bind.
    options: Option<CString>,
    source: Source,
}

/// The plan for a mount of type `cgroup` on a v2 host.
pub(crate) fn plan_unified(
    mount: &Mount,
    mut options: Options,
    own: &std::path::Path,
    foreign: bool,
    namespace: bool,
) -> Result<Step> {
    if foreign {
        options.change.set |= attr::RDONLY;
    }
    let host = if namespace {
        own
    } else {
        std::path::Path::new("/sys/fs/cgroup")
    };
    let mut parameters = Vec::new();
    for word in &options.data {
        parameters.push(tree::parameter(word)?);
    }
    let source = mount.source().as_ref().map(c_string).transpose()?;
    Ok(Step::Filesystem(NewFilesystem {
        filesystem: Filesystem::new(c"cgroup2", source, parameters, options.change.set)
            .or(Some(c_string(host)?)),
        attributes: Attributes::after(options.recursive_change, options.propagation),
        inherit_mode: false,
        copy_up: false,
        root_label: None,
        read_only_later: false,
    }))
}

/// The plan for a mount of type `cgroup` on a v1 or hybrid host.
pub(crate) fn plan_legacy(
    path: InsidePath,
    options: Options,
    hierarchies: &[Hierarchy],
    links: &[(String, String)],
    namespace: bool,
) -> Result<Legacy> {
    let hierarchies = hierarchies
        .iter()
        .map(|hierarchy| {
            Ok(PlannedHierarchy {
                name: c_string(&hierarchy.name)?,
                options: namespace.then(|| c_string(&hierarchy.options)).transpose()?,
                source: Source::host(c_string(&hierarchy.own)?),
            })
        })
        .collect::<Result<_>>()?;
    let links = links
        .iter()
        .map(|(name, target)| Ok((c_string(name)?, c_string(target)?)))
        .collect::<Result<_>>()?;
    Ok(Legacy {
        destination: Destination {
            path,
            links: Links::Follow,
        },
        hierarchies,
        links,
        tmpfs: Filesystem::new(
            c"tmpfs",
            Some(c"tmpfs".into()),
            vec![(c"mode".into(), Some(c"755".into()))],
            attr::NOSUID | attr::NODEV | attr::NOEXEC,
        ),
        attributes: Attributes::after(options.recursive_change, options.propagation),
        change: options.change,
        read_only: options.change.set & attr::RDONLY != 0,
    })
}

impl Legacy {
    /// Makes the tmpfs and all in it.
    pub(crate) fn execute(&mut self, root: &Root) -> Result<()> {
        let (covered, _) = self.destination.open(root, Make::Directory)?;
        self.destination.check_proc(&covered)?;
        let tmpfs = self.tmpfs.create(None)?;
        sys::move_mount(&tmpfs, &covered)
            .call(|| format!("move_mount(tmpfs, \"{}\")", self.destination.path))?;
        // Nobody else can change what is in our new tmpfs, so names in it are safe.
        fchdir(&tmpfs).call(|| "fchdir".into())?;
        for hierarchy in &mut self.hierarchies {
            let name = hierarchy.name.clone();
            hierarchy
                .execute(&tmpfs, self.change)
                .with_context(|| format!("hierarchy {name:?}"))?;
        }
        for (name, target) in &self.links {
            symlinkat(target.as_c_str(), &tmpfs, name.as_c_str())
                .call(|| format!("symlinkat({target:?}, {name:?})"))?;
        }
        if self.read_only {
            let change = Change {
                set: attr::RDONLY,
                clear: 0,
            };
            tree::change_attached(&tmpfs, change)?;
        }
        if self.attributes.apply(&tmpfs)? {
            self.attributes.apply_classic(&tmpfs)?;
        }
        Ok(())
    }
}

impl PlannedHierarchy {
    fn execute(&mut self, tmpfs: &OwnedFd, change: Change) -> Result<()> {
        let name = &self.name;
        mkdirat(tmpfs, name.as_c_str(), Mode::from_bits_truncate(0o755))
            .call(|| format!("mkdirat({name:?})"))?;
        if let Some(options) = &self.options {
            let flags = options::mount_flags(change.set);
            sys::mount(Some(c"cgroup"), name, Some(c"cgroup"), flags, Some(options))
                .call(|| format!("mount(\"cgroup\", {name:?}, \"cgroup\", {flags:#x}, {options:?})"))?;
            return Ok(());
        }
        let tree = self.source.take()?;
        let attributes = Attributes::now(change);
        let pending = attributes.apply(&tree)?;
        sys::move_mount_at(&tree, tmpfs, name).call(|| format!("move_mount({name:?})"))?;
        if pending {
            attributes.apply_classic(&tree)?;
        }
        Ok(())
    }
}
