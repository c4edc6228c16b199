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
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::unistd::AccessFlags;

use super::dir::{self, Dir};
use super::layout::{self, Layout, ROOT, UNIFIED, relative};
use super::{Cgroup, Driver, Tree};
use crate::log;
use crate::rootless::{self, Rootless};
use crate::sys::{Errno, Named as _};

/// What this process made of a container's cgroup, so that a failure takes it back.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Directories, innermost last.
    dirs: Vec<PathBuf>,
    /// The systemd unit.
    unit: Cell<UnitState>,
    /// Whether the caller may be one that may not make cgroups.
    rootless: Rootless,
    /// Whether it can then be done without: its place was not asked for.
    may_be_absent: bool,
    /// Why a tree is done without.
    refused: Option<String>,
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
            unit: Cell::new(UnitState::Awaited),
            ..Self::default()
        }
    }

    pub(super) fn excuse(&mut self, rootless: Rootless, may_be_absent: bool) {
        (self.rootless, self.may_be_absent) = (rootless, may_be_absent);
    }

    /// Whether a refused permission, other than that to be in the cgroup, is excused.
    pub(super) fn excuses(&self, error: &anyhow::Error) -> bool {
        rootless::was_refused(error) && self.rootless.excuses()
    }

    /// Why a tree is done without.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
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
    /// Decides where the cgroup of a container is to be, a directory in each tree of the machine; nothing is made yet, so
    /// that it can be recorded first: whoever is killed in the middle of the making leaves what can be found.
    ///
    /// `path` is `linux.cgroupsPath`; where it is empty, the id is the name.
    ///
    /// # Errors
    ///
    /// A path that names the root, or leads out of it.
    pub fn place(path: Option<&Path>, id: &str, layout: &Layout, driver: Driver) -> Result<Self> {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        if driver == Driver::Systemd {
            return super::systemd::place(path, id, layout);
        }
        Ok(Self {
            driver,
            unit: None,
            user: false,
            slice: None,
            trees: place(path, id, layout)?,
            made: Made::default(),
        })
    }

    /// Makes what [`Cgroup::place`] has decided. With [`Driver::Systemd`] nothing: [`Cgroup::attach`] has systemd make it
    /// around the waiting process.
    ///
    /// # Errors
    ///
    /// Where it can't be made, where a process is in it already, or where it is frozen. What was made is removed. What is
    /// only not permitted, and excused, leaves the container without ([`Cgroup::is_absent`]).
    pub fn make(&mut self) -> Result<()> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        let made = self.make_trees();
        if made.is_err() {
            self.made.undo();
        }
        made
    }

    fn make_trees(&mut self) -> Result<()> {
        let v2 = self.is_v2();
        let made = &mut self.made;
        let (mut failed, mut refused) = (None, None);
        self.trees.retain(|tree| {
            let done = if v2 {
                make_v2(tree, made).and_then(|mounted| check_joinable(tree).map(|()| mounted))
            } else {
                make_v1(tree, made)
            };
            match done.with_context(|| format!("cgroup {:?}", tree.path)) {
                Ok(mounted) => mounted,
                // runc: a tree without controllers (`name=systemd`, the unified one) limits nothing; go on without.
                Err(_) if !v2 && tree.is_named() => false,
                Err(error) => {
                    let first = if rootless::was_refused(&error) {
                        &mut refused
                    } else {
                        &mut failed
                    };
                    first.get_or_insert(error);
                    false
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(error) = refused {
            if !made.may_be_absent || !made.rootless.excuses() {
                return Err(error.context("unable to apply cgroup configuration"));
            }
            let why = format!("{error:#}");
            log::debug(|| format!("no cgroup: {why}"));
            made.refused = Some(why);
        }
        if self.trees.is_empty() {
            self.made.undo();
            return Ok(());
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
        if self.stops_processes()? {
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
            vec![Tree::new(UNIFIED, Path::new(ROOT), &inner)]
        }
        Layout::V1(hierarchies) => hierarchies
            .iter()
            .map(|hierarchy| {
                let inner = absolute
                    .clone()
                    .unwrap_or_else(|| relative(&hierarchy.own).join(&name));
                Tree::new(&hierarchy.controllers, &hierarchy.mount, &inner)
            })
            .collect(),
    })
}

/// Makes the last component of a tree's path. `None`: its parent is missing too.
fn make_last(tree: &Tree, made: &mut Made) -> Result<Option<bool>> {
    match dir::make(&tree.path) {
        Ok(new) => {
            if new {
                made.dirs.push(tree.path.clone());
            }
            Ok(Some(new))
        }
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an ordinary user may move from its own cgroup to this one: that is decided by their common parent.
fn check_joinable(tree: &Tree) -> Result<()> {
    let Some(user) = rootless::ordinary_user() else {
        return Ok(());
    };
    let own = tree.mount.join(relative(&layout::unified_cgroup_of("self")?));
    let common = own
        .ancestors()
        .find(|parent| tree.path.starts_with(parent))
        .unwrap_or(&tree.mount);
    let file = common.join("cgroup.procs");
    let allowed = nix::unistd::access(&file, AccessFlags::W_OK).call(|| format!("access({file:?}, W)"));
    allowed.with_context(|| format!("user {user} can't move a process from cgroup {own:?} to this one"))
}

/// Makes what is missing of a tree's path below its mount; `each` sees every component, and whether it is the last.
fn walk(tree: &Tree, made: &mut Made, mut each: impl FnMut(&Dir, bool) -> Result<()>) -> Result<()> {
    let inner = tree.path.strip_prefix(&tree.mount).context("no cgroup path")?;
    let mut dir = Dir::open(&tree.mount)?;
    let mut names = inner.iter().peekable();
    while let Some(name) = names.next() {
        let name = name.to_str().context("linux.cgroupsPath: must be UTF-8")?;
        if dir.make(name)? {
            made.dirs.push(dir.path().join(name));
        }
        dir = dir.child(name)?;
        each(&dir, names.peek().is_none())?;
    }
    Ok(())
}

/// Makes a cgroup on v2 and passes the controllers on to it, through each parent.
///
/// A parent that has processes of its own can't pass memory or io on: that is told by the first limit that needs
/// them, as not everyone sets limits.
pub(super) fn make_v2(tree: &Tree, made: &mut Made) -> Result<bool> {
    let available = dir::read(&tree.mount.join("cgroup.controllers"))?;
    // The usual case, a new cgroup beside others: its parents have passed everything on long ago.
    if make_last(tree, made)?.is_some()
        && !available.trim().is_empty()
        && tree.dir()?.read("cgroup.controllers")? == available
    {
        return Ok(true);
    }
    let enable: String = available
        .split_ascii_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    pass_on(&Dir::open(&tree.mount)?, &available, enable.trim_end());
    walk(tree, made, |dir, last| {
        if !last {
            pass_on(dir, &available, enable.trim_end());
        }
        let kind = dir.read("cgroup.type");
        if kind.is_ok_and(|kind| kind.trim() == "domain invalid") {
            // Below a threaded cgroup: it can hold threads, with the controllers that know threads.
            let _ = dir.write("cgroup.type", "threaded");
        }
        Ok(())
    })?;
    Ok(true)
}

fn pass_on(dir: &Dir, available: &str, enable: &str) {
    let passed = dir.read("cgroup.subtree_control");
    if enable.is_empty() || passed.is_ok_and(|passed| passed == available) {
        return;
    }
    if dir.write("cgroup.subtree_control", enable).is_err() {
        for controller in enable.split(' ') {
            // What can't be passed on is missed, and told, by the limit that needs it.
            let _ = dir.write("cgroup.subtree_control", controller);
        }
    }
}

/// Makes a cgroup in one v1 tree. `false`: the tree is not mounted where this process sees it.
fn make_v1(tree: &Tree, made: &mut Made) -> Result<bool> {
    let last = make_last(tree, made)?;
    if last.is_none() && !tree.mount.is_dir() {
        return Ok(false);
    }
    if tree.has("cpuset") {
        fill_cpuset(tree, last, made)?;
    } else if last.is_none() {
        walk(tree, made, |_, _| Ok(()))?;
    }
    Ok(true)
}

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// A new cpuset has no cpus and no memory, and takes no process: it gets its parent's.
fn fill_cpuset(tree: &Tree, last: Option<bool>, made: &mut Made) -> Result<()> {
    if last == Some(true)
        && let Some(parent) = tree.path.parent()
    {
        let [cpus, mems] = [
            dir::read(&parent.join(CPUSET[0]))?,
            dir::read(&parent.join(CPUSET[1]))?,
        ];
        if !cpus.trim().is_empty() && !mems.trim().is_empty() {
            tree.dir()?.write(CPUSET[0], cpus.trim())?;
            tree.dir()?.write(CPUSET[1], mems.trim())?;
            return Ok(());
        }
    }
    let root = Dir::open(&tree.mount)?;
    let mut from_parent = [root.read(CPUSET[0])?, root.read(CPUSET[1])?];
    walk(tree, made, |dir, _| {
        for (file, from_parent) in CPUSET.iter().zip(&mut from_parent) {
            let own = dir.read(file)?;
            if own.trim().is_empty() {
                dir.write(file, from_parent.trim())?;
            } else {
                *from_parent = own;
            }
        }
        Ok(())
    })
}
