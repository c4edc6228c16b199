//! Where shims are: in a cgroup of their own, neither rtc-cri's (which systemd ends with the service) nor a pod's (whose
//! memory is the pod's).
//!
//! ```text
//! systemd    /system.slice/rtc-shims.scope   made by systemd around the first shim, delegated; gone with the last one
//! cgroupfs   /rtc-shims                      made before the first shim; on v1 in each hierarchy but cpuset's
//! ```
//!
//! A shim joins it by itself at its start (`shim_cgroup` of its options), where it is there. The place is no reason to refuse
//! a pod: what can't be made is said.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder};
use rtc_runtime::cgroup::{Cgroup, Driver, Layout, Scope};
use tokio::sync::Mutex;

use crate::config::{CgroupDriver, Config};
use crate::log;

const ROOT: &str = "/sys/fs/cgroup";
const SCOPE: &str = "/system.slice/rtc-shims.scope";
/// The same for the runtime: slice, prefix, name.
const SCOPE_NAME: &str = "system.slice:rtc:shims";
const DIRECTORY: &str = "/rtc-shims";
/// A scope whose last process has just ended can't be made again at once.
const ATTEMPTS: u32 = 5;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// The cgroup of all shims.
#[derive(Debug)]
pub(crate) struct ShimCgroup {
    place: Place,
    /// The turn of who makes it.
    turn: Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// systemd's scope.
    Scope,
    /// A cgroup that is made in the file system.
    Directory(PathBuf),
    /// rtc-cri's own: the other could not be made.
    Ours,
}

impl ShimCgroup {
    /// Makes it, if there is something to make.
    pub(crate) fn open(config: &Config) -> Self {
        let place = match (&config.shim_cgroup, config.driver()) {
            (Some(path), _) => Place::Directory(path.clone()),
            (None, CgroupDriver::Systemd) => Place::Scope,
            (None, CgroupDriver::Cgroupfs) => Place::Directory(DIRECTORY.into()),
        };
        let place = match place {
            Place::Directory(path) => match make(&path) {
                Ok(()) => Place::Directory(path),
                Err(error) => {
                    log::warn(format_args!(
                        "shims stay in the cgroup of rtc-cri: {}: {error:#}",
                        path.display()
                    ));
                    Place::Ours
                }
            },
            other => other,
        };
        Self {
            place,
            turn: Mutex::default(),
        }
    }

    /// What a shim is told to join; `None`: nothing, it is to be admitted after its start.
    pub(super) fn to_join(&self) -> Option<PathBuf> {
        match &self.place {
            Place::Scope => scope().exists().then(|| SCOPE.into()),
            Place::Directory(path) => Some(path.clone()),
            Place::Ours => None,
        }
    }

    /// Takes in a shim that could not join by itself, as there was no scope.
    pub(super) async fn admit(&self, pid: u32) {
        if self.place != Place::Scope {
            return;
        }
        let _turn = self.turn.lock().await;
        let admitted = tokio::task::spawn_blocking(move || admit_to_scope(pid)).await;
        let admitted = admitted.map_err(anyhow::Error::from).flatten();
        if let Err(error) = admitted {
            log::warn(format_args!(
                "the shim (pid {pid}) stays in the cgroup of rtc-cri: {error:#}"
            ));
        }
    }

    /// Removes it, if no shim is there.
    pub(crate) fn remove_unused(&self) {
        if let Place::Directory(path) = &self.place {
            for directory in directories(path).unwrap_or_default() {
                // One that is in use stays: EBUSY.
                let _ = std::fs::remove_dir(directory);
            }
        }
    }
}

fn scope() -> PathBuf {
    below(ROOT.as_ref(), SCOPE.as_ref())
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Blocks: asks systemd.
fn admit_to_scope(pid: u32) -> anyhow::Result<()> {
    let process = Pid::from_raw(i32::try_from(pid).context("a pid")?);
    let mut attempt = 1;
    loop {
        // Another shim is in it: it is delegated to us.
        if std::fs::write(scope().join("cgroup.procs"), pid.to_string()).is_ok() {
            return Ok(());
        }
        let made = Cgroup::place(
            Some(SCOPE_NAME.as_ref()),
            "shims",
            &Layout::detect()?,
            Driver::Systemd,
        )
        .and_then(|cgroup| {
            let scope = Scope {
                resources: limits()?,
                ..Scope::default()
            };
            cgroup.attach(process, &scope)
        });
        match made {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            made => return made,
        }
        std::thread::sleep(PAUSE);
    }
}

/// As many processes as there are; one that is killed for want of memory does not end the others (`OOMPolicy=continue`).
fn limits() -> anyhow::Result<LinuxResources> {
    let unified = HashMap::from([("memory.oom.group".to_owned(), "0".to_owned())]);
    let pids = LinuxPidsBuilder::default().limit(-1_i64).build()?;
    Ok(LinuxResourcesBuilder::default()
        .pids(pids)
        .unified(unified)
        .build()?)
}

fn make(path: &Path) -> anyhow::Result<()> {
    for directory in directories(path)? {
        std::fs::create_dir_all(&directory).with_context(|| format!("mkdir {}", directory.display()))?;
    }
    Ok(())
}

/// The cgroup in each hierarchy. One of cpuset's has no processors of its own, so nothing can join it.
fn directories(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let roots = match Layout::detect()? {
        Layout::V2 => vec![PathBuf::from(ROOT)],
        Layout::V1(hierarchies) => hierarchies
            .into_iter()
            .filter(|hierarchy| !hierarchy.has("cpuset") && !hierarchy.controllers.is_empty())
            .map(|hierarchy| hierarchy.mount)
            .collect(),
    };
    Ok(roots.iter().map(|root| below(root, path)).collect())
}
