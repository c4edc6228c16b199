//! The processes of a container's cgroup: listing, killing, and removing the cgroup when they are gone.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dir::{self, Dir};
use super::watch::Watched;
use super::{Cgroup, Driver};
use crate::sys::{Errno, Named as _};

/// How deep cgroups are looked through; the kernel's own limit is `cgroup.max.depth`, unlimited.
const DEPTH: usize = 64;
/// How often the processes are listed and killed before they are frozen for it.
const ROUNDS: usize = 5;
/// The longest pause between two looks at what can't be waited for.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Cgroup {
    /// The processes in the cgroup and in those below it, in the order found.
    ///
    /// None where the cgroup is gone, or there is none.
    ///
    /// # Errors
    ///
    /// Where it can't be read.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        if self.is_absent() {
            return Ok(found);
        }
        match self.main()?.dir() {
            Ok(dir) => collect(dir, &mut found, DEPTH)?,
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error.into()),
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Kills every process in the cgroup and below it, whatever it forks meanwhile. Does not wait for them to be gone.
    ///
    /// On v2 by `cgroup.kill` (Linux 5.14), else one by one.
    ///
    /// # Errors
    ///
    /// Where the cgroup can't be read or written.
    pub fn kill(&self) -> Result<()> {
        if self.is_absent() {
            return Ok(());
        }
        let main = match self.main()?.dir() {
            Ok(dir) => dir,
            Err(error) if error.errno == Errno::ENOENT => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if self.is_v2() {
            match main.write("cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                Err(error) if gone(error.errno) && !main.path().exists() => return Ok(()),
                // An older kernel, or (EOPNOTSUPP) a threaded cgroup, whose processes are to be killed one by one.
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A process with SIGKILL pending forks no more: done when a list has none that was not killed before.
        let mut killed = Vec::new();
        let mut rounds = 0..ROUNDS;
        while self.kill_new(&mut killed)? {
            if rounds.next().is_none() {
                // They fork faster than we read: frozen, they can't.
                self.freeze()?;
            }
        }
        if !self.is_v2() && self.is_frozen()? {
            // A process frozen by v1 takes its SIGKILL when it thaws.
            self.thaw()?;
        }
        Ok(())
    }

    /// Kills what is listed and was not killed before. Whether there was any.
    fn kill_new(&self, killed: &mut Vec<Pid>) -> Result<bool> {
        kill_listed(self.processes()?, killed)
    }

    /// Removes the cgroup and those below it, waiting until the kernel lets go of processes that were killed.
    /// One that is gone already is no error. Parents stay, as in runc: others may use them.
    ///
    /// With the systemd driver its unit is stopped, and forgotten if it failed.
    ///
    /// # Errors
    ///
    /// Where processes are still in it at the deadline.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        if self.driver == Driver::Systemd {
            super::systemd::stop(self, deadline)?;
        }
        // Trees are independent: one that fails does not keep the others.
        let mut first = Ok(());
        for tree in &self.trees {
            let removed =
                remove_tree(&tree.path, deadline).with_context(|| format!("cgroup {:?}", tree.path));
            first = first.and(removed);
        }
        first
    }

    /// Takes a creation back: removes the cgroup and every parent that was made for it, as far as unused.
    pub fn undo(&mut self) {
        let _ = self.remove(Instant::now() + Duration::from_secs(1));
        self.made.undo();
    }
}

/// Kills those that were not killed before. Whether there was any.
pub(crate) fn kill_listed(listed: Vec<Pid>, killed: &mut Vec<Pid>) -> Result<bool> {
    let before = killed.len();
    for pid in listed {
        // Those outside of our PID namespace are listed as 0, which would be our own process group.
        if pid.as_raw() <= 0 || killed[..before].contains(&pid) {
            continue;
        }
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => killed.push(pid),
            Err(errno) => return Err(errno).call(|| format!("kill({pid}, SIGKILL)"))?,
        }
    }
    Ok(killed.len() > before)
}

pub(super) fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENODEV)
}

/// Reads the processes of a cgroup and of those below it.
pub(super) fn collect(dir: &Dir, found: &mut Vec<Pid>, depth: usize) -> Result<()> {
    let listed = match dir.read_list("cgroup.procs") {
        Err(error) if gone(error.errno) => return Ok(()),
        // A threaded cgroup: its processes are listed in the domain above it, its threads here.
        Err(error) if error.errno == Errno::EOPNOTSUPP => match dir.read_list("cgroup.threads") {
            Err(error) if gone(error.errno) => return Ok(()),
            listed => listed?,
        },
        listed => listed?,
    };
    found.extend(
        listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .map(Pid::from_raw),
    );
    if depth == 0 {
        bail!("{:?}: cgroups nested more than {DEPTH} deep", dir.path());
    }
    let children = match dir.children() {
        Err(error) if gone(error.errno) => return Ok(()),
        children => children?,
    };
    for name in children {
        match dir.child(&name) {
            Ok(child) => collect(&child, found, depth - 1)?,
            Err(error) if gone(error.errno) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it, trying again while processes leave.
fn remove_tree(path: &Path, deadline: Instant) -> Result<()> {
    // A cgroup without processes that the container made no cgroups in takes one call.
    match dir::remove(path) {
        Ok(()) => return Ok(()),
        Err(error) if matches!(error.errno, Errno::EBUSY | Errno::ENOTEMPTY) => {}
        Err(error) => return Err(error.into()),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        bail!("no cgroup path");
    };
    let parent = match Dir::open(parent) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        parent => parent?,
    };
    let mut pause = Duration::from_micros(100);
    loop {
        let error = match remove_below(&parent, name, 0) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.errno != Errno::EBUSY || Instant::now() >= deadline {
            return Err(error.into());
        }
        wait_empty(&parent, name, pause, deadline);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

pub(super) fn remove_below(parent: &Dir, name: &str, depth: usize) -> crate::sys::Result<()> {
    match parent.remove(name) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        Err(error) if matches!(error.errno, Errno::EBUSY | Errno::ENOTEMPTY) && depth < DEPTH => {}
        done => return done,
    }
    let dir = match parent.child(name) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        dir => dir?,
    };
    for child in dir.children()? {
        remove_below(&dir, &child, depth + 1)?;
    }
    match parent.remove(name) {
        Err(error) if error.errno == Errno::ENOENT => Ok(()),
        done => done,
    }
}

/// Waits until no process is left in a cgroup: on v2 until the kernel says so, on v1 (which can't) for a pause.
///
/// A v2 cgroup may say so a moment before it can be removed; hence the pause there too, when it is empty already.
fn wait_empty(parent: &Dir, name: &str, pause: Duration, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let events = parent
        .child(name)
        .and_then(|dir| Watched::open(&dir, "cgroup.events"));
    match events {
        Ok(events)
            if events
                .value("populated")
                .is_ok_and(|populated| populated == Some(1)) =>
        {
            // What can't be waited for is met by the next attempt.
            let _ = events.wait(left);
        }
        _ => sleep(pause.min(left)),
    }
}
