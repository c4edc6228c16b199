//! What an upper layer takes, counted now and then.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::{beneath, removal};
use crate::locked;

/// What a directory takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Nanoseconds since the epoch: when it was measured.
    pub(crate) timestamp: i64,
}

/// The kubelet asks every 10 seconds.
const FRESH: Duration = Duration::from_secs(9);
/// Counting takes at most this part of the time.
const SHARE: u32 = 20;

/// The last count of one directory.
#[derive(Debug, Default)]
pub(super) struct Measured {
    last: Mutex<Option<(Usage, Instant, Duration)>>,
    /// The turn of who counts.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Measured {
    /// What was counted last.
    pub(super) fn last(&self) -> Option<Usage> {
        self.state().map(|(usage, ..)| usage)
    }

    fn state(&self) -> Option<(Usage, Instant, Duration)> {
        *locked(&self.last)
    }

    /// What was counted last; the first count is waited for, others go on behind the answer.
    pub(super) async fn now(self: &Arc<Self>, directory: &Path) -> Option<Usage> {
        let state = self.state();
        if let Some((usage, end, took)) = state
            && end.elapsed() < FRESH.max(took * SHARE)
        {
            return Some(usage);
        }
        let turn = match Arc::clone(&self.turn).try_lock_owned() {
            Ok(turn) => turn,
            Err(_) if state.is_some() => return self.last(),
            Err(_) => Arc::clone(&self.turn).lock_owned().await,
        };
        let (own, directory) = (Arc::clone(self), directory.to_owned());
        let counting = tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let counted = count(&directory).ok();
            if let Some(usage) = counted {
                *locked(&own.last) = Some((usage, Instant::now(), start.elapsed()));
            }
            drop(turn);
            counted
        });
        match state {
            Some((usage, ..)) => Some(usage),
            None => counting.await.ok().flatten(),
        }
    }
}

/// Blocks of all files in a directory, each inode once. A container may change it meanwhile: what can't be seen is not counted.
pub(super) fn count(directory: &Path) -> nix::Result<Usage> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(directory, flags, Mode::empty())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut usage = Usage {
        bytes: 0,
        inodes: 0,
        timestamp: now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)),
    };
    if let Ok(stat) = nix::sys::stat::fstat(&root) {
        usage.bytes += blocks(stat.st_blocks);
        usage.inodes += 1;
    }
    let mut linked = HashSet::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        // Links are not followed, wherever they were put.
        if let Ok(Some(directory)) = beneath::directory(&root, &path) {
            let _ = count_one(&directory, &path, &mut usage, &mut linked, &mut todo);
        }
    }
    Ok(usage)
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

fn count_one(
    directory: &OwnedFd,
    path: &[u8],
    usage: &mut Usage,
    linked: &mut HashSet<u64>,
    todo: &mut Vec<Vec<u8>>,
) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    for entry in Dir::from_fd(openat(directory, ".", flags, Mode::empty())?)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let Some(stat) = removal::stat(directory, name)? else {
            continue;
        };
        let is_directory = removal::is_directory(&stat);
        if !is_directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
            continue;
        }
        usage.bytes += blocks(stat.st_blocks);
        usage.inodes += 1;
        if is_directory {
            let path = if path.is_empty() {
                name.to_vec()
            } else {
                [path, b"/", name].concat()
            };
            todo.push(path);
        }
    }
    Ok(())
}
