//! The node: everything that calls share.
//!
//! ```text
//! made:     insert (id and name are taken, together) ── record ── ... ── change, record
//! removed:  forget (id and name are free) ── unrecord
//! ```
//!
//! Who records reads what is true at its turn, and records nothing of what was forgotten: a late task of a container never
//! brings back what was removed.

use std::collections::HashMap;
use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;

use crate::cni::Cni;
use crate::config::Config;
use crate::container::{self, Container};
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::image::Images;
use crate::image::pulls::Pulls;
use crate::journal::{Durability, Journal};
use crate::locked;
use crate::log;
use crate::sandbox::{self, Sandbox};
use crate::shim::Shim;
use crate::shim::cgroup::ShimCgroup;
use crate::spec::Facts;
use crate::status::Handlers;
use crate::streaming::Streaming;

/// What there is. Lists and statuses come from here, never from a disk or a shim.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) images: Arc<Images>,
    pub(crate) pulls: Pulls,
    pub(crate) cni: Cni,
    pub(crate) events: Events,
    /// The cgroup of all shims.
    pub(crate) shims: ShimCgroup,
    /// What the node is.
    pub(crate) facts: Facts,
    /// What runtime handlers can do, once they were asked.
    pub(crate) handlers: Handlers,
    /// The server of Exec, Attach and PortForward.
    pub(crate) streaming: Streaming,
    sandboxes: Mutex<Table<Sandbox>>,
    containers: Mutex<Table<Container>>,
    sandbox_records: Journal<sandbox::Record>,
    container_records: Journal<container::Record>,
    /// Held while we run: two servers on one state would undo each other's work.
    _only: std::fs::File,
}

/// Sandboxes, or containers: by id, and by the name that CRI gives them.
#[derive(Debug)]
struct Table<T> {
    by_id: HashMap<String, Arc<T>>,
    /// Name to id.
    by_name: HashMap<String, String>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            by_name: HashMap::new(),
        }
    }
}

impl<T> Table<T> {
    /// Takes id and name.
    ///
    /// # Errors
    ///
    /// The one that has the name.
    fn insert(&mut self, id: &str, name: String, one: &Arc<T>) -> std::result::Result<(), Arc<T>> {
        if let Some(other) = self.by_name.get(&name).and_then(|id| self.by_id.get(id)) {
            return Err(Arc::clone(other));
        }
        self.by_name.insert(name, id.to_owned());
        self.by_id.insert(id.to_owned(), Arc::clone(one));
        Ok(())
    }

    /// Takes in what is recorded, the newest last. Where two have one name, which should not be, it is the newest one's, and
    /// the other is there by its id: the kubelet removes it.
    fn found(&mut self, id: &str, name: String, one: Arc<T>) {
        if let Some(other) = self.by_name.insert(name, id.to_owned()) {
            log::warn(format_args!("{other}: {id} has the same name, and is newer"));
        }
        self.by_id.insert(id.to_owned(), one);
    }

    fn forget(&mut self, id: &str, name: &str) {
        if self.by_id.remove(id).is_some() && self.by_name.get(name).is_some_and(|of| of == id) {
            self.by_name.remove(name);
        }
    }

    fn find(&self, what: &str, id: &str) -> Result<Arc<T>> {
        if id.is_empty() {
            return Err(Error::invalid(format_args!("{what}_id: is empty")));
        }
        if let Some(found) = self.by_id.get(id) {
            return Ok(Arc::clone(found));
        }
        let mut found = self.by_id.iter().filter(|(key, _)| key.starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, one)), None) => Ok(Arc::clone(one)),
            (None, _) => Err(Error::not_found(format_args!("{what} {id:?} not found"))),
            (Some(_), Some(_)) => Err(Error::invalid(format_args!(
                "{what}_id: {id:?}: several begin so"
            ))),
        }
    }
}

impl Node {
    /// Opens what is kept on disk. What it says of pods and containers is then to be compared with what is true
    /// (`recovery`).
    ///
    /// # Errors
    ///
    /// A directory of the configuration can't be used, or another server uses it.
    pub(crate) fn open(config: Config) -> Result<Arc<Self>> {
        for directory in [&config.root, &config.state] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(directory)
                .with_context(|| directory.display().to_string())?;
        }
        let only = only(&config.state)?;
        let pods = config.state.join("sandboxes.journal");
        let (sandbox_records, sandboxes) = Journal::open(&pods, Durability::Plain)?;
        let containers = config.state.join("containers.journal");
        let (container_records, containers) = Journal::open(&containers, Durability::Plain)?;
        let node = Self {
            images: Arc::new(Images::open(&config)?),
            pulls: Pulls::default(),
            cni: Cni::open(&config)?,
            events: Events::new(),
            shims: ShimCgroup::open(&config),
            facts: Facts::detect(&config)?,
            handlers: Handlers::default(),
            streaming: Streaming::bind(&config.streaming)?,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            sandbox_records,
            container_records,
            config,
            _only: only,
        };
        let mut sandboxes: Vec<_> = sandboxes.into_values().collect();
        sandboxes.sort_by_key(|record| record.created_at);
        for record in sandboxes {
            let (id, name) = (record.id.clone(), record.name());
            locked(&node.sandboxes).found(&id, name, Arc::new(Sandbox::new(record)));
        }
        let mut containers: Vec<_> = containers.into_values().collect();
        containers.sort_by_key(|record| record.created_at);
        for record in containers {
            let (id, name) = (record.id.clone(), record.name());
            locked(&node.containers).found(&id, name, Arc::new(Container::new(record)));
        }
        Ok(Arc::new(node))
    }

    /// All sandboxes, in no order, those that are being made too.
    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        locked(&self.sandboxes).by_id.values().cloned().collect()
    }

    /// All containers, in no order, those that are being made too.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        locked(&self.containers).by_id.values().cloned().collect()
    }

    /// The containers of a sandbox, in no order, those that are being made too.
    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut containers = self.containers();
        containers.retain(|container| container.record().sandbox == sandbox);
        containers
    }

    /// By its id, or by the beginning of one where that is only one's.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidArgument` for the beginning of several.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        locked(&self.sandboxes).find("sandbox", id)
    }

    /// By its id, or by the beginning of one where that is only one's.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidArgument` for the beginning of several.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        locked(&self.containers).find("container", id)
    }

    /// The shim of a sandbox.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition`: it is stopped.
    pub(crate) fn shim_of(&self, sandbox: &str) -> Result<Arc<Shim>> {
        self.sandbox(sandbox)?.shim().ok_or_else(|| {
            Error::text(
                Kind::FailedPrecondition,
                format_args!("sandbox {sandbox} is not ready"),
            )
        })
    }

    /// Takes its id and its name (`sandbox::Record::name`). Its maker has its turn already, so that whoever comes with the
    /// same name can wait for what becomes of it.
    ///
    /// # Errors
    ///
    /// The one that has the name.
    pub(crate) fn insert_sandbox(&self, sandbox: &Arc<Sandbox>) -> std::result::Result<(), Arc<Sandbox>> {
        locked(&self.sandboxes).insert(&sandbox.id, sandbox.record().name(), sandbox)
    }

    /// As `insert_sandbox`.
    ///
    /// # Errors
    ///
    /// The one that has the name.
    pub(crate) fn insert_container(
        &self,
        container: &Arc<Container>,
    ) -> std::result::Result<(), Arc<Container>> {
        locked(&self.containers).insert(&container.id, container.record().name(), container)
    }

    /// Writes down what is true of it; nothing, where it was removed.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(crate) async fn record_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        let latest = || {
            let there = locked(&self.sandboxes).by_id.contains_key(&sandbox.id);
            there.then(|| sandbox.record())
        };
        self.sandbox_records.put_latest(&sandbox.id, latest).await
    }

    /// As `record_sandbox`.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(crate) async fn record_container(&self, container: &Container) -> Result<()> {
        let latest = || {
            let there = locked(&self.containers).by_id.contains_key(&container.id);
            there.then(|| container.record())
        };
        self.container_records.put_latest(&container.id, latest).await
    }

    /// Forgets it, with its name and its record: the last step of its removal. Once again is fine.
    ///
    /// # Errors
    ///
    /// The record can't be removed: it is forgotten nevertheless.
    pub(crate) async fn forget_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        locked(&self.sandboxes).forget(&sandbox.id, &sandbox.record().name());
        self.sandbox_records.remove(&sandbox.id).await
    }

    /// As `forget_sandbox`.
    ///
    /// # Errors
    ///
    /// The record can't be removed: it is forgotten nevertheless.
    pub(crate) async fn forget_container(&self, container: &Container) -> Result<()> {
        locked(&self.containers).forget(&container.id, &container.record().name());
        self.container_records.remove(&container.id).await
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// One server at a time. Who may open the file can lock it, and the directory can be entered by all.
fn only(state: &Path) -> Result<std::fs::File> {
    let path = state.join("lock");
    let open = || {
        let mut options = std::fs::File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        // One that an earlier release made.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        Ok::<_, std::io::Error>(file)
    };
    let file = open().with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("state: {}: another rtc-cri runs there", state.display()),
        )),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(Error::from(anyhow::Error::from(error)).context(path.display().to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_s_until_it_is_forgotten() {
        let mut table = Table::default();
        let (first, second) = (Arc::new(1), Arc::new(2));
        table.insert("id1", "name".into(), &first).unwrap();
        assert_eq!(table.insert("id2", "name".into(), &second).unwrap_err(), first);
        table.insert("id2", "other".into(), &second).unwrap();
        // Somebody else's name is not let go.
        table.forget("id1", "other");
        assert!(table.find("container", "id1").is_err());
        assert_eq!(table.insert("id3", "other".into(), &first).unwrap_err(), second);
        table.forget("id2", "other");
        table.insert("id3", "other".into(), &first).unwrap();
    }

    #[test]
    fn of_two_that_are_recorded_with_one_name_the_newest_has_it_and_both_are_there() {
        let mut table = Table::default();
        table.found("old", "name".into(), Arc::new(1));
        table.found("new", "name".into(), Arc::new(2));
        assert_eq!(*table.find("pod", "old").unwrap(), 1);
        assert_eq!(*table.insert("id", "name".into(), &Arc::new(3)).unwrap_err(), 2);
        table.forget("old", "name");
        assert!(table.find("pod", "old").is_err());
        assert_eq!(*table.insert("id", "name".into(), &Arc::new(3)).unwrap_err(), 2);
    }

    #[test]
    fn an_id_may_be_begun_where_only_one_begins_so() {
        let mut table = Table::default();
        table.insert("abc1", "x".into(), &Arc::new(1)).unwrap();
        table.insert("abd2", "y".into(), &Arc::new(2)).unwrap();
        table.insert("ab", "z".into(), &Arc::new(3)).unwrap();
        assert_eq!(*table.find("container", "abc").unwrap(), 1);
        assert_eq!(*table.find("container", "ab").unwrap(), 3);
        let kind = |id| table.find("container", id).unwrap_err().kind;
        assert_eq!(kind("a"), Kind::InvalidArgument);
        assert_eq!(kind(""), Kind::InvalidArgument);
        assert_eq!(kind("x"), Kind::NotFound);
    }
}
