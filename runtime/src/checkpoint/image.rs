//! The directories of a checkpoint: the image, and where CRIU works and writes its log.
//!
//! ```text
//! <image>/inventory.img, core-1.img, ...    CRIU's
//! <image>/descriptors.json                  ours and runc's: what stdin, stdout and stderr of init were
//! <image>/parent -> ../previous             CRIU's, to an earlier --pre-dump
//! <work>/dump.log, restore.log              CRIU's
//! ```
//!
//! An image is made of a container's memory: whoever reads it knows the container's secrets, and whoever writes it runs
//! programs as root at its restore, since CRIU follows it. So it is private, and it is the caller who vouches for it. What we
//! read of it ourselves is opened by its directory, never through a link, and decides nothing but which pipe is which.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::sys::Named;

/// What every image of CRIU has.
const INVENTORY: &str = "inventory.img";

/// A directory, open.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Makes it, for the user alone, where it is missing.
    ///
    /// # Errors
    ///
    /// Names the flag it comes from. One that others may write is refused: they could put links there, which CRIU follows.
    pub(super) fn make(path: &Path, flag: &str) -> Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.call(|| format!("mkdir({path:?})"))
            .with_context(|| flag.to_owned())?;
        Self::open(path, flag)
    }

    /// Opens one that is there.
    ///
    /// # Errors
    ///
    /// As [`Directory::make`].
    pub(super) fn open(path: &Path, flag: &str) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("{flag} {path:?}"))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&path, flags, Mode::empty())
            .call(|| format!("open({path:?})"))
            .with_context(|| flag.to_owned())?;
        let found = nix::sys::stat::fstat(&fd).call(|| "fstat".into())?;
        if found.st_mode & 0o002 != 0 {
            bail!(
                "{flag} {path:?}: every user may write to it: must be writable by its owner alone (chmod 700)"
            );
        }
        let own = nix::unistd::geteuid().as_raw();
        if found.st_uid != own && found.st_uid != 0 {
            bail!(
                "{flag} {path:?}: belongs to user {}: must be yours (user {own})",
                found.st_uid
            );
        }
        Ok(Self { fd, path })
    }

    /// The same directory once more, as another mount namespace has it.
    ///
    /// # Errors
    ///
    /// What is there now is another one.
    pub(super) fn again(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let again = open(&self.path, flags, Mode::empty()).call(|| format!("open({:?})", self.path))?;
        let identity = |directory: &OwnedFd| -> Result<_> {
            let found = nix::sys::stat::fstat(directory).call(|| "fstat".into())?;
            Ok((found.st_dev, found.st_ino))
        };
        if identity(&again)? != identity(&self.fd)? {
            bail!("{:?}: was replaced by another directory", self.path);
        }
        Ok(again)
    }

    /// Where it is, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its number among our descriptors.
    pub(super) fn number(&self) -> u64 {
        u64::from(self.fd.as_raw_fd().cast_unsigned())
    }

    /// Whether there is an image in it.
    pub(super) fn has_image(&self) -> bool {
        self.file(INVENTORY).is_ok()
    }

    /// Writes a file of it, for the user alone.
    ///
    /// # Errors
    ///
    /// As openat(2), write(2).
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let place = || self.path.join(name).display().to_string();
        let fd = openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .call(|| format!("openat({name:?})"))
            .with_context(place)?;
        File::from(fd).write_all(bytes).with_context(place)
    }

    /// Reads a file of it, of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// It is missing, no regular file, or larger.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (file, size) = self.file(name)?;
        if size > limit {
            bail!("{name}: {size} bytes: must be at most {limit}");
        }
        let mut bytes = Vec::new();
        file.take(limit)
            .read_to_end(&mut bytes)
            .with_context(|| name.to_owned())?;
        Ok(bytes)
    }

    /// The end of a file of it, `limit` bytes at most.
    ///
    /// # Errors
    ///
    /// It is missing, or no regular file.
    pub(super) fn tail(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (mut file, size) = self.file(name)?;
        file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A regular file of it, and its size. Never waits.
    fn file(&self, name: &str) -> Result<(File, u64)> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).call(|| format!("openat({name:?})"))?;
        let file = File::from(fd);
        let metadata = file.metadata().with_context(|| name.to_owned())?;
        if !metadata.is_file() {
            bail!("{name}: not a regular file");
        }
        Ok((file, metadata.size()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rtc-image-{}-{name}", std::process::id()))
    }

    #[test]
    fn it_is_made_for_its_owner_alone_and_read_back() {
        let path = place("made");
        let directory = Directory::make(&path.join("deep"), "--image-path").unwrap();
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o777, 0o700);
        assert!(!directory.has_image());
        directory.write(INVENTORY, b"12345").unwrap();
        assert!(directory.has_image());
        assert_eq!(directory.read(INVENTORY, 5).unwrap(), b"12345");
        assert!(directory.read(INVENTORY, 4).is_err());
        assert_eq!(directory.tail(INVENTORY, 2).unwrap(), b"45");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn cve_2026_53489_what_is_read_is_never_behind_a_link() {
        let path = place("link");
        let directory = Directory::make(&path, "--image-path").unwrap();
        fs::write(path.join("secret"), "x").unwrap();
        symlink("secret", path.join("dump.log")).unwrap();
        assert!(directory.tail("dump.log", 10).is_err());
        assert!(directory.write("dump.log", b"y").is_err());
        assert_eq!(fs::read(path.join("secret")).unwrap(), b"x");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn one_that_every_user_may_write_is_refused() {
        let path = place("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Directory::make(&path, "--work-path").unwrap_err();
        assert!(format!("{error:#}").starts_with("--work-path"), "{error:#}");
        fs::remove_dir(path).unwrap();
    }

    #[test]
    fn a_missing_one_is_named() {
        let error = Directory::open(Path::new("/nonexistent"), "--image-path").unwrap_err();
        assert!(
            format!("{error:#}").contains("--image-path: open(\"/nonexistent\")"),
            "{error:#}"
        );
    }
}
