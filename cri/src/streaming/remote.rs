//! The streams of a remote command, and the protocols by which its client names them.
//!
//! ```text
//! SPDY, `X-Stream-Protocol-Version`:      v4 v3 v2 .channel.k8s.io, channel.k8s.io
//! WebSocket, `Sec-WebSocket-Protocol`:    v5 v4 .channel.k8s.io, channel.k8s.io, or none
//!                                         v4.base64.channel.k8s.io, base64.channel.k8s.io
//! ```
//!
//! v5 has the signal that closes one channel, which SPDY has in its frames: as in Kubernetes it is WebSocket's alone. From v4
//! on the end is told as JSON; v3 brought the terminal's size.

use std::time::Duration;

use hyper::body::Bytes;

use super::spdy::{Session, Stream};
use super::status::{Form, Outcome};
use super::stream::{Input, Output, Queue};
use crate::proto::{AttachRequest, ExecRequest};

/// Protocols over SPDY.
pub(super) const SPDY: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// How long a client may take to open its streams over SPDY.
const OPENING: Duration = Duration::from_secs(30);

/// Which streams the call has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) terminal: bool,
}

impl Wanted {
    pub(super) fn of_exec(request: &ExecRequest) -> Self {
        Self {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.tty,
        }
    }

    pub(super) fn of_attach(request: &AttachRequest) -> Self {
        Self {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.tty,
        }
    }
}

/// A client of a remote command.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) streams: Streams,
    pub(super) end: End,
    /// `closed()`: the client has gone.
    pub(super) queue: Queue,
}

/// The streams. What was not asked for is not there.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    /// Sizes of the terminal (`terminal.rs`).
    pub(super) resize: Option<Input>,
}

/// How it ends.
#[derive(Debug)]
pub(super) struct End {
    /// The error stream.
    pub(super) error: Output,
    pub(super) form: Form,
    /// Our halves of streams that only the client sends on. kubectl takes the end of one for the end of its own half.
    pub(super) held: Vec<Output>,
}

impl End {
    /// Tells it.
    pub(super) async fn tell(self, outcome: &Outcome) {
        // A client that has gone does not want to know.
        if self
            .error
            .send(Bytes::from(outcome.bytes(self.form)))
            .await
            .is_ok()
        {
            self.error.finish();
            self.held.into_iter().for_each(Output::finish);
        }
    }
}

/// Waits for the streams that a client opens over SPDY. `None`: it has gone, or not opened them in time.
pub(super) async fn over_spdy(mut session: Session, protocol: &str, wanted: Wanted) -> Option<Remote> {
    let resizes = wanted.terminal && ["v4.channel.k8s.io", "v3.channel.k8s.io"].contains(&protocol);
    let form = match protocol {
        "v4.channel.k8s.io" => Form::Json,
        _ => Form::Text,
    };
    let mut places = [
        Place::new("error", true),
        Place::new("stdin", wanted.stdin),
        Place::new("stdout", wanted.stdout),
        Place::new("stderr", wanted.stderr),
        Place::new("resize", resizes),
    ];
    let opening = async {
        while places.iter().any(Place::is_awaited) {
            let stream = session.streams.recv().await?;
            let kind = stream.headers.get("streamtype").unwrap_or_default();
            let place = places
                .iter_mut()
                .find(|place| place.kind == kind && place.is_awaited());
            // Any other is reset.
            if let Some(place) = place {
                place.stream = Some(stream);
            }
        }
        Some(())
    };
    tokio::time::timeout(OPENING, opening).await.ok()??;
    let [error, stdin, stdout, stderr, resize] = places.map(|place| place.stream);
    let mut held = Vec::new();
    let mut input = |stream: Option<Stream>| {
        let stream = stream?;
        held.push(stream.output);
        stream.input
    };
    Some(Remote {
        streams: Streams {
            stdin: input(stdin),
            resize: input(resize),
            stdout: stdout.map(|stream| stream.output),
            stderr: stderr.map(|stream| stream.output),
        },
        end: End {
            error: error?.output,
            form,
            held,
        },
        queue: session.queue,
    })
}

/// Where a stream belongs.
struct Place {
    kind: &'static str,
    wanted: bool,
    stream: Option<Stream>,
}

impl Place {
    fn new(kind: &'static str, wanted: bool) -> Self {
        Self {
            kind,
            wanted,
            stream: None,
        }
    }

    fn is_awaited(&self) -> bool {
        self.wanted && self.stream.is_none()
    }
}
