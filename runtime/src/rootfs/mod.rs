//! The container's root filesystem: planned by the parent, made by the child.
//!
//! ```text
//! parent   Plan::new            everything that can be decided or opened before the clone
//!            | clone3(NEWNS, ...)
//! child    plan.prepare         propagation, the root itself, mounts, devices; the host's tree is still there
//!            | createContainer hooks
//!          plan.pivot           the host's tree is gone
//!          plan.console         the terminal on /dev/console (any time after prepare)
//!            | hostname, sysctls
//!          plan.seal            read-only root, readonlyPaths, maskedPaths
//! ```
//!
//! The child is uid 0 of its user namespace and has its mount namespace. After `prepare` its umask is 022 and its working
//! directory is anywhere; after `pivot` that is `/`. The parent drops its copy of the plan after the clone, the child
//! before the program starts (every descriptor is close-on-exec): both keep mounts in use.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod cgroup_mounts;
mod copy_up;
mod devices;
mod hot;
mod idmap;
mod mounts;
mod options;
mod outside;
pub(crate) mod path;
mod protect;
mod switch;
#[cfg(test)]
mod tests;
mod tree;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::annotations::Annotations;
use crate::sys::Named;
use crate::sys::mount::{self as sys, attr};
use cgroup_mounts::Legacy;
use devices::Devices;
use idmap::{Container, IdMapper};
use mounts::{Later, Planned, Planner, SharedNamespaces};
use options::{Change, Options};
use path::{Root, c_string};
use protect::Protection;
use tree::Source;

pub use cgroup_mounts::{Cgroups, Hierarchy};
pub use hot::{Descriptors, Hot, detach as detach_mounts};
pub use idmap::make_namespace as make_mapping_namespace;
pub use options::known as mount_options;
pub use outside::{Mounted, NULL, Outside, bind_root, outside};

/// What a plan depends on besides config.json.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The host's control groups and the container's.
    pub cgroups: Cgroups,
    /// `--no-pivot`: enter the root without pivot_root(2).
    pub no_pivot: bool,
}

/// How the new root is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Pivot,
    Move,
}

/// One entry of `mounts`.
#[derive(Debug)]
enum Action {
    Mount(Planned),
    Cgroups(Legacy),
}

/// All that turns a directory into a container's root filesystem.
#[derive(Debug)]
pub struct Plan {
    rootfs: PathBuf,
    source: Source,
    /// `linux.rootfsPropagation` as flags of mount(2).
    propagation: Option<libc::c_ulong>,
    entry: Entry,
    read_only: bool,
    actions: Vec<(String, Action)>,
    /// None where `/dev` is the host's, by a bind mount.
    devices: Option<Devices>,
    protection: Protection,
    /// Set by [`Plan::prepare`].
    root: Option<Root>,
    later: Vec<Later>,
}

impl Plan {
    /// Plans the root filesystem of a container with a mount namespace of its own. In the parent: opens sources that
    /// the child could be unable to reach, and makes user namespaces for ID-mapped mounts (with a child that has ended
    /// when this returns).
    ///
    /// `rootfs` is absolute. Relative sources of bind mounts are relative to `bundle`.
    ///
    /// # Errors
    ///
    /// What config.json asks for is refused by the name of the field; a source to be ID-mapped can't be.
    pub fn new(spec: &Spec, bundle: &Path, rootfs: &Path, context: &Context) -> Result<Plan> {
        let linux = spec.linux().as_ref();
        let cgroup_namespace = has_namespace(spec, LinuxNamespaceType::Cgroup);
        let mut planner = planner(spec, bundle)?;
        let user_namespace = planner.user_namespace;
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mut actions = Vec::with_capacity(mounts.len());
        for (index, mount) in mounts.iter().enumerate() {
            let action = plan_mount(&mut planner, mount, &context.cgroups, cgroup_namespace)
                .with_context(|| format!("mounts[{index}]"))?;
            actions.extend(action.map(|action| (mount.destination().display().to_string(), action)));
        }
        let devices = linux
            .and_then(|linux| linux.devices().as_deref())
            .unwrap_or_default();
        let devices = (!mounts.iter().any(binds_dev))
            .then(|| Devices::plan(devices, user_namespace))
            .transpose()?;
        let mut source = Source::host(c_string(rootfs)?);
        if user_namespace {
            source = source.opened();
        }
        Ok(Plan {
            rootfs: rootfs.to_owned(),
            source,
            propagation: linux
                .and_then(|linux| linux.rootfs_propagation().as_deref())
                .filter(|propagation| !propagation.is_empty())
                .map(parse_propagation)
                .transpose()?,
            entry: if context.no_pivot {
                Entry::Move
            } else {
                Entry::Pivot
            },
            read_only: spec
                .root()
                .as_ref()
                .and_then(oci_spec::runtime::Root::readonly)
                .unwrap_or(false),
            actions,
            devices,
            protection: Protection::plan(
                linux.and_then(|linux| linux.masked_paths().as_ref()),
                linux.and_then(|linux| linux.readonly_paths().as_ref()),
            )?,
            root: None,
            later: Vec::new(),
        })
    }

    /// In the child, first: makes the root a mount, and in it all mounts, devices and links.
    ///
    /// # Errors
    ///
    /// The step, its object and the system call that failed.
    pub fn prepare(&mut self) -> Result<()> {
        umask(Mode::empty());
        self.isolate()
            .context("set the propagation of the host's mounts")?;
        let root = self
            .mount_root()
            .with_context(|| format!("mount rootfs {}", self.rootfs.display()))?;
        for (destination, action) in &mut self.actions {
            let later = match action {
                Action::Mount(planned) => planned.execute(&root),
                Action::Cgroups(legacy) => legacy.execute(&root).map(|()| None),
            };
            self.later
                .extend(later.with_context(|| format!("mount {destination}"))?);
        }
        if let Some(devices) = &mut self.devices {
            devices.execute(&root).context("set up /dev")?;
        }
        self.root = Some(root);
        umask(Mode::from_bits_truncate(0o022));
        Ok(())
    }

    /// In the child, after [`Plan::prepare`]: enters the root. The working directory is then `/`.
    ///
    /// # Errors
    ///
    /// As pivot_root(2): `EINVAL` where the host's root is an initramfs, which needs `--no-pivot`.
    pub fn pivot(&mut self) -> Result<()> {
        let root = self.root()?;
        match self.entry {
            Entry::Pivot => switch::pivot(root, !self.detached_from_host()).context("pivot to the rootfs")?,
            Entry::Move => switch::move_root(root, &self.rootfs).context("move the rootfs to /")?,
        }
        Ok(())
    }

    /// In the child, any time after [`Plan::prepare`]: binds the terminal on /dev/console. The descriptor must come from
    /// the container's own devpts (`TIOCGPTPEER`), so that it is of this mount namespace.
    pub fn console(&self, terminal: BorrowedFd<'_>) -> Result<()> {
        devices::bind_console(self.root()?, terminal)
    }

    /// In the child, last: nothing can be changed any more that the container may not change, nor seen that it may not
    /// see.
    pub fn seal(&mut self) -> Result<()> {
        let root = self.root()?;
        const READ_ONLY: Change = Change {
            set: attr::RDONLY,
            clear: 0,
        };
        for Later { path, mount } in &self.later {
            tree::change_attached(mount, READ_ONLY).with_context(|| format!("make {path} read-only"))?;
        }
        if self.read_only {
            tree::change_attached(root, READ_ONLY).context("make the rootfs read-only")?;
        }
        self.protection.execute(root)?;
        // Last: what is unbindable could not be made read-only or be masked any more.
        if let Some(flags) = self.propagation
            && flags & sys::MS_PRIVATE == 0
        {
            sys::mount(None, c"/", None, flags, None).call(|| format!("mount(\"/\", {flags:#x})"))?;
        }
        self.later.clear();
        Ok(())
    }

    fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("the rootfs is not prepared")
    }

    /// What is mounted here must not show on the host; what is mounted there may show here, unless config.json says
    /// otherwise.
    fn isolate(&self) -> Result<()> {
        let mut flags = self.propagation.unwrap_or(sys::MS_SLAVE | sys::MS_REC);
        if flags & sys::MS_UNBINDABLE != 0 {
            // Only when all is bound.
            flags = flags & !sys::MS_UNBINDABLE | sys::MS_PRIVATE;
        }
        sys::mount(None, c"/", None, flags, None).call(|| format!("mount(\"/\", {flags:#x})"))?;
        if !self.detached_from_host() {
            switch::make_parent_private(&self.rootfs)?;
        }
        Ok(())
    }

    /// Whether no mount of the namespace is shared with the host.
    fn detached_from_host(&self) -> bool {
        let flags = self.propagation.unwrap_or(sys::MS_SLAVE | sys::MS_REC);
        flags & sys::MS_REC != 0 && flags & sys::MS_SHARED == 0
    }

    fn mount_root(&mut self) -> Result<Root> {
        let tree = self.source.take()?;
        let path = c_string(&self.rootfs)?;
        match sys::move_mount_to(&tree, &path) {
            Ok(()) => {}
            // A user namespace that can't reach the path: anywhere does, since the root is entered by descriptor.
            Err(nix::errno::Errno::EACCES) => {
                sys::move_mount_to(&tree, c"/").call(|| "move_mount(rootfs, \"/\")".into())?;
            }
            Err(errno) => return Err(errno).call(|| format!("move_mount(rootfs, {path:?})"))?,
        }
        Ok(Root::new(tree))
    }
}

/// What planning the mounts of this container depends on.
fn planner<'a>(spec: &'a Spec, bundle: &'a Path) -> Result<Planner<'a>> {
    let container = user_namespace(spec);
    Ok(Planner {
        bundle,
        label: mount_label(spec)?,
        user_namespace: !matches!(container, Container::Host),
        shared: SharedNamespaces {
            pid: !has_new_namespace(spec, LinuxNamespaceType::Pid),
            network: !has_new_namespace(spec, LinuxNamespaceType::Network),
            ipc: !has_new_namespace(spec, LinuxNamespaceType::Ipc),
        },
        mapper: IdMapper::new(container),
    })
}

/// `linux.mountLabel`, and the mount option that takes it.
fn mount_label(spec: &Spec) -> Result<Option<(&'static str, &str)>> {
    let label = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.mount_label().as_deref());
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    let option = match spec.annotations() {
        Some(all) => Annotations::read(all.iter())?.0.mount_context_type,
        None => None,
    };
    Ok(Some((option.unwrap_or("context"), label)))
}

fn plan_mount(
    planner: &mut Planner<'_>,
    mount: &Mount,
    cgroups: &Cgroups,
    cgroup_namespace: bool,
) -> Result<Option<Action>> {
    let fs_type = mount.typ().as_deref().unwrap_or("none");
    let options = Options::parse(fs_type, mount.options().as_deref().unwrap_or_default())?;
    if fs_type != "cgroup" || options.bind || options.remount {
        return Ok(Some(Action::Mount(planner.plan(mount, options)?)));
    }
    let path = path::InsidePath::new(mount.destination())?;
    if path.is_root() {
        bail!("destination: /: can't be a mount of cgroups");
    }
    Ok(match cgroups {
        Cgroups::Absent => None,
        Cgroups::Unified { own, foreign } => Some(Action::Mount(Planned {
            destination: mounts::Destination {
                path,
                links: path::Links::Follow,
            },
            step: cgroup_mounts::plan_unified(mount, options, own, *foreign, cgroup_namespace)?,
        })),
        Cgroups::Legacy { hierarchies, links } => Some(Action::Cgroups(cgroup_mounts::plan_legacy(
            path,
            options,
            hierarchies,
            links,
            cgroup_namespace,
        )?)),
    })
}

/// Whether a mount makes /dev the host's, so that nothing may be made in it.
fn binds_dev(mount: &Mount) -> bool {
    let bind = mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind");
    bind && path::InsidePath::new(mount.destination()).is_ok_and(|path| path.is("/dev"))
}

fn parse_propagation(text: &str) -> Result<libc::c_ulong> {
    Ok(match text {
        "shared" => sys::MS_SHARED,
        "slave" => sys::MS_SLAVE,
        "private" => sys::MS_PRIVATE,
        "unbindable" => sys::MS_UNBINDABLE,
        "rshared" => sys::MS_SHARED | sys::MS_REC,
        "rslave" => sys::MS_SLAVE | sys::MS_REC,
        "rprivate" => sys::MS_PRIVATE | sys::MS_REC,
        "runbindable" => sys::MS_UNBINDABLE | sys::MS_REC,
        _ => bail!(
            "linux.rootfsPropagation: {text:?}: must be one of shared, slave, private, unbindable, rshared, rslave, \
             rprivate, runbindable"
        ),
    })
}

fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    namespaces(spec).any(|namespace| namespace.typ() == kind)
}

fn has_new_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    namespaces(spec).any(|namespace| namespace.typ() == kind && namespace.path().is_none())
}

fn namespaces(spec: &Spec) -> impl Iterator<Item = &oci_spec::runtime::LinuxNamespace> {
    spec.linux()
        .iter()
        .flat_map(|linux| linux.namespaces().iter().flatten())
}

fn user_namespace(spec: &Spec) -> Container<'_> {
    let Some(namespace) = namespaces(spec).find(|namespace| namespace.typ() == LinuxNamespaceType::User)
    else {
        return Container::Host;
    };
    let linux = spec.linux().as_ref();
    match namespace.path() {
        Some(path) => Container::Joined(path.clone()),
        None => Container::New {
            uids: linux
                .and_then(|linux| linux.uid_mappings().as_deref())
                .unwrap_or_default(),
            gids: linux
                .and_then(|linux| linux.gid_mappings().as_deref())
                .unwrap_or_default(),
        },
    }
}
