//! Control groups: where a container's processes are kept together, limited, counted, frozen and killed.
//!
//! ```text
//! Layout::detect -> place, make    -> join_target  -> (clone) -> ...  cgroupfs: the child is born in it
//!                                  -> (clone, gate) -> attach -> ...  systemd: it makes a scope around the child
//!                   apply, apply_devices: limits (pure translation in limits, devices; the writing in apply)
//!                   make_exec_cgroup: one below it for a process of the shim's exec
//!                   processes, kill, freeze, thaw, stats, oom_watch    any time
//!                   remove
//! ```
//!
//! On v2 there is one tree, on v1 and hybrid one for each controller; a [`Cgroup`] is the container's directory in
//! each. It is stored with the container's state and needs no look at the machine when it is read back.
//!
//! What comes from `libcgroups`: the readers of flat, nested and single values that [`stats`] is made of. Its managers
//! find their paths by parsing `/proc/self/mountinfo` once for each controller, fail as a whole where one file is
//! missing, and create a cgroup only together with moving a process into it, so creation, joining, limits and
//! devices are ours.

mod apply;
mod create;
mod delegate;
mod devices;
mod dir;
mod exec;
mod existing;
mod freezer;
mod join;
mod layout;
mod limits;
mod members;
mod oom;
mod program;
mod stats;
mod systemd;
mod watch;

use std::cell::OnceCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use create::Made;
use dir::Dir;
pub use exec::ExecCgroup;
pub use join::JoinTarget;
pub use layout::{Hierarchy, Layout};
pub(crate) use members::kill_listed;
pub use oom::{OomEvent, OomWatch};
pub use stats::{
    Blkio, BlkioEntry, Cpu, CpuUsage, HugeTlb, Memory, MemoryEntry, Pids, Pressure, Psi, Stats, Throttling,
};
pub use systemd::Scope;

use crate::rootless::Rootless;
use crate::sys;

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The runtime, in the file system.
    Cgroupfs,
    /// systemd, as a transient scope (`--systemd-cgroup`).
    Systemd,
}

/// A container's cgroup.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cgroup {
    driver: Driver,
    /// The systemd unit, with that driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    /// Whether that is the user's systemd, not the machine's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    user: bool,
    /// The slice it is made in, until it is made.
    #[serde(skip)]
    slice: Option<String>,
    trees: Vec<Tree>,
    #[serde(skip)]
    made: Made,
}

/// The container's directory in one tree.
#[derive(Debug, Serialize, Deserialize)]
struct Tree {
    /// As in `/proc/<pid>/cgroup`; empty on v2 and for the unified tree of a hybrid machine.
    controllers: String,
    path: PathBuf,
    /// Where the tree is mounted; known at creation.
    #[serde(skip)]
    mount: PathBuf,
    #[serde(skip)]
    dir: OnceCell<Dir>,
}

impl Tree {
    fn new(controllers: &str, mount: &Path, inner: &Path) -> Self {
        Self {
            controllers: controllers.to_owned(),
            path: mount.join(inner),
            mount: mount.to_owned(),
            dir: OnceCell::new(),
        }
    }

    /// The directory, opened at its first use.
    fn dir(&self) -> sys::Result<&Dir> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        let dir = Dir::open(&self.path)?;
        Ok(self.dir.get_or_init(|| dir))
    }

    /// Opens one of its files: by the directory where it is open, else by the path.
    fn file(&self, name: &str, flags: OFlag) -> sys::Result<OwnedFd> {
        match self.dir.get() {
            Some(dir) => dir.file(name, flags),
            None => dir::open_file(&self.path.join(name), flags),
        }
    }

    /// The content of one of its files, read in one piece.
    fn read(&self, name: &str) -> sys::Result<String> {
        match self.dir.get() {
            Some(dir) => dir.read(name),
            None => dir::read(&self.path.join(name)),
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    /// A tree of v1 and hybrid machines that has no controller.
    fn is_named(&self) -> bool {
        self.controllers.is_empty() || self.controllers.starts_with("name=")
    }
}

impl Cgroup {
    /// Whether it is in the one tree of cgroup v2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        matches!(&self.trees[..], [tree] if tree.controllers.is_empty())
    }

    /// Who made it.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Whether the container has none: the caller may make none, and needed none ([`Cgroup::excuse`]).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.trees.is_empty()
    }

    /// Says whether its making may fail for want of a permission: where no path was asked for, and the mode excuses it.
    pub fn excuse(&mut self, rootless: Rootless, has_no_path: bool) {
        self.made.excuse(rootless, has_no_path);
    }

    /// Its path: on v1 that of the devices controller, which every container is in.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.main().ok().map(|tree| tree.path.as_path())
    }

    /// Its directory in each tree, with the tree's name as in `/proc/<pid>/cgroup` (for `cgroup` mounts in a container).
    pub fn paths(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.trees
            .iter()
            .map(|tree| (tree.controllers.as_str(), tree.path.as_path()))
    }

    /// Whether its directory is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().is_some_and(Path::exists)
    }

    /// The tree whose list of processes stands for all (runc: the devices controller's). A rootless container may be in
    /// another one only.
    fn main(&self) -> Result<&Tree> {
        self.tree("devices")
            .or_else(|error| self.trees.first().ok_or(error))
    }

    /// The tree that a controller is on.
    fn tree(&self, controller: &str) -> Result<&Tree> {
        let found = if self.is_v2() {
            self.trees.first()
        } else {
            self.trees.iter().find(|tree| tree.has(controller))
        };
        found.with_context(|| {
            if self.is_absent() {
                "the container has no cgroup, since its creator may make none: have one delegated (cgroup v2), and \
                 create the container again"
                    .to_owned()
            } else {
                format!("cgroup: the {controller} controller is not mounted on this machine")
            }
        })
    }
}
