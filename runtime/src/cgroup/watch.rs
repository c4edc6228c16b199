//! Waiting for a change of a cgroup v2 file that announces its changes (`cgroup.events`, `memory.events`).
//!
//! The kernel compares its count of changes with the one at this descriptor's last *read*: reading first and polling
//! then loses nothing between the two (kernfs, `kernfs_generic_poll`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::dir::Dir;
use crate::sys::{Errno, Named as _, Result};

/// A file that is read and then waited for.
#[derive(Debug)]
pub(super) struct Watched {
    file: OwnedFd,
    name: &'static str,
}

impl Watched {
    pub(super) fn open(dir: &Dir, name: &'static str) -> Result<Self> {
        Ok(Self {
            file: dir.file(name, OFlag::O_RDONLY)?,
            name,
        })
    }

    /// The value of a key (`populated`, `frozen`, `oom_kill`): `None` where the kernel does not know it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the cgroup was removed.
    pub(super) fn value(&self, key: &str) -> Result<Option<u64>> {
        let mut buffer = [0; 512];
        let length =
            nix::sys::uio::pread(&self.file, &mut buffer, 0).call(|| format!("read {}", self.name))?;
        Ok(value(&buffer[..length], key))
    }

    /// Waits for the next change after the last read, at most so long.
    pub(super) fn wait(&self, timeout: Duration) -> Result<()> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).call(|| format!("poll {}", self.name)),
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Lines `key value`.
fn value(content: &[u8], key: &str) -> Option<u64> {
    content.split(|byte| *byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        std::str::from_utf8(value).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_found_by_its_whole_name() {
        let content = b"oom 1\noom_kill 2\noom_group_kill 3\n";
        assert_eq!(super::value(content, "oom_kill"), Some(2));
        assert_eq!(super::value(content, "oom"), Some(1));
        assert_eq!(super::value(content, "kill"), None);
    }
}
