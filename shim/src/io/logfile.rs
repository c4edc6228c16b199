//! The file of a log: appended to, opened again after a rotation, rotated by size where that was asked for.
//!
//! Log directories are the kubelet's, but a pod may have them mounted (a log collector), so what is in them is not trusted:
//! the directory is opened once, when the container is made, and the file is a regular one in it, never behind a link. Else
//! whoever can write there could have the log of a container appended to a file of the host.
//!
//! A rotated file is named as the kubelet does (`0.log.20261127-234950`), by which its log manager finds, compresses and
//! counts it like its own.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rtc_runtime::sys::{Errno, Named as _};

/// What may be in the file's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A log of CRI: a regular file (0640) in a directory that exists.
    Cri,
    /// What a person named by `file://`: anything, with directories made for it, 0644, as containerd does.
    Plain,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    kind: Kind,
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    file: OwnedFd,
    size: u64,
    /// The last write ended in the middle of an entry.
    torn: bool,
}

impl LogFile {
    /// Opens or makes it.
    ///
    /// # Errors
    ///
    /// The directory is not there; in the file's place is something else.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self> {
        let name = path
            .file_name()
            .with_context(|| format!("{path:?}: names no file"))?
            .to_owned();
        let parent = path.parent().unwrap_or(Path::new("/"));
        if kind == Kind::Plain {
            std::fs::create_dir_all(parent).with_context(|| format!("make the directory {parent:?}"))?;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty()).call(|| format!("open({parent:?})"))?;
        let (file, size) =
            open_file(&directory, &name, kind).with_context(|| format!("open the log {path:?}"))?;
        Ok(Self {
            kind,
            path: path.to_owned(),
            directory,
            name,
            file,
            size,
            torn: false,
        })
    }

    /// Opens the path again, where there may be another file by now. The old one is let go only after that.
    ///
    /// # Errors
    ///
    /// As [`LogFile::open`]; the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let (file, size) = open_file(&self.directory, &self.name, self.kind)
            .with_context(|| format!("open the log {:?} again", self.path))?;
        (self.file, self.size, self.torn) = (file, size, false);
        Ok(())
    }

    /// Its size in bytes, as far as this process wrote it.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends whole entries.
    ///
    /// # Errors
    ///
    /// As write(2): the disk is full, for one. What was not written then is lost: the container goes on, as with
    /// containerd.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.torn {
            // What follows is an entry of its own.
            self.torn = self.write(b"\n").is_err();
        }
        self.write(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.file, bytes) {
                Ok(written) => {
                    self.torn =
                        self.kind == Kind::Cri && bytes[..written].last().is_some_and(|last| *last != b'\n');
                    self.size += written as u64;
                    bytes = &bytes[written..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(errno)
                        .call(|| format!("write({:?})", self.path))
                        .map_err(Into::into);
                }
            }
        }
        Ok(())
    }

    /// Puts the file aside and begins another, keeping `files` of them.
    ///
    /// # Errors
    ///
    /// Nothing is lost: the file in use stays so.
    pub(crate) fn rotate(&mut self, now: SystemTime, files: usize) -> Result<()> {
        self.put_aside(now)
            .with_context(|| format!("rotate the log {:?}", self.path))?;
        self.reopen()?;
        self.remove_oldest(files)
            .with_context(|| format!("remove old files of the log {:?}", self.path))
    }

    fn put_aside(&self, now: SystemTime) -> Result<()> {
        let stamp = kubelet_stamp(now);
        for attempt in 0..100 {
            let mut aside = self.name.clone();
            aside.push(".");
            aside.push(&stamp);
            if attempt > 0 {
                aside.push(format!("-{attempt:02}"));
            }
            let (here, flags) = (&self.directory, RenameFlags::RENAME_NOREPLACE);
            match renameat2(here, self.name.as_os_str(), here, aside.as_os_str(), flags) {
                // The kubelet was faster.
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(errno) => {
                    return Err(errno)
                        .call(|| format!("renameat2({aside:?})"))
                        .map_err(Into::into);
                }
            }
        }
        bail!("a hundred files of the second {stamp}")
    }

    /// Rotated files sort by their age.
    fn remove_oldest(&self, files: usize) -> Result<()> {
        let own = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        let mut rotated = Vec::new();
        for entry in std::fs::read_dir(own)? {
            let name = entry?.file_name();
            if is_rotated(&name, &self.name) {
                rotated.push(name);
            }
        }
        rotated.sort_unstable();
        let excess = (rotated.len() + 1).saturating_sub(files);
        for name in &rotated[..excess] {
            match unlinkat(&self.directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                // The kubelet was faster.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno)
                        .call(|| format!("unlinkat({name:?})"))
                        .map_err(Into::into);
                }
            }
        }
        Ok(())
    }
}

fn open_file(directory: &OwnedFd, name: &OsStr, kind: Kind) -> Result<(OwnedFd, u64)> {
    let append = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let (flags, mode) = match kind {
        // Not to wait for the reader of a FIFO, which is refused below.
        Kind::Cri => (append | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK, 0o640),
        Kind::Plain => (append, 0o644),
    };
    let file = match openat(directory, name, flags, Mode::from_bits_truncate(mode)) {
        Err(Errno::ELOOP) => bail!("it is a symbolic link, which could lead anywhere"),
        Err(Errno::ENXIO) => bail!("it is not a regular file"),
        other => other.call(|| format!("openat({name:?})"))?,
    };
    let found = fstat(&file).call(|| "fstat".into())?;
    let regular = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    if kind == Kind::Cri && !regular {
        bail!("it is not a regular file");
    }
    Ok((file, if regular { found.st_size.cast_unsigned() } else { 0 }))
}

/// `20261127-234950`: the time in a rotated file's name.
fn kubelet_stamp(now: SystemTime) -> String {
    rtc_runtime::log::timestamp(now)
        .replace(['-', ':', 'Z'], "")
        .replace('T', "-")
}

/// Whether it is a file of this log that was rotated: by the name, a time and perhaps more, as `.gz`. One with `.tmp` is
/// being made by the kubelet.
fn is_rotated(name: &OsStr, log: &OsStr) -> bool {
    let Some(rest) = name
        .as_bytes()
        .strip_prefix(log.as_bytes())
        .and_then(|rest| rest.strip_prefix(b"."))
    else {
        return false;
    };
    let Some((stamp, suffix)) = rest.split_at_checked(15) else {
        return false;
    };
    let is_stamp = stamp.iter().enumerate().all(|(n, byte)| match n {
        8 => *byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    is_stamp && !suffix.ends_with(b".tmp")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::tests::Dir;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_823_390 + seconds)
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_log_is_appended_to_and_for_its_group() {
        let dir = Dir::new();
        let path = dir.path("0.log");
        LogFile::open(&path, Kind::Cri).unwrap().append(b"one\n").unwrap();
        let mut again = LogFile::open(&path, Kind::Cri).unwrap();
        assert_eq!(again.size(), 4);
        again.append(b"two\n").unwrap();
        assert_eq!(read(&path), "one\ntwo\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn directories_are_made_for_a_file_of_a_person_only() {
        let dir = Dir::new();
        let error = LogFile::open(&dir.path("a/0.log"), Kind::Cri).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error:#}");
        LogFile::open(&dir.path("a/0.log"), Kind::Plain).unwrap();
    }

    #[test]
    fn a_link_a_fifo_and_a_directory_are_refused_at_open_and_at_reopen() {
        let dir = Dir::new();
        let (path, secret) = (dir.path("0.log"), dir.path("secret"));
        std::fs::write(&secret, "").unwrap();
        let mut log = LogFile::open(&path, Kind::Cri).unwrap();
        let make: [(&str, &dyn Fn()); 3] = [
            ("symbolic link", &|| symlink(&secret, &path).unwrap()),
            ("not a regular file", &|| {
                nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
            }),
            ("", &|| std::fs::create_dir(&path).unwrap()),
        ];
        for (n, (why, make)) in make.into_iter().enumerate() {
            std::fs::rename(&path, dir.path(&format!("aside{n}"))).unwrap();
            make();
            for error in [
                LogFile::open(&path, Kind::Cri).unwrap_err(),
                log.reopen().unwrap_err(),
            ] {
                assert!(format!("{error:#}").contains(why), "{error:#}");
            }
            log.append(b"x\n").unwrap();
        }
        assert_eq!(read(&secret), "");
        assert_eq!(read(&dir.path("aside0")), "x\nx\nx\n");
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
        let dir = Dir::new();
        for name in ["pod", "host"] {
            std::fs::create_dir(dir.path(name)).unwrap();
        }
        let mut log = LogFile::open(&dir.path("pod/0.log"), Kind::Cri).unwrap();
        std::fs::rename(dir.path("pod"), dir.path("moved")).unwrap();
        symlink(dir.path("host"), dir.path("pod")).unwrap();
        std::fs::remove_file(dir.path("moved/0.log")).unwrap();
        log.reopen().unwrap();
        log.append(b"x\n").unwrap();
        assert!(!dir.path("host/0.log").exists());
        assert_eq!(read(&dir.path("moved/0.log")), "x\n");
    }

    #[test]
    fn rotated_files_are_named_as_the_kubelet_s_and_the_oldest_go() {
        let dir = Dir::new();
        let path = dir.path("0.log");
        for name in [
            "0.log.20200101-000000.gz",
            "0.log.20200101-000001.tmp",
            "0.log.mine",
            "10.log.20200101-000000",
        ] {
            std::fs::write(dir.path(name), "").unwrap();
        }
        let mut log = LogFile::open(&path, Kind::Cri).unwrap();
        for n in 0..4 {
            log.append(format!("{n}\n").as_bytes()).unwrap();
            // Two in the same second.
            log.rotate(at(n / 2), 4).unwrap();
            assert_eq!(log.size(), 0);
        }
        log.append(b"last\n").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "0.log",
                "0.log.20200101-000001.tmp",
                "0.log.20261127-234950-01",
                "0.log.20261127-234951",
                "0.log.20261127-234951-01",
                "0.log.mine",
                "10.log.20200101-000000"
            ]
        );
        assert_eq!(read(&dir.path("0.log.20261127-234951-01")), "3\n");
        assert_eq!(read(&path), "last\n");
    }

    #[test]
    fn a_rotation_that_the_kubelet_did_first_opens_the_new_file() {
        let dir = Dir::new();
        let path = dir.path("0.log");
        let mut log = LogFile::open(&path, Kind::Cri).unwrap();
        log.append(b"old\n").unwrap();
        std::fs::rename(&path, dir.path("0.log.20261127-234950")).unwrap();
        log.rotate(at(0), 5).unwrap();
        log.append(b"new\n").unwrap();
        assert_eq!(read(&path), "new\n");
        assert_eq!(read(&dir.path("0.log.20261127-234950")), "old\n");
    }

    #[test]
    fn after_a_full_disk_the_next_entry_begins_a_line() {
        let mut log = LogFile::open(Path::new("/dev/full"), Kind::Plain).unwrap();
        assert!(
            log.append(b"x\n")
                .unwrap_err()
                .to_string()
                .contains("No space left")
        );
        let dir = Dir::new();
        let mut log = LogFile::open(&dir.path("0.log"), Kind::Cri).unwrap();
        log.append(b"half an en").unwrap();
        log.append(b"whole\n").unwrap();
        assert_eq!(read(&dir.path("0.log")), "half an en\nwhole\n");
        assert!(std::fs::metadata(dir.path("0.log")).unwrap().size() > 0);
    }
}
