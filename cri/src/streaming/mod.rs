//! Exec, Attach, PortForward: a call answers with a URL; who opens it speaks SPDY/3.1 or WebSocket.
//!
//! ```text
//! mod.rs         the calls: checked, kept in tokens.rs, answered with a URL
//! server.rs      HTTP on loopback: a token is taken, once; the connection upgraded
//! upgrade.rs     what is agreed on in the heads: framing and protocol
//! connection.rs  a verb and its framing, side by side
//! peer.rs        whether the client has gone, or is idle
//! spdy/          SPDY/3.1: frames, headers, a connection's streams
//! websocket/     channels, and SPDY in messages
//! stream.rs      one stream of either
//! remote.rs      stdin, stdout, stderr, error, resize, of either
//! exec.rs attach.rs port_forward.rs   what is done; fifos.rs terminal.rs status.rs: with what
//! ```
//!
//! A verb ends when its client goes, and sees to its own end: no process, FIFO or descriptor outlives a connection.

mod attach;
mod connection;
pub(crate) mod exec;
mod fifos;
mod peer;
mod port_forward;
mod remote;
pub(crate) mod server;
mod spdy;
mod status;
mod stream;
mod terminal;
mod tokens;
mod upgrade;
mod websocket;

use std::sync::Arc;

use self::remote::Wanted;
pub(crate) use self::server::Streaming;
/// `Sec-WebSocket-Accept`, which our client checks.
pub(crate) use self::websocket::accept;
use crate::container::{Container, State};
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;

/// What a URL stands for.
#[derive(Debug)]
enum Asked {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(port_forward::Target),
}

/// The first part of a URL's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Exec,
    Attach,
    PortForward,
}

impl Verb {
    fn parse(text: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward]
            .into_iter()
            .find(|verb| verb.word() == text)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

impl Asked {
    fn verb(&self) -> Verb {
        match self {
            Self::Exec(_) => Verb::Exec,
            Self::Attach(_) => Verb::Attach,
            Self::PortForward(_) => Verb::PortForward,
        }
    }

    /// Keeps it. Returns its URL.
    fn url(self, node: &Node) -> Result<String> {
        let verb = self.verb().word();
        let token = node.streaming.tokens.insert(self)?;
        Ok(node.streaming.url(verb, &token))
    }
}

/// Exec.
pub(crate) async fn exec(node: &Arc<Node>, mut request: ExecRequest) -> Result<ExecResponse> {
    if request.cmd.is_empty() {
        return Err(Error::invalid(
            "cmd: is empty: must be a program and its arguments",
        ));
    }
    check(Wanted::of_exec(&request))?;
    request.container_id = running(node, &request.container_id)?.id.clone();
    let url = Asked::Exec(request).url(node)?;
    Ok(ExecResponse { url })
}

/// Attach.
pub(crate) async fn attach(node: &Arc<Node>, mut request: AttachRequest) -> Result<AttachResponse> {
    check(Wanted::of_attach(&request))?;
    let container = running(node, &request.container_id)?;
    let terminal = container.record().config.tty;
    if request.tty && !terminal {
        return Err(Error::invalid(format_args!(
            "tty: container {} has no terminal",
            container.id
        )));
    }
    request.container_id = container.id.clone();
    let url = Asked::Attach(request).url(node)?;
    Ok(AttachResponse { url })
}

/// PortForward.
pub(crate) async fn port_forward(
    node: &Arc<Node>,
    request: PortForwardRequest,
) -> Result<PortForwardResponse> {
    let target = port_forward::check(node, &request)?;
    let url = Asked::PortForward(target).url(node)?;
    Ok(PortForwardResponse { url })
}

/// Streams that can be.
fn check(wanted: Wanted) -> Result<()> {
    if wanted.terminal && wanted.stderr {
        return Err(Error::invalid(
            "stderr: must be false with tty: a terminal has one output",
        ));
    }
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(Error::invalid("stdin, stdout, stderr: one must be true"));
    }
    Ok(())
}

/// A container that runs.
fn running(node: &Node, id: &str) -> Result<Arc<Container>> {
    let container = node.container(id)?;
    let state = &container.record().state;
    if !matches!(state, State::Running { .. }) {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("container_id: {} must run, and is {}", container.id, state.word()),
        ));
    }
    Ok(container)
}
