//! The shim: the containers of one pod, and how long it lives.
//!
//! ```text
//! task mode      lives until Shutdown is called while it has no container
//! sandbox mode   lives until the sandbox is shut down, with no container too
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::pod::spec::Substitution;
use crate::process::Phase;

/// What decides when the shim may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Tasks,
    Sandbox,
    Over,
}

/// The shim of a pod, or of a single container.
#[derive(Debug)]
pub(crate) struct Shim {
    /// The namespace of containerd.
    pub(crate) namespace: String,
    pub(crate) events: Events,
    /// A few: looked through one by one.
    containers: Mutex<Vec<Arc<Container>>>,
    life: watch::Sender<Life>,
    /// In sandbox mode, while the sandbox runs.
    pod: Mutex<Option<Arc<Substitution>>>,
}

impl Shim {
    pub(crate) fn new(namespace: String, events: Events) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            events,
            containers: Mutex::default(),
            life: watch::Sender::new(Life::Tasks),
            pod: Mutex::default(),
        })
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All containers that were created.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let made = |container: &&Arc<Container>| container.init.phase() != Phase::Creating;
        self.list().iter().filter(made).cloned().collect()
    }

    /// A container that was created.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        let list = self.list();
        let found = list.iter().find(|container| container.id.as_str() == id);
        found
            .filter(|container| container.init.phase() != Phase::Creating)
            .cloned()
            .ok_or_else(|| not_created(id))
    }

    /// A container, be it one that is being created: whoever gave its Create up deletes it.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) fn claimed(&self, id: &str) -> Result<Arc<Container>> {
        let found = self
            .list()
            .iter()
            .find(|container| container.id.as_str() == id)
            .cloned();
        found.ok_or_else(|| not_created(id))
    }

    /// Takes an id, for a container that is about to be created.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`; `Unavailable` when the shim is on its way out.
    pub(crate) fn claim(&self, container: Arc<Container>) -> Result<()> {
        if self.is_over() {
            return Err(Error::text(Kind::Unavailable, "the shim is shutting down"));
        }
        let mut list = self.list();
        if list.iter().any(|other| other.id == container.id) {
            return Err(Error::text(
                Kind::AlreadyExists,
                format_args!("container {:?} already exists", container.id.as_str()),
            ));
        }
        list.push(container);
        Ok(())
    }

    /// Forgets a container.
    pub(crate) fn forget(&self, container: &Arc<Container>) {
        let mut list = self.list();
        list.retain(|other| !Arc::ptr_eq(other, container));
        list.shrink_to_fit();
    }

    /// From now on the shim lives as long as its sandbox.
    pub(crate) fn hold_sandbox(&self) {
        self.life.send_replace(Life::Sandbox);
    }

    /// The sandbox runs, or does not any more.
    pub(crate) fn set_pod(&self, pod: Option<Arc<Substitution>>) {
        *self.pod.lock().unwrap_or_else(PoisonError::into_inner) = pod;
    }

    /// What the sandbox changes in the configuration of a container. `None` in task mode.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the sandbox does not run.
    pub(crate) fn pod(&self) -> Result<Option<Arc<Substitution>>> {
        let pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if pod.is_none() && *self.life.borrow() == Life::Sandbox {
            return Err(Error::text(Kind::FailedPrecondition, "the sandbox does not run"));
        }
        Ok(pod)
    }

    /// The sandbox is shut down, and with it the shim.
    pub(crate) fn end(&self) {
        self.life.send_replace(Life::Over);
    }

    /// What Shutdown of the Task service asks for: the end, if nothing is left to do. containerd calls it after every
    /// delete of a task.
    pub(crate) fn end_if_idle(&self) {
        if self.list().is_empty() && *self.life.borrow() == Life::Tasks {
            self.end();
        }
    }

    /// Whether it has neither a container nor a sandbox.
    pub(crate) fn is_unused(&self) -> bool {
        self.list().is_empty() && *self.life.borrow() == Life::Tasks
    }

    fn is_over(&self) -> bool {
        *self.life.borrow() == Life::Over
    }

    /// Returns when the shim shall end.
    pub(crate) async fn over(&self) {
        let mut life = self.life.subscribe();
        // The sender is ours: it does not end.
        let _ = life.wait_for(|life| *life == Life::Over).await;
    }
}

fn not_created(id: &str) -> Error {
    Error::text(Kind::NotFound, format_args!("container {id:?} not created"))
}
