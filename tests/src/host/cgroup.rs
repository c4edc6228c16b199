//! Control groups seen from the host, the same for v1 (one hierarchy per controller) and v2 (one for all).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::mounts;

/// Whether `/sys/fs/cgroup` itself is cgroup v2.
pub(crate) fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Mount points of all hierarchies: of each controller, of `name=` ones, and of v2.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = mounts::of("self")?.into_iter();
    let mut points: Vec<PathBuf> = mounts
        .filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2") && mount.root == "/")
        .map(|mount| mount.target)
        .collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// Mount point of the hierarchy that has a controller; `None` where the kernel or the set-up has none such.
pub(crate) fn hierarchy_of(controller: &str) -> Option<PathBuf> {
    if is_unified() {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok()?;
        // Part of the core or of BPF in v2, not controllers.
        let built_in = matches!(controller, "freezer" | "devices");
        let there = built_in || controllers.split_whitespace().any(|each| each == controller);
        return there.then(|| PathBuf::from("/sys/fs/cgroup"));
    }
    let mounts = mounts::of("self").ok()?.into_iter();
    mounts
        .filter(|mount| mount.kind == "cgroup" && mount.root == "/")
        .find(|mount| mount.super_options.split(',').any(|option| option == controller))
        .map(|mount| mount.target)
}

/// A file of a controller: its name in v1 and in v2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Knob {
    /// Controller in v1, and in v2 where it has the same name.
    pub(crate) controller: &'static str,
    /// File name under v1.
    pub(crate) v1: &'static str,
    /// File name under v2.
    pub(crate) v2: &'static str,
}

/// The files tests look at.
pub(crate) mod knob {
    use super::Knob;

    const fn knob(controller: &'static str, v1: &'static str, v2: &'static str) -> Knob {
        Knob { controller, v1, v2 }
    }

    pub(crate) const MEMORY_LIMIT: Knob = knob("memory", "memory.limit_in_bytes", "memory.max");
    pub(crate) const MEMORY_RESERVATION: Knob = knob("memory", "memory.soft_limit_in_bytes", "memory.low");
    pub(crate) const PIDS_LIMIT: Knob = knob("pids", "pids.max", "pids.max");
    pub(crate) const CPU_WEIGHT: Knob = knob("cpu", "cpu.shares", "cpu.weight");
    pub(crate) const CPUSET_CPUS: Knob = knob("cpuset", "cpuset.cpus", "cpuset.cpus");
    pub(crate) const CPUSET_MEMS: Knob = knob("cpuset", "cpuset.mems", "cpuset.mems");
    pub(crate) const PROCS: Knob = knob("freezer", "cgroup.procs", "cgroup.procs");
}

/// A cgroup by its path, the same in all hierarchies (`/rtc-test-1a2b/web`).
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    /// Path from the root of each hierarchy.
    pub(crate) path: String,
}

impl Cgroup {
    /// Directory in the hierarchy of a controller. Fails where there is none.
    pub(crate) fn directory(&self, controller: &str) -> Result<PathBuf> {
        let root = hierarchy_of(controller).with_context(|| format!("no cgroup controller {controller}"))?;
        Ok(root.join(self.path.trim_start_matches('/')))
    }

    fn file(&self, knob: Knob) -> Result<PathBuf> {
        let name = if is_unified() { knob.v2 } else { knob.v1 };
        Ok(self.directory(knob.controller)?.join(name))
    }

    /// Content of a file, without the newline.
    pub(crate) fn read(&self, knob: Knob) -> Result<String> {
        let path = self.file(knob)?;
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    /// Bandwidth as (quota, period) in microseconds; quota `None` where there is no limit.
    pub(crate) fn cpu_bandwidth(&self) -> Result<(Option<i64>, i64)> {
        let both = if is_unified() {
            self.read(Knob {
                controller: "cpu",
                v1: "",
                v2: "cpu.max",
            })?
        } else {
            let quota = self.read(Knob {
                controller: "cpu",
                v1: "cpu.cfs_quota_us",
                v2: "",
            })?;
            let period = self.read(Knob {
                controller: "cpu",
                v1: "cpu.cfs_period_us",
                v2: "",
            })?;
            format!("{quota} {period}")
        };
        let (quota, period) = both.split_once(' ').context("cpu bandwidth")?;
        let quota = quota.parse().ok().filter(|&quota| quota >= 0);
        Ok((quota, period.parse()?))
    }

    /// Pids of all processes in the cgroup itself.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        self.read(knob::PROCS)?
            .lines()
            .map(|pid| Ok(pid.parse()?))
            .collect()
    }

    /// Whether the freezer has stopped the cgroup.
    pub(crate) fn is_frozen(&self) -> Result<bool> {
        let state = self.read(Knob {
            controller: "freezer",
            v1: "freezer.state",
            v2: "cgroup.events",
        })?;
        Ok(if is_unified() {
            state.contains("frozen 1")
        } else {
            state == "FROZEN"
        })
    }

    /// Directories of this cgroup in all hierarchies, those that exist.
    pub(crate) fn directories(&self) -> Result<Vec<PathBuf>> {
        let relative = self.path.trim_start_matches('/');
        let all = hierarchies()?.into_iter().map(|root| root.join(relative));
        Ok(all.filter(|directory| directory.is_dir()).collect())
    }
}
