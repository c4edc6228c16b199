//! SPDY/3.1, as far as it carries streams of bytes: what the kubelet and `crictl` speak (github.com/moby/spdystream).
//!
//! ```text
//! client                               session.rs
//!   SYN_STREAM (headers) ────────────> SYN_REPLY, and a Stream for the verb
//!   DATA ... DATA+FIN    ────────────> its Input ... ends
//!   <──────────── DATA ... DATA+FIN    its Output ... finished; dropped unfinished: RST_STREAM
//!   RST_STREAM           ────────────> its Input ends, its Output is closed; the other streams live
//!   PING                 ────────────> PING
//!   GOAWAY, the end      ────────────> all of it ends
//! ```
//!
//! There are no windows in spdystream: WINDOW_UPDATE is neither sent nor awaited, and a stream that is not read holds the
//! connection (`Stall`). frame.rs has the layouts, headers.rs the compressed block of names and values.

#[cfg(test)]
pub(super) mod client;
mod frame;
mod headers;
mod session;
#[cfg(test)]
mod tests;

use tokio::sync::mpsc;

use super::stream::{Id, Input, Output, Queue};
pub(super) use frame::Malformed;
pub(super) use headers::Headers;
pub(super) use session::open;

/// A connection's streams, for the verb. The connection is closed in good order (all that was sent is written, GOAWAY) when
/// this, and all inputs and outputs that came of it, are dropped.
#[derive(Debug)]
pub(super) struct Session {
    /// Those that the client opens, as they come. `None`: the connection has ended. Dropping it refuses more.
    pub(super) streams: mpsc::Receiver<Stream>,
    /// `closed()`: the client has gone.
    pub(super) queue: Queue,
}

/// A stream that the client opened. It was replied to.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: Id,
    /// Names are in lower case, as `streamtype`.
    pub(super) headers: Headers,
    /// `None`: the client closed its half with the stream's first frame.
    pub(super) input: Option<Input>,
    pub(super) output: Output,
}

/// What a stream may do that is not read, while others may wait behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// Hold them all: they are parts of one thing, as standard input and the terminal's size.
    Hold,
    /// Hold them for a while (`session::STALLED_MAX`), then it is reset, whether any are known or not: they are strangers to
    /// each other, and a new one can't be seen before.
    Reset,
}
