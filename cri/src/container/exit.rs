//! The end of a container: one task waits for it, from its start on.
//!
//! ```text
//! Wait answers ── was it for want of memory? ── Task Delete ── Exited, recorded ── event
//! the shim is lost ── what it left is killed and removed (shim `delete`) ── Exited, code 255 ── event
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::{Container, State, clean};
use crate::error::{Kind, Result};
use crate::events;
use crate::log;
use crate::node::Node;
use crate::proto::ContainerEventType;
use crate::shim::{self, Exit, Shim};

/// How long the news of an end may wait for Task Delete, so that one record tells both. What is left then, RemoveContainer
/// removes.
const PROMPTLY: Duration = Duration::from_secs(5);
/// As containerd has it: nobody knows how it ended.
const UNKNOWN: i32 = 255;

/// Waits for the end of what runs, or may run before we know of it.
pub(crate) fn watch(node: &Arc<Node>, container: &Arc<Container>, shim: Arc<Shim>) {
    if container.watched.swap(true, Ordering::AcqRel) {
        return;
    }
    let (node, container) = (Arc::clone(node), Arc::clone(container));
    tokio::spawn(async move {
        let id = &container.id;
        let waited = shim.wait_task(id).await;
        if container.record().state == State::Created {
            // Who starts it, or stops it, has the first word.
            let _ = container.turn.lock().await;
        }
        let ended = match waited {
            Ok(exit) => exited(&container, &shim, exit).await,
            Err(error) => {
                log::warn(format_args!("container {id}: {error}"));
                lost(&node, &container, &error.to_string()).await;
                unknown(&container, error.to_string())
            }
        };
        if let Err(error) = end(&node, &container, ended).await {
            log::error(format_args!("container {id}: its end: {error}"));
        }
    });
}

/// What its shim says of it.
pub(crate) async fn exited(container: &Container, shim: &Shim, exit: Exit) -> State {
    let code = i32::try_from(exit.status).unwrap_or(UNKNOWN);
    // Whoever was killed for it need not be the first process: that one may only have failed for its sake.
    let for_want_of_memory = code != 0 && out_of_memory(container, shim).await;
    let reason = match code {
        0 => "Completed",
        _ if for_want_of_memory => "OOMKilled",
        _ => "Error",
    };
    State::Exited {
        started_at: started_at(container),
        finished_at: if exit.at == 0 { events::now() } else { exit.at },
        exit_code: code,
        reason: reason.into(),
        message: String::new(),
    }
}

async fn out_of_memory(container: &Container, shim: &Shim) -> bool {
    match shim.task_oom(&container.id).await {
        Ok(killed) => killed,
        Err(error) => {
            log::debug(|| format!("container {}: out of memory? {error}", container.id));
            false
        }
    }
}

/// The state of one whose end nobody saw.
pub(crate) fn unknown(container: &Container, message: String) -> State {
    State::Exited {
        started_at: started_at(container),
        finished_at: events::now(),
        exit_code: UNKNOWN,
        reason: "Unknown".into(),
        message,
    }
}

fn started_at(container: &Container) -> i64 {
    match container.record().state {
        State::Running { started_at, .. } => started_at,
        _ => 0,
    }
}

/// Ends the containers of a lost shim that were never started: nobody waits for these.
pub(crate) async fn end_created(node: &Arc<Node>, sandbox: &str, why: &str) {
    for container in node.containers_of(sandbox) {
        let _turn = container.turn.lock().await;
        if container.record().state != State::Created || container.watched.load(Ordering::Acquire) {
            continue;
        }
        lost(node, &container, why).await;
        let ended = unknown(&container, why.to_owned());
        if let Err(error) = end(node, &container, ended).await {
            log::error(format_args!("container {}: its end: {error}", container.id));
        }
    }
}

/// Ends what never ran, or was not to: a start that failed may have come so far.
///
/// # Errors
///
/// It does not end of SIGKILL: it may run yet.
pub(crate) async fn kill(node: &Node, container: &Container, shim: Option<&Shim>, why: &str) -> Result<()> {
    let id = &container.id;
    if let Some(shim) = shim.filter(|shim| !shim.is_lost()) {
        match clean::kill_task(shim, id).await {
            Err(error) if !shim.is_lost() => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
    lost(node, container, why).await;
    Ok(())
}

/// Kills what a lost shim left of a container, and removes it.
pub(crate) async fn lost(node: &Node, container: &Container, why: &str) {
    let id = &container.id;
    let removing = async {
        let program = shim::start::program(&node.config.shim)?;
        shim::delete(&program, id, &clean::bundle(node, id)).await
    };
    match removing.await {
        Ok(()) => {
            container.change(|record| record.task = false);
        }
        Err(error) => log::warn(format_args!("container {id} ({why}): {error}")),
    }
}

/// Removes its task, and writes down how it ended; then all are told.
///
/// # Errors
///
/// It can't be recorded; all else is done.
pub(crate) async fn end(node: &Arc<Node>, container: &Arc<Container>, ended: State) -> Result<()> {
    let record = container.record();
    let shim = node
        .sandbox(&record.sandbox)
        .ok()
        .and_then(|sandbox| sandbox.shim());
    let deleted = match shim {
        Some(shim) if record.task => match timeout(PROMPTLY, shim.delete_task(&container.id)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) if error.kind == Kind::NotFound => true,
            Ok(Err(error)) => {
                log::warn(format_args!("container {}: {error}", container.id));
                false
            }
            Err(_) => {
                log::warn(format_args!(
                    "container {}: has ended, and its shim removes it for more than {PROMPTLY:?}",
                    container.id
                ));
                false
            }
        },
        _ => false,
    };
    let mut first = false;
    container.change(|record| {
        record.task &= !deleted;
        // Somebody may have been faster.
        if !matches!(record.state, State::Exited { .. }) {
            first = true;
            record.state = ended;
        }
    });
    let recorded = node.record_container(container).await;
    if first {
        events::send(
            node,
            &container.id,
            &record.sandbox,
            ContainerEventType::ContainerStoppedEvent,
        )
        .await;
    }
    recorded
}
