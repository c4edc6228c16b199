//! Events for containerd: one queue, in order, delivered at least once.
//!
//! ```text
//! send ──> queue, at most 1024 ──> publisher ── Forward ──> containerd: taken, next
//!            full: what matters least goes,        |  `── refused: said in the log, next
//!            the oldest of its kind first          `── no answer, nobody there: the same again, over a new connection
//! ```
//!
//! containerd may be away for as long as it likes: the queue waits for it, and is as large as it gets then, as nobody
//! starts anything meanwhile. Exits are never dropped: there is at most one for each process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use tokio::sync::Notify;

use crate::bootstrap::Identity;
use crate::log;

/// Of the messages that are sent.
const PACKAGE: &str = "containerd.events";

/// Events that wait at most, but for those that are never dropped.
const QUEUE_MAX: usize = 1024;

/// How long containerd may take for one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Between attempts, doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// After this time without events the connection is given up: its memory is worth more.
const IDLE: Duration = Duration::from_secs(10);

/// How often one that containerd refuses is tried again.
const REFUSALS: u32 = 3;

/// An event on its way.
#[derive(Debug)]
struct Event {
    /// As `/tasks/exit`.
    topic: &'static str,
    event: Any,
    at: SystemTime,
}

#[derive(Debug, Default)]
struct Queue {
    events: Mutex<VecDeque<Event>>,
    /// Something is in the queue, or it was closed.
    changed: Notify,
    closed: std::sync::atomic::AtomicBool,
}

/// Where events go in.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Queue>);

impl Events {
    /// The queue's ends.
    pub(crate) fn queue(identity: &Arc<Identity>) -> (Self, Publisher) {
        let queue = Arc::new(Queue::default());
        let publisher = Publisher {
            queue: queue.clone(),
            identity: identity.clone(),
            client: None,
        };
        (Self(queue), publisher)
    }

    /// Puts an event into the queue. Never waits.
    pub(crate) fn send(&self, topic: &'static str, message: &impl Message) {
        self.0.push(Event {
            topic,
            event: to_any(PACKAGE, message),
            at: SystemTime::now(),
        });
    }

    /// No more events come: the publisher ends when it has passed on what there is.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, std::sync::atomic::Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Packs a message as containerd's typeurl does for its own: the type's name without a host before it. By the name, not by
/// the message's descriptor: to ask for that, protobuf parses those of all it depends on, 400 KiB that stay.
pub(crate) fn to_any<M: Message>(package: &str, message: &M) -> Any {
    Any {
        type_url: format!("{package}.{}", M::NAME),
        // Never fails: there are no required fields.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

/// What an event is worth when there is no room; `None`: it is never dropped.
fn worth(topic: &str) -> Option<u8> {
    match topic {
        "/tasks/exit" => None,
        "/tasks/create" | "/tasks/start" | "/tasks/delete" => Some(2),
        "/tasks/exec-added" | "/tasks/exec-started" | "/tasks/paused" | "/tasks/resumed" => Some(1),
        _ => Some(0),
    }
}

impl Queue {
    fn push(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push_back(event);
        // The first one may be on its way.
        let droppable = || events.iter().enumerate().skip(1);
        if events.len() > QUEUE_MAX
            && let Some((_, at)) = droppable()
                .filter_map(|(at, event)| Some((worth(event.topic)?, at)))
                .min()
        {
            let dropped = events.remove(at);
            drop(events);
            if let Some(event) = dropped {
                log::warn(format_args!(
                    "{}: dropped: containerd takes no events",
                    event.topic
                ));
            }
        }
        self.changed.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The first event, which stays in the queue.
    fn first(&self, namespace: &str) -> Option<Envelope> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.front()?;
        Some(Envelope {
            timestamp: MessageField::some(Timestamp::from(event.at)),
            namespace: namespace.to_owned(),
            topic: event.topic.to_owned(),
            event: MessageField::some(event.event.clone()),
            ..Envelope::default()
        })
    }

    fn remove_first(&self) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.pop_front();
        if events.is_empty() {
            events.shrink_to_fit();
        }
    }
}

/// Passes the events on.
pub(crate) struct Publisher {
    queue: Arc<Queue>,
    identity: Arc<Identity>,
    client: Option<EventsClient>,
}

/// How an attempt went.
enum Outcome {
    Taken,
    /// containerd answered that it will not have it.
    Refused(anyhow::Error),
    /// It could not be asked.
    Lost(anyhow::Error),
}

impl Publisher {
    /// Runs until the queue is closed and empty.
    pub(crate) async fn run(mut self) {
        loop {
            if let Some(envelope) = self.queue.first(&self.identity.namespace) {
                self.deliver(envelope).await;
                self.queue.remove_first();
            } else if self.queue.is_closed() {
                return;
            } else if self.client.is_none() {
                self.queue.changed.notified().await;
            } else if tokio::time::timeout(IDLE, self.queue.changed.notified())
                .await
                .is_err()
            {
                self.client = None;
            }
        }
    }

    /// Returns when the event was taken, or is given up.
    async fn deliver(&mut self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let (mut pause, longest) = BACK_OFF;
        let mut refusals = 0;
        let mut told = false;
        loop {
            match self.forward(&envelope).await {
                Outcome::Taken => return,
                Outcome::Refused(error) => {
                    refusals += 1;
                    if refusals > REFUSALS {
                        log::error(format_args!("{topic}: containerd refuses the event: {error:#}"));
                        return;
                    }
                }
                Outcome::Lost(error) => {
                    self.client = None;
                    if !std::mem::replace(&mut told, true) {
                        log::warn(format_args!("{topic}: waits for containerd: {error:#}"));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn forward(&mut self, envelope: &Envelope) -> Outcome {
        let client = match self.connect().await {
            Ok(client) => client,
            Err(error) => return Outcome::Lost(error),
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope.clone()),
            ..ForwardRequest::default()
        };
        let context = ttrpc::context::with_duration(FORWARD_TIMEOUT);
        match client.forward(context, &request).await {
            Ok(_) => Outcome::Taken,
            Err(error @ ttrpc::Error::RpcStatus(_)) => Outcome::Refused(error.into()),
            Err(error) => Outcome::Lost(error.into()),
        }
    }

    async fn connect(&mut self) -> Result<&EventsClient> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let address = self
                    .identity
                    .ttrpc_address
                    .as_deref()
                    .context("no TTRPC_ADDRESS")?;
                let path = address.strip_prefix("unix://").unwrap_or(address);
                // Not through ttrpc's own, which waits where the backlog is full.
                let stream = tokio::net::UnixStream::connect(path).await;
                let stream = stream.with_context(|| format!("connect({path:?})"))?;
                EventsClient::new(Client::new(Socket::from(stream)))
            }
        };
        Ok(self.client.insert(client))
    }
}
