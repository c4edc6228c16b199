//! The node: everything that calls share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cni::Cni;
use crate::config::Config;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::image::Images;
use crate::image::pulls::Pulls;
use crate::sandbox::Sandbox;

/// What there is. Lists and statuses come from here, never from a disk or a shim.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) images: Arc<Images>,
    pub(crate) pulls: Pulls,
    pub(crate) cni: Cni,
    pub(crate) events: Events,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
}

impl Node {
    /// Opens what is kept on disk.
    ///
    /// # Errors
    ///
    /// A directory of the configuration can't be used.
    pub(crate) fn open(config: Config) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            images: Arc::new(Images::open(&config)?),
            pulls: Pulls::default(),
            cni: Cni::open(&config)?,
            events: Events::new(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            config,
        }))
    }

    fn sandboxes_locked(&self) -> MutexGuard<'_, HashMap<String, Arc<Sandbox>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn containers_locked(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All sandboxes, in no order.
    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes_locked().values().cloned().collect()
    }

    /// All containers, in no order.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers_locked().values().cloned().collect()
    }

    /// The containers of a sandbox, in no order.
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
        find(&self.sandboxes_locked(), "sandbox", id)
    }

    /// By its id, or by the beginning of one where that is only one's.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidArgument` for the beginning of several.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&self.containers_locked(), "container", id)
    }
}

fn find<T>(all: &HashMap<String, Arc<T>>, what: &str, id: &str) -> Result<Arc<T>> {
    if id.is_empty() {
        return Err(Error::invalid(format_args!("{what}_id: is empty")));
    }
    if let Some(found) = all.get(id) {
        return Ok(Arc::clone(found));
    }
    let mut found = all.iter().filter(|(key, _)| key.starts_with(id));
    match (found.next(), found.next()) {
        (Some((_, one)), None) => Ok(Arc::clone(one)),
        (None, _) => Err(Error::not_found(format_args!("{what} {id:?} not found"))),
        (Some(_), Some(_)) => Err(Error::invalid(format_args!(
            "{what}_id: {id:?}: several begin so"
        ))),
    }
}
