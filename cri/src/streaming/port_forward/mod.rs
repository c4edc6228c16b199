//! PortForward: connections of a client, each to a port of a pod's loopback.
//!
//! ```text
//! client ── data, error ── Forward ──> socket.rs: 127.0.0.1:port of the pod's network, then [::1]:port
//!            `── pairs.rs finds, of SPDY's streams, the two of one connection
//!
//! no connection          text on its error stream, its data stream reset
//! the pod closes a half  data ends; the client may go on
//! the pod resets it      data reset. No text: kubectl takes any for the end of all its connections
//! the client resets it   the pod's connection is closed, whatever waits for it (kubectl does so once the pod's half ends)
//! the pod takes nothing  data reset after a while (`Stall::Reset`): the others wait behind it
//! ```
//!
//! What becomes of one connection is no matter of the others. All of them end with the client's, and with the pod.

mod pairs;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::spdy::{self, Malformed, Stall};
use super::stream::{Input, Output, Queue};
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::node::Node;
use crate::proto::PortForwardRequest;
use crate::sandbox::{self, State};

/// Connections that may wait to be begun.
const WAITING_MAX: usize = 16;
/// What is read of a pod at once, in bytes.
const PIECE_MAX: usize = 64 << 10;
/// How often it is looked whether the pod is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whose ports: what a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The whole id.
    pub(super) sandbox: String,
    /// Those of the request, for a framing whose streams name none (WebSocket).
    pub(super) ports: Vec<u16>,
}

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) port: u16,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Takes text, where there is no connection.
    pub(super) error: Output,
}

/// What of the request can be checked before anybody connects.
///
/// # Errors
///
/// `NotFound`, `InvalidArgument`; `FailedPrecondition`: the pod is not ready.
pub(super) fn check(node: &Node, request: &PortForwardRequest) -> Result<Target> {
    let ports = ports(&request.port)?;
    let sandbox = ready(node, &request.pod_sandbox_id)?;
    Ok(Target {
        sandbox: sandbox.id.clone(),
        ports,
    })
}

fn ports(asked: &[i32]) -> Result<Vec<u16>> {
    let port = |(i, port): (usize, &i32)| match u16::try_from(*port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Error::invalid(format_args!(
            "port[{i}]: {port}: must be 1 to 65535"
        ))),
    };
    asked.iter().enumerate().map(port).collect()
}

/// # Errors
///
/// `NotFound`, `FailedPrecondition`.
fn ready(node: &Node, id: &str) -> Result<Arc<sandbox::Record>> {
    let record = node.sandbox(id)?.record();
    if record.state == State::Ready {
        return Ok(record);
    }
    Err(Error::text(
        Kind::FailedPrecondition,
        format_args!("sandbox {} is not ready", record.id),
    ))
}

/// Where the pod's ports are: its network namespace, `None` for the host's; an error when it is not ready any more.
type Pod = Arc<dyn Fn() -> Result<Option<PathBuf>> + Send + Sync>;

impl Target {
    fn pod(&self, node: &Arc<Node>) -> Pod {
        let (node, id) = (Arc::clone(node), self.sandbox.clone());
        Arc::new(move || Ok(ready(&node, &id)?.netns.clone()))
    }
}

/// Serves a connection that speaks SPDY (`portforward.k8s.io`), until it ends, or the pod.
pub(super) async fn spdy<C>(node: Arc<Node>, target: Target, connection: C)
where
    C: AsyncRead + AsyncWrite + Send,
{
    let pod = target.pod(&node);
    if let Err(malformed) = over_spdy(&pod, &target.sandbox, connection).await {
        log::debug(|| format!("port-forward to sandbox {}: {malformed}", target.sandbox));
    }
}

async fn over_spdy<C>(pod: &Pod, sandbox: &str, connection: C) -> std::result::Result<(), Malformed>
where
    C: AsyncRead + AsyncWrite + Send,
{
    let (session, run) = spdy::open(connection, Stall::Reset);
    let (sender, forwards) = mpsc::channel(WAITING_MAX);
    let forward = async {
        tokio::select! {
            () = connections(pod, sandbox, forwards, session.queue) => {}
            // Never before: it holds the other end of what is served.
            () = pairs::forwards(session.streams, sender) => {}
        }
    };
    tokio::join!(forward, run).1
}

/// Serves what comes, until nothing more comes and all have ended, or the client is gone, or the pod.
pub(super) async fn serve(node: Arc<Node>, target: Target, forwards: mpsc::Receiver<Forward>, queue: Queue) {
    connections(&target.pod(&node), &target.sandbox, forwards, queue).await;
}

async fn connections(pod: &Pod, sandbox: &str, mut forwards: mpsc::Receiver<Forward>, queue: Queue) {
    // Dropped, it ends all.
    let mut connections = JoinSet::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut more = true;
    while more || !connections.is_empty() {
        tokio::select! {
            forward = forwards.recv(), if more => match forward {
                Some(forward) => {
                    connections.spawn(connection(Arc::clone(pod), sandbox.to_owned(), forward));
                }
                None => more = false,
            },
            Some(_) = connections.join_next() => {}
            () = queue.closed() => return,
            _ = look.tick() => if pod().is_err() {
                return;
            },
        }
    }
}

/// One connection, from its beginning to its end.
async fn connection(pod: Pod, sandbox: String, forward: Forward) {
    let Forward {
        port,
        input,
        output,
        error,
    } = forward;
    let connected = async {
        let connected = socket::connect(pod()?.as_deref(), port).await;
        connected.map_err(|error| error.context(format!("connect to localhost:{port}")))
    };
    // The client may be gone before.
    let connected = tokio::select! {
        connected = connected => connected,
        () = output.closed() => return,
    };
    match connected {
        Ok(socket) => drop(copy(socket, input, output).await),
        Err(failed) => {
            // It begins as other runtimes' do.
            let text = format!("error forwarding port {port} to pod {sandbox}: {failed}");
            log::debug(|| text.clone());
            let _ = error.send(text.into()).await;
        }
    }
    error.finish();
}

/// Copies both ways, until both have ended.
///
/// # Errors
///
/// The pod or the client has reset it, and so it is reset for the other one.
async fn copy(mut socket: TcpStream, input: Input, output: Output) -> io::Result<()> {
    let (from, to) = socket.split();
    // The output is finished with the pod's half; the client may reset the stream after that, and the pod may never take
    // what `to_pod` has for it.
    let watch = output.watch();
    let both = async { tokio::try_join!(to_pod(input, to), from_pod(from, output)) };
    tokio::select! {
        ended = both => ended.map(drop),
        () = watch.closed() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

async fn to_pod(mut input: Input, mut to: WriteHalf<'_>) -> io::Result<()> {
    while let Some(piece) = input.next().await {
        // It takes no more, and may yet have something to say.
        if to.write_all(&piece).await.is_err() {
            return Ok(());
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}

async fn from_pod(from: ReadHalf<'_>, output: Output) -> io::Result<()> {
    loop {
        from.readable().await?;
        // Not before: a connection that is silent holds no buffer.
        let mut buffer = Vec::with_capacity(PIECE_MAX);
        match from.try_read_buf(&mut buffer) {
            Ok(0) => {
                output.finish();
                return Ok(());
            }
            Ok(size) => {
                // A little is not to keep a large buffer while it waits.
                let little = size < PIECE_MAX / 2;
                let piece = if little {
                    Bytes::copy_from_slice(&buffer)
                } else {
                    buffer.into()
                };
                output.send(piece).await.map_err(io::Error::other)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
