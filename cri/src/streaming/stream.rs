//! One stream of a client's connection, whatever the framing: what comes in on it, and what goes out.
//!
//! ```text
//! client ──> framing's reader ── Feed ──> Input      read by the verb, piece by piece
//! client <── framing's writer <── Queue <── Output   one queue for all streams of a connection, in order
//! ```
//!
//! Nothing is left half open: an [`Output`] that is dropped without [`Output::finish`] resets its stream, an [`Input`] that
//! is dropped takes no more, and all of them end with the connection. What waits in memory is bounded: an `Output` waits for
//! room in its connection's queue, a reader for room in its stream's `Feed`.

use std::fmt;
use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// What may wait in a connection's queue, in bytes.
const QUEUE_MAX: usize = 256 << 10;
/// A piece takes at least so much of it, in bytes: a message has a size of its own.
const PIECE_MIN: usize = 256;
/// Pieces that may wait in one stream's feed.
const FEED_MAX: usize = 8;

/// A stream's number in its connection: SPDY's stream id, WebSocket's channel.
pub(super) type Id = u32;

/// The connection, or the stream, has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client has gone")
    }
}

impl std::error::Error for Gone {}

/// What the client sends on one stream.
#[derive(Debug)]
pub(super) struct Input(mpsc::Receiver<Bytes>);

/// The framing's end of an [`Input`]. Dropping it ends the input.
#[derive(Debug)]
pub(super) struct Feed(mpsc::Sender<Bytes>);

/// What goes to the client on one stream.
#[derive(Debug)]
pub(super) struct Output {
    id: Id,
    finished: bool,
    watch: Watch,
}

/// Sees the client go, or reset one stream: for who still works on a stream whose [`Output`] is finished. It keeps the
/// connection open as an output does.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    queue: Queue,
    /// Its sender's end, while it says `false`: the client has reset this one stream.
    cut: Option<watch::Receiver<bool>>,
}

/// The framing's hold on an [`Output`]. Dropping it lets the output, and its [`Watch`], know that the client has reset it.
#[derive(Debug)]
pub(super) struct Hold {
    released: watch::Sender<bool>,
}

/// Where all outputs of a connection put what they send.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    messages: mpsc::UnboundedSender<(Id, Message)>,
    room: Arc<Semaphore>,
}

/// A [`Queue`] that does not keep its connection open.
#[derive(Debug)]
pub(super) struct WeakQueue {
    messages: mpsc::WeakUnboundedSender<(Id, Message)>,
    room: Arc<Semaphore>,
}

/// The framing's end of a [`Queue`]. Dropping it lets all outputs know that the client has gone.
#[derive(Debug)]
pub(super) struct Outbox {
    messages: mpsc::UnboundedReceiver<(Id, Message)>,
    room: Arc<Semaphore>,
}

/// What the framing's writer is to send.
#[derive(Debug)]
pub(super) enum Message {
    /// Its room is free again when this is dropped: after it was written.
    Data(Bytes, OwnedSemaphorePermit),
    /// No more on this stream.
    End,
    /// As `End`, but it broke off.
    Reset,
}

/// A stream's input, and where its framing puts what comes.
pub(super) fn input() -> (Feed, Input) {
    let (sender, receiver) = mpsc::channel(FEED_MAX);
    (Feed(sender), Input(receiver))
}

/// A connection's queue, and where its framing takes what is to be written.
pub(super) fn queue() -> (Queue, Outbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(QUEUE_MAX));
    let queue = Queue {
        messages: sender,
        room: Arc::clone(&room),
    };
    let outbox = Outbox {
        messages: receiver,
        room,
    };
    (queue, outbox)
}

impl Input {
    /// The next piece; `None`: the client has closed its half, or has gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl Feed {
    /// Waits for room.
    ///
    /// # Errors
    ///
    /// Nobody reads it any more: what comes is to be dropped.
    pub(super) async fn put(&self, piece: Bytes) -> Result<(), Gone> {
        self.0.send(piece).await.map_err(|_| Gone)
    }
}

impl Queue {
    /// The output half of a stream.
    pub(super) fn output(&self, id: Id) -> Output {
        Output {
            id,
            finished: false,
            watch: Watch {
                queue: self.clone(),
                cut: None,
            },
        }
    }

    /// The output half of a stream that a client can reset alone.
    pub(super) fn held_output(&self, id: Id) -> (Output, Hold) {
        let (released, cut) = watch::channel(false);
        let mut output = self.output(id);
        output.watch.cut = Some(cut);
        (output, Hold { released })
    }

    /// For who makes outputs as long as somebody else wants them.
    pub(super) fn downgrade(&self) -> WeakQueue {
        WeakQueue {
            messages: self.messages.downgrade(),
            room: Arc::clone(&self.room),
        }
    }

    fn send(&self, id: Id, message: Message) -> Result<(), Gone> {
        self.messages.send((id, message)).map_err(|_| Gone)
    }

    /// Waits until the client has gone.
    pub(super) async fn closed(&self) {
        self.messages.closed().await;
    }
}

impl WeakQueue {
    /// `None`: nobody wants more of this connection.
    pub(super) fn upgrade(&self) -> Option<Queue> {
        let messages = self.messages.upgrade()?;
        let room = Arc::clone(&self.room);
        Some(Queue { messages, room })
    }
}

impl Hold {
    /// Both halves were closed in good order. That is no reset: what came before is still to be taken.
    pub(super) fn release(self) {
        self.released.send_replace(true);
    }
}

impl Watch {
    /// Waits until the client has gone, or has reset this stream.
    pub(super) async fn closed(&self) {
        let cut = async {
            if let Some(mut cut) = self.cut.clone()
                && cut.wait_for(|released| *released).await.is_err()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = cut => {}
            () = self.queue.closed() => {}
        }
    }
}

impl Output {
    /// Sends a piece; waits for room.
    ///
    /// # Errors
    ///
    /// The client has gone, or has reset this stream.
    pub(super) async fn send(&self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(QUEUE_MAX));
            let size = u32::try_from(piece.len().max(PIECE_MIN)).map_err(|_| Gone)?;
            let room = Arc::clone(&self.watch.queue.room).acquire_many_owned(size);
            let room = tokio::select! {
                biased;
                () = self.closed() => return Err(Gone),
                room = room => room.map_err(|_| Gone)?,
            };
            self.watch.queue.send(self.id, Message::Data(piece, room))?;
        }
        Ok(())
    }

    /// Waits until the client has gone, or has reset this stream.
    pub(super) async fn closed(&self) {
        self.watch.closed().await;
    }

    /// What outlives it.
    pub(super) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Closes our half: the client reads its end.
    pub(super) fn finish(mut self) {
        self.finished = true;
        let _ = self.watch.queue.send(self.id, Message::End);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.watch.queue.send(self.id, Message::Reset);
        }
    }
}

impl Outbox {
    /// The next to write; `None`: all outputs are gone, and the queue's holders, too.
    pub(super) async fn next(&mut self) -> Option<(Id, Message)> {
        self.messages.recv().await
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_output_that_is_dropped_unfinished_resets_its_stream() {
        let (queue, mut outbox) = queue();
        drop(queue.output(3));
        queue.output(5).finish();
        drop(queue);
        assert!(matches!(outbox.next().await, Some((3, Message::Reset))));
        assert!(matches!(outbox.next().await, Some((5, Message::End))));
        assert!(outbox.next().await.is_none());
    }

    #[tokio::test]
    async fn who_sends_waits_for_room_and_hears_of_the_client_s_end() {
        let (queue, mut outbox) = queue();
        let output = queue.output(1);
        output.send(vec![0; QUEUE_MAX].into()).await.unwrap();
        let more = tokio::spawn(async move { output.send(vec![1].into()).await });
        tokio::task::yield_now().await;
        assert!(!more.is_finished());
        let first = outbox.next().await;
        tokio::task::yield_now().await;
        assert!(!more.is_finished(), "not written yet");
        drop(first);
        assert!(more.await.unwrap().is_ok());
        let waiting = queue.output(2);
        drop(outbox);
        assert_eq!(waiting.send(vec![1].into()).await, Err(Gone));
        queue.closed().await;
    }

    #[tokio::test]
    async fn a_stream_that_the_client_resets_ends_alone() {
        let (queue, _outbox) = queue();
        let (output, hold) = queue.held_output(1);
        let (other, _hold) = queue.held_output(3);
        output.send("x".into()).await.unwrap();
        drop(hold);
        output.closed().await;
        assert_eq!(output.send("x".into()).await, Err(Gone));
        other.send("x".into()).await.unwrap();
    }

    #[tokio::test]
    async fn a_watch_outlives_its_output_and_tells_a_reset_from_an_end() {
        let (queue, outbox) = queue();
        let (output, hold) = queue.held_output(1);
        let (other, other_hold) = queue.held_output(3);
        let (reset, ended) = (output.watch(), other.watch());
        output.finish();
        other.finish();
        drop(hold);
        reset.closed().await;
        other_hold.release();
        let waiting = tokio::spawn(async move { ended.closed().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(outbox);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_weak_queue_keeps_nothing_open() {
        let (queue, mut outbox) = queue();
        let weak = queue.downgrade();
        let output = weak.upgrade().unwrap().output(1);
        drop(queue);
        output.finish();
        assert!(weak.upgrade().is_none());
        assert!(matches!(outbox.next().await, Some((1, Message::End))));
        assert!(outbox.next().await.is_none());
    }

    #[tokio::test]
    async fn an_input_ends_with_its_feed() {
        let (feed, mut input) = input();
        feed.put("x".into()).await.unwrap();
        drop(feed);
        assert_eq!(input.next().await.unwrap(), "x");
        assert!(input.next().await.is_none());
        let (feed, input) = super::input();
        drop(input);
        assert_eq!(feed.put("x".into()).await, Err(Gone));
    }
}
