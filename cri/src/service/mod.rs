//! The gRPC edge: a request goes to its verb, and the answer or the error back.
//!
//! tonic drops the future of a handler when its client goes or its deadline passes. So a verb that changes something runs
//! in a task of its own, to its end (`whole`): the kubelet's next try finds it done, or joins it.

pub(crate) mod image;
pub(crate) mod pulls;
pub(crate) mod runtime;

use std::pin::Pin;
use std::sync::LazyLock;

use tokio::sync::watch;
use tonic::{Response, Status};

use crate::error::{Error, Kind, Result};
use crate::log;

pub(crate) type Answer<T> = std::result::Result<Response<T>, Status>;
pub(crate) type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = std::result::Result<T, Status>> + Send>>;

/// So many items are in one message of a list that is streamed.
const PIECE: usize = 128;

/// Verbs that change something, and are on their way; streams, too.
static RUNNING: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Counts one of them, while it is there.
#[derive(Debug)]
pub(crate) struct Running;

impl Running {
    pub(crate) fn new() -> Self {
        RUNNING.send_modify(|running| *running += 1);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.send_modify(|running| *running -= 1);
    }
}

/// Returns when nothing is being changed.
pub(crate) async fn idle() {
    // The sender is static: it does not end.
    let _ = RUNNING.subscribe().wait_for(|running| *running == 0).await;
}

fn answer<T>(call: &'static str, result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| {
        log::debug(|| format!("{call}: {error}"));
        error.into()
    })
}

/// Runs a verb to its end, whatever becomes of the client.
async fn whole<T: Send + 'static>(
    call: &'static str,
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> Answer<T> {
    let running = Running::new();
    let result = tokio::spawn(async move {
        let _running = running;
        let result = verb.await;
        if let Err(error) = &result {
            log::warn(format_args!("{call}: {error}"));
        }
        result
    });
    match result.await {
        Ok(result) => result.map(Response::new).map_err(Status::from),
        // A panic: a defect of ours, which ends this call only.
        Err(error) => Err(Error::new(Kind::Unknown, error).context(call).into()),
    }
}

/// A list as a stream of messages.
fn pieces<T, M>(all: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Response<Stream<M>>
where
    M: Send + 'static,
{
    let mut messages = Vec::with_capacity(all.len().div_ceil(PIECE));
    let mut rest = all.into_iter();
    loop {
        let piece: Vec<T> = rest.by_ref().take(PIECE).collect();
        if piece.is_empty() {
            break;
        }
        messages.push(Ok(message(piece)));
    }
    Response::new(Box::pin(tokio_stream::iter(messages)))
}
