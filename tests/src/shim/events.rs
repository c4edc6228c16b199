//! containerd's events service (`containerd.services.events.ttrpc.v1.Events`): records what a shim forwards, in order.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::proto;

use super::ttrpc::{RESPONSE, frame, read_frame};
use crate::wait::until;

/// The service, and all that it has been sent.
#[derive(Debug)]
pub(crate) struct Events {
    /// Its socket.
    pub(crate) socket: PathBuf,
    received: Arc<Mutex<Vec<Envelope>>>,
    serving: Mutex<Option<Arc<Serving>>>,
}

/// The event in an envelope.
pub(crate) fn envelope_message<M: Message>(envelope: &Envelope) -> Result<M> {
    M::parse_from_bytes(&envelope.event.value).with_context(|| envelope.topic.clone())
}

/// One life of the service, from `serve` to `go_away`.
#[derive(Debug, Default)]
struct Serving {
    gone: AtomicBool,
    /// Nothing is read or answered for now, as if containerd were stopped.
    held: AtomicBool,
    connections: Mutex<Vec<UnixStream>>,
}

impl Events {
    /// Serves at this socket.
    pub(crate) fn serve(socket: &Path) -> Result<Self> {
        let events = Self {
            socket: socket.to_owned(),
            received: Arc::default(),
            serving: Mutex::default(),
        };
        events.come_back()?;
        Ok(events)
    }

    /// Serves again, at the same socket.
    pub(crate) fn come_back(&self) -> Result<()> {
        let listener = UnixListener::bind(&self.socket).with_context(|| self.socket.display().to_string())?;
        let serving = Arc::new(Serving::default());
        *lock(&self.serving) = Some(Arc::clone(&serving));
        let received = Arc::clone(&self.received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.gone.load(Ordering::SeqCst) {
                    return;
                }
                let (serving, received) = (Arc::clone(&serving), Arc::clone(&received));
                if let Ok(copy) = stream.try_clone() {
                    lock(&serving.connections).push(copy);
                    thread::spawn(move || answer(stream, &serving, &received));
                }
            }
        });
        Ok(())
    }

    /// Ends as containerd does when it is killed: the socket file stays, nobody listens, connections are cut.
    pub(crate) fn go_away(&self) -> Result<()> {
        if let Some(serving) = lock(&self.serving).take() {
            serving.gone.store(true, Ordering::SeqCst);
            // Wakes the thread that accepts.
            drop(UnixStream::connect(&self.socket));
            for connection in lock(&serving.connections).drain(..) {
                let _ = connection.shutdown(Shutdown::Both);
            }
            std::fs::remove_file(&self.socket)?;
        }
        Ok(())
    }

    /// Neither reads nor answers, until it is let go on.
    pub(crate) fn hold(&self, hold: bool) {
        if let Some(serving) = &*lock(&self.serving) {
            serving.held.store(hold, Ordering::SeqCst);
        }
    }

    /// All events of a container so far, each once, as `create`, `start`, `exit 3`, `exit EXEC 3`, `exec-added EXEC`...
    pub(crate) fn of(&self, container: &str) -> Result<Vec<String>> {
        let mut seen: Vec<Envelope> = Vec::new();
        let mut names = Vec::new();
        for envelope in lock(&self.received).iter() {
            // Delivered at least once: again after a connection was cut.
            if !seen.contains(envelope) {
                seen.push(envelope.clone());
                names.extend(name(envelope, container)?);
            }
        }
        Ok(names)
    }

    /// Waits until as many events of the container are there, and compares.
    pub(crate) fn are(&self, container: &str, expected: &[&str]) -> Result<()> {
        let waited = until("the events", || {
            Ok((self.of(container)?.len() >= expected.len()).then_some(()))
        });
        let found = self.of(container)?;
        waited.with_context(|| format!("expected {expected:?}, found {found:?}"))?;
        ensure!(found == expected, "expected {expected:?}, found {found:?}");
        Ok(())
    }

    /// Waits until this event of the container is there.
    pub(crate) fn wait_for(&self, container: &str, event: &str) -> Result<()> {
        let waited = until(&format!("event {event:?}"), || {
            Ok(self.of(container)?.iter().any(|name| name == event).then_some(()))
        });
        waited.with_context(|| format!("found {:?}", self.of(container)))
    }

    /// All envelopes so far, as they came.
    pub(crate) fn envelopes(&self) -> Vec<Envelope> {
        lock(&self.received).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one client until it or the service goes.
fn answer(mut stream: UnixStream, serving: &Serving, received: &Mutex<Vec<Envelope>>) {
    while let Ok(Some((number, _, body))) = read_frame(&mut stream) {
        let forwarded = proto::Request::parse_from_bytes(&body)
            .ok()
            .filter(|request| request.method == "Forward")
            .and_then(|request| ForwardRequest::parse_from_bytes(&request.payload).ok());
        while serving.held.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        let mut response = proto::Response::new();
        match forwarded {
            Some(forward) if !serving.gone.load(Ordering::SeqCst) => {
                lock(received).push(forward.envelope.unwrap_or_default());
            }
            _ => response.mut_status().code = proto::Code::INVALID_ARGUMENT.into(),
        }
        let body = response.write_to_bytes().unwrap_or_default();
        if stream.write_all(&frame(number, RESPONSE, &body)).is_err() {
            return;
        }
    }
}

/// The event's short name, if it is one of this container.
fn name(envelope: &Envelope, container: &str) -> Result<Option<String>> {
    let event = envelope.event.clone().unwrap_or_default();
    let topic = envelope.topic.strip_prefix("/tasks/").unwrap_or(&envelope.topic);
    let bytes = event.value.as_slice();
    // Of whom, and the rest of the name.
    let (of, rest) = match topic {
        "exit" => {
            let exit = task::TaskExit::parse_from_bytes(bytes)?;
            let status = exit.exit_status;
            let rest = if exit.id == exit.container_id {
                format!(" {status}")
            } else {
                format!(" {} {status}", exit.id)
            };
            (exit.container_id, rest)
        }
        "exec-added" => {
            let added = task::TaskExecAdded::parse_from_bytes(bytes)?;
            (added.container_id, format!(" {}", added.exec_id))
        }
        "exec-started" => {
            let started = task::TaskExecStarted::parse_from_bytes(bytes)?;
            (started.container_id, format!(" {}", started.exec_id))
        }
        // The container is the first field of all the others.
        _ => (
            task::TaskOOM::parse_from_bytes(bytes)?.container_id,
            String::new(),
        ),
    };
    Ok((of == container).then(|| format!("{topic}{rest}")))
}
