//! What becomes of a sandbox that an earlier rtc-cri recorded.
//!
//! ```text
//! Making    nobody was told of it: taken back, in the background, or Ended where that fails
//! Ready     its shim is connected to, and watched; Ended where that is gone
//! Ended     its shim is connected to, if it lives: StopPodSandbox needs it
//! Stopped   nothing
//! ```

use std::sync::Arc;

use super::{Record, Sandbox, State, bundle, end, netns};
use crate::cni::Addresses;
use crate::error::Result;
use crate::log;
use crate::node::Node;
use crate::proto::PodSandboxConfig;
use crate::recovery::Looking;
use crate::shim::Shim;

/// Compares it with what is true. Whoever asks for the sandbox meanwhile waits for its turn, which is taken before `looking`
/// is dropped.
///
/// # Errors
///
/// It can't be recorded.
pub(crate) async fn recover(node: &Arc<Node>, sandbox: &Arc<Sandbox>, looking: Looking) -> Result<()> {
    let _turn = sandbox.turn.lock().await;
    let record = sandbox.record();
    match (record.state, &record.shim) {
        (State::Stopped, _) => return Ok(()),
        (State::Making, _) => {
            drop(looking);
            log::info(format_args!(
                "sandbox {}: was never whole: taken back",
                sandbox.id
            ));
            match end::undo(node, sandbox).await {
                Ok(()) => return Ok(()),
                Err(error) => log::warn(format_args!("sandbox {}: {error}", sandbox.id)),
            }
        }
        (State::Ready | State::Ended, Some(address)) => {
            match Shim::reconnect(address, &sandbox.id, &bundle(&node.config, &sandbox.id)).await {
                Ok(shim) => {
                    sandbox.set_shim(Some(Arc::clone(&shim)));
                    if record.state == State::Ready {
                        end::watch(node, sandbox, shim);
                    }
                    return Ok(());
                }
                Err(error) => log::warn(format_args!("sandbox {}: {error}", sandbox.id)),
            }
        }
        (State::Ready | State::Ended, None) => {}
    }
    sandbox.change(|record| record.state = State::Ended);
    node.record_sandbox(sandbox).await
}

/// Takes back all of a sandbox whose bundle is there, and no record: it is like one that was being made.
///
/// # Errors
///
/// Something of it is left.
pub(crate) async fn remove_stray(node: &Arc<Node>, id: &str) -> Result<()> {
    let record = Record {
        id: id.to_owned(),
        config: PodSandboxConfig::default(),
        handler: String::new(),
        created_at: 0,
        state: State::Making,
        shim: None,
        pid: 0,
        netns: Some(netns::path(id)),
        addresses: Addresses::default(),
        selinux_level: String::new(),
    };
    end::undo(node, &Arc::new(Sandbox::new(record))).await
}
