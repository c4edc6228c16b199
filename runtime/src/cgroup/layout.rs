//! Which cgroup hierarchies this machine has, found once and cheaply.
//!
//! ```text
//! statfs(/sys/fs/cgroup)  cgroup2 -> V2: one tree                                          1 system call
//!                         tmpfs   -> V1: one tree per line of /proc/self/cgroup            4 system calls
//!                                    (hybrid: also /sys/fs/cgroup/unified, line "0::")
//!                         other   -> an error that says what is there
//! ```
//!
//! A v1 hierarchy is expected where every distribution mounts it, in a directory (or a symbolic link) named like its
//! controllers; `/proc/self/mountinfo` is read only where that is not so.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};

use super::dir;
use crate::sys::Named as _;

/// Where cgroups are mounted, on every distribution.
pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// The name of the unified tree of a hybrid machine, and of the only tree of a v2 machine, in `/proc/<pid>/cgroup`.
pub(super) const UNIFIED: &str = "";

/// The cgroup set-up of the machine, seen from this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Pure cgroup v2, mounted at [`ROOT`].
    V2,
    /// Cgroup v1, or hybrid: controllers on v1, with a unified tree without controllers.
    V1(Vec<Hierarchy>),
}

/// A tree of cgroups on a v1 or hybrid machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// As in `/proc/<pid>/cgroup`: `memory`, `cpu,cpuacct`, `name=systemd`, or [`UNIFIED`].
    pub controllers: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The cgroup of this process in it, relative to the mount.
    pub own: PathBuf,
}

impl Layout {
    /// Looks at the machine.
    ///
    /// # Errors
    ///
    /// Where no cgroup file system is mounted at [`ROOT`].
    pub fn detect() -> Result<Self> {
        match kind(Path::new(ROOT))? {
            CGROUP2_SUPER_MAGIC => Ok(Self::V2),
            TMPFS_MAGIC => Self::v1(),
            other => bail!(
                "{ROOT}: file system type {:#x}: must be cgroup2, or a tmpfs with cgroup v1 mounts: mount one there",
                other.0
            ),
        }
    }

    /// The caller's cgroup in the unified tree, relative to its mount.
    ///
    /// # Errors
    ///
    /// There is no such tree.
    pub fn own_unified() -> Result<PathBuf> {
        Ok(relative(&unified_cgroup_of("self")?))
    }

    fn v1() -> Result<Self> {
        let mut hierarchies = parse_proc_cgroup(&read_proc("self")?);
        hierarchies.retain(|hierarchy| hierarchy.controllers != UNIFIED || is_cgroup2(&hierarchy.mount));
        // The tree every container is in stands for all.
        let as_expected = |hierarchy: &Hierarchy| hierarchy.mount.join(relative(&hierarchy.own)).is_dir();
        let devices =
            |hierarchies: &[Hierarchy]| hierarchies.iter().find(|found| found.has("devices")).cloned();
        if !devices(&hierarchies).is_some_and(|found| as_expected(&found)) {
            let mounts =
                fs::read("/proc/self/mountinfo").call(|| r#"read("/proc/self/mountinfo")"#.to_owned())?;
            place(&mut hierarchies, &mounts);
        }
        if devices(&hierarchies).is_none() {
            // Without it a container could open any device: no runtime goes on here.
            bail!(
                "cgroup v1: the devices controller is not mounted under {ROOT}: mount it, or boot with cgroup v2"
            );
        }
        Ok(Self::V1(hierarchies))
    }
}

impl Hierarchy {
    /// Whether a controller is on this tree.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }
}

/// The cgroup of a process in the unified tree, as `/proc/<pid>/cgroup` has it.
///
/// # Errors
///
/// Where the process is gone, or the machine has no unified tree.
pub(super) fn unified_cgroup_of(process: &str) -> Result<PathBuf> {
    let content = read_proc(process)?;
    let line = content
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .with_context(|| format!("/proc/{process}/cgroup has no line for cgroup v2"))?;
    Ok(PathBuf::from(line))
}

/// The cgroups of a process in the trees of a v1 or hybrid machine, each as if its tree were mounted where it usually is.
///
/// # Errors
///
/// Where the process is gone.
pub(super) fn hierarchies_of(process: &str) -> Result<Vec<Hierarchy>> {
    Ok(parse_proc_cgroup(&read_proc(process)?))
}

fn read_proc(process: &str) -> Result<String> {
    Ok(dir::read(Path::new(&format!("/proc/{process}/cgroup")))?)
}

fn kind(path: &Path) -> Result<FsType> {
    Ok(statfs(path)
        .call(|| format!("statfs({path:?})"))?
        .filesystem_type())
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// A path without its leading slash; `..` takes back a component, and never climbs out.
pub(super) fn relative(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Lines `id:controllers:path`. The unified tree (`0::path`) is expected at `unified`.
fn parse_proc_cgroup(content: &str) -> Vec<Hierarchy> {
    content
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, own) = (fields.next()?, fields.next()?);
            let directory = match controllers {
                UNIFIED => "unified",
                name => name.strip_prefix("name=").unwrap_or(name),
            };
            Some(Hierarchy {
                mount: Path::new(ROOT).join(directory),
                controllers: controllers.to_owned(),
                own: PathBuf::from(own),
            })
        })
        .collect()
}

/// Takes mount points, and what they show of their tree, from mountinfo; drops trees that are mounted nowhere.
///
/// In a container without a cgroup namespace, `/proc/self/cgroup` has the host's paths and the mount shows only the
/// container's part: the part it shows (field 4) is cut off.
fn place(hierarchies: &mut Vec<Hierarchy>, mountinfo: &[u8]) {
    hierarchies.retain_mut(|hierarchy| {
        let Some((root, mount)) = mountinfo
            .split(|byte| *byte == b'\n')
            .filter_map(|line| cgroup_mount(&hierarchy.controllers, line))
            .find(|(_, mount)| mount.starts_with(ROOT))
        else {
            return false;
        };
        hierarchy.mount = mount;
        hierarchy.own = hierarchy
            .own
            .strip_prefix(&root)
            .unwrap_or(Path::new(""))
            .to_owned();
        true
    });
}

/// Root and mount point of a line of mountinfo (proc_pid_mountinfo(5)), if it is a mount of this tree.
fn cgroup_mount(controllers: &str, line: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let line = std::str::from_utf8(line).ok()?;
    let (mount, file_system) = line.split_once(" - ")?;
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?;
    let options = file_system.nth(1)?;
    let wanted = match controllers {
        UNIFIED => kind == "cgroup2",
        names => {
            kind == "cgroup"
                && names
                    .split(',')
                    .all(|name| options.split(',').any(|option| option == name))
        }
    };
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    wanted.then(|| (PathBuf::from(root), PathBuf::from(point)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(controllers: &str, mount: &str, own: &str) -> Hierarchy {
        Hierarchy {
            controllers: controllers.into(),
            mount: mount.into(),
            own: own.into(),
        }
    }

    #[test]
    fn every_line_of_proc_cgroup_is_a_hierarchy() {
        let parsed = parse_proc_cgroup("9:name=systemd:/a\n4:memory:/x/y:z\n3:cpu,cpuacct:/\n0::/u\n");
        assert_eq!(
            parsed,
            [
                named("name=systemd", "/sys/fs/cgroup/systemd", "/a"),
                named("memory", "/sys/fs/cgroup/memory", "/x/y:z"),
                named("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/"),
                named("", "/sys/fs/cgroup/unified", "/u"),
            ]
        );
        assert!(parsed[2].has("cpuacct") && !parsed[2].has("cpuset"));
    }

    #[test]
    fn mounts_of_a_nested_container_are_taken_from_mountinfo() {
        let mut hierarchies = vec![
            named("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/docker/1/in"),
            named("rdma", "", "/"),
        ];
        place(
            &mut hierarchies,
            b"32 31 0:29 /docker/1 /sys/fs/cgroup/cpuacct,cpu ro,nosuid master:9 - cgroup cgroup rw,cpuacct,cpu\n\
              33 31 0:29 /docker/1 /elsewhere ro - cgroup cgroup rw,rdma\n",
        );
        assert_eq!(
            hierarchies,
            [named("cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu", "in")]
        );
    }

    #[test]
    fn nothing_climbs_out_of_a_relative_path() {
        assert_eq!(relative(Path::new("/a/../../../b/./c")), Path::new("b/c"));
    }
}
