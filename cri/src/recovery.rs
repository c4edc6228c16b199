//! The start: what the journals say is compared with what is true, before the socket is served.
//!
//! ```text
//! sandbox:    its shim is connected to, if it lives                     (sandbox/recover.rs)
//! container:  Making ──> removed*         nobody was told of it
//!             Created, Running ── State ──┬─ created, running, no answer ──> so it is; Wait
//!                                         ├─ stopped ──> Exited*, as the shim has kept it
//!                                         └─ the shim is gone, or does not know it ──> killed; Exited*, code 255
//! what streams have left in a bundle is ended and removed*              (streaming/exec.rs)
//! bundles, upper layers and networks that no record names are removed*
//! ```
//!
//! `*`: in the background, in its turn. A file system that hangs may hold it up for minutes, and must not hold up the node;
//! who asks for one of these meanwhile waits for the turn.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::container::{self, Container, State, clean, create, exit};
use crate::error::{Kind, Result};
use crate::events;
use crate::log;
use crate::node::Node;
use crate::sandbox;
use crate::shim::{self, Phase};
use crate::streaming;

/// Held by who still finds out what is true of one sandbox or container; dropped before what may take long.
pub(crate) type Looking = mpsc::Sender<()>;

/// Makes the node's memory true again. Nothing in it stops the server: what fails is said.
pub(crate) async fn recover(node: &Arc<Node>) {
    let (looking, all_known) = mpsc::channel(1);
    for sandbox in node.sandboxes() {
        let (node, looking) = (Arc::clone(node), looking.clone());
        tokio::spawn(async move {
            if let Err(error) = sandbox::recover::recover(&node, &sandbox, looking).await {
                log::error(format_args!("sandbox {}: {error}", sandbox.id));
            }
        });
    }
    drop(looking);
    wait(all_known).await;
    let (looking, all_known) = mpsc::channel(1);
    for container in node.containers() {
        tokio::spawn(settle(Arc::clone(node), container, looking.clone()));
    }
    drop(looking);
    wait(all_known).await;
    let mut known: Vec<String> = node.containers().iter().map(|one| one.id.clone()).collect();
    let mut pods: Vec<String> = node.sandboxes().iter().map(|one| one.id.clone()).collect();
    // Which ones is decided now: what comes later is not meant.
    let strays = Strays {
        pods: not_among(&pods, &node.config.state.join("sandboxes")).await,
        containers: not_among(&known, &node.config.state.join("containers")).await,
    };
    // They may run still, and have their networks.
    known.extend_from_slice(&strays.containers);
    pods.extend_from_slice(&strays.pods);
    tokio::spawn(strays.remove(Arc::clone(node)));
    node.images.keep_only(&known).await;
    let networks: HashSet<String> = pods.into_iter().collect();
    // A plugin may take long, and nobody waits for it.
    tokio::spawn(node.cni.reconcile(&networks));
}

/// Until nobody looks any more.
async fn wait(mut all_known: mpsc::Receiver<()>) {
    // Nothing is ever sent.
    let _ = all_known.recv().await;
}

async fn settle(node: Arc<Node>, container: Arc<Container>, looking: Looking) {
    let _turn = container.turn.lock().await;
    let record = container.record();
    let settled = match record.state {
        State::Making => {
            drop(looking);
            create::give_up(&node, &container).await
        }
        State::Created | State::Running { .. } => look(&node, &container, &record, looking).await,
        State::Exited { .. } => Ok(()),
    };
    if let Err(error) = settled {
        log::error(format_args!("container {}: {error}", container.id));
    }
}

/// Asks the shim what it does.
async fn look(
    node: &Arc<Node>,
    container: &Arc<Container>,
    record: &container::Record,
    looking: Looking,
) -> Result<()> {
    let shim = node
        .sandbox(&record.sandbox)
        .ok()
        .and_then(|sandbox| sandbox.shim());
    let Some(shim) = shim else {
        drop(looking);
        return lose(node, container, "its shim had ended while rtc-cri was down").await;
    };
    let state = match shim.task_state(&container.id).await {
        Ok(state) => state,
        Err(error) if error.kind == Kind::NotFound => {
            drop(looking);
            return lose(node, container, "its shim does not know it").await;
        }
        Err(error) if shim.is_lost() => {
            drop(looking);
            return lose(node, container, &error.to_string()).await;
        }
        // A shim that is slow to answer is no reason to kill what it runs.
        Err(error) => {
            exit::watch(node, container, shim);
            return Err(error);
        }
    };
    match state.phase {
        // Perhaps being started, by an earlier rtc-cri.
        Phase::Creating | Phase::Created => {
            exit::watch(node, container, shim);
            Ok(())
        }
        Phase::Running | Phase::Paused => {
            streaming::exec::end_left(node, &container.id, &shim);
            running(container, state.pid);
            node.record_container(container).await?;
            exit::watch(node, container, shim);
            Ok(())
        }
        Phase::Stopped(ended) => {
            drop(looking);
            let ended = exit::exited(container, &shim, ended).await;
            exit::end(node, container, ended).await
        }
    }
}

/// A start that was not written down any more has happened nevertheless.
fn running(container: &Container, pid: u32) {
    container.change(|record| {
        let started_at = match record.state {
            State::Running { started_at, .. } => started_at,
            _ => events::now(),
        };
        record.state = State::Running { pid, started_at };
    });
}

async fn lose(node: &Arc<Node>, container: &Arc<Container>, why: &str) -> Result<()> {
    exit::lost(node, container, why).await;
    let ended = exit::unknown(container, why.to_owned());
    exit::end(node, container, ended).await
}

/// Bundles that are in no record: it could not be written, or was put aside. Only those of our state directory are ours:
/// another rtc-cri may have pods on this node.
#[derive(Debug)]
struct Strays {
    pods: Vec<String>,
    containers: Vec<String>,
}

/// Ids with a bundle in this directory that are not known.
async fn not_among(known: &[String], directory: &Path) -> Vec<String> {
    let known: HashSet<&str> = known.iter().map(String::as_str).collect();
    let mut strays = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else {
        return strays;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().into_string();
        strays.extend(name.ok().filter(|id| !known.contains(id.as_str())));
    }
    strays
}

impl Strays {
    /// Pods first: a shim that lives ends its containers in order.
    async fn remove(self, node: Arc<Node>) {
        for id in self.pods {
            log::warn(format_args!(
                "sandbox {id}: there is no record of it: it is removed"
            ));
            if let Err(error) = sandbox::recover::remove_stray(&node, &id).await {
                log::warn(format_args!("sandbox {id}: {error}"));
            }
        }
        for id in self.containers {
            log::warn(format_args!(
                "container {id}: there is no record of it: it is removed"
            ));
            if let Err(error) = remove_stray(&node, &id).await {
                log::warn(format_args!("container {id}: {error}"));
            }
        }
    }
}

async fn remove_stray(node: &Node, id: &str) -> Result<()> {
    let bundle = clean::bundle(node, id);
    shim::delete(&shim::start::program(&node.config.shim)?, id, &bundle).await?;
    tokio::fs::remove_dir_all(&bundle)
        .await
        .map_err(anyhow::Error::from)?;
    node.images.discard(id).await
}
