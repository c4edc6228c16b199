//! A client of SPDY, and ports of this host in place of a pod's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::spdy::client::{Client, Frame};
use super::super::stream::{self, Feed, Hold, Id, Message, Outbox};
use super::*;

type Ended = JoinHandle<std::result::Result<(), Malformed>>;

fn served(pod: Pod) -> (Client, Ended) {
    let (client, server) = tokio::io::duplex(64 << 10);
    let run = tokio::spawn(async move { over_spdy(&pod, "p1", server).await });
    (Client::new(client), run)
}

fn host() -> Pod {
    Arc::new(|| Ok(None))
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

/// A connection: its error stream, which the client closes at once as kubectl does, and its data stream.
async fn connect(client: &mut Client, port: &str, request: &str) -> (Id, Id) {
    let of = |part| [("streamtype", part), ("port", port), ("requestid", request)];
    let error = client.open(&of("error")).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(error)));
    client.fin(error).await;
    let data = client.open(&of("data")).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(data)));
    (error, data)
}

/// What comes on all streams until so many of them have ended.
async fn until_ended(client: &mut Client, mut count: usize) -> BTreeMap<Id, (String, &'static str)> {
    let mut streams = BTreeMap::<Id, (String, &'static str)>::new();
    while count > 0 {
        let (id, text, end) = match client.frame().await.expect("more") {
            Frame::Data(id, data) => (id, String::from_utf8(data).unwrap(), ""),
            Frame::Fin(id) => (id, String::new(), "closed"),
            Frame::Reset(id, _) => (id, String::new(), "reset"),
            other => panic!("{other:?}"),
        };
        let of = streams.entry(id).or_default();
        of.0 += &text;
        if !end.is_empty() {
            of.1 = end;
            count -= 1;
        }
    }
    streams
}

#[test]
fn ports_are_ports() {
    assert_eq!(ports(&[80, 65535]).unwrap(), [80, 65535]);
    assert!(ports(&[]).unwrap().is_empty(), "the streams say which");
    for port in [0, -1, 65536] {
        let error = ports(&[80, port]).unwrap_err();
        assert_eq!(error.to_string(), format!("port[1]: {port}: must be 1 to 65535"));
    }
}

#[tokio::test]
async fn a_connection_is_forwarded_both_ways_and_half_closed() {
    let (listener, port) = listen().await;
    let (mut client, run) = served(host());
    let (error, data) = connect(&mut client, &port, "1").await;
    let (mut pod, _) = listener.accept().await.unwrap();
    client.data(data, b"question").await;
    client.fin(data).await;
    let mut question = String::new();
    // Its end is seen, and an answer given after it.
    pod.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    let ended = until_ended(&mut client, 2).await;
    assert_eq!(ended[&data], ("answer".into(), "closed"));
    assert_eq!(ended[&error], (String::new(), "closed"));
    drop(client);
    assert_eq!(run.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_one_connection_s_error() {
    let (listener, port) = listen().await;
    let (gone, closed) = listen().await;
    drop(gone);
    let (mut client, _run) = served(host());
    let (_, lives) = connect(&mut client, &port, "1").await;
    let (mut pod, _) = listener.accept().await.unwrap();
    let (error, data) = connect(&mut client, &closed, "2").await;
    let ended = until_ended(&mut client, 2).await;
    assert_eq!(ended[&data], (String::new(), "reset"));
    let (text, end) = &ended[&error];
    assert_eq!(*end, "closed");
    assert!(
        text.starts_with(&format!(
            "error forwarding port {closed} to pod p1: connect to localhost:{closed}: IPv4: Connection refused"
        )),
        "{text}"
    );
    pod.write_all(b"x").await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Data(lives, b"x".into())));
}

#[tokio::test]
async fn a_reset_is_passed_on_and_ends_no_other() {
    let (listener, port) = listen().await;
    let (mut client, _run) = served(host());
    let (error, data) = connect(&mut client, &port, "1").await;
    let (pod, _) = listener.accept().await.unwrap();
    let (_, other) = connect(&mut client, &port, "2").await;
    let (mut other_pod, _) = listener.accept().await.unwrap();
    pod.set_zero_linger().unwrap();
    drop(pod);
    let ended = until_ended(&mut client, 2).await;
    assert_eq!(ended[&data], (String::new(), "reset"));
    assert_eq!(ended[&error], (String::new(), "closed"), "no text");
    // And the client's.
    client.reset(other).await;
    assert_eq!(other_pod.read(&mut [0; 9]).await.unwrap_or_default(), 0);
}

/// A copy whose pod has said all it has to say, and takes no more; what it was sent, in bytes.
struct Stuck {
    pod: TcpStream,
    feed: Feed,
    hold: Hold,
    sent: usize,
    copy: JoinHandle<io::Result<()>>,
    _outbox: Outbox,
}

async fn stuck() -> Stuck {
    let (listener, _) = listen().await;
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut pod, _) = listener.accept().await.unwrap();
    let (queue, mut outbox) = stream::queue();
    let ((feed, input), (output, hold)) = (stream::input(), queue.held_output(1));
    let copy = tokio::spawn(copy(socket, input, output));
    pod.shutdown().await.unwrap();
    assert!(matches!(outbox.next().await, Some((1, Message::End))));
    let (data, mut sent) = (Bytes::from(vec![0; 256 << 10]), 0);
    while let Ok(put) = timeout(Duration::from_millis(200), feed.put(data.clone())).await {
        put.unwrap();
        sent += data.len();
    }
    assert!(!copy.is_finished());
    Stuck {
        pod,
        feed,
        hold,
        sent,
        copy,
        _outbox: outbox,
    }
}

#[tokio::test]
async fn a_reset_after_the_pod_s_end_is_seen_though_the_pod_takes_nothing() {
    let stuck = stuck().await;
    drop((stuck.hold, stuck.feed));
    let ended = timeout(Duration::from_secs(5), stuck.copy).await;
    assert!(ended.expect("no end").unwrap().is_err());
}

#[tokio::test]
async fn what_was_sent_before_both_halves_were_closed_comes_to_the_pod() {
    let mut stuck = stuck().await;
    stuck.hold.release();
    drop(stuck.feed);
    let mut all = Vec::new();
    stuck.pod.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), stuck.sent);
    stuck.copy.await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_end_with_their_client() {
    let (listener, port) = listen().await;
    let (mut client, run) = served(host());
    connect(&mut client, &port, "1").await;
    let (mut pod, _) = listener.accept().await.unwrap();
    drop(client);
    assert_eq!(run.await.unwrap(), Ok(()));
    assert_eq!(pod.read(&mut [0; 9]).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn connections_end_with_their_pod() {
    let (listener, port) = listen().await;
    let stopped = Arc::new(AtomicBool::new(false));
    let pod: Pod = {
        let stopped = Arc::clone(&stopped);
        Arc::new(move || match stopped.load(Ordering::Relaxed) {
            false => Ok(None),
            true => Err(Error::text(Kind::FailedPrecondition, "not ready")),
        })
    };
    let (mut client, run) = served(pod);
    let (error, data) = connect(&mut client, &port, "1").await;
    let (_pod, _) = listener.accept().await.unwrap();
    stopped.store(true, Ordering::Relaxed);
    let ended = until_ended(&mut client, 2).await;
    assert_eq!((ended[&data].1, ended[&error].1), ("reset", "reset"));
    assert_eq!(client.frame().await, Some(Frame::GoAway(data, 0)));
    drop(client);
    assert_eq!(run.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn streams_that_are_no_pair_are_refused_with_a_reason() {
    let (listener, port) = listen().await;
    let (mut client, _run) = served(host());
    let port = port.as_str();
    for (pairs, text) in [
        (
            vec![("streamtype", "error"), ("port", "0")],
            "port: \"0\": must be 1 to 65535",
        ),
        (vec![("streamtype", "error")], "port: \"\": must be 1 to 65535"),
        (vec![("streamtype", "data"), ("port", "x")], ""),
        (vec![("streamtype", "resize"), ("port", port)], ""),
        (vec![("port", port)], ""),
    ] {
        let id = client.open(&pairs).await;
        assert_eq!(client.frame().await, Some(Frame::Reply(id)));
        let ended = until_ended(&mut client, 1).await;
        let end = if text.is_empty() { "reset" } else { "closed" };
        assert_eq!(ended[&id], (text.to_owned(), end), "{pairs:?}");
    }
    // Twice the same, and then its other one.
    let of = |part| [("streamtype", part), ("port", port), ("requestid", "7")];
    let error = client.open(&of("error")).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(error)));
    let again = client.open(&of("error")).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(again)));
    let ended = until_ended(&mut client, 1).await;
    assert_eq!(ended[&again].0, "requestID: \"7\": is another connection's");
    client.open(&of("data")).await;
    listener.accept().await.unwrap();
}

#[tokio::test]
async fn an_old_client_s_streams_are_paired_by_their_numbers() {
    let (listener, port) = listen().await;
    let (mut client, _run) = served(host());
    client.open(&[("streamtype", "error"), ("port", &port)]).await;
    client.open(&[("streamtype", "data"), ("port", &port)]).await;
    listener.accept().await.unwrap();
}

#[tokio::test]
async fn five_hundred_connections_at_once() {
    let (listener, port) = listen().await;
    let echo = tokio::spawn(async move {
        let mut pods = JoinSet::new();
        loop {
            let (mut pod, _) = listener.accept().await.unwrap();
            pods.spawn(async move {
                let (mut from, mut to) = pod.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    let (mut client, _run) = served(host());
    let mut data = Vec::new();
    for request in 0..500 {
        data.push(connect(&mut client, &port, &request.to_string()).await.1);
    }
    for id in &data {
        client.data(*id, b"x").await;
        client.fin(*id).await;
    }
    let ended = until_ended(&mut client, 1000).await;
    assert!(data.iter().all(|id| ended[id] == ("x".into(), "closed")));
    echo.abort();
}
