//! The start: what the journals say is compared with what is true, before the socket is served.
//!
//! ```text
//! sandbox:    its shim is connected to, if it lives                     (sandbox/recover.rs)
//! container:  Making ──> removed          nobody was told of it
//!             Created, Running ── State ──┬─ created, running ──> so it is; Wait
//!                                         ├─ stopped ──> Exited, as the shim has kept it
//!                                         └─ the shim is gone, or does not know it ──> killed; Exited, code 255
//! what streams have left in its bundle is ended and removed             (streaming/exec.rs)
//! bundles, upper layers and networks that no record names are removed
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::container::{self, Container, State, clean, create, exit};
use crate::error::{Kind, Result};
use crate::events;
use crate::log;
use crate::node::Node;
use crate::sandbox;
use crate::shim::{self, Phase};
use crate::streaming;

/// Makes the node's memory true again. Nothing in it stops the server: what fails is said.
pub(crate) async fn recover(node: &Arc<Node>) {
    let mut sandboxes = JoinSet::new();
    for sandbox in node.sandboxes() {
        let node = Arc::clone(node);
        sandboxes.spawn(async move {
            if let Err(error) = sandbox::recover::recover(&node, &sandbox).await {
                log::error(format_args!("sandbox {}: {error}", sandbox.id));
            }
        });
    }
    sandboxes.join_all().await;
    let mut containers = JoinSet::new();
    for container in node.containers() {
        containers.spawn(settle(Arc::clone(node), container));
    }
    containers.join_all().await;
    let known: Vec<String> = node.containers().iter().map(|one| one.id.clone()).collect();
    remove_strays(node, &known).await;
    node.images.keep_only(&known).await;
    let networks: HashSet<String> = node.sandboxes().iter().map(|one| one.id.clone()).collect();
    // A plugin may take long, and nobody waits for it.
    tokio::spawn(node.cni.reconcile(&networks));
}

async fn settle(node: Arc<Node>, container: Arc<Container>) {
    let _turn = container.turn.lock().await;
    let record = container.record();
    let settled = match record.state {
        State::Making => {
            create::give_up(&node, &container).await;
            Ok(())
        }
        State::Created | State::Running { .. } => look(&node, &container, &record).await,
        State::Exited { .. } => Ok(()),
    };
    if let Err(error) = settled {
        log::error(format_args!("container {}: {error}", container.id));
    }
}

/// Asks the shim what it does.
async fn look(node: &Arc<Node>, container: &Arc<Container>, record: &container::Record) -> Result<()> {
    let shim = node
        .sandbox(&record.sandbox)
        .ok()
        .and_then(|sandbox| sandbox.shim());
    let Some(shim) = shim else {
        return lose(node, container, "its shim had ended while rtc-cri was down").await;
    };
    let state = match shim.task_state(&container.id).await {
        Ok(state) => state,
        Err(error) if error.kind == Kind::NotFound => {
            return lose(node, container, "its shim does not know it").await;
        }
        Err(error) => return lose(node, container, &error.to_string()).await,
    };
    match state.phase {
        Phase::Creating | Phase::Created => Ok(()),
        Phase::Running | Phase::Paused => {
            streaming::exec::end_left(node, &container.id, Some(&shim)).await;
            running(container, state.pid);
            node.record_container(container).await?;
            exit::watch(node, container, shim);
            Ok(())
        }
        Phase::Stopped(ended) => {
            streaming::exec::end_left(node, &container.id, None).await;
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

/// Bundles of containers that are in no record: it could not be written, or was put aside.
async fn remove_strays(node: &Node, known: &[String]) {
    let known: HashSet<&str> = known.iter().map(String::as_str).collect();
    let Ok(program) = shim::start::program(&node.config.shim) else {
        return;
    };
    let Ok(mut entries) = tokio::fs::read_dir(node.config.state.join("containers")).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let Some(id) = name.to_str().filter(|id| !known.contains(id)) else {
            continue;
        };
        log::warn(format_args!(
            "container {id}: there is no record of it: it is removed"
        ));
        if let Err(error) = remove_stray(node, &program, id).await {
            log::warn(format_args!("container {id}: {error}"));
        }
    }
}

async fn remove_stray(node: &Node, program: &Path, id: &str) -> Result<()> {
    let bundle = clean::bundle(node, id);
    shim::delete(program, id, &bundle).await?;
    tokio::fs::remove_dir_all(&bundle)
        .await
        .map_err(anyhow::Error::from)?;
    node.images.discard(id).await
}
