//! How a sandbox ends: by StopPodSandbox, by itself, or because it could not be made.
//!
//! Each step is done whatever became of the one before, but for what needs it; the first error is the answer.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{Sandbox, State, bundle, netns};
use crate::container;
use crate::error::{Kind, Result};
use crate::node::Node;
use crate::proto::ContainerEventType;
use crate::shim::{self, Shim, start};
use crate::{events, log};

/// Takes back what RunPodSandbox made, up to its name. The caller has its turn.
///
/// # Errors
///
/// Something is left, and so is the sandbox.
pub(super) async fn undo(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    network_and_shim(node, sandbox).await?;
    forget(node, sandbox).await
}

/// Ends its network, its shim and what runs in it.
///
/// # Errors
///
/// The network can't be taken back: it is still there, and pinned. The rest is done.
pub(super) async fn network_and_shim(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let network = network(node, sandbox).await;
    let shim = shim(node, sandbox).await;
    network.and(shim)
}

/// DEL before the namespace goes: plugins find in it what they made.
async fn network(node: &Node, sandbox: &Sandbox) -> Result<()> {
    let Some(path) = &sandbox.record().netns else {
        return Ok(());
    };
    let deleted = node.cni.delete(&sandbox.id).await;
    deleted.map_err(|error| error.context("take back the pod's network"))?;
    netns::unpin(path)
}

/// Shuts the shim down; one that is gone, or does not do as told, is removed with what it left.
async fn shim(node: &Node, sandbox: &Sandbox) -> Result<()> {
    let config = &node.config;
    let bundle = bundle(config, &sandbox.id);
    let socket = start::socket(&config.state, &sandbox.id);
    let shim = match sandbox.shim() {
        Some(shim) => Some(shim),
        // One that an earlier rtc-cri started, and had no time to record.
        None => {
            let address = format!("unix://{}", socket.display());
            Shim::reconnect(&address, &sandbox.id, &bundle).await.ok()
        }
    };
    let shut = match &shim {
        Some(shim) => shut_down(shim).await,
        None => false,
    };
    if !shut {
        shim::delete(&start::program(&config.shim)?, &sandbox.id, &bundle).await?;
        start::remove_socket(&socket);
    }
    sandbox.set_shim(None);
    Ok(())
}

/// Returns whether it has ended, or will at once.
async fn shut_down(shim: &Shim) -> bool {
    if shim.is_lost() {
        return false;
    }
    let ended = match shim.shutdown_sandbox().await {
        // It was given none yet.
        Err(error) if error.kind == Kind::NotFound => shim.shutdown_unused().await,
        ended => ended,
    };
    if let Err(error) = &ended
        && !shim.is_lost()
    {
        log::warn(format_args!("shut down {shim:?}: {error}"));
    }
    ended.is_ok()
}

/// Removes the bundle, and forgets the sandbox.
///
/// # Errors
///
/// Something of it can't be removed.
pub(super) async fn forget(node: &Node, sandbox: &Sandbox) -> Result<()> {
    let bundle = bundle(&node.config, &sandbox.id);
    remove_bundle(&bundle)?;
    node.forget_sandbox(sandbox).await
}

/// All of it is in memory, under /run.
fn remove_bundle(bundle: &Path) -> Result<()> {
    let shm = bundle.join("pod/shm");
    // Of a shim that was killed; else what is mounted there would be emptied below.
    match umount2(&shm, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => {}
        Err(errno) => Err(errno).with_context(|| format!("unmount {}", shm.display()))?,
    }
    match std::fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", bundle.display()))?
        }
        _ => Ok(()),
    }
}

/// Notices when a sandbox ends by itself: the init of its PID namespace has died, or its shim has.
pub(crate) fn watch(node: &Arc<Node>, sandbox: &Arc<Sandbox>, shim: Arc<Shim>) {
    let (node, sandbox) = (Arc::clone(node), Arc::clone(sandbox));
    tokio::spawn(async move {
        let ended = shim.wait_sandbox().await;
        drop(shim);
        let _turn = sandbox.turn.lock().await;
        if sandbox.record().state != State::Ready {
            return;
        }
        match ended {
            Ok(()) => log::warn(format_args!(
                "sandbox {}: the init of its processes has ended",
                sandbox.id
            )),
            Err(error) => {
                log::warn(format_args!("sandbox {}: {error}", sandbox.id));
                container::exit::end_created(&node, &sandbox.id, &error.to_string()).await;
            }
        }
        sandbox.change(|record| record.state = State::Ended);
        if let Err(error) = node.record_sandbox(&sandbox).await {
            log::warn(format_args!("sandbox {}: {error}", sandbox.id));
        }
        let kind = ContainerEventType::ContainerStoppedEvent;
        events::send(&node, &sandbox.id, &sandbox.id, kind).await;
    });
}
