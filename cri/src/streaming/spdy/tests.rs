//! Sessions, seen by a client.

use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{Client, Frame, control};
use super::*;
use crate::streaming::stream::Gone;

type Ended = JoinHandle<Result<(), Malformed>>;

fn session_of(stall: Stall) -> (Client, Session, Ended) {
    session_with(stall, 64 << 10)
}

/// `room`: what may be on its way, in bytes.
fn session_with(stall: Stall, room: usize) -> (Client, Session, Ended) {
    let (client, server): (DuplexStream, DuplexStream) = tokio::io::duplex(room);
    let (session, run) = open(server, stall);
    (Client::new(client), session, tokio::spawn(run))
}

fn session() -> (Client, Session, Ended) {
    session_of(Stall::Hold)
}

#[tokio::test]
async fn a_stream_is_replied_to_and_carries_bytes_both_ways_until_each_half_is_closed() {
    let (mut client, mut session, _run) = session();
    let id = client.open(&[("streamtype", "stdin")]).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    let mut stream = session.streams.recv().await.unwrap();
    assert_eq!((stream.id, stream.headers.get("streamtype")), (id, Some("stdin")));
    let input = stream.input.as_mut().unwrap();
    client.data(id, b"to").await;
    assert_eq!(input.next().await.unwrap(), "to");
    client.fin(id).await;
    assert!(input.next().await.is_none());
    // Half closed: ours goes on.
    stream.output.send("from".into()).await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Data(id, b"from".into())));
    stream.output.finish();
    assert_eq!(client.frame().await, Some(Frame::Fin(id)));
}

#[tokio::test]
async fn a_stream_whose_first_frame_closes_it_has_no_input() {
    let (mut client, mut session, _run) = session();
    let (id, frame) = client.syn_stream(1, &[]);
    client.send(&frame).await;
    let stream = session.streams.recv().await.unwrap();
    assert!(stream.input.is_none());
    stream.output.finish();
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    assert_eq!(client.frame().await, Some(Frame::Fin(id)));
}

#[tokio::test]
async fn one_frame_of_16_mib_comes_in_pieces() {
    let (mut client, mut session, _run) = session();
    let id = client.open(&[]).await;
    let mut stream = session.streams.recv().await.unwrap();
    let size = (1 << 24) - 1;
    let sender = tokio::spawn(async move { client.data(id, &vec![7; size]).await });
    let (mut sum, input) = (0, stream.input.as_mut().unwrap());
    while sum < size {
        let piece = input.next().await.unwrap();
        assert!(piece.len() <= 32 << 10);
        sum += piece.len();
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn a_reset_ends_one_stream_and_no_other() {
    let (mut client, mut session, _run) = session();
    let (first, second) = (client.open(&[]).await, client.open(&[]).await);
    let mut one = session.streams.recv().await.unwrap();
    let mut two = session.streams.recv().await.unwrap();
    client.reset(first).await;
    assert!(one.input.as_mut().unwrap().next().await.is_none());
    one.output.closed().await;
    assert_eq!(one.output.send("x".into()).await, Err(Gone));
    // What was on its way to it is dropped.
    client.data(first, b"late").await;
    client.data(second, b"x").await;
    assert_eq!(two.input.as_mut().unwrap().next().await.unwrap(), "x");
    // Ours.
    drop(two.output);
    assert_eq!(client.frame().await, Some(Frame::Reply(first)));
    assert_eq!(client.frame().await, Some(Frame::Reply(second)));
    assert_eq!(client.frame().await, Some(Frame::Reset(second, 5)));
    assert!(two.input.as_mut().unwrap().next().await.is_none());
}

#[tokio::test]
async fn an_input_that_is_dropped_takes_no_more_and_holds_nobody() {
    let (mut client, mut session, _run) = session();
    let id = client.open(&[]).await;
    let stream = session.streams.recv().await.unwrap();
    drop(stream.input);
    for _ in 0..100 {
        client.data(id, &[0; 32 << 10]).await;
    }
    client.send(&frame::ping(1)).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    assert_eq!(client.frame().await, Some(Frame::Ping(1)));
}

#[tokio::test]
async fn a_thousand_streams_live_side_by_side_and_too_many_are_refused() {
    let (mut client, mut session, _run) = session();
    let taking = tokio::spawn(async move {
        let mut streams = Vec::new();
        while streams.len() < 4096 {
            streams.push(session.streams.recv().await.unwrap());
        }
        (session, streams)
    });
    for _ in 0..4096 {
        let id = client.open(&[("port", "80")]).await;
        assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    }
    let (mut session, mut streams) = taking.await.unwrap();
    let refused = client.open(&[("port", "81")]).await;
    assert_eq!(client.frame().await, Some(Frame::Reset(refused, 3)));
    // One goes, there is a place.
    let gone = streams.remove(7);
    client.reset(gone.id).await;
    let id = client.open(&[("port", "82")]).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    let last = session.streams.recv().await.unwrap();
    assert_eq!(last.headers.get("port"), Some("82"));
    for stream in &streams {
        stream.output.send("x".into()).await.unwrap();
        assert_eq!(client.frame().await, Some(Frame::Data(stream.id, b"x".into())));
    }
}

#[tokio::test]
async fn what_the_verb_no_longer_takes_is_refused() {
    let (mut client, mut session, _run) = session();
    let first = client.open(&[]).await;
    let _stream = session.streams.recv().await.unwrap();
    drop(session.streams);
    let second = client.open(&[]).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(first)));
    assert_eq!(client.frame().await, Some(Frame::Reset(second, 3)));
}

#[tokio::test]
async fn nonsense_about_one_stream_ends_that_one() {
    let (mut client, mut session, _run) = session();
    let (upper, frame) = client.syn_stream(0, &[("Port", "80")]);
    client.send(&frame).await;
    assert_eq!(client.frame().await, Some(Frame::Reset(upper, 1)));
    let (one_way, frame) = client.syn_stream(2, &[("port", "80")]);
    client.send(&frame).await;
    assert_eq!(client.frame().await, Some(Frame::Reset(one_way, 3)));
    client.data(99, b"of none").await;
    assert_eq!(client.frame().await, Some(Frame::Reset(99, 2)));
    // Not ours to know; types that we don't, and answers to what we never asked.
    client.send(&control(77, 0xff, &[b"what"])).await;
    client.send(&control(6, 0, &[&2_u32.to_be_bytes()])).await;
    client.send(&control(9, 0, &[&[0; 8]])).await;
    let id = client.open(&[("port", "80")]).await;
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    assert_eq!(session.streams.recv().await.unwrap().id, id);
}

#[tokio::test]
async fn what_is_not_spdy_ends_the_connection_and_all_streams() {
    let id_again = {
        let (mut client, ..) = session();
        client.syn_stream(0, &[]).1
    };
    let cases: [(&str, Vec<u8>); 5] = [
        ("another protocol", vec![0xff; 64]),
        ("an even stream", control(1, 0, &[&2_u32.to_be_bytes(), &[0; 6]])),
        ("a stream again", id_again),
        ("no headers", control(8, 0, &[&1_u32.to_be_bytes(), b"garbage"])),
        ("a long frame", [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff].into()),
    ];
    for (what, bytes) in cases {
        let (mut client, mut session, run) = session();
        let id = client.open(&[]).await;
        let mut stream = session.streams.recv().await.unwrap();
        client.send(&bytes).await;
        assert_eq!(client.frame().await, Some(Frame::Reply(id)), "{what}");
        assert_eq!(client.frame().await, Some(Frame::GoAway(id, 1)), "{what}");
        assert_eq!(client.frame().await, None, "{what}");
        assert!(run.await.unwrap().is_err(), "{what}");
        assert!(stream.input.as_mut().unwrap().next().await.is_none(), "{what}");
        assert!(session.streams.recv().await.is_none(), "{what}");
        session.queue.closed().await;
    }
}

#[tokio::test]
async fn all_ends_with_the_client() {
    let (mut client, mut session, run) = session();
    client.open(&[]).await;
    let mut stream = session.streams.recv().await.unwrap();
    // In the middle of a frame.
    client.send(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']).await;
    drop(client);
    assert_eq!(stream.input.as_mut().unwrap().next().await.unwrap(), "x");
    assert!(stream.input.as_mut().unwrap().next().await.is_none());
    stream.output.closed().await;
    session.queue.closed().await;
    assert_eq!(run.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn all_that_was_sent_is_written_before_the_end() {
    let (mut client, mut session, run) = session();
    let id = client.open(&[]).await;
    let stream = session.streams.recv().await.unwrap();
    for _ in 0..4 {
        stream.output.send(vec![1; 32 << 10].into()).await.unwrap();
    }
    stream.output.finish();
    drop((session, stream.input));
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
    for _ in 0..4 {
        assert_eq!(client.frame().await, Some(Frame::Data(id, vec![1; 32 << 10])));
    }
    assert_eq!(client.frame().await, Some(Frame::Fin(id)));
    assert_eq!(client.frame().await, Some(Frame::GoAway(id, 0)));
    assert_eq!(client.frame().await, None);
    assert!(!run.is_finished(), "the client may have more on its way");
    drop(client);
    assert_eq!(run.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_waited_for_and_no_more_is_kept() {
    let (mut client, mut session, _run) = session();
    let id = client.open(&[]).await;
    let stream = session.streams.recv().await.unwrap();
    let mut sent = 0;
    while let Ok(sending) = timeout(
        Duration::from_millis(50),
        stream.output.send(vec![0; 32 << 10].into()),
    )
    .await
    {
        sending.unwrap();
        sent += 32 << 10;
    }
    assert!((64 << 10..1 << 20).contains(&sent), "{sent}");
    // And so are its pings.
    let pings = async {
        for _ in 0..100_000_u32 {
            client.io.write_all(&frame::ping(1)).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(200), pings).await.is_err());
    assert_eq!(client.frame().await, Some(Frame::Reply(id)));
}

/// Fills a stream that nobody reads; returns when the server reads no more.
async fn fill(client: &mut Client, id: Id) {
    let data = vec![0; 32 << 10];
    while timeout(Duration::from_millis(10), client.data(id, &data))
        .await
        .is_ok()
    {}
}

#[tokio::test]
async fn strangers_are_not_held_by_a_stream_that_nobody_reads() {
    let (mut client, mut session, _run) = session_of(Stall::Reset);
    let (stuck, other) = (client.open(&[]).await, client.open(&[]).await);
    let _stuck = session.streams.recv().await.unwrap();
    let _other = session.streams.recv().await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Reply(stuck)));
    assert_eq!(client.frame().await, Some(Frame::Reply(other)));
    fill(&mut client, stuck).await;
    // A client that can't be read is pinged.
    assert_eq!(client.frame().await, Some(Frame::Ping(2)));
    assert_eq!(client.frame().await, Some(Frame::Ping(4)));
    assert_eq!(client.frame().await, Some(Frame::Reset(stuck, 5)));
}

#[tokio::test]
async fn a_stranger_that_comes_behind_the_only_stream_that_nobody_reads_is_seen() {
    let (mut client, mut session, _run) = session_with(Stall::Reset, 2 << 20);
    let stuck = client.open(&[]).await;
    let stream = session.streams.recv().await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Reply(stuck)));
    client.data(stuck, &vec![0; 1 << 20]).await;
    client.reset(stuck).await;
    let other = client.open(&[]).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(2)));
    assert_eq!(client.frame().await, Some(Frame::Ping(4)));
    assert_eq!(client.frame().await, Some(Frame::Reset(stuck, 5)));
    stream.output.closed().await;
    assert_eq!(client.frame().await, Some(Frame::Reply(other)));
    client.data(other, b"x").await;
    let mut stream = session.streams.recv().await.unwrap();
    assert_eq!(stream.input.as_mut().unwrap().next().await.unwrap(), "x");
}

#[tokio::test]
async fn a_stream_closed_both_ways_was_not_reset() {
    let (mut client, mut session, _run) = session();
    for ours_first in [false, true] {
        let id = client.open(&[]).await;
        assert_eq!(client.frame().await, Some(Frame::Reply(id)));
        let mut stream = session.streams.recv().await.unwrap();
        let watch = stream.output.watch();
        client.data(id, b"x").await;
        if ours_first {
            stream.output.finish();
            assert_eq!(client.frame().await, Some(Frame::Fin(id)));
            client.fin(id).await;
        } else {
            client.fin(id).await;
            client.send(&frame::ping(1)).await;
            assert_eq!(client.frame().await, Some(Frame::Ping(1)));
            stream.output.finish();
            assert_eq!(client.frame().await, Some(Frame::Fin(id)));
        }
        assert!(
            timeout(Duration::from_millis(50), watch.closed()).await.is_err(),
            "{ours_first}"
        );
        let input = stream.input.as_mut().unwrap();
        assert_eq!(input.next().await.unwrap(), "x");
        assert!(input.next().await.is_none());
    }
}

#[tokio::test]
async fn parts_of_one_thing_wait_for_each_other() {
    let (mut client, mut session, run) = session_of(Stall::Hold);
    let (stuck, other) = (client.open(&[]).await, client.open(&[]).await);
    let mut stuck_stream = session.streams.recv().await.unwrap();
    let _other = session.streams.recv().await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Reply(stuck)));
    assert_eq!(client.frame().await, Some(Frame::Reply(other)));
    fill(&mut client, stuck).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!run.is_finished());
    assert!(stuck_stream.input.as_mut().unwrap().next().await.is_some());
    // Its end is seen by what is written to it.
    drop(client);
    assert_eq!(run.await.unwrap(), Ok(()));
    session.queue.closed().await;
}
