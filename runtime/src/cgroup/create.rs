//! Making a container's cgroup, in every tree it needs to be in.
//!
//! Where it goes is runc's rule, which engines rely on:
//!
//! | `linux.cgroupsPath` | v2 | v1, in each tree |
//! |---|---|---|
//! | absolute | below the root | below the root |
//! | relative, or empty (then the id) | beside the runtime's own cgroup | in the runtime's own cgroup |
//!
//! (On v2 a cgroup with processes can't pass controllers on, so nothing useful can be made *in* our own.)

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::dir::Dir;
use super::layout::{self, Layout, ROOT, UNIFIED, relative};
use super::{Cgroup, Driver, Tree};
use crate::sys::Errno;

/// What this process made of a container's cgroup, so that a failure takes it back.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Directories, innermost last.
    dirs: Vec<PathBuf>,
    /// The systemd unit.
    unit: Cell<UnitState>,
}

/// Where the making of a systemd unit is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum UnitState {
    /// It was made before, by another process; or there is none.
    #[default]
    Old,
    /// It is to be made around the container's first process.
    Awaited,
    /// It is made by us, with all limits.
    New,
}

impl Made {
    pub(super) fn awaited() -> Self {
        Self {
            dirs: Vec::new(),
            unit: Cell::new(UnitState::Awaited),
        }
    }

    pub(super) fn started(&self) {
        self.unit.set(UnitState::New);
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.unit.get() == UnitState::Awaited
    }

    pub(super) fn is_new_unit(&self) -> bool {
        self.unit.get() == UnitState::New
    }

    /// Removes them again, innermost first. One that is in use meanwhile stays.
    pub(super) fn undo(&mut self) {
        for path in self.dirs.drain(..).rev() {
            // The first error is what the user needs; what can't be removed is no longer ours alone.
            let _ = std::fs::remove_dir(path);
        }
    }

    /// Whether the last component of a cgroup's path was made by us, so that nothing can be set in it yet.
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.is_new_unit() || self.dirs.iter().any(|made| made == path)
    }
}

impl Cgroup {
    /// Makes the cgroup of a container: a directory in each tree of the machine.
    ///
    /// `path` is `linux.cgroupsPath`; where it is empty, the id is the name. With [`Driver::Systemd`] nothing is made
    /// yet: the path is only decided, and [`Cgroup::attach`] has systemd make it around the waiting process.
    ///
    /// # Errors
    ///
    /// Where it can't be made, where a process is in it already, or where it is frozen. What was made is removed.
    pub fn create(path: Option<&Path>, id: &str, layout: &Layout, driver: Driver) -> Result<Self> {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        if driver == Driver::Systemd {
            return super::systemd::place(path, id, layout);
        }
        let mut cgroup = Self {
            driver,
            unit: None,
            slice: None,
            trees: place(path, id, layout)?,
            made: Made::default(),
        };
        if let Err(error) = cgroup.make() {
            cgroup.made.undo();
            return Err(error);
        }
        Ok(cgroup)
    }

    fn make(&mut self) -> Result<()> {
        let v2 = self.is_v2();
        for tree in &self.trees {
            let made = &mut self.made;
            let dir = if v2 {
                make_v2(&tree.path, made)
            } else {
                make_v1(tree, made)
            };
            match dir.with_context(|| format!("cgroup {:?}", tree.path)) {
                Ok(dir) => drop(tree.dir.set(dir)),
                // runc: a tree without controllers (`name=systemd`, the unified one) limits nothing; go on without.
                Err(_) if !v2 && tree.is_named() => {}
                Err(error) => return Err(error),
            }
        }
        if !v2 {
            self.trees.retain(|tree| tree.dir.get().is_some());
        }
        self.refuse_in_use()
    }

    /// A cgroup that was there before may be another container's.
    fn refuse_in_use(&self) -> Result<()> {
        let tree = self.main()?;
        if !self.made.contains(&tree.path) {
            let found = self.processes()?.len();
            if found > 0 {
                bail!(
                    "container's cgroup is not empty: {found} process(es) found in {:?}",
                    tree.path
                );
            }
        }
        // Also in a new one: a frozen parent freezes what is born in it, and we would wait for it for ever.
        if self.is_frozen()? {
            bail!(
                "container's cgroup unexpectedly frozen: {:?} or a parent of it: thaw it first",
                tree.path
            );
        }
        Ok(())
    }
}

/// The path in each tree.
fn place(path: Option<&Path>, id: &str, layout: &Layout) -> Result<Vec<Tree>> {
    let absolute = path.filter(|path| path.is_absolute()).map(relative);
    let name = relative(path.unwrap_or(Path::new(id)));
    if name.as_os_str().is_empty() {
        bail!(
            "linux.cgroupsPath: {:?}: names the root cgroup: must name one below it",
            path.unwrap_or(Path::new(""))
        );
    }
    Ok(match layout {
        Layout::V2 => {
            let inner = match absolute {
                Some(path) => path,
                None => {
                    let own = relative(&layout::unified_cgroup_of("self")?);
                    own.parent().unwrap_or(Path::new("")).join(&name)
                }
            };
            vec![Tree::new(UNIFIED, Path::new(ROOT).join(inner))]
        }
        Layout::V1(hierarchies) => hierarchies
            .iter()
            .map(|hierarchy| {
                let inner = absolute
                    .clone()
                    .unwrap_or_else(|| relative(&hierarchy.own).join(&name));
                Tree::new(&hierarchy.controllers, hierarchy.mount.join(inner))
            })
            .collect(),
    })
}

/// Opens a cgroup, making what is missing of its path; `each` sees every component, and whether it is the last.
fn walk(path: &Path, made: &mut Made, mut each: impl FnMut(&Dir, bool) -> Result<()>) -> Result<Dir> {
    let inner = path.strip_prefix(ROOT).context("no cgroup path")?;
    let mut dir = Dir::open(Path::new(ROOT))?;
    let mut names = inner.iter().peekable();
    while let Some(name) = names.next() {
        let name = name.to_str().context("linux.cgroupsPath: must be UTF-8")?;
        if dir.make(name)? {
            made.dirs.push(dir.path().join(name));
        }
        dir = dir.child(name)?;
        each(&dir, names.peek().is_none())?;
    }
    Ok(dir)
}

/// Makes a cgroup on v2 and passes the controllers on to it, through each parent.
///
/// A parent that has processes of its own can't pass memory or io on: that is told by the first limit that needs
/// them, as not everyone sets limits.
fn make_v2(path: &Path, made: &mut Made) -> Result<Dir> {
    let root = Dir::open(Path::new(ROOT))?;
    let available = root.read("cgroup.controllers")?;
    if let Some(dir) = make_last(path, made)? {
        // The usual case, a new cgroup beside others: its parents have passed everything on long ago.
        if !available.trim().is_empty() && dir.read("cgroup.controllers")? == available {
            return Ok(dir);
        }
    }
    let enable: String = available
        .split_ascii_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    pass_on(&root, &available, enable.trim_end());
    walk(path, made, |dir, last| {
        if !last {
            pass_on(dir, &available, enable.trim_end());
        }
        if dir
            .read("cgroup.type")
            .is_ok_and(|kind| kind.trim() == "domain invalid")
        {
            // Below a threaded cgroup: it can hold threads, with the controllers that know threads.
            let _ = dir.write("cgroup.type", "threaded");
        }
        Ok(())
    })
}

/// Makes the last component of a path, where its parent is there: `None` where it is not.
fn make_last(path: &Path, made: &mut Made) -> Result<Option<Dir>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Ok(None);
    };
    let parent = match Dir::open(parent) {
        Ok(parent) => parent,
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if parent.make(name)? {
        made.dirs.push(path.to_owned());
    }
    Ok(Some(parent.child(name)?))
}

fn pass_on(dir: &Dir, available: &str, enable: &str) {
    if enable.is_empty()
        || dir
            .read("cgroup.subtree_control")
            .is_ok_and(|passed| passed == available)
    {
        return;
    }
    if dir.write("cgroup.subtree_control", enable).is_err() {
        for controller in enable.split(' ') {
            // What can't be passed on is missed, and told, by the limit that needs it.
            let _ = dir.write("cgroup.subtree_control", controller);
        }
    }
}

/// Makes a cgroup in one v1 tree. A new cpuset has no cpus and takes no process: it gets its parent's.
fn make_v1(tree: &Tree, made: &mut Made) -> Result<Dir> {
    if tree.controllers.split(',').any(|name| name == "cpuset") {
        let mut parent: Option<(String, String)> = None;
        return walk(&tree.path, made, |dir, _| {
            let (mut cpus, mut mems) = match (dir.read("cpuset.cpus"), dir.read("cpuset.mems")) {
                (Ok(cpus), Ok(mems)) => (cpus, mems),
                // Not in the tree yet: a mount point below /sys/fs/cgroup.
                (Err(error), _) | (_, Err(error)) if error.errno == Errno::ENOENT => return Ok(()),
                (Err(error), _) | (_, Err(error)) => return Err(error.into()),
            };
            if let Some((parent_cpus, parent_mems)) = &parent {
                inherit(dir, "cpuset.cpus", &mut cpus, parent_cpus)?;
                inherit(dir, "cpuset.mems", &mut mems, parent_mems)?;
            }
            parent = Some((cpus, mems));
            Ok(())
        });
    }
    match make_last(&tree.path, made)? {
        Some(dir) => Ok(dir),
        None => walk(&tree.path, made, |_, _| Ok(())),
    }
}

fn inherit(dir: &Dir, file: &str, value: &mut String, parent: &str) -> Result<()> {
    if value.trim().is_empty() {
        dir.write(file, parent.trim())?;
        parent.clone_into(value);
    }
    Ok(())
}
