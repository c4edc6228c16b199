//! `linux.intelRdt`: a container's share of caches and of memory bandwidth, by the kernel's resctrl file system
//! (Documentation/filesystems/resctrl.rst; Intel RDT, AMD QoS, ARM MPAM).
//!
//! ```text
//! <resctrl>/<closID, or the container's id>/  schemata   what the group gets
//!                                             tasks      who is in it, by thread; children are born into it
//!                                             mon_groups/<id>/  with enableMonitoring: who is counted apart
//! ```
//!
//! What is removed with the container is what it alone has: its own group, where no closID names one and it was not there
//! before, and its monitoring group (runtime-spec, `config-linux.md`, "IntelRdt").

mod schemata;
mod stats;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::statfs::{FsType, statfs};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

pub use stats::RdtStats;

/// `RDTGROUP_SUPER_MAGIC` of linux/magic.h.
const MAGIC: i64 = 0x0765_5821;
/// Where it is mounted, unless somebody has mounted it elsewhere.
const USUAL: &str = "/sys/fs/resctrl";
/// What is in every resctrl file system's root besides groups.
const OWN_NAMES: [&str; 3] = ["info", "mon_data", "mon_groups"];
/// How often a container's processes are looked for, while they make new ones.
const ROUNDS: u32 = 10;

/// The group of a container: kept in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its directory.
    path: PathBuf,
    /// That of its monitoring group, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monitoring: Option<PathBuf>,
    /// Whether the directory ends with the container.
    owned: bool,
}

/// What `update` is told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// `--l3-cache-schema`.
    pub l3_cache_schema: Option<String>,
    /// `--mem-bw-schema`.
    pub mem_bw_schema: Option<String>,
}

impl Group {
    /// Where the group of a container will be. Nothing is made yet.
    ///
    /// # Errors
    ///
    /// There is no resctrl file system; it lacks what a schema is about; a group that must be there is not.
    pub fn plan(config: &LinuxIntelRdt, id: &str) -> Result<Group> {
        let root = root()?;
        check_resources(
            &root,
            config.l3_cache_schema().as_deref(),
            config.mem_bw_schema().as_deref(),
        )?;
        let clos = config.clos_id().as_deref().filter(|name| !name.is_empty());
        let path = match clos {
            Some("/") => root,
            Some(name) => root.join(name),
            None if OWN_NAMES.contains(&id) => {
                bail!("linux.intelRdt: {id:?} is a name of resctrl's own: give the group another by closID")
            }
            None => root.join(id),
        };
        let exists = path.is_dir();
        if clos.is_some() && !exists && lines(config).is_empty() {
            bail!(
                "linux.intelRdt.closID: there is no group {}: make it before, or give schemata",
                path.display()
            );
        }
        Ok(Group {
            monitoring: config
                .enable_monitoring()
                .unwrap_or(false)
                .then(|| path.join("mon_groups").join(id)),
            owned: clos.is_none() && !exists,
            path,
        })
    }

    /// Makes the group, gives it what the configuration says, and puts the process into it, which has one thread.
    ///
    /// # Errors
    ///
    /// The kernel has no more groups, or refuses a schema; a group that was there has another one. What was made is
    /// removed by [`Group::remove`].
    pub fn make(&mut self, config: &LinuxIntelRdt, process: Pid) -> Result<()> {
        let lines = lines(config);
        let exists = make_directory(&self.path)?;
        // Somebody else has made it since it was planned.
        self.owned &= !exists;
        let filled = self.fill(config, &lines, exists, process);
        if filled.is_err() && !exists && !self.owned {
            // A shared one that has not got what it should have: the next would find it with other schemata.
            let _ = fs::remove_dir(&self.path);
        }
        filled
    }

    fn fill(&self, config: &LinuxIntelRdt, lines: &[&str], exists: bool, process: Pid) -> Result<()> {
        if exists && config.clos_id().as_deref().is_some_and(|name| !name.is_empty()) {
            let path = self.path.join("schemata");
            let there = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            schemata::compare(lines, &there).with_context(|| {
                format!(
                    "linux.intelRdt: the group {} is there with other schemata",
                    self.path.display()
                )
            })?;
        }
        self.write_schemata(lines)?;
        write_task(&self.path, process.as_raw())?;
        if let Some(monitoring) = &self.monitoring {
            make_directory(monitoring).context("linux.intelRdt.enableMonitoring")?;
            write_task(monitoring, process.as_raw())?;
        }
        Ok(())
    }

    /// Puts this process into the group, and so what it makes: for `exec`. A group that somebody has removed is none.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub fn join(&self) -> Result<()> {
        let own = std::process::id().cast_signed();
        for directory in [Some(&self.path), self.monitoring.as_ref()].into_iter().flatten() {
            if directory.is_dir() {
                write_task(directory, own)?;
            }
        }
        Ok(())
    }

    /// Changes what the group gets.
    ///
    /// # Errors
    ///
    /// There is no such cache or bandwidth to give out, or the kernel refuses the values.
    pub fn update(&self, update: &Update) -> Result<()> {
        let (l3, bandwidth) = (update.l3_cache_schema.as_deref(), update.mem_bw_schema.as_deref());
        check_resources(&root()?, l3, bandwidth)?;
        let lines: Vec<&str> = [l3, bandwidth].into_iter().flatten().collect();
        self.write_schemata(&lines)
    }

    /// A group for a container that had none, with all its processes in it.
    ///
    /// # Errors
    ///
    /// As [`Group::make`].
    pub fn for_running(id: &str) -> Result<Group> {
        Group::plan(&LinuxIntelRdt::default(), id)
    }

    /// Makes the group of [`Group::for_running`] with what it gets, and moves the threads of all processes that
    /// `processes` lists.
    ///
    /// # Errors
    ///
    /// As [`Group::make`].
    pub fn take_in(&mut self, update: &Update, processes: impl Fn() -> Result<Vec<Pid>>) -> Result<()> {
        let exists = make_directory(&self.path)?;
        self.owned &= !exists;
        self.update(update)?;
        let mut known = std::collections::BTreeSet::new();
        for _ in 0..ROUNDS {
            let before = known.len();
            for process in processes()? {
                let threads = fs::read_dir(format!("/proc/{process}/task"));
                // Those that have ended need no group.
                for thread in threads.into_iter().flatten().flatten() {
                    let Some(thread) = thread
                        .file_name()
                        .to_str()
                        .and_then(|name| name.parse::<i32>().ok())
                    else {
                        continue;
                    };
                    if known.insert(thread)
                        && let Err(error) = write_task(&self.path, thread)
                        && Path::new(&format!("/proc/{thread}")).exists()
                    {
                        return Err(error);
                    }
                }
            }
            if known.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Removes what is the container's alone. What is gone already is fine.
    ///
    /// # Errors
    ///
    /// As rmdir(2).
    pub fn remove(&self) -> Result<()> {
        // With a group its monitoring groups go, too.
        let own = if self.owned {
            Some(&self.path)
        } else {
            self.monitoring.as_ref()
        };
        let Some(own) = own else { return Ok(()) };
        match fs::remove_dir(own) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove the resctrl group {}", own.display()))
            }
            _ => Ok(()),
        }
    }

    /// What the group gets, and what was counted.
    ///
    /// # Errors
    ///
    /// A file can't be read.
    pub fn stats(&self) -> Result<RdtStats> {
        stats::read(&root()?, &self.path, self.monitoring.as_deref())
    }

    fn write_schemata(&self, lines: &[&str]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        write(&self.path.join("schemata"), &(lines.join("\n") + "\n"))
            .map_err(|error| explain(&self.path, error))
    }
}

/// The lines of the file `schemata`, in the order of the specification.
fn lines(config: &LinuxIntelRdt) -> Vec<&str> {
    let single = [config.l3_cache_schema(), config.mem_bw_schema()];
    let single = single.into_iter().flatten();
    let all = single.chain(config.schemata().iter().flatten());
    all.map(|line| line.trim_end_matches('\n'))
        .filter(|line| !line.is_empty())
        .collect()
}

/// Where resctrl is mounted.
///
/// # Errors
///
/// Nowhere.
fn root() -> Result<PathBuf> {
    if statfs(USUAL).is_ok_and(|found| found.filesystem_type() == FsType(MAGIC)) {
        return Ok(USUAL.into());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mounts.lines().find_map(mount_point).ok_or_else(|| {
        anyhow!(
            "linux.intelRdt: no resctrl file system is mounted; where this machine has RDT (Linux 4.10): \
             mount -t resctrl resctrl {USUAL}"
        )
    })
}

/// The mount point of a line of mountinfo, if it is of resctrl. What root has mounted under that name in its place (a
/// file system in user space, with the same files) is taken for it: few machines have the real one.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let mut kind = after.split(' ');
    let (fs_type, source, options) = (kind.next()?, kind.next()?, kind.next()?);
    let by_root = || options.split(',').any(|option| option == "user_id=0");
    if fs_type != "resctrl" && !((fs_type, source) == ("fuse", "resctrl") && by_root()) {
        return None;
    }
    let point = before.split(' ').nth(4)?;
    // Blanks and the like are octal there; no such mount point is usable here.
    (!point.contains('\\')).then(|| point.into())
}

fn check_resources(root: &Path, l3: Option<&str>, bandwidth: Option<&str>) -> Result<()> {
    let given = |schema: Option<&str>| schema.is_some_and(|schema| !schema.is_empty());
    let has = |name: &str| root.join("info").join(name).is_dir();
    if given(l3) && !has("L3") && !has("L3CODE") {
        bail!(
            "l3CacheSchema: this machine can't divide its L3 cache (no L3 in {}/info)",
            root.display()
        );
    }
    if given(bandwidth) && !has("MB") {
        bail!(
            "memBwSchema: this machine can't divide its memory bandwidth (no MB in {}/info)",
            root.display()
        );
    }
    Ok(())
}

/// Makes a directory; says whether it was there.
fn make_directory(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) => {
            let error =
                anyhow::Error::from(error).context(format!("make the resctrl group {}", path.display()));
            Err(explain(path, error))
        }
    }
}

fn write_task(directory: &Path, thread: i32) -> Result<()> {
    write(&directory.join("tasks"), &thread.to_string()).map_err(|error| explain(directory, error))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {text:?} to {}", path.display()))
}

/// Adds what resctrl says about its last refusal (`info/last_cmd_status`).
fn explain(group: &Path, error: anyhow::Error) -> anyhow::Error {
    let status = group
        .ancestors()
        .map(|directory| directory.join("info/last_cmd_status"))
        .find_map(|path| fs::read_to_string(path).ok());
    match status.as_deref().map(str::trim) {
        Some(status) if !status.is_empty() && status != "ok" => {
            anyhow!("linux.intelRdt: {error:#} ({status})")
        }
        _ => error.context("linux.intelRdt"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resctrl_is_found_in_mountinfo() {
        let of = |line| mount_point(line);
        assert_eq!(
            of("40 30 0:40 / /mnt/rdt rw,relatime shared:7 - resctrl resctrl rw"),
            Some("/mnt/rdt".into())
        );
        assert_eq!(of("40 30 0:40 / /sys rw - sysfs resctrl rw"), None);
        assert_eq!(of("40 30 0:40 / /x rw - tmpfs resctrl rw"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn schemata_come_in_the_order_of_the_specification() {
        let config: LinuxIntelRdt = serde_json::from_str(
            r#"{"memBwSchema":"MB:0=20","schemata":["L2:0=f","MB:0=30"],"l3CacheSchema":"L3:0=7\n"}"#,
        )
        .unwrap();
        assert_eq!(lines(&config), ["L3:0=7", "MB:0=20", "L2:0=f", "MB:0=30"]);
    }
}
