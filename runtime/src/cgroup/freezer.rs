//! Stopping and resuming every process of a container.
//!
//! ```text
//! v2  cgroup.freeze 1 -> poll(cgroup.events) until "frozen 1"      0: thawing needs no wait
//! v1  freezer.state FROZEN -> FREEZING ... -> FROZEN               THAWED
//! ```
//!
//! On v1 a process that is being born or is in an uninterruptible sleep keeps the state at `FREEZING`; asking again
//! helps, and nothing tells when it is done, so it is asked at growing intervals.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Cgroup;
use super::dir::Dir;
use super::watch::Watched;
use crate::sys::Errno;

/// How long freezing may take before it is given up (runc: 10 s).
const LIMIT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// The directory whose freezer stops all of it, for who does that himself; none where the machine has no freezer.
    #[must_use]
    pub fn freezer(&self) -> Option<&Path> {
        self.tree("freezer").ok().map(|tree| tree.path.as_path())
    }

    /// Stops every process in the cgroup and below it; returns when all are stopped.
    ///
    /// # Errors
    ///
    /// Where they are not within 10 seconds; then they are let go again.
    pub fn freeze(&self) -> Result<()> {
        let dir = self.tree("freezer")?.dir()?;
        let frozen = if self.is_v2() {
            freeze_v2(dir)
        } else {
            freeze_v1(dir)
        };
        if frozen.is_err() {
            // Half frozen is worse than running; the first error is the one to tell.
            let _ = self.thaw();
        }
        frozen
    }

    /// Lets every process in the cgroup go on.
    ///
    /// # Errors
    ///
    /// Where the cgroup is gone or can't be written.
    pub fn thaw(&self) -> Result<()> {
        let dir = self.tree("freezer")?.dir()?;
        let written = if self.is_v2() {
            dir.write("cgroup.freeze", "0")
        } else {
            dir.write("freezer.state", "THAWED")
        };
        match written {
            // A kernel without the v2 freezer (before 5.2) has nothing frozen.
            Err(error) if self.is_v2() && error.errno == Errno::ENOENT && dir.path().exists() => Ok(()),
            written => Ok(written?),
        }
    }

    /// Whether the container was frozen ([`Cgroup::freeze`]), completely or not yet. A cgroup that is gone is not.
    ///
    /// Asks for what was set, not for what has happened: thawed processes count as frozen until they run again.
    ///
    /// # Errors
    ///
    /// Where the state can't be read.
    pub fn is_frozen(&self) -> Result<bool> {
        self.freezer_says("cgroup.freeze", "1")
    }

    /// Whether a process would stop at once in this cgroup: it or one above it is frozen.
    pub(super) fn stops_processes(&self) -> Result<bool> {
        self.freezer_says("cgroup.events", "frozen 1")
    }

    fn freezer_says(&self, file: &str, frozen: &str) -> Result<bool> {
        let Ok(tree) = self.tree("freezer") else {
            return Ok(false);
        };
        let file = if self.is_v2() { file } else { "freezer.state" };
        match tree.read(file) {
            Ok(state) => Ok(state
                .lines()
                .any(|line| line == frozen || matches!(line, "FROZEN" | "FREEZING"))),
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn freeze_v2(dir: &Dir) -> Result<()> {
    let events = Watched::open(dir, "cgroup.events")?;
    dir.write("cgroup.freeze", "1")?;
    let deadline = Instant::now() + LIMIT;
    while events.value("frozen")? != Some(1) {
        events.wait(left(dir, deadline)?)?;
    }
    Ok(())
}

/// The time that is left to reach a stop.
fn left(dir: &Dir, deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        bail!(
            "cgroup {:?}: not frozen after {} s: a process does not reach a stop",
            dir.path(),
            LIMIT.as_secs()
        );
    }
    Ok(left)
}

fn freeze_v1(dir: &Dir) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_micros(50);
    loop {
        // Asking again catches what was born since.
        dir.write("freezer.state", "FROZEN")?;
        if dir.read("freezer.state")?.trim() == "FROZEN" {
            return Ok(());
        }
        sleep(pause.min(left(dir, deadline)?));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
