//! A journal: the last record of each key, on disk.
//!
//! ```text
//! one file, a JSON line for each change:   {"put":"<key>","record":{...}}   {"drop":"<key>"}
//! first line, where it dies with the boot: {"boot":"<boot id>"}; another boot's file is emptied
//! open: the last line of each key counts; a torn last line is dropped (whoever wrote it was told of no success);
//!       a line that can't be read is put aside (<file>.quarantine) and said, and never blocks the start
//! compact: at open where a line can't be used, and when most of it is old: written beside it (<file>.new), renamed over it
//! ```
//!
//! With plain `write(2)` it survives the death of its process, not that of the machine: what dies with the machine needs no
//! more. `Durable` adds `fdatasync`, for what outlives it: all that wait while one is made share the next.

mod file;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::locked;
use file::File;

/// What a record survives, once `put` has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The death of this process. For a file under `/run`: what another boot left there is forgotten.
    Plain,
    /// A power failure.
    Durable,
}

/// A journal that is open. Records are `T`.
#[derive(Debug)]
pub(crate) struct Journal<T> {
    durability: Durability,
    file: Arc<Mutex<File>>,
    /// Lines that wait for who writes and syncs next.
    queue: Mutex<Batch>,
    /// The turn of who writes and syncs.
    turn: Arc<tokio::sync::Mutex<()>>,
    records: std::marker::PhantomData<fn() -> T>,
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    waiting: Vec<oneshot::Sender<std::result::Result<(), String>>>,
}

/// What a line says of a key: the rest of the line is its record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<R> {
    #[serde(skip_serializing_if = "Option::is_none")]
    put: Option<String>,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    record: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens the file, which need not exist (its directory must), and gives what is in it. Blocks.
    ///
    /// # Errors
    ///
    /// The file can't be read or written. What is wrong inside it is no error.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<(Self, BTreeMap<String, T>)> {
        let boot = match durability {
            Durability::Plain => Some(file::boot_id()?),
            Durability::Durable => None,
        };
        let (file, records) = File::open(path, boot)?;
        let journal = Self {
            durability,
            file: Arc::new(Mutex::new(file)),
            queue: Mutex::default(),
            turn: Arc::default(),
            records: std::marker::PhantomData,
        };
        Ok((journal, records))
    }

    /// Records: from its return on, this is what `open` finds for the key.
    ///
    /// # Errors
    ///
    /// It can't be written: what was recorded before still counts.
    pub(crate) async fn put(&self, key: &str, record: &T) -> Result<()> {
        self.put_latest(key, || Some(record)).await
    }

    /// As `put`; `latest` is called in the order of the file, so that the last line has the last state of what several
    /// tasks change. `None`: nothing is written. It must not wait for anything.
    ///
    /// # Errors
    ///
    /// As `put`.
    pub(crate) async fn put_latest<R>(&self, key: &str, latest: impl FnOnce() -> Option<R>) -> Result<()>
    where
        R: std::borrow::Borrow<T>,
    {
        let line = || {
            let record = latest()?;
            let line = Line {
                put: Some(key.to_owned()),
                record: Some(record.borrow()),
                drop: None,
                boot: None,
            };
            Some(encode(&line))
        };
        self.write(line).await
    }

    /// Forgets a key; one that is not there is what is wanted.
    ///
    /// # Errors
    ///
    /// As `put`.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let line = Line::<()> {
            put: None,
            record: None,
            drop: Some(key.to_owned()),
            boot: None,
        };
        self.write(|| Some(encode(&line))).await
    }

    async fn write(&self, line: impl FnOnce() -> Option<Result<Vec<u8>>>) -> Result<()> {
        match self.durability {
            // Memory: nothing that is worth a thread.
            Durability::Plain => {
                let mut file = locked(&self.file);
                match line() {
                    Some(line) => Ok(file.append(&line?, false)?),
                    None => Ok(()),
                }
            }
            Durability::Durable => self.write_durably(line).await,
        }
    }

    /// Whoever comes first writes for all who wait by then. Dropped on the way, the line is written at the latest with the
    /// next one.
    async fn write_durably(&self, line: impl FnOnce() -> Option<Result<Vec<u8>>>) -> Result<()> {
        let (sender, mut answer) = oneshot::channel();
        {
            let mut queue = locked(&self.queue);
            let Some(line) = line() else { return Ok(()) };
            queue.lines.extend(line?);
            queue.waiting.push(sender);
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if let Ok(done) = answer.try_recv() {
            return done.map_err(unwritten);
        }
        let batch = std::mem::take(&mut *locked(&self.queue));
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || {
            let result = locked(&file)
                .append(&batch.lines, true)
                .map_err(|error| format!("{error:#}"));
            for waiting in batch.waiting {
                // Who no longer waits needs no answer.
                let _ = waiting.send(result.clone());
            }
            drop(turn);
        });
        match answer.await {
            Ok(done) => done.map_err(unwritten),
            Err(_) => Err(unwritten("the write was given up".into())),
        }
    }
}

fn unwritten(error: String) -> Error {
    Error::text(Kind::Unknown, error)
}

fn encode<R: Serialize>(line: &Line<R>) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(line).map_err(anyhow::Error::from)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
