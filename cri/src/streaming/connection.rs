//! A verb and its framing, side by side, until both have ended.
//!
//! ```text
//! the verb ends ── its outputs are dropped ──> the framing writes what is left, closes
//! the framing ends, or the client has gone ── `Queue::closed` ──> the verb sees to its own end
//! we end it (idle, SIGTERM) ── `Notice` ──> the verb tells why, and sees to its own end
//! ```

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::remote::{Remote, Wanted, over_spdy};
use super::spdy::Stall;
use super::stream::Queue;
use super::upgrade::Upgrade;
use super::websocket::Socket;
use super::{Asked, attach, exec, port_forward, spdy};
use crate::log;
use crate::node::Node;

/// How long a client that is to be told why may take to hear it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a connection that was upgraded.
pub(super) async fn serve<S>(
    node: &Arc<Node>,
    asked: Asked,
    upgrade: Upgrade,
    stream: S,
    ending: impl Future<Output = Ending>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match asked {
        Asked::Exec(request) => {
            let wanted = Wanted::of_exec(&request);
            let verb = async |remote, notice| exec::serve(node, &request, remote, notice).await;
            command(verb, wanted, upgrade, stream, ending).await;
        }
        Asked::Attach(request) => {
            let wanted = Wanted::of_attach(&request);
            let verb = async |remote, notice| attach::serve(node, &request, remote, notice).await;
            command(verb, wanted, upgrade, stream, ending).await;
        }
        Asked::PortForward(target) => forward(node, target, upgrade, stream, ending).await,
    }
}

/// Exec, Attach.
async fn command<S>(
    verb: impl AsyncFnOnce(Remote, Notice),
    wanted: Wanted,
    upgrade: Upgrade,
    stream: S,
    ending: impl Future<Output = Ending>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (tell, notice) = watch::channel(None);
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
                    Some(remote) => verb(remote, notice).await,
                    None => log::debug(|| "streams: a client did not open its streams"),
                }
            };
            both(framing, ending, tell, verb).await;
        }
        Upgrade::WebSocket { protocol, .. } => {
            let (remote, framing) = Socket::open(stream).await.remote(protocol, wanted);
            both(framing, ending, tell, verb(remote, notice)).await;
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
    ending: impl Future<Output = Ending>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let node = Arc::clone(node);
    // Its clients are told nothing.
    let (tell, _) = watch::channel(None);
    match upgrade {
        Upgrade::Spdy(_) => {
            tokio::select! {
                () = port_forward::spdy(node, target, stream) => {}
                _ = ending => {}
            }
        }
        Upgrade::Tunnel { .. } => {
            let (inside, framing) = Socket::open(stream).await.tunnel();
            both(framing, ending, tell, port_forward::spdy(node, target, inside)).await;
        }
        Upgrade::WebSocket { protocol, ports, .. } => {
            let (forwards, queue, framing) = Socket::open(stream).await.forward(protocol, &ports);
            both(
                framing,
                ending,
                tell,
                port_forward::serve(node, target, forwards, queue),
            )
            .await;
        }
    }
}

async fn both(
    framing: impl Future<Output = ()>,
    ending: impl Future<Output = Ending>,
    tell: watch::Sender<Option<Why>>,
    verb: impl Future<Output = ()>,
) {
    let framing = async {
        let mut framing = pin!(framing);
        let ending = tokio::select! {
            () = &mut framing => return,
            ending = ending => ending,
        };
        // Who listens tells the client.
        if let Ending::Ours(why) = ending
            && tell.send(Some(why)).is_ok()
        {
            let _ = tokio::time::timeout(FAREWELL, framing).await;
        }
    };
    tokio::join!(framing, verb);
}

/// Why a connection ends before its verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its client has gone.
    Client,
    /// We end it.
    Ours(Why),
}

/// Why we end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Idle,
    Terminated,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "the connection was idle for too long (streaming.idle_timeout_seconds)",
            Self::Terminated => "rtc-cri ends, and its streams with it",
        })
    }
}

/// Tells a verb why it is to end.
pub(super) type Notice = watch::Receiver<Option<Why>>;

/// Waits until a verb is to end. `Some`: the client is still there, and wants to know why.
pub(super) async fn over(queue: &Queue, notice: &mut Notice) -> Option<Why> {
    tokio::select! {
        () = queue.closed() => None,
        Ok(why) = notice.wait_for(Option::is_some) => *why,
    }
}
