//! What a shim leaves in bundles for `delete`, which containerd calls when the shim has died.
//!
//! ```text
//! <bundle of the first container or the sandbox>/rtc-shim.json    start: the shim's process, its socket
//! <bundle of each container>/rtc-container.json                   Create, before anything is made: its runtime, its shim
//! <bundle of each container>/rtc-runtime.json                     a foreign runtime, before it makes anything
//! ```
//!
//! A container's record is removed with its bundle, by containerd. It never says that the container exists.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc;
use nix::unistd::{Pid, getsid};
use rtc_runtime::cgroup::Cgroup;
use rtc_runtime::container::ContainerId;
use rtc_runtime::container::state::process_stat;
use rtc_runtime::sys::process;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::log;
use crate::start::replace;

/// What a record may be long at most, in bytes.
const LENGTH_MAX: u64 = 64 * 1024;

/// A process that can be told from a later one with its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identified {
    pub(crate) pid: i32,
    /// In clock ticks since boot (proc_pid_stat(5)).
    pub(crate) start_time: u64,
}

impl Identified {
    /// The process of this pid, which lives.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let (_, start_time) = process_stat(pid)?;
        Some(Self {
            pid: pid.as_raw(),
            start_time,
        })
    }

    /// Whether it lives, or has ended and is not collected yet.
    fn is_there(self) -> bool {
        process_stat(Pid::from_raw(self.pid)).is_some_and(|(_, start_time)| start_time == self.start_time)
    }

    /// Whether it lives.
    pub(crate) fn is_alive(self) -> bool {
        process_stat(Pid::from_raw(self.pid))
            .is_some_and(|(state, start_time)| start_time == self.start_time && state != 'Z' && state != 'X')
    }

    /// Ends it, if it lives.
    pub(crate) fn kill(self) {
        // Opened first: what is found to be the process then stays it.
        if let Ok(pidfd) = process::pidfd_open(Pid::from_raw(self.pid))
            && self.is_alive()
        {
            let _ = process::pidfd_send_signal(pidfd, libc::SIGKILL);
        }
    }
}

/// A shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shim {
    pub(crate) process: Identified,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// A container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    /// In the runtime.
    pub(crate) id: String,
    /// Where the runtime keeps the state of its containers; that of a foreign one as it is told (`--root`).
    pub(crate) root: PathBuf,
    /// A foreign runtime's program; `None` is the one inside of the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) binary: Option<PathBuf>,
    /// Who serves it.
    pub(crate) shim: Option<Identified>,
    /// What a foreign runtime made, should it not be there to remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<Made>,
}

/// A container of a foreign runtime, as the kernel sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Its first process.
    pub(crate) init: Identified,
    pub(crate) cgroup: Cgroup,
}

/// A foreign runtime that makes a container. It leads a session of its own, in which its hooks are too.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Maker {
    pub(crate) process: Identified,
}

/// To be written with what stays with its owner.
#[derive(Serialize)]
struct Complete<'a> {
    made: &'a Made,
    #[serde(flatten)]
    of: Container,
}

impl Shim {
    const NAME: &str = "rtc-shim.json";

    /// Leaves it in a bundle.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        save(&bundle.join(Self::NAME), self)
    }

    /// The one left in a bundle.
    pub(crate) fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&bundle.join(Self::NAME))
    }
}

impl Maker {
    const NAME: &str = "rtc-runtime.json";

    /// Leaves it in a bundle.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        save(&bundle.join(Self::NAME), self)
    }

    /// The one left in a bundle.
    pub(crate) fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&bundle.join(Self::NAME))
    }

    /// It has ended by itself, and undone what it could not finish.
    pub(crate) fn ended(bundle: &Path) {
        // What is not there needs no removing.
        let _ = std::fs::remove_file(bundle.join(Self::NAME));
    }

    /// Kills it and what is left of its session.
    pub(crate) fn kill(&self) {
        self.process.kill();
        let leader = self.process.pid;
        // While one of the session lives, its number is no other process'.
        if process_stat(Pid::from_raw(leader)).is_some() && !self.process.is_there() {
            return;
        }
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.map(Pid::from_raw) {
            if let Ok(pidfd) = process::pidfd_open(pid)
                && getsid(Some(pid)).is_ok_and(|session| session.as_raw() == leader)
            {
                let _ = process::pidfd_send_signal(pidfd, libc::SIGKILL);
            }
        }
    }
}

impl Container {
    const NAME: &str = "rtc-container.json";

    /// One that this shim serves, or that of which this process is a worker.
    pub(crate) fn new(id: &ContainerId, root: &Path, binary: Option<&Path>, shim: Pid) -> Self {
        Self {
            id: id.to_string(),
            root: root.to_owned(),
            binary: binary.map(Path::to_owned),
            shim: Identified::of(shim),
            made: None,
        }
    }

    /// Leaves it in a bundle.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        save(&bundle.join(Self::NAME), self)
    }

    /// Takes it back: the container of the id is another's, for `delete` not to touch.
    pub(crate) fn take_back(bundle: &Path) {
        // One that stays says only too much.
        if let Err(error) = std::fs::remove_file(bundle.join(Self::NAME)) {
            log::warn(format_args!("take back the record in {bundle:?}: {error}"));
        }
    }

    /// Adds what a foreign runtime made, and gives back the cgroup. The container is there already: where this can't be
    /// written, `delete` needs the runtime.
    pub(crate) fn save_made(self, bundle: &Path, init: Pid, cgroup: Cgroup) -> Cgroup {
        let Some(init) = Identified::of(init) else {
            return cgroup;
        };
        let made = Made { init, cgroup };
        if let Err(error) = save(
            &bundle.join(Self::NAME),
            &Complete {
                made: &made,
                of: self,
            },
        ) {
            log::warn(format_args!("{error:#}"));
        }
        made.cgroup
    }

    /// The one left in a bundle.
    pub(crate) fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&bundle.join(Self::NAME))
    }
}

fn save(path: &Path, record: &impl Serialize) -> Result<()> {
    replace(path, &serde_json::to_vec(record)?)
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("open {path:?}"))?,
    };
    let mut content = Vec::new();
    file.take(LENGTH_MAX)
        .read_to_end(&mut content)
        .with_context(|| format!("read {path:?}"))?;
    let record = serde_json::from_slice(&content).with_context(|| format!("{path:?}"))?;
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_pid() {
        let own = Identified::of(nix::unistd::getpid()).unwrap();
        assert!(own.is_alive());
        let other = Identified {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!other.is_alive());
        // Does not hit us.
        other.kill();
    }

    #[test]
    fn what_was_saved_is_loaded_and_nothing_is_none() {
        let bundle = std::env::temp_dir().join(format!("rtc-shim-{}-record", std::process::id()));
        std::fs::create_dir_all(&bundle).unwrap();
        assert!(Container::load(&bundle).unwrap().is_none());
        let id = "web".parse().unwrap();
        let root = Path::new("/run/containerd/rtc/k8s.io");
        let container = Container::new(&id, root, None, nix::unistd::getpid());
        container.save(&bundle).unwrap();
        let loaded = Container::load(&bundle).unwrap().unwrap();
        assert_eq!(
            (loaded.id, loaded.root, loaded.shim),
            (container.id, container.root, container.shim)
        );
        std::fs::write(bundle.join(Container::NAME), "{").unwrap();
        assert!(Container::load(&bundle).is_err());
        std::fs::remove_dir_all(bundle).unwrap();
    }
}
