//! A cgroup of its own for each process of `exec`, so that all it left behind can be found and killed. cgroup v2 only.
//!
//! ```text
//! <container>                 limits, devices, statistics: all of it, those below included
//!   `- exec-<pid of maker>    no controllers: only a way to name a set of processes
//! ```
//!
//! A cgroup with processes may have others below it as long as it passes no controllers on to them, which is so unless the
//! container does it (cgroups(7), "no internal processes"). So this is not for a container that keeps cgroups of its
//! own: whose cgroup is delegated to another user, threaded, or passes controllers on. Whether the container can write to
//! its cgroup is for the caller to know.
//!
//! Everything is done relative to the open directory of the container's cgroup, and only a name that was new is ours.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::stat::fstat;
use nix::unistd::Pid;

use super::Cgroup;
use super::dir::Dir;
use super::join::{JoinTarget, duplicate};
use super::members::{collect, gone, kill_listed, remove_below};
use crate::sys::{Errno, Named as _};

/// How the names begin.
const PREFIX: &str = "exec-";
/// `cgroup.type` of one that is neither threaded nor above threads.
const DOMAIN: &str = "domain";
/// How many names are tried.
const ATTEMPTS: u32 = 16;
/// How deep cgroups of an exec are looked through: it makes none itself.
const DEPTH: usize = 8;

/// The cgroup of a process of `exec`.
#[derive(Debug)]
pub struct ExecCgroup {
    container: Dir,
    own: Dir,
    name: String,
}

impl Cgroup {
    /// Makes a cgroup for a process of `exec`. `None` where that is not possible: the process belongs into the container's.
    ///
    /// # Errors
    ///
    /// The container's cgroup is gone, or can't be read.
    pub fn make_exec_cgroup(&self) -> Result<Option<ExecCgroup>> {
        if !self.is_v2() {
            return Ok(None);
        }
        let container = Dir::open(&self.main()?.path)?;
        if !is_plain(&container)? {
            return Ok(None);
        }
        let pid = std::process::id();
        for attempt in 0..ATTEMPTS {
            let name = match attempt {
                0 => format!("{PREFIX}{pid}"),
                more => format!("{PREFIX}{pid}-{more}"),
            };
            match container.make(&name) {
                Ok(false) => {}
                Ok(true) => {
                    let own = container.child(&name)?;
                    return Ok(Some(ExecCgroup { container, own, name }));
                }
                // A limit of depth or number, or one that is being removed: then without.
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The cgroup that the process `maker` has made, by its first name. `None`: there is none.
    ///
    /// # Errors
    ///
    /// It can't be opened.
    pub fn exec_cgroup_of(&self, maker: Pid) -> Result<Option<ExecCgroup>> {
        if self.is_v2() {
            self.exec_cgroup(&format!("{PREFIX}{maker}"))
        } else {
            Ok(None)
        }
    }

    /// The cgroup of a process of `exec` by its name. `None`: it is gone.
    ///
    /// # Errors
    ///
    /// The name is none of ours.
    pub fn exec_cgroup(&self, name: &str) -> Result<Option<ExecCgroup>> {
        if !name.starts_with(PREFIX) || name.contains('/') {
            bail!("{name:?}: not the name of an exec's cgroup");
        }
        let opened = Dir::open(&self.main()?.path).and_then(|container| {
            let own = container.child(name)?;
            Ok(ExecCgroup {
                container,
                own,
                name: name.to_owned(),
            })
        });
        match opened {
            Err(error) if gone(error.errno) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }
}

/// Whether the container leaves its cgroup to us.
fn is_plain(container: &Dir) -> Result<bool> {
    let owner = fstat(container).call(|| format!("fstat({:?})", container.path()))?;
    Ok(owner.st_uid == 0
        && container.read("cgroup.type")?.trim() == DOMAIN
        && container.read("cgroup.subtree_control")?.trim().is_empty())
}

impl ExecCgroup {
    /// Its name, for [`Cgroup::exec_cgroup`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For the clone.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn join_target(&self) -> Result<JoinTarget> {
        Ok(JoinTarget::V2(duplicate(&self.own)?))
    }

    /// The processes in it.
    ///
    /// # Errors
    ///
    /// It can't be read. One that is gone has none.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        collect(&self.own, &mut found, DEPTH)?;
        Ok(found)
    }

    /// Kills every process in it, whatever it forks meanwhile (`cgroup.kill`, Linux 5.14; before that those that are found).
    /// Waits for none.
    ///
    /// # Errors
    ///
    /// It can't be written. One that is gone is no error.
    pub fn kill(&self) -> Result<()> {
        match self.own.write("cgroup.kill", "1") {
            Ok(()) => Ok(()),
            Err(error) if gone(error.errno) => {
                let mut killed = Vec::new();
                while kill_listed(self.processes()?, &mut killed)? {}
                Ok(())
            }
            Err(error) => Err(error).context("kill the processes of an exec"),
        }
    }

    /// Takes its making back, killing what is in it. What can't be removed within a second goes with the container.
    pub fn discard(self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.kill().is_ok() && matches!(self.remove(), Ok(false)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes it, and what was made below it. `false`: a process is left in it, or is just leaving it; it goes with the
    /// container at the latest.
    ///
    /// # Errors
    ///
    /// As rmdir(2).
    pub fn remove(&self) -> Result<bool> {
        match remove_below(&self.container, &self.name, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::EBUSY => Ok(false),
            Err(error) => Err(error).context("remove the cgroup of an exec"),
        }
    }
}
