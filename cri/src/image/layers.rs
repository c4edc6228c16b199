//! The layers of the node: which there are, which are on their way, and how often each is used.
//!
//! ```text
//!   claim ──> coming ──complete──> here (uses: images, containers, pulls) ──the last use──> gone
//!                └──dropped, or another of its chain id was first──> gone
//! ```
//!
//! A layer is known by its chain id (image-spec: what it is, on what) and lives in `layers/<number>/fs`: a container of 127
//! layers names all of them in one mount option, which has room for a page.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::removal;
use crate::locked;
use crate::log;

/// A layer that is here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) number: u32,
    pub(super) chain: String,
    /// What its files take.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Layers {
    directory: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<u32, Slot>,
    /// By chain id: the layer that is here, or else the last that was begun.
    numbers: HashMap<String, u32>,
    last: u32,
}

#[derive(Debug)]
struct Slot {
    record: Record,
    uses: usize,
    arrival: watch::Sender<Arrival>,
}

/// How far a layer has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Bytes, as they are downloaded. Who waits is not woken by them.
    pub(super) bytes: u64,
    /// It was downloaded whole: only layers below it are missing.
    pub(super) is_whole: bool,
    pub(super) is_here: bool,
}

impl Arrival {
    const HERE: Self = Self {
        bytes: 0,
        is_whole: true,
        is_here: true,
    };
}

/// What came of a wish for a layer.
#[derive(Debug)]
pub(super) enum Claimed {
    Here(Use),
    /// Another brings it; closed, where that failed.
    Coming(watch::Receiver<Arrival>),
    Mine(Claim),
}

impl Layers {
    /// None is known yet, whatever there is in the directory. New ones get numbers above `last`.
    pub(super) fn new(directory: PathBuf, last: u32) -> Self {
        let table = Table {
            last,
            ..Table::default()
        };
        Self {
            directory,
            table: Mutex::new(table),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        locked(&self.table)
    }

    /// Where a layer's files are.
    pub(super) fn path(&self, number: u32) -> PathBuf {
        self.directory.join(number.to_string()).join("fs")
    }

    /// The number of a layer, by its path.
    pub(super) fn number(path: &Path) -> Option<u32> {
        path.parent()?.file_name()?.to_str()?.parse().ok()
    }

    /// One that was recorded, with a use more.
    pub(super) fn restore(&self, record: &Record) {
        let mut table = self.table();
        table.numbers.insert(record.chain.clone(), record.number);
        let slot = table.slots.entry(record.number).or_insert_with(|| Slot {
            record: record.clone(),
            uses: 0,
            arrival: watch::Sender::new(Arrival::HERE),
        });
        slot.uses += 1;
    }

    /// Uses those of a container that was there at the start. A layer that no image names any more is one for this only: nothing
    /// is known of it but its number.
    pub(super) fn adopt(&self, numbers: &[u32]) {
        let mut table = self.table();
        for number in numbers {
            table.last = table.last.max(*number);
            let slot = table.slots.entry(*number).or_insert_with(|| Slot {
                record: Record {
                    number: *number,
                    ..Record::default()
                },
                uses: 0,
                arrival: watch::Sender::new(Arrival::HERE),
            });
            slot.uses += 1;
        }
    }

    /// Uses a layer, if it is here.
    pub(super) fn find(self: &Arc<Self>, chain: &str) -> Option<Use> {
        self.find_in(&mut self.table(), chain)
    }

    fn find_in(self: &Arc<Self>, table: &mut Table, chain: &str) -> Option<Use> {
        let number = *table.numbers.get(chain)?;
        let slot = table.slots.get_mut(&number)?;
        let is_here = slot.arrival.borrow().is_here;
        is_here.then(|| {
            slot.uses += 1;
            self.using(number)
        })
    }

    /// Asks for a layer: it is here, or on its way, or the caller's to bring. `alone`: whoever else brings it.
    pub(super) fn claim(self: &Arc<Self>, chain: &str, alone: bool) -> Claimed {
        let mut table = self.table();
        if let Some(used) = self.find_in(&mut table, chain) {
            return Claimed::Here(used);
        }
        if let Some(number) = table.numbers.get(chain)
            && let Some(slot) = table.slots.get(number)
            && !alone
        {
            return Claimed::Coming(slot.arrival.subscribe());
        }
        table.last += 1;
        let number = table.last;
        table.numbers.insert(chain.to_owned(), number);
        let arrival = watch::Sender::default();
        let slot = Slot {
            record: Record {
                number,
                chain: chain.to_owned(),
                ..Record::default()
            },
            uses: 1,
            arrival: arrival.clone(),
        };
        table.slots.insert(number, slot);
        Claimed::Mine(Claim {
            used: self.using(number),
            arrival,
        })
    }

    fn using(self: &Arc<Self>, number: u32) -> Use {
        Use {
            layers: Arc::clone(self),
            number,
        }
    }

    /// Uses layers once more; `false`, and none is used, where one is not here any more.
    pub(super) fn hold(&self, numbers: &[u32]) -> bool {
        let mut table = self.table();
        let here = |number| {
            table
                .slots
                .get(number)
                .is_some_and(|slot| slot.arrival.borrow().is_here)
        };
        if !numbers.iter().all(here) {
            return false;
        }
        for number in numbers {
            if let Some(slot) = table.slots.get_mut(number) {
                slot.uses += 1;
            }
        }
        true
    }

    /// Uses layers once less: one that nobody uses any more is removed, in the background.
    pub(super) fn release(&self, numbers: &[u32]) {
        let mut table = self.table();
        for number in numbers {
            let Some(slot) = table.slots.get_mut(number) else {
                continue;
            };
            slot.uses = slot.uses.saturating_sub(1);
            if slot.uses > 0 {
                continue;
            }
            if let Some(slot) = table.slots.remove(number)
                && table.numbers.get(&slot.record.chain) == Some(number)
            {
                table.numbers.remove(&slot.record.chain);
            }
            remove_later(self.directory.join(number.to_string()));
        }
    }

    /// Whether there is a layer of this number, or one is on its way.
    pub(super) fn knows(&self, number: u32) -> bool {
        self.table().slots.contains_key(&number)
    }

    /// What is recorded of layers that are here.
    pub(super) fn records(&self, numbers: &[u32]) -> Vec<Record> {
        let table = self.table();
        let slots = numbers.iter().filter_map(|number| table.slots.get(number));
        slots.map(|slot| slot.record.clone()).collect()
    }

    /// Bytes and inodes of all that are here.
    pub(super) fn usage(&self) -> (u64, u64) {
        let table = self.table();
        let records = table.slots.values().map(|slot| &slot.record);
        records.fold((0, 0), |(bytes, inodes), record| {
            (bytes + record.bytes, inodes + record.inodes)
        })
    }
}

/// Removes a directory, off the runtime's threads. What is left when the server ends is removed at its next start.
pub(super) fn remove_later(path: PathBuf) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || {
            let mut result = removal::remove(&path);
            // An unpacker that was just killed may still put something into it.
            for _ in 0..20 {
                if !matches!(result, Err(Errno::ENOTEMPTY | Errno::ENOENT)) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
                result = removal::remove(&path);
            }
            if let Err(errno) = result {
                log::warn(format_args!("remove {}: {errno}", path.display()));
            }
        });
    }
}

/// A use of a layer that is here, until it is dropped.
#[derive(Debug)]
pub(super) struct Use {
    layers: Arc<Layers>,
    pub(super) number: u32,
}

impl Use {
    /// Where its files are.
    pub(super) fn path(&self) -> PathBuf {
        self.layers.path(self.number)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.layers.release(&[self.number]);
    }
}

/// A layer to be brought. Dropped: it is not brought, and nothing is left of it.
#[derive(Debug)]
pub(super) struct Claim {
    used: Use,
    arrival: watch::Sender<Arrival>,
}

impl Claim {
    pub(super) fn path(&self) -> PathBuf {
        self.used.path()
    }

    /// Bytes were downloaded.
    pub(super) fn came(&self, bytes: u64) {
        self.arrival.send_if_modified(|arrival| {
            arrival.bytes += bytes;
            false
        });
    }

    /// All were.
    pub(super) fn came_whole(&self) {
        self.arrival.send_if_modified(|arrival| {
            arrival.is_whole = true;
            false
        });
    }

    /// It is here, whole. Where another pull was first, it is that one's, and nothing is left of this.
    pub(super) fn complete(self, bytes: u64, inodes: u64) -> Use {
        let layers = Arc::clone(&self.used.layers);
        let mut table = layers.table();
        let Some(slot) = table.slots.get_mut(&self.used.number) else {
            return self.used;
        };
        let chain = slot.record.chain.clone();
        if let Some(first) = layers.find_in(&mut table, &chain) {
            return first;
        }
        table.numbers.insert(chain, self.used.number);
        if let Some(slot) = table.slots.get_mut(&self.used.number) {
            slot.record.bytes = bytes;
            slot.record.inodes = inodes;
        }
        self.arrival.send_replace(Arrival::HERE);
        self.used
    }
}

/// The chain ids of layers with these diff ids, the lowest first (image-spec, `config.md`, "Layer ChainID").
pub(super) fn chains(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(below) => format!("sha256:{:x}", Sha256::digest(format!("{below} {diff_id}"))),
        };
        chains.push(chain);
    }
    chains
}
