//! A connection: one reader, one writer, and the streams between them.
//!
//! ```text
//!            ┌─ Reader ── frames ── Feed of the stream ──> Input     a full feed: no more is read (`Stall`)
//! connection ┤     `── replies, pings, resets ──┐
//!            └─ Writer <────────────────────────┴── Outbox <── Output
//! ```
//!
//! Both run in one future: when it ends, or is dropped, so do all inputs and outputs.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::{Buf, Bytes};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::io::{BufReader, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::{self, Away, Control, HEAD, Head, Malformed, Status};
use super::headers::{self, Decoder, Fault};
use super::{Session, Stall, Stream};
use crate::streaming::stream::{self, Feed, Gone, Hold, Id, Message, Outbox, WeakQueue};

/// Streams that may be open at once. One more is refused.
const STREAMS_MAX: usize = 4096;
/// Streams that may wait to be taken by the verb.
const WAITING_MAX: usize = 16;
/// Frames that are neither data nor ends, and may wait to be written.
const FRAMES_MAX: usize = 16;
/// What is read at once, in bytes, and the longest piece of an input.
const PIECE_MAX: usize = 32 << 10;
/// All streams' pieces are shorter where there are many: in sum so many bytes for each place in a feed.
const PIECES_MAX: usize = 2 << 20;
/// How long a stream may take nothing, and so hold the others (`Stall::Reset`).
const STALLED_MAX: Duration = PING_EVERY.saturating_mul(3);
/// How often a client is pinged that can't be read because a stream is held: that is how its end is seen.
const PING_EVERY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });
/// What a client has for closing its end after ours.
const LINGER: Duration = Duration::from_secs(5);

/// Begins with a connection whose upgrade was just answered. The future does all of the work, and must be run; it ends with the
/// connection. How long a client may be idle is the caller's affair.
///
/// # Errors
///
/// The future's: the client spoke something else.
pub(in crate::streaming) fn open<C>(
    connection: C,
    stall: Stall,
) -> (Session, impl Future<Output = Result<(), Malformed>> + Send)
where
    C: AsyncRead + AsyncWrite + Send,
{
    let (from, to) = tokio::io::split(connection);
    let (queue, outbox) = stream::queue();
    let (streams, taken) = mpsc::channel(WAITING_MAX);
    let (frames, out) = mpsc::channel(FRAMES_MAX);
    let open = Open::default();
    let reader = Reader {
        from: BufReader::with_capacity(PIECE_MAX, from),
        decoder: Decoder::new(),
        replied: false,
        away: false,
        pinged: 0,
        stall,
        open: open.clone(),
        streams,
        frames,
        queue: queue.downgrade(),
    };
    let writer = Writer {
        to,
        outbox,
        frames: out,
        open,
    };
    let session = Session {
        streams: taken,
        queue,
    };
    (session, run(reader, writer))
}

async fn run<C: AsyncRead + AsyncWrite>(reader: Reader<C>, writer: Writer<C>) -> Result<(), Malformed> {
    let mut reading = pin!(reader.run());
    let mut writing = pin!(writer.run());
    tokio::select! {
        end = &mut reading => {
            if end.is_err() {
                // What is said of it last.
                let _ = timeout(LINGER, writing).await;
            }
            end
        }
        end = &mut writing => {
            if end.is_ok() {
                // A connection that is closed while there is something to read is reset: what was written last may be lost.
                let _ = timeout(LINGER, reading).await;
            }
            Ok(())
        }
    }
}

/// The streams that are open, for both.
#[derive(Debug, Clone, Default)]
struct Open(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    /// The last that the client opened.
    last: Id,
    open: HashMap<Id, Halves>,
}

/// Gone when both are closed.
#[derive(Debug)]
struct Halves {
    /// `None`: the client has closed its half.
    input: Option<Arc<Feed>>,
    /// Whether ours is open.
    output: bool,
    hold: Hold,
}

impl Streams {
    fn remove_closed(&mut self, id: Id) {
        let closed = |halves: &Halves| halves.input.is_none() && !halves.output;
        if self.open.get(&id).is_some_and(closed)
            && let Some(halves) = self.open.remove(&id)
        {
            halves.hold.release();
        }
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_input(&self, id: Id) {
        let mut streams = self.lock();
        if let Some(halves) = streams.open.get_mut(&id) {
            halves.input = None;
            streams.remove_closed(id);
        }
    }

    /// Whether it was open.
    fn close_output(&self, id: Id) -> bool {
        let mut streams = self.lock();
        let Some(halves) = streams.open.get_mut(&id) else {
            return false;
        };
        halves.output = false;
        streams.remove_closed(id);
        true
    }

    /// Both halves; whether it was open.
    fn reset(&self, id: Id) -> bool {
        self.lock().open.remove(&id).is_some()
    }

    fn is_open(&self, id: Id) -> bool {
        self.lock().open.contains_key(&id)
    }
}

/// Why nothing more is read.
enum End {
    Gone,
    Malformed(Malformed),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

struct Reader<C> {
    from: BufReader<ReadHalf<C>>,
    decoder: Decoder,
    /// Whether there was a reply: the first one begins the stream of compressed headers.
    replied: bool,
    /// The client sent GOAWAY.
    away: bool,
    /// The last ping of ours.
    pinged: u32,
    stall: Stall,
    open: Open,
    streams: mpsc::Sender<Stream>,
    /// To the writer. It may have ended: then all that comes is dropped.
    frames: mpsc::Sender<Vec<u8>>,
    queue: WeakQueue,
}

impl<C: AsyncRead> Reader<C> {
    async fn run(mut self) -> Result<(), Malformed> {
        let Err(end) = self.read().await;
        let last = {
            let mut streams = self.open.lock();
            streams.open.clear();
            streams.last
        };
        match end {
            End::Gone => Ok(()),
            End::Malformed(malformed) => {
                let _ = self.frames.try_send(frame::goaway(last, Away::ProtocolError));
                Err(malformed)
            }
        }
    }

    async fn read(&mut self) -> Result<std::convert::Infallible, End> {
        let mut payload = Vec::new();
        loop {
            let mut head = [0; HEAD];
            self.from.read_exact(&mut head).await?;
            match frame::head(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    payload.resize(length, 0);
                    self.from.read_exact(&mut payload).await?;
                    self.control(frame::control(kind, flags, &payload)?).await?;
                }
            }
        }
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), End> {
        match control {
            Control::SynStream {
                stream,
                fin,
                unidirectional,
                block,
            } => {
                let headers = self.decoder.read(block);
                self.is_new(stream)?;
                match headers {
                    Err(Fault::Lost(malformed)) => return Err(malformed.into()),
                    Err(Fault::Nonsense) => self.reset(stream, Status::ProtocolError).await,
                    Ok(_) if unidirectional => self.reset(stream, Status::RefusedStream).await,
                    Ok(headers) => self.accept(stream, fin, headers).await,
                }
            }
            Control::Headers { stream, fin, block } => {
                // What they say is of no use, but the next ones can't be read without.
                if let Err(Fault::Lost(malformed)) = self.decoder.read(block) {
                    return Err(malformed.into());
                }
                if fin {
                    self.open.close_input(stream);
                }
            }
            Control::Reset { stream } => drop(self.open.reset(stream)),
            // An even one is the answer to ours.
            Control::Ping { id } if id % 2 == 1 => self.write(frame::ping(id)).await,
            Control::GoAway => self.away = true,
            Control::Ping { .. } | Control::Ignored => {}
        }
        Ok(())
    }

    /// The client's streams are odd, and each is more than the last.
    fn is_new(&mut self, stream: Id) -> Result<(), Malformed> {
        let mut streams = self.open.lock();
        if stream.is_multiple_of(2) || stream <= streams.last {
            return Err(Malformed("a SYN_STREAM whose stream is no new one of a client"));
        }
        streams.last = stream;
        Ok(())
    }

    async fn accept(&mut self, id: Id, fin: bool, headers: headers::Headers) {
        let full = self.open.lock().open.len() >= STREAMS_MAX;
        let place = self.streams.clone().reserve_owned().await;
        let (Ok(place), Some(queue), false, false) = (place, self.queue.upgrade(), full, self.away) else {
            return self.reset(id, Status::RefusedStream).await;
        };
        let (feed, input) = stream::input();
        let (output, hold) = queue.held_output(id);
        let halves = Halves {
            input: (!fin).then(|| Arc::new(feed)),
            output: true,
            hold,
        };
        self.open.lock().open.insert(id, halves);
        let block: &[u8] = if self.replied {
            &headers::NONE
        } else {
            &headers::FIRST_NONE
        };
        self.replied = true;
        // Before its output is there: the writer writes it first.
        self.write(frame::syn_reply(id, block)).await;
        place.send(Stream {
            id,
            headers,
            input: (!fin).then_some(input),
            output,
        });
    }

    async fn data(&mut self, stream: Id, fin: bool, mut length: usize) -> Result<(), End> {
        let (mut feed, count, known) = {
            let streams = self.open.lock();
            let halves = streams.open.get(&stream);
            let feed = halves.and_then(|halves| halves.input.clone());
            (feed, streams.open.len(), stream <= streams.last)
        };
        if !known {
            self.reset(stream, Status::InvalidStream).await;
        }
        // Of one that is closed by now, it is dropped: it was on its way.
        let piece_max = (PIECES_MAX / count.max(1)).min(PIECE_MAX);
        while length > 0 {
            let buffer = self.from.fill_buf().await?;
            if buffer.is_empty() {
                return Err(End::Gone);
            }
            let size = length.min(buffer.len()).min(piece_max);
            // Copied: one byte is not to keep a buffer.
            let piece = feed.as_ref().map(|_| Bytes::copy_from_slice(&buffer[..size]));
            self.from.consume(size);
            length -= size;
            if let (Some(to), Some(piece)) = (&feed, piece)
                && self.put(stream, &Arc::clone(to), piece).await.is_err()
            {
                feed = None;
            }
        }
        if fin {
            self.open.close_input(stream);
        }
        Ok(())
    }

    /// Waits for room, and meanwhile reads nothing. So nobody knows whether others wait: what a client opens or resets
    /// meanwhile lies unread behind this stream's data, which may be more than could be set aside.
    async fn put(&mut self, stream: Id, feed: &Feed, piece: Bytes) -> Result<(), Gone> {
        let mut put = pin!(feed.put(piece));
        let mut waited = Duration::ZERO;
        loop {
            if let Ok(done) = timeout(PING_EVERY, &mut put).await {
                return done;
            }
            waited += PING_EVERY;
            if self.stall == Stall::Reset && waited >= STALLED_MAX {
                self.open.reset(stream);
                self.reset(stream, Status::Cancel).await;
                return Err(Gone);
            }
            self.pinged = self.pinged.wrapping_add(2);
            let _ = self.frames.try_send(frame::ping(self.pinged));
        }
    }

    async fn reset(&mut self, stream: Id, status: Status) {
        self.write(frame::rst_stream(stream, status)).await;
    }

    async fn write(&mut self, frame: Vec<u8>) {
        let _ = self.frames.send(frame).await;
    }
}

struct Writer<C> {
    to: WriteHalf<C>,
    outbox: Outbox,
    frames: mpsc::Receiver<Vec<u8>>,
    open: Open,
}

impl<C: AsyncWrite> Writer<C> {
    /// Ends well when the verb is done, or the reader.
    async fn run(mut self) -> io::Result<()> {
        loop {
            let message = tokio::select! {
                biased;
                frame = self.frames.recv() => match frame {
                    Some(frame) => {
                        self.to.write_all(&frame).await?;
                        self.to.flush().await?;
                        continue;
                    }
                    None => return self.to.shutdown().await,
                },
                message = self.outbox.next() => message,
            };
            // The reply to its stream is there, if it is not written yet.
            while let Ok(frame) = self.frames.try_recv() {
                self.to.write_all(&frame).await?;
            }
            let Some((id, message)) = message else {
                let last = self.open.lock().last;
                self.to.write_all(&frame::goaway(last, Away::Ok)).await?;
                return self.to.shutdown().await;
            };
            self.message(id, message).await?;
            self.to.flush().await?;
        }
    }

    async fn message(&mut self, id: Id, message: Message) -> io::Result<()> {
        match message {
            Message::Data(data, _room) => {
                if self.open.is_open(id) {
                    let head = frame::data(id, false, data.len());
                    self.to
                        .write_all_buf(&mut Buf::chain(head.as_slice(), data))
                        .await?;
                }
            }
            Message::End => {
                if self.open.close_output(id) {
                    self.to.write_all(&frame::data(id, true, 0)).await?;
                }
            }
            Message::Reset => {
                if self.open.reset(id) {
                    self.to.write_all(&frame::rst_stream(id, Status::Cancel)).await?;
                }
            }
        }
        Ok(())
    }
}
