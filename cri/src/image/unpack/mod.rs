//! The unpacker: a process of its own for each layer, which takes it compressed and fills one directory with it.
//!
//! ```text
//! rtc-cri unpack-layer DIRECTORY BYTES ENTRIES      a copy of this program, started by ../layer.rs
//!   confine      no other descriptor, own mount, network and IPC namespaces, the directory is its root,
//!                six capabilities, nothing to gain, limits
//!   stdin  ----> decompress -> digest -> tar -> files
//!   stdout ----> one Outcome as JSON, at the end
//! ```

mod confine;
mod pax;
mod room;
mod sparse;
mod stream;
mod tar;
mod tree;

#[cfg(test)]
mod tests;

use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::statvfs::Statvfs;
use serde::{Deserialize, Serialize};

pub(super) use tree::is_whiteout;

/// The hidden argument that makes `rtc-cri` one.
pub(crate) const ARGUMENT: &str = "unpack-layer";

/// What a layer may have, as the disk was when it was begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of all its files.
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Limits {
    /// Of a layer on this disk.
    pub(super) fn of(disk: &Statvfs) -> Self {
        Self {
            bytes: room::bytes_free(disk),
            entries: room::inodes_free(disk),
        }
    }
}

/// What was unpacked, and what has to be done where the layers below are known. Paths are names joined by `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// `sha256:...` of the plain tar.
    pub(super) diff_id: String,
    /// What its files take.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Whether it says what the root is like.
    pub(super) root_is_named: bool,
    /// Directories that no entry names, those above first.
    #[serde(with = "paths")]
    pub(super) implicit: Vec<Vec<u8>>,
    /// Directories that hide what is in those below.
    #[serde(with = "paths")]
    pub(super) opaque: Vec<Vec<u8>>,
    /// Hard links, name and target, to files of layers below.
    #[serde(with = "pairs")]
    pub(super) links: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What the process says in the end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Done(Summary),
    /// The disk is full, or was about to be.
    Full(String),
    Failed(String),
}

/// The process.
pub(crate) fn main(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let mut number = || arguments.next()?.to_str()?.parse().ok();
    let (Some(bytes), Some(entries), Some(directory)) = (number(), number(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let limits = Limits { bytes, entries };
    let result = std::panic::catch_unwind(|| {
        let root = confine::confine(Path::new(&directory)).context("confine the unpacker")?;
        unpack(std::io::stdin().lock(), root, limits)
    });
    let outcome = match result {
        Ok(Ok(summary)) => Outcome::Done(summary),
        Ok(Err(error)) if is_full(&error) => Outcome::Full(format!("{error:#}")),
        Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
        Err(_) => Outcome::Failed("the unpacker has a defect".to_owned()),
    };
    let text = serde_json::to_vec(&outcome).unwrap_or_default();
    match std::io::stdout().lock().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let errno = cause.downcast_ref::<Errno>().copied();
        let io = cause.downcast_ref::<std::io::Error>();
        let errno = errno.or_else(|| io?.raw_os_error().map(Errno::from_raw));
        matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT))
    })
}

/// Unpacks a layer into a directory.
fn unpack(compressed: impl Read, root: OwnedFd, limits: Limits) -> Result<Summary> {
    let mut reader = tar::Reader::new(stream::Plain::new(compressed)?);
    let mut tree = tree::Tree::new(root, limits);
    while let Some(entry) = reader.next()? {
        tree.put(&entry, &mut reader)
            .with_context(|| format!("{:?}", String::from_utf8_lossy(&entry.name)))?;
    }
    tree.finish(reader.finish()?)
}

/// Paths are bytes, and JSON has characters: each byte is the character of its number.
mod paths {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn text(path: &[u8]) -> String {
        path.iter().map(|byte| char::from(*byte)).collect()
    }

    pub(super) fn bytes<E: serde::de::Error>(text: &str) -> Result<Vec<u8>, E> {
        text.chars()
            .map(|character| u8::try_from(u32::from(character)).map_err(E::custom))
            .collect()
    }

    pub(super) fn serialize<S: Serializer>(paths: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = paths.iter().map(|path| text(path)).collect();
        texts.serialize(serializer)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| bytes(text)).collect()
    }
}

mod pairs {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::paths::{bytes, text};

    type Pair = (Vec<u8>, Vec<u8>);

    pub(super) fn serialize<S: Serializer>(pairs: &[Pair], serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<(String, String)> = pairs.iter().map(|(a, b)| (text(a), text(b))).collect();
        texts.serialize(serializer)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<Pair>, D::Error> {
        let texts = Vec::<(String, String)>::deserialize(deserializer)?;
        texts.iter().map(|(a, b)| Ok((bytes(a)?, bytes(b)?))).collect()
    }
}
