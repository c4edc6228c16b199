//! StopContainer.
//!
//! ```text
//! never started:  SIGKILL, at once
//! running:        stop signal ── grace period ── SIGKILL (the shim has the ladder) ── Exited, by exit.rs
//! ```
//!
//! Each call has its own clock; whoever's ends first kills.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Container, State, exit};
use crate::error::{Error, Kind, Result};
use crate::events;
use crate::node::Node;
use crate::proto::{StopContainerRequest, StopContainerResponse};
use crate::shim::Shim;

/// How long whoever creates or starts it is waited for.
const MAKER: Duration = Duration::from_secs(10);
/// How long it may take from SIGKILL to the report of the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// StopContainer. What has ended, or never was, is what is wanted.
pub(crate) async fn stop(node: &Arc<Node>, request: StopContainerRequest) -> Result<StopContainerResponse> {
    let container = match node.container(&request.container_id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(StopContainerResponse {}),
        found => found?,
    };
    let grace = Duration::from_secs(request.timeout.try_into().unwrap_or(0));
    stop_container(node, &container, grace).await?;
    Ok(StopContainerResponse {})
}

/// Stops it, whatever it does; returns when it has exited. Without a grace period it is killed at once.
///
/// # Errors
///
/// It does not end of SIGKILL: what hangs, and where. Its maker or starter does not come to an end.
pub(crate) async fn stop_container(
    node: &Arc<Node>,
    container: &Arc<Container>,
    grace: Duration,
) -> Result<()> {
    match container.record().state {
        State::Exited { .. } => Ok(()),
        State::Running { .. } => stop_running(node, container, grace).await,
        State::Making | State::Created => {
            // Whoever creates or starts it comes to an end, but where a file system hangs.
            let turn = tokio::time::timeout(MAKER, container.turn.lock()).await;
            let turn = turn.map_err(|_| {
                let word = container.record().state.word();
                Error::text(
                    Kind::DeadlineExceeded,
                    format_args!(
                        "container {} is {word}, and what is done with it does not end within {MAKER:?}",
                        container.id
                    ),
                )
            })?;
            match container.record().state {
                State::Created => stop_created(node, container).await,
                State::Running { .. } => {
                    drop(turn);
                    stop_running(node, container, grace).await
                }
                // It could not be made, or has ended.
                State::Making | State::Exited { .. } => Ok(()),
            }
        }
    }
}

/// There is nothing in it that could want to end in peace.
async fn stop_created(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let sandbox = node.sandbox(&container.record().sandbox).ok();
    let shim = sandbox.and_then(|sandbox| sandbox.shim());
    exit::kill(node, container, shim.as_deref(), "it is stopped").await?;
    let ended = State::Exited {
        started_at: 0,
        finished_at: events::now(),
        exit_code: 128 + libc::SIGKILL,
        reason: "Error".into(),
        message: "stopped before it was started".into(),
    };
    exit::end(node, container, ended).await
}

async fn stop_running(node: &Arc<Node>, container: &Arc<Container>, grace: Duration) -> Result<()> {
    let record = container.record();
    // Without a shim it has ended, and is about to be reported.
    if let Some(shim) = node.sandbox(&record.sandbox)?.shim() {
        if !grace.is_zero() {
            if !container.signalled.swap(true, Ordering::AcqRel)
                && let Err(error) = kill(container, &shim, record.stop_signal).await
            {
                // The next one sends it.
                container.signalled.store(false, Ordering::Release);
                return Err(error);
            }
            if tokio::time::timeout(grace, container.exited()).await.is_ok() {
                return Ok(());
            }
        }
        kill(container, &shim, libc::SIGKILL).await?;
    }
    let reported = tokio::time::timeout(PATIENCE, container.exited()).await;
    reported.map_err(|_| {
        Error::text(
            Kind::DeadlineExceeded,
            format_args!(
                "container {} was killed, and its end is not reported within {PATIENCE:?}",
                container.id
            ),
        )
    })
}

/// One that has ended meanwhile needs no signal, and a lost shim's are killed by exit.rs.
async fn kill(container: &Container, shim: &Shim, signal: i32) -> Result<()> {
    match shim.kill_task(&container.id, signal, false).await {
        Err(error) if error.kind != Kind::NotFound && !shim.is_lost() => Err(error),
        _ => Ok(()),
    }
}
