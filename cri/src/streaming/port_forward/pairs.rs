//! SPDY's streams of a port forward: two for each connection, in any order.
//!
//! ```text
//! streamtype: error, port: 80, requestID: 7 ──┐
//! streamtype: data,  port: 80, requestID: 7 ──┴─> Forward     the other one does not come in time: reset
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::streaming::port_forward::Forward;
use crate::streaming::spdy::{Headers, Stream};
use crate::streaming::stream::{self, Id};

/// What the second stream of a pair has for coming, as Kubernetes' own server gives it.
const PAIRED_MAX: Duration = Duration::from_secs(30);
/// Streams that may wait for their other one.
const HALVES_MAX: usize = 1024;
/// How often it is looked who has waited too long.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

/// One that waits.
#[derive(Debug)]
struct Half {
    stream: Stream,
    part: Part,
    port: u16,
    since: Instant,
}

/// Pairs streams, until there are no more of them and nobody takes the pairs.
pub(super) async fn forwards(mut streams: mpsc::Receiver<Stream>, forwards: mpsc::Sender<Forward>) {
    let mut halves = HashMap::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        let stream = tokio::select! {
            stream = streams.recv() => stream,
            _ = look.tick(), if !halves.is_empty() => {
                halves.retain(|_, half: &mut Half| half.since.elapsed() < PAIRED_MAX);
                continue;
            }
        };
        // The client is gone: what is served still ends by itself.
        let Some(stream) = stream else { break };
        match pair(&mut halves, stream) {
            Ok(Some(forward)) => {
                if forwards.send(forward).await.is_err() {
                    break;
                }
            }
            Ok(None) => {}
            Err((stream, text)) => refuse(stream, text).await,
        }
    }
    drop((halves, forwards));
    std::future::pending::<()>().await;
}

/// Takes a stream; the connection, where that was its second one.
///
/// # Errors
///
/// The stream, and what is wrong with it.
fn pair(halves: &mut HashMap<String, Half>, stream: Stream) -> Result<Option<Forward>, (Stream, String)> {
    let (part, port) = match (part(&stream.headers), port(&stream.headers)) {
        (Ok(part), Ok(port)) => (part, port),
        (Err(text), _) | (_, Err(text)) => return Err((stream, text)),
    };
    let request = request(&stream.headers, stream.id, part);
    let half = Half {
        stream,
        part,
        port,
        since: Instant::now(),
    };
    let Some(other) = halves.remove(&request) else {
        if halves.len() >= HALVES_MAX {
            let text = format!("more than {HALVES_MAX} streams wait for their other one");
            return Err((half.stream, text));
        }
        halves.insert(request, half);
        return Ok(None);
    };
    if other.part == part || other.port != port {
        let text = format!("requestID: {request:?}: is another connection's");
        halves.insert(request, other);
        return Err((half.stream, text));
    }
    let (data, error) = match part {
        Part::Data => (half.stream, other.stream),
        Part::Error => (other.stream, half.stream),
    };
    Ok(Some(Forward {
        port,
        // One that was closed from the beginning.
        input: data.input.unwrap_or_else(|| stream::input().1),
        output: data.output,
        error: error.output,
    }))
}

fn part(headers: &Headers) -> Result<Part, String> {
    match headers.get("streamtype") {
        Some("data") => Ok(Part::Data),
        Some("error") => Ok(Part::Error),
        Some(other) => Err(format!("streamtype: {other:?}: must be data or error")),
        None => Err("streamtype: is missing: must be data or error".to_owned()),
    }
}

fn port(headers: &Headers) -> Result<u16, String> {
    let text = headers.get("port").unwrap_or_default();
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("port: {text:?}: must be 1 to 65535")),
    }
}

/// What the two have in common. An old client says nothing: it opens the error stream first, and data next.
fn request(headers: &Headers, id: Id, part: Part) -> String {
    match (headers.get("requestid"), part) {
        (Some(request), _) if !request.is_empty() => request.to_owned(),
        (_, Part::Error) => format!("#{id}"),
        (_, Part::Data) => format!("#{}", id.saturating_sub(2)),
    }
}

/// An error stream takes the text; any other is reset.
async fn refuse(stream: Stream, text: String) {
    if part(&stream.headers) == Ok(Part::Error) {
        let _ = stream.output.send(text.into()).await;
        stream.output.finish();
    }
}
