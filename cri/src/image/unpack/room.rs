//! The room on the disk that stays free, however many layers come at once, and whoever else writes.

use std::os::fd::AsFd;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::statvfs::{Statvfs, fstatvfs};

use super::Limits;

/// So many bytes stay free.
const BYTES_LEFT: u64 = 256 << 20;
/// And so many inodes: a part of all, and no more than this.
const INODES_LEFT: u64 = 16 << 10;
const INODES_PART: u64 = 64;

/// It is looked at after so many bytes or inodes.
const STEP: u64 = 4 << 20;
const INODES_STEP: u64 = 256;
/// What a file system allocates at least, in bytes.
const ALLOCATED: u64 = 4096;

/// What a layer takes.
#[derive(Debug)]
pub(super) struct Room {
    limits: Limits,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Since the last look at the disk.
    new_bytes: u64,
    new_inodes: u64,
}

impl Room {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: 0,
            inodes: 0,
            new_bytes: 0,
            new_inodes: 0,
        }
    }

    /// Takes bytes of a file on this disk.
    ///
    /// # Errors
    ///
    /// `ENOSPC`: there is no room.
    pub(super) fn take(&mut self, disk: impl AsFd, bytes: u64) -> Result<()> {
        self.bytes += bytes;
        self.new_bytes += bytes;
        if self.bytes > self.limits.bytes {
            return Err(full(self.limits.bytes, "bytes"));
        }
        self.look(disk)
    }

    /// The end of a file: blocks are taken whole.
    pub(super) fn end_file(&mut self) {
        self.bytes = self.bytes.next_multiple_of(ALLOCATED);
    }

    /// Takes a file, or what else has a name.
    ///
    /// # Errors
    ///
    /// As `take`.
    pub(super) fn take_inode(&mut self, disk: impl AsFd) -> Result<()> {
        self.inodes += 1;
        self.new_inodes += 1;
        if self.inodes > self.limits.entries {
            return Err(full(self.limits.entries, "files"));
        }
        self.look(disk)
    }

    fn look(&mut self, disk: impl AsFd) -> Result<()> {
        if self.new_bytes < STEP && self.new_inodes < INODES_STEP {
            return Ok(());
        }
        (self.new_bytes, self.new_inodes) = (0, 0);
        let disk = fstatvfs(disk).context("fstatvfs")?;
        if bytes_free(&disk) == 0 || inodes_free(&disk) == 0 {
            return Err(Errno::ENOSPC).context("what is left of the disk has to stay free");
        }
        Ok(())
    }
}

fn full(limit: u64, what: &str) -> anyhow::Error {
    anyhow::Error::new(Errno::ENOSPC).context(format!(
        "it has more than {limit} {what}, and there is no room for them"
    ))
}

/// Bytes that may be taken.
pub(super) fn bytes_free(disk: &Statvfs) -> u64 {
    let all = disk.blocks_available().saturating_mul(disk.fragment_size());
    all.saturating_sub(BYTES_LEFT)
}

/// Inodes that may be taken.
pub(super) fn inodes_free(disk: &Statvfs) -> u64 {
    // File systems that make inodes as they need them have no count.
    if disk.files() == 0 {
        return u64::MAX;
    }
    let left = INODES_LEFT.min(disk.files() / INODES_PART);
    disk.files_available().saturating_sub(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::tests::{Place, is_root};

    #[test]
    fn a_disk_is_not_filled_whoever_else_writes() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        if !is_root() {
            return;
        }
        let place = Place::new();
        let path = place.layer();
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=260m"),
        )
        .unwrap();
        let disk = std::fs::File::open(&path).unwrap();
        let mut room = Room::new(Limits {
            bytes: u64::MAX,
            entries: u64::MAX,
        });
        let before = room.take(&disk, STEP);
        // Another one's.
        std::fs::write(path.join("other"), vec![1; 5 << 20]).unwrap();
        let (small, after) = (room.take(&disk, STEP - 1), room.take(&disk, 1));
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        assert!(before.is_ok() && small.is_ok());
        assert!(crate::image::unpack::is_full(&after.unwrap_err()));
    }
}
