//! What a container has outside our memory, and how it goes. Used by RemoveContainer, by a CreateContainer that failed, and
//! after a `kill -9`.

use std::path::PathBuf;
use std::time::Duration;

use super::Record;
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::shim::{self, Shim};

/// How long a shim may take to see the end of what was killed.
const SEEN: Duration = Duration::from_secs(10);

/// Where its `config.json` is, its `rootfs`, and its shim's record of it.
pub(crate) fn bundle(node: &Node, id: &str) -> PathBuf {
    node.config.state.join("containers").join(id)
}

/// Removes everything: task, upper layer, bundle. Whatever is not there is what is wanted.
///
/// # Errors
///
/// The first one; what does not hang on it is removed nevertheless. It can be called again.
pub(crate) async fn clean(node: &Node, record: &Record) -> Result<()> {
    // In order: nothing of a container that may still run is pulled from under it.
    if record.task {
        remove_task(node, record).await?;
    }
    let discarded = node.images.discard(&record.id).await;
    let bundle = bundle(node, &record.id);
    let removed = match tokio::fs::remove_dir_all(&bundle).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::from(
            anyhow::Error::from(error).context(bundle.display().to_string()),
        )),
        _ => Ok(()),
    };
    discarded.and(removed)
}

/// Ends it, by its shim or in its stead.
async fn remove_task(node: &Node, record: &Record) -> Result<()> {
    let id = &record.id;
    let living = node
        .sandbox(&record.sandbox)
        .ok()
        .and_then(|sandbox| sandbox.shim());
    if let Some(shim) = living {
        match shim.delete_task(id).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            Err(error) if error.kind == Kind::FailedPrecondition => {
                // It runs: a Start that nobody heard the answer of.
                kill_task(&shim, id).await?;
                return shim.delete_task(id).await.map(drop);
            }
            Err(error) if !shim.is_lost() => return Err(error),
            Err(_) => {}
        }
    }
    shim::delete(&shim::start::program(&node.config.shim)?, id, &bundle(node, id)).await
}

/// Kills all of it, and waits until its shim has seen it end: it deletes nothing before. What has ended, or is not there, is
/// what is wanted.
///
/// # Errors
///
/// It does not end of SIGKILL; the shim is gone.
pub(super) async fn kill_task(shim: &Shim, id: &str) -> Result<()> {
    match shim.kill_task(id, libc::SIGKILL, true).await {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        killed => killed?,
    }
    match tokio::time::timeout(SEEN, shim.wait_task(id)).await {
        Ok(Err(error)) if error.kind != Kind::NotFound => Err(error),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::text(
            Kind::DeadlineExceeded,
            format_args!("container {id} was killed, and its end is not seen within {SEEN:?}"),
        )),
    }
}
