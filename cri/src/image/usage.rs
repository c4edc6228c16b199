//! What an upper layer takes, counted now and then.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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

impl Usage {
    /// With what another directory takes, where it is there.
    fn and(self, other: Option<Self>) -> Self {
        Self {
            bytes: self.bytes + other.map_or(0, |other| other.bytes),
            inodes: self.inodes + other.map_or(0, |other| other.inodes),
            ..self
        }
    }
}

/// The kubelet asks every 10 seconds.
const FRESH: Duration = Duration::from_secs(9);
/// Counting takes at most this part of the time.
const SHARE: u32 = 20;

/// A first count is waited for no longer: it goes on, and is there for who asks next.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Bytes of names of directories that wait to be counted.
const PENDING_MAX: usize = 4 << 20;
/// Files of several names that are remembered.
const LINKED_MAX: usize = 1 << 20;

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

    /// What both directories take, the second where it is there, as it was counted last; the first count is waited for a
    /// moment, others go on behind the answer.
    pub(super) async fn now(self: &Arc<Self>, directories: [PathBuf; 2]) -> Option<Usage> {
        let state = self.state();
        if let Some((usage, end, took)) = state
            && end.elapsed() < FRESH.max(took * SHARE)
        {
            return Some(usage);
        }
        let turn = match Arc::clone(&self.turn).try_lock_owned() {
            Ok(turn) => turn,
            Err(_) if state.is_some() => return self.last(),
            // Another waits for the first.
            Err(_) => {
                let _ = tokio::time::timeout(FIRST_WAIT, self.turn.lock()).await;
                return self.last();
            }
        };
        let own = Arc::clone(self);
        let counting = tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let [first, more] = directories.map(|directory| count(&directory).ok());
            let counted = first.map(|first| first.and(more));
            if let Some(usage) = counted {
                *locked(&own.last) = Some((usage, Instant::now(), start.elapsed()));
            }
            drop(turn);
            counted
        });
        match state {
            Some((usage, ..)) => Some(usage),
            None => tokio::time::timeout(FIRST_WAIT, counting).await.ok()?.ok()?,
        }
    }
}

/// Blocks of all files in a directory, each inode once. A container may change it meanwhile: what can't be seen is not counted.
/// It may also have any number of files: what is remembered of them is limited.
pub(super) fn count(directory: &Path) -> nix::Result<Usage> {
    count_with(directory, PENDING_MAX)
}

fn count_with(directory: &Path, pending_max: usize) -> nix::Result<Usage> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(directory, flags, Mode::empty())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut counting = Counting {
        bytes: 0,
        inodes: 0,
        linked: HashSet::new(),
        pending: 0,
        pending_max,
    };
    if let Ok(stat) = nix::sys::stat::fstat(&root) {
        counting.bytes += blocks(stat.st_blocks);
        counting.inodes += 1;
    }
    let mut path = Vec::new();
    let mut levels = vec![Level::default()];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        if let Some(name) = level.todo.pop() {
            counting.pending -= name.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
            let length = path.len();
            levels.push(Level {
                length,
                ..Level::default()
            });
        } else if level.is_read {
            levels.pop();
        } else {
            level.is_read = true;
            // Links are not followed, wherever they were put.
            if let Ok(Some(directory)) = beneath::directory(&root, &path) {
                let _ = counting.read(&directory, level);
            }
        }
    }
    Ok(Usage {
        bytes: counting.bytes,
        inodes: counting.inodes,
        timestamp: now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)),
    })
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

/// A directory on the way down.
#[derive(Default)]
struct Level {
    /// Of its path.
    length: usize,
    /// How many of its entries were counted, and whether these are all.
    entries: usize,
    is_read: bool,
    /// Directories of these, by name.
    todo: Vec<Vec<u8>>,
}

struct Counting {
    bytes: u64,
    inodes: u64,
    /// Files of several names.
    linked: HashSet<u64>,
    /// Bytes of the names that wait.
    pending: usize,
    pending_max: usize,
}

impl Counting {
    /// Counts a directory's entries, or some of them: where too many directories wait, it is read on when they are counted.
    fn read(&mut self, directory: &OwnedFd, level: &mut Level) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut all = Dir::from_fd(openat(directory, ".", flags, Mode::empty())?)?;
        for entry in all.iter().skip(level.entries) {
            level.entries += 1;
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let Some(stat) = removal::stat(directory, name)? else {
                continue;
            };
            let is_directory = removal::is_directory(&stat);
            if !is_directory && stat.st_nlink > 1 && self.is_known(stat.st_ino) {
                continue;
            }
            self.bytes += blocks(stat.st_blocks);
            self.inodes += 1;
            if is_directory {
                level.todo.push(name.to_vec());
                self.pending += name.len();
                if self.pending > self.pending_max {
                    level.is_read = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether a file was counted by another name. Of very many the later ones count by each.
    fn is_known(&mut self, inode: u64) -> bool {
        if self.linked.len() < LINKED_MAX {
            return !self.linked.insert(inode);
        }
        self.linked.contains(&inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_first_count_is_waited_for_a_moment_only() {
        let measured = Arc::new(Measured::default());
        let counts = Arc::clone(&measured.turn).lock_owned().await;
        let begun = Instant::now();
        assert_eq!(measured.now(&std::env::temp_dir()).await, None);
        assert!(begun.elapsed() < FIRST_WAIT * 5);
        let state = (count(Path::new("/proc/self/ns")).unwrap(), Instant::now(), FRESH);
        *measured.last.lock().unwrap() = Some(state);
        drop(counts);
        assert_eq!(measured.now(&std::env::temp_dir()).await, Some(state.0));
    }

    #[test]
    fn all_is_counted_once_however_little_may_be_remembered() {
        let path = std::env::temp_dir().join(format!("rtc-usage-{}", std::process::id()));
        for directory in 0..20 {
            let inner = path.join(format!("directory-{directory}/a/b"));
            std::fs::create_dir_all(&inner).unwrap();
            std::fs::write(inner.join("file"), vec![1; 5000]).unwrap();
            std::fs::hard_link(inner.join("file"), path.join(format!("link-{directory}"))).unwrap();
        }
        let usages = [PENDING_MAX, 20, 0].map(|most| count_with(&path, most).unwrap());
        std::fs::remove_dir_all(&path).unwrap();
        for usage in usages {
            assert_eq!(usage.inodes, 1 + 20 * 4);
            assert_eq!(usage.bytes, usages[0].bytes);
        }
        assert!(usages[0].bytes >= 20 * 5000);
    }
}
