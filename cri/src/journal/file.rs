//! The file of a journal: read whole once, appended to, compacted.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Line;
use crate::log;

/// Fewer bytes than this are never worth a compaction.
const SMALL: u64 = 256 << 10;
/// A quarantine is not let grow beyond this.
const QUARANTINE_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    file: std::fs::File,
    /// The first line of one that dies with the boot.
    boot: Option<String>,
    /// Bytes that are whole lines. A write that failed is cut off.
    length: u64,
    /// As long as it was when everything in it counted.
    compact: u64,
    /// Something failed: what is on the disk is not known. It is written anew before anything else.
    broken: bool,
}

/// The machine's boot, as `/proc` names it.
pub(super) fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).context(PATH)?;
    Ok(text.trim().to_owned())
}

impl File {
    pub(super) fn open<T: DeserializeOwned>(
        path: &Path,
        boot: Option<String>,
    ) -> Result<(Self, BTreeMap<String, T>)> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let durable = boot.is_none();
        let read = read::<T>(&bytes, boot.as_deref());
        if !read.unreadable.is_empty() {
            quarantine(path, &read.unreadable);
        }
        let mut records = BTreeMap::new();
        let mut lines = Vec::new();
        for (key, (line, record)) in read.last {
            lines.push(line);
            records.insert(key, record);
        }
        let mut file = Self {
            path: path.to_owned(),
            file: std::fs::File::open("/dev/null").context("/dev/null")?,
            boot,
            length: 0,
            compact: 0,
            broken: false,
        };
        let compact = lines.iter().map(|line| line.len() as u64 + 1).sum();
        let usable = read.whole && bytes.len() as u64 <= SMALL + 2 * compact;
        if !usable || !file.take(bytes.len() as u64, compact, durable)? {
            file.replace(&lines, durable)?;
        }
        Ok((file, records))
    }

    /// Goes on with the file as it is, where it is for nobody else. With `sync`, what was read from it is on the disk.
    fn take(&mut self, length: u64, compact: u64, sync: bool) -> Result<bool> {
        let taking = || -> std::io::Result<Option<std::fs::File>> {
            let file = match OpenOptions::new().append(true).open(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            if file.metadata()?.mode() & 0o777 != 0o600 {
                return Ok(None);
            }
            if sync {
                file.sync_data()?;
            }
            Ok(Some(file))
        };
        let Some(file) = taking().with_context(|| self.path.display().to_string())? else {
            return Ok(false);
        };
        (self.file, self.length, self.compact) = (file, length, compact);
        Ok(true)
    }

    /// Adds whole lines; with `sync`, they are on the disk at its return.
    pub(super) fn append(&mut self, lines: &[u8], sync: bool) -> Result<()> {
        if self.broken {
            self.compact(sync)?;
        } else if self.length > SMALL + 2 * self.compact
            && let Err(error) = self.compact(sync)
        {
            // A file system that is full may have room for a line.
            log::warn(format_args!(
                "{}: can't be compacted: {error:#}",
                self.path.display()
            ));
            // Not with every line.
            self.compact = self.length;
        }
        let written = self.file.write_all(lines).and_then(|()| match sync {
            true => self.file.sync_data(),
            false => Ok(()),
        });
        match written {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // So that half a line is not followed by another. What a sync has lost, nobody knows.
                self.broken = self.cut().is_err() || sync;
                Err(error).with_context(|| format!("record in {}", self.path.display()))
            }
        }
    }

    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(std::io::SeekFrom::End(0)).map(drop)
    }

    /// Writes what counts into a new file, over this one.
    fn compact(&mut self, sync: bool) -> Result<()> {
        let mut bytes = std::fs::read(&self.path).with_context(|| self.path.display().to_string())?;
        bytes.truncate(usize::try_from(self.length).unwrap_or(usize::MAX));
        let lines: Vec<&[u8]> = read::<&RawValue>(&bytes, self.boot.as_deref())
            .last
            .into_values()
            .map(|(line, _)| line)
            .collect();
        self.replace(&lines, sync)
    }

    fn replace(&mut self, lines: &[&[u8]], sync: bool) -> Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let replacing = || -> Result<(std::fs::File, u64)> {
            // Not what somebody left there, with whatever mode.
            let _ = std::fs::remove_file(&new);
            let mut file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            let mut bytes = Vec::new();
            if let Some(boot) = &self.boot {
                bytes.extend(format!("{{\"boot\":\"{boot}\"}}\n").into_bytes());
            }
            for line in lines {
                bytes.extend_from_slice(line);
                bytes.push(b'\n');
            }
            file.write_all(&bytes)?;
            if sync {
                file.sync_all()?;
            }
            std::fs::rename(&new, &self.path)?;
            if sync && let Some(directory) = self.path.parent() {
                std::fs::File::open(directory)?.sync_all()?;
            }
            Ok((file, bytes.len() as u64))
        };
        let (file, length) = replacing().with_context(|| format!("write {}", self.path.display()))?;
        self.file = file;
        self.length = length;
        self.compact = length;
        self.broken = false;
        Ok(())
    }
}

struct Read<'a, T> {
    /// Of each key that is there: its last line, without its end, and the record in it.
    last: BTreeMap<String, (&'a [u8], T)>,
    unreadable: Vec<&'a [u8]>,
    /// Of this boot, and no line in it is torn or unreadable.
    whole: bool,
}

fn read<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8], boot: Option<&str>) -> Read<'a, T> {
    let mut read = Read {
        last: BTreeMap::new(),
        unreadable: Vec::new(),
        whole: bytes.is_empty() || bytes.ends_with(b"\n"),
    };
    // Behind the last line feed: nothing, or a line that is torn.
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |last| last);
    let mut lines = bytes
        .get(..whole)
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .peekable();
    if let Some(boot) = boot {
        let first = lines.next().and_then(|line| decode::<T>(line));
        if first.and_then(|line| line.boot).as_deref() != Some(boot) {
            read.whole = false;
            return read;
        }
    }
    for line in lines {
        match decode::<T>(line) {
            Some(Line {
                put: Some(key),
                record: Some(record),
                drop: None,
                boot: None,
            }) => {
                read.last.insert(key, (line, record));
            }
            Some(Line {
                put: None,
                record: None,
                drop: Some(key),
                boot: None,
            }) => {
                read.last.remove(&key);
            }
            _ => read.unreadable.push(line),
        }
    }
    read.whole &= read.unreadable.is_empty();
    read
}

fn decode<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Option<Line<T>> {
    serde_json::from_slice(line).ok()
}

/// What can't be read is kept for a person, and said.
fn quarantine(path: &Path, lines: &[&[u8]]) {
    let mut aside = path.to_owned().into_os_string();
    aside.push(".quarantine");
    let aside = PathBuf::from(aside);
    log::warn(format_args!(
        "{}: {} lines can't be read: they are left out, and kept in {}",
        path.display(),
        lines.len(),
        aside.display()
    ));
    let keeping = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&aside)?;
        let mut room = QUARANTINE_MAX.saturating_sub(file.metadata()?.len());
        for line in lines {
            let length = line.len() as u64 + 1;
            if length > room {
                break;
            }
            room -= length;
            file.write_all(line)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    };
    if let Err(error) = keeping() {
        log::warn(format_args!("{}: {error}", aside.display()));
    }
}
