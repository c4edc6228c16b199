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
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use rtc_runtime::sys::memory;
use tokio::sync::Notify;

use crate::bootstrap::Identity;
use crate::{log, worker};

/// Where their messages are declared.
const PACKAGE: &str = "containerd.events";

/// Events that wait at most, but for those that are never dropped.
const QUEUE_MAX: usize = 1024;

/// How long containerd may take for one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Between attempts, doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// After this time without events the connection is given up: its memory is worth more.
const IDLE: Duration = Duration::from_secs(10);

/// How often one that containerd refuses is tried again; for what can't be right, once is enough.
const REFUSALS: u32 = 10;

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
    closed: AtomicBool,
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
            trimmed: Instant::now(),
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
        self.0.closed.store(true, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Packs a message of this package as containerd's typeurl does for its own: the type's name without a host before it.
/// The message could name its package by itself, but only after parsing the descriptions of all messages that come with
/// it: 450 KiB of the heap, for good.
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
        self.closed.load(Ordering::Relaxed)
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
    /// When the memory that was used last was given back.
    trimmed: Instant,
}

/// How an attempt went.
enum Outcome {
    Taken,
    /// containerd answered that it will not have it.
    Refused {
        for_ever: bool,
        error: anyhow::Error,
    },
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
            } else if self.trimmed.elapsed() > IDLE {
                // Events are at the end of all work.
                memory::trim();
                self.trimmed = Instant::now();
            } else if self.client.is_none() {
                self.queue.changed.notified().await;
            } else if tokio::time::timeout(IDLE, self.queue.changed.notified())
                .await
                .is_err()
            {
                self.client = None;
                self.trimmed = Instant::now();
                memory::trim();
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
                Outcome::Refused { for_ever, error } => {
                    refusals += 1;
                    if for_ever || refusals > REFUSALS {
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
        match (&self.identity.ttrpc_address, &self.identity.publish_binary) {
            (Some(_), _) => self.forward_to_service(envelope).await,
            (None, Some(binary)) => match self.publish(binary, envelope).await {
                Ok(()) => Outcome::Taken,
                Err(error) => Outcome::Refused {
                    for_ever: false,
                    error,
                },
            },
            // By hand, without containerd.
            (None, None) => Outcome::Taken,
        }
    }

    /// By a command of containerd, where there is no address: it sends what it reads.
    async fn publish(&self, binary: &Path, envelope: &Envelope) -> Result<()> {
        let working = worker::start(None, &[], |_| {
            let mut child = Command::new(binary)
                .args(["--address", &self.identity.containerd, "publish"])
                .args(["--topic", &envelope.topic, "--namespace", &envelope.namespace])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("run {binary:?}"))?;
            let event = envelope.event.as_ref().context("an event")?.write_to_bytes()?;
            child.stdin.take().context("a pipe")?.write_all(&event)?;
            let status = child.wait()?;
            anyhow::ensure!(status.success(), "{binary:?} publish: {status}");
            Ok(Vec::new())
        })?;
        worker::patiently(working, FORWARD_TIMEOUT).await?;
        Ok(())
    }

    async fn forward_to_service(&mut self, envelope: &Envelope) -> Outcome {
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
            Err(ttrpc::Error::RpcStatus(status)) => Outcome::Refused {
                for_ever: status.code() == ttrpc::Code::INVALID_ARGUMENT,
                error: anyhow::anyhow!(status.message),
            },
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use async_trait::async_trait;
    use containerd_shim_protos::events::task::{TaskExit, TaskIO, TaskOOM};
    use containerd_shim_protos::protobuf::MessageFull;
    use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
    use containerd_shim_protos::shim_async::{Events as Service, create_events};
    use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    /// containerd: keeps the ids of what it takes; will not have "bad".
    #[derive(Default)]
    struct Taken(Mutex<Vec<String>>);

    #[async_trait]
    impl Service for Taken {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let exit = TaskExit::parse_from_bytes(&request.envelope.event.value).unwrap();
            if exit.container_id == "bad" {
                let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "bad");
                return Err(ttrpc::Error::RpcStatus(status));
            }
            self.0.lock().unwrap().push(exit.container_id);
            Ok(Empty::default())
        }
    }

    async fn serve(socket: &Path, taken: &Arc<Taken>) -> Server {
        let _ = std::fs::remove_file(socket);
        let mut server = Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(taken.clone()));
        server.start().await.unwrap();
        server
    }

    fn exit(id: &str) -> TaskExit {
        TaskExit {
            container_id: id.into(),
            ..TaskExit::default()
        }
    }

    fn identity(socket: Option<&Path>) -> Arc<Identity> {
        Arc::new(Identity {
            namespace: "n".into(),
            ttrpc_address: socket.map(|socket| socket.display().to_string()),
            ..Identity::default()
        })
    }

    fn block_on(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() };
        runtime.block_on(limited);
    }

    fn socket(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rtc-shim-{}-{name}.ttrpc", std::process::id()))
    }

    #[test]
    fn events_wait_for_containerd_and_keep_their_order_over_its_restart() {
        block_on(async {
            let socket = socket("restart");
            let taken = Arc::new(Taken::default());
            let (events, publisher) = Events::queue(&identity(Some(&socket)));
            events.send("/tasks/exit", &exit("1"));
            let publisher = tokio::spawn(publisher.run());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut server = serve(&socket, &taken).await;
            while taken.0.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            server.shutdown().await.unwrap();
            drop(server);
            events.send("/tasks/exit", &exit("2"));
            events.send("/tasks/exit", &exit("bad"));
            events.send("/tasks/exit", &exit("3"));
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _server = serve(&socket, &taken).await;
            events.close();
            publisher.await.unwrap();
            assert_eq!(*taken.0.lock().unwrap(), ["1", "2", "3"]);
            std::fs::remove_file(socket).unwrap();
        });
    }

    #[test]
    fn nobody_to_tell_holds_up_nothing() {
        block_on(async {
            let (events, publisher) = Events::queue(&identity(None));
            events.send("/tasks/exit", &exit("1"));
            events.close();
            publisher.run().await;
        });
    }

    #[test]
    fn a_full_queue_loses_what_matters_least() {
        let (events, _publisher) = Events::queue(&identity(None));
        events.send("/tasks/oom", &TaskOOM::default());
        events.send("/tasks/start", &exit("start"));
        events.send("/tasks/oom", &TaskOOM::default());
        for number in 0..QUEUE_MAX {
            events.send("/tasks/exit", &exit(&number.to_string()));
        }
        let queue = events.0.events.lock().unwrap();
        let topics: Vec<_> = queue.iter().map(|event| event.topic).collect();
        // The first may be on its way already; and no exit is lost.
        assert_eq!(topics[0], "/tasks/oom");
        assert!(topics[1..].iter().all(|topic| *topic == "/tasks/exit"));
        assert_eq!(topics.len(), QUEUE_MAX + 1);
    }

    fn named_as_declared<M: MessageFull>() {
        assert_eq!(
            to_any(PACKAGE, &M::default()).type_url,
            M::descriptor().full_name()
        );
    }

    #[test]
    fn a_message_is_named_as_it_is_declared() {
        named_as_declared::<TaskExit>();
        named_as_declared::<TaskOOM>();
        named_as_declared::<TaskIO>();
    }
}
