//! What a test left behind: looked for after each test, named, and cleaned up.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::fuse;
use crate::host::{cgroup::Cgroup, mounts, process};
use crate::test::{NAMESPACE, SOCKETS};
use crate::wait::{DEADLINE, within};

/// What belongs to one test and must be empty after it.
pub(crate) struct Belongings<'a> {
    /// The test's own directory.
    pub(crate) directory: &'a Path,
    /// `--root` of the runtime.
    pub(crate) root: &'a Path,
    /// Parent of all cgroups of the test.
    pub(crate) cgroup: Cgroup,
}

impl Belongings<'_> {
    /// Names everything that is still there, after giving it time to go: a killed process or a cgroup that empties
    /// is not gone at once.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let gone = within(DEADLINE, "nothing left", || {
            reap();
            Ok(self.find().is_empty().then_some(()))
        });
        if gone.is_ok() { Vec::new() } else { self.find() }
    }

    fn find(&self) -> Vec<String> {
        let own = std::process::id().cast_signed();
        let mut found: Vec<String> = process::descendants(own)
            .into_iter()
            .map(|pid| format!("process: {}", process::describe(pid)))
            .collect();
        found.extend(
            self.child_cgroups()
                .iter()
                .map(|path| format!("cgroup: {}", path.display())),
        );
        let mounts = mounts::under(self.directory).unwrap_or_default();
        found.extend(
            mounts
                .iter()
                .map(|mount| format!("mount: {}", mount.target.display())),
        );
        found.extend(
            self.states()
                .iter()
                .map(|path| format!("state: {}", path.display())),
        );
        found.extend(
            self.sockets()
                .iter()
                .map(|path| format!("socket: {}", path.display())),
        );
        found
    }

    /// Entries of `--root`, and of the namespaces of a shim's containers in it; those that begin with a dot are a
    /// runtime's caches, not containers.
    fn states(&self) -> Vec<PathBuf> {
        let (namespaces, mut states): (Vec<_>, Vec<_>) = entries(self.root).into_iter().partition(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(NAMESPACE.as_bytes()))
        });
        states.extend(namespaces.iter().flat_map(|namespace| entries(namespace)));
        states
    }

    /// Sockets of shims that are still there.
    fn sockets(&self) -> Vec<PathBuf> {
        let list = fs::read_to_string(self.directory.join(SOCKETS)).unwrap_or_default();
        let paths = list.lines().map(PathBuf::from);
        paths.filter(|path| fs::symlink_metadata(path).is_ok()).collect()
    }

    /// Directories below the test's parent cgroup, deepest first.
    fn child_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in self.cgroup.directories().unwrap_or_default() {
            collect_directories(&directory, &mut found);
        }
        found
    }

    /// Ends and removes everything, whatever state it is in.
    pub(crate) fn clean(&self, keep_files: bool) -> Vec<String> {
        let mut cgroups = self.child_cgroups();
        for cgroup in &cgroups {
            // A frozen process does not die before it is thawed.
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
            let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            procs
                .lines()
                .filter_map(|pid| pid.parse().ok())
                .for_each(kill_now);
        }
        let own = std::process::id().cast_signed();
        let _ = within(DEADLINE, "processes to die", || {
            reap();
            let alive = process::descendants(own);
            alive.iter().copied().for_each(kill_now);
            Ok(alive.is_empty().then_some(()))
        });
        for mount in mounts::under(self.directory).unwrap_or_default().iter().rev() {
            if mount.kind == "ext4" && mount.target.starts_with(self.directory) {
                fuse::thaw(&mount.target);
            }
            let _ = umount2(&mount.target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        cgroups.extend(self.cgroup.directories().unwrap_or_default());
        for socket in self.sockets() {
            let _ = fs::remove_file(socket);
        }
        let mut stuck = remove_cgroups(&cgroups);
        let unmounted = mounts::under(self.directory).is_ok_and(|mounts| mounts.is_empty());
        if !keep_files
            && unmounted
            && let Err(error) = fs::remove_dir_all(self.directory)
        {
            stuck.push(format!("remove {}: {error}", self.directory.display()));
        }
        stuck
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| !hidden(path))
        .collect()
}

fn hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn collect_directories(parent: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_directories(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

/// Removes cgroup directories, children first; says which would not go. The kernel may call one busy for a moment after
/// its last process is gone.
fn remove_cgroups(directories: &[PathBuf]) -> Vec<String> {
    let mut stuck = Vec::new();
    for directory in directories {
        let removed = within(DEADLINE, "cgroup to go", || {
            let _ = fs::remove_dir(directory);
            Ok((!directory.exists()).then_some(()))
        });
        if removed.is_err() {
            stuck.push(format!("cgroup cannot be removed: {}", directory.display()));
        }
    }
    stuck
}

fn kill_now(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Collects every child that has ended: this process is the subreaper of all the test started.
pub(crate) fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status.pid().is_none() {
            break;
        }
    }
}
