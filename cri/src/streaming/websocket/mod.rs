//! WebSocket (RFC 6455, by tungstenite) as Kubernetes uses it: channels in one connection, or SPDY in it.
//!
//! ```text
//! reader: message ── channel.rs ──> the channel's Feed          a channel that is not read holds the others, and our pongs
//! writer: Outbox ── channel.rs ──> message ...  all outputs are done: Close ──> what still comes is dropped, until Close
//! ```

mod channel;

use std::borrow::Cow;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Bytes;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use self::channel::{Codec, Incoming, Violation};
use super::port_forward::Forward;
use super::remote::{End, Remote, Streams, Wanted};
use super::status::Form;
use super::stream;
use super::stream::{Feed, Input, Outbox, Queue, input, queue};

/// The largest message of a client, in bytes. client-go's have 32 KiB.
const MESSAGE_MAX: usize = 4 << 20;
/// What is read at once, in bytes.
const READ: usize = 64 << 10;
/// How long a client may take to answer our Close, and to take it.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often a client is pinged whose channel is not read. What it has sent is in the way of the end of its connection, if that
/// has ended; but its kernel refuses the ping.
const PING_EVERY: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CHANNELS: u8 = 5;

/// A protocol that a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protocol {
    /// Empty: the client names none.
    pub(super) name: &'static str,
    codec: Codec,
    form: Form,
    /// It has the signal that closes a channel.
    closes: bool,
}

const fn protocol(name: &'static str, codec: Codec, form: Form, closes: bool) -> Protocol {
    Protocol {
        name,
        codec,
        form,
        closes,
    }
}

/// Of remote commands.
pub(super) const REMOTE: [Protocol; 6] = [
    protocol("v5.channel.k8s.io", Codec::Binary, Form::Json, true),
    protocol("v4.channel.k8s.io", Codec::Binary, Form::Json, false),
    protocol("v4.base64.channel.k8s.io", Codec::Base64, Form::Json, false),
    protocol("channel.k8s.io", Codec::Binary, Form::Text, false),
    protocol("base64.channel.k8s.io", Codec::Base64, Form::Text, false),
    protocol("", Codec::Binary, Form::Text, false),
];

/// Of port forwarding, where it is not SPDY in messages.
pub(super) const FORWARD: [Protocol; 3] = [
    protocol("v4.channel.k8s.io", Codec::Binary, Form::Text, false),
    protocol("v4.base64.channel.k8s.io", Codec::Base64, Form::Text, false),
    protocol("", Codec::Binary, Form::Text, false),
];

/// Ports of one connection: two channels for each, of those that base64's one letter can name.
pub(super) const PORTS_MAX: usize = 39;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`, where that is 16 bytes.
pub(crate) fn accept(key: &[u8]) -> Option<String> {
    let given = STANDARD.decode(key).ok()?;
    if given.len() != 16 {
        return None;
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    Some(STANDARD.encode(hash.finalize()))
}

/// A connection that was upgraded.
pub(super) struct Socket<S>(WebSocketStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) async fn open(stream: S) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * MESSAGE_MAX)
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX));
        Self(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await)
    }

    /// The streams of a remote command. The future moves their bytes: it ends when all outputs are gone and were written, or
    /// when the client has gone.
    pub(super) fn remote(self, protocol: Protocol, wanted: Wanted) -> (Remote, impl Future<Output = ()>) {
        let (queue, outbox) = queue();
        let mut channels = Channels::new(protocol, CHANNELS);
        let output = |wanted: bool, channel: u8| wanted.then(|| queue.output(channel.into()));
        let remote = Remote {
            streams: Streams {
                stdin: wanted.stdin.then(|| channels.input(STDIN)),
                stdout: output(wanted.stdout, STDOUT),
                stderr: output(wanted.stderr, STDERR),
                resize: wanted.terminal.then(|| channels.input(RESIZE)),
            },
            end: End {
                error: queue.output(ERROR.into()),
                form: protocol.form,
                held: Vec::new(),
            },
            queue: queue.clone(),
        };
        let first = match () {
            () if wanted.stdout => STDOUT,
            () if wanted.stderr => STDERR,
            () => ERROR,
        };
        // As kubelets do: an empty message says that the command is under way.
        (
            remote,
            drive(self.0, channels, outbox, vec![(first, Bytes::new())]),
        )
    }

    /// Connections to ports, which are begun at once: of port n of the list, channel 2n has the data and 2n + 1 the error. Each
    /// begins with its port, 2 bytes, least first.
    pub(super) fn forward(
        self,
        protocol: Protocol,
        ports: &[u16],
    ) -> (mpsc::Receiver<Forward>, Queue, impl Future<Output = ()>) {
        let (queue, outbox) = queue();
        let count = u8::try_from(2 * ports.len()).unwrap_or(u8::MAX);
        let mut channels = Channels::new(protocol, count);
        let (sender, forwards) = mpsc::channel(ports.len().max(1));
        let mut first = Vec::new();
        for (port, data) in ports.iter().zip((0..count).step_by(2)) {
            let named = Bytes::copy_from_slice(&port.to_le_bytes());
            first.extend([(data, named.clone()), (data + 1, named)]);
            // There is room for all.
            let _ = sender.try_send(Forward {
                port: *port,
                input: channels.input(data),
                output: queue.output(data.into()),
                error: queue.output((data + 1).into()),
            });
        }
        (forwards, queue, drive(self.0, channels, outbox, first))
    }

    /// The bytes in its messages, as a connection of their own.
    pub(super) fn tunnel(self) -> (DuplexStream, impl Future<Output = ()>) {
        let (inside, outside) = tokio::io::duplex(READ);
        let (mut sink, mut source) = self.0.split();
        let (mut from, mut to) = tokio::io::split(outside);
        let work = async move {
            let reading = async {
                loop {
                    match source.next().await {
                        None => break Close::Gone,
                        Some(Err(error)) => break fault(&error),
                        Some(Ok(Message::Close(_))) => break Close::Gone,
                        Some(Ok(Message::Binary(bytes))) => {
                            if to.write_all(&bytes).await.is_err() {
                                break Close::Done;
                            }
                        }
                        Some(Ok(Message::Text(_))) => {
                            break Close::Wrong(CloseCode::Unsupported, "a tunnel's messages are binary");
                        }
                        Some(Ok(_)) => {}
                    }
                }
            };
            let writing = async {
                let mut buffer = vec![0; READ];
                while let Ok(length @ 1..) = from.read(&mut buffer).await {
                    let piece = buffer.get(..length).unwrap_or_default().to_vec();
                    if sink.send(Message::binary(piece)).await.is_err() {
                        return Close::Gone;
                    }
                }
                Close::Done
            };
            let end = tokio::select! {
                end = reading => end,
                end = writing => end,
            };
            // Whoever speaks inside knows now.
            drop((from, to));
            close(sink, source, end).await;
        };
        (inside, work)
    }
}

/// Where what comes is put.
#[derive(Debug)]
struct Channels {
    protocol: Protocol,
    feeds: Vec<Option<Feed>>,
}

impl Channels {
    fn new(protocol: Protocol, count: u8) -> Self {
        let mut feeds = Vec::new();
        feeds.resize_with(count.into(), || None);
        Self { protocol, feeds }
    }

    fn input(&mut self, channel: u8) -> Input {
        let (feed, input) = input();
        if let Some(place) = self.feeds.get_mut(usize::from(channel)) {
            *place = Some(feed);
        }
        input
    }

    /// Passes on what a client says.
    async fn take(&mut self, message: Bytes) -> Result<(), Violation> {
        let Protocol { codec, closes, .. } = self.protocol;
        let count = u8::try_from(self.feeds.len()).unwrap_or(u8::MAX);
        let (channel, data) = match channel::parse(&message, codec, closes, count)? {
            Incoming::Nothing => return Ok(()),
            Incoming::End(channel) => (channel, None),
            Incoming::Data(channel, Cow::Borrowed(data)) => (channel, Some(message.slice_ref(data))),
            Incoming::Data(channel, Cow::Owned(data)) => (channel, Some(Bytes::from(data))),
        };
        let Some(place) = self.feeds.get_mut(usize::from(channel)) else {
            return Ok(());
        };
        let (Some(feed), Some(mut data)) = (place.as_ref(), data) else {
            // The end, or what nobody reads.
            *place = None;
            return Ok(());
        };
        // A feed holds so many pieces, whatever their size.
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(READ));
            if feed.put(piece).await.is_err() {
                *place = None;
                break;
            }
        }
        Ok(())
    }
}

/// Moves bytes until the end.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    mut channels: Channels,
    mut outbox: Outbox,
    first: Vec<(u8, Bytes)>,
) {
    let (mut sink, mut source) = socket.split();
    let codec = channels.protocol.codec;
    let held = Notify::new();
    let end = tokio::select! {
        end = read(&mut source, &mut channels, &held) => end,
        written = write(&mut sink, &mut outbox, codec, first, &held) => match written {
            Ok(()) => Close::Done,
            Err(_) => Close::Gone,
        },
    };
    // Whoever waits for the client knows now.
    drop((channels, outbox));
    close(sink, source, end).await;
}

/// Why a connection is closed.
#[derive(Debug, PartialEq, Eq)]
enum Close {
    /// The client has done it.
    Gone,
    Done,
    Wrong(CloseCode, &'static str),
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    source: &mut SplitStream<WebSocketStream<S>>,
    channels: &mut Channels,
    held: &Notify,
) -> Close {
    loop {
        let message = match source.next().await {
            None => return Close::Gone,
            Some(Err(error)) => return fault(&error),
            Some(Ok(message)) => message,
        };
        let message = match message {
            Message::Binary(message) => message,
            // JavaScript and Python send those, with the same bytes.
            Message::Text(message) => message.into(),
            Message::Close(_) => return Close::Gone,
            _ => continue,
        };
        let mut taking = pin!(channels.take(message));
        let taken = loop {
            tokio::select! {
                taken = &mut taking => break taken,
                () = tokio::time::sleep(PING_EVERY) => held.notify_one(),
            }
        };
        if let Err(Violation(why)) = taken {
            return Close::Wrong(CloseCode::Protocol, why);
        }
    }
}

fn fault(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::Wrong(CloseCode::Size, "a message is too large"),
        Error::Utf8(_) => Close::Wrong(CloseCode::Invalid, "text that is not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Close::Gone,
        Error::Protocol(_) => Close::Wrong(CloseCode::Protocol, "a frame that can't be so"),
        _ => Close::Gone,
    }
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    outbox: &mut Outbox,
    codec: Codec,
    first: Vec<(u8, Bytes)>,
    held: &Notify,
) -> Result<(), Error> {
    for (channel, data) in first {
        sink.send(message(channel, &data, codec)).await?;
    }
    loop {
        let next = tokio::select! {
            next = outbox.next() => next,
            () = held.notified() => {
                sink.send(Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        let Some((id, piece)) = next else { return Ok(()) };
        // One channel's end is not told: clients expect all of them to end with the connection.
        if let (Ok(channel), stream::Message::Data(data, room)) = (u8::try_from(id), piece) {
            sink.send(message(channel, &data, codec)).await?;
            drop(room);
        }
    }
}

fn message(channel: u8, data: &[u8], codec: Codec) -> Message {
    let bytes = channel::message(channel, data, codec);
    match codec {
        Codec::Binary => Message::binary(bytes),
        // It is ASCII.
        Codec::Base64 => Message::text(String::from_utf8(bytes).unwrap_or_default()),
    }
}

/// Says goodbye: what is closed while something unread has come would take our last words with it (TCP's RST).
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut source: SplitStream<WebSocketStream<S>>,
    why: Close,
) {
    let (code, reason) = match why {
        Close::Gone => (None, ""),
        Close::Done => (Some(CloseCode::Normal), ""),
        Close::Wrong(code, reason) => (Some(code), reason),
    };
    let farewell = async {
        match code {
            Some(code) => {
                let reason = reason.into();
                let _ = sink.send(Message::Close(Some(CloseFrame { code, reason }))).await;
            }
            // The answer to its Close is written.
            None => {
                let _ = sink.flush().await;
            }
        }
        while let Some(Ok(_)) = source.next().await {}
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}
