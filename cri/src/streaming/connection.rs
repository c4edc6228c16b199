//! A verb and its framing, side by side, until both have ended.
//!
//! ```text
//! the verb ends ── its outputs are dropped ──> the framing writes what is left, closes
//! the framing ends, or the client has gone ── `Queue::closed` ──> the verb sees to its own end
//! ```

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::remote::{Remote, Wanted, over_spdy};
use super::spdy::Stall;
use super::upgrade::Upgrade;
use super::websocket::Socket;
use super::{Asked, attach, exec, port_forward, spdy};
use crate::log;
use crate::node::Node;

/// Serves a connection that was upgraded.
pub(super) async fn serve<S>(
    node: &Arc<Node>,
    asked: Asked,
    upgrade: Upgrade,
    stream: S,
    gone: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match asked {
        Asked::Exec(request) => {
            let wanted = Wanted::of_exec(&request);
            let verb = async |remote| exec::serve(node, &request, remote).await;
            command(verb, wanted, upgrade, stream, gone).await;
        }
        Asked::Attach(request) => {
            let wanted = Wanted::of_attach(&request);
            let verb = async |remote| attach::serve(node, &request, remote).await;
            command(verb, wanted, upgrade, stream, gone).await;
        }
        Asked::PortForward(target) => forward(node, target, upgrade, stream, gone).await,
    }
}

/// Exec, Attach.
async fn command<S>(
    verb: impl AsyncFnOnce(Remote),
    wanted: Wanted,
    upgrade: Upgrade,
    stream: S,
    gone: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match upgrade {
        Upgrade::Spdy(protocol) => {
            let (session, framing) = spdy::open(stream, Stall::Hold);
            let framing = async {
                if let Err(malformed) = framing.await {
                    log::debug(|| format!("streams: a client: {malformed}"));
                }
            };
            let verb = async {
                match over_spdy(session, protocol, wanted).await {
                    Some(remote) => verb(remote).await,
                    None => log::debug(|| "streams: a client did not open its streams"),
                }
            };
            both(framing, gone, verb).await;
        }
        Upgrade::WebSocket { protocol, .. } => {
            let (remote, framing) = Socket::open(stream).await.remote(protocol, wanted);
            both(framing, gone, verb(remote)).await;
        }
        // It is agreed on for ports only.
        Upgrade::Tunnel { .. } => {}
    }
}

/// PortForward.
async fn forward<S>(
    node: &Arc<Node>,
    target: port_forward::Target,
    upgrade: Upgrade,
    stream: S,
    gone: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let node = Arc::clone(node);
    match upgrade {
        Upgrade::Spdy(_) => {
            tokio::select! {
                () = port_forward::spdy(node, target, stream) => {}
                () = gone => {}
            }
        }
        Upgrade::Tunnel { .. } => {
            let (inside, framing) = Socket::open(stream).await.tunnel();
            both(framing, gone, port_forward::spdy(node, target, inside)).await;
        }
        Upgrade::WebSocket { protocol, ports, .. } => {
            let (forwards, queue, framing) = Socket::open(stream).await.forward(protocol, &ports);
            both(framing, gone, port_forward::serve(node, target, forwards, queue)).await;
        }
    }
}

async fn both(
    framing: impl Future<Output = ()>,
    gone: impl Future<Output = ()>,
    verb: impl Future<Output = ()>,
) {
    let framing = async {
        tokio::select! {
            () = framing => {}
            () = gone => {}
        }
    };
    tokio::join!(framing, verb);
}
