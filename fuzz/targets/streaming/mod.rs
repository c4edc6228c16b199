//! What of the server's streams is fuzzed, as it is there, and a verb for it: an echo.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use port_forward::Forward;
use spdy::{Session, Stall};
use stream::{Input, Output};

#[path = "../../../cri/src/streaming/port_forward/pairs.rs"]
pub(crate) mod pairs;
#[path = "../../../cri/src/streaming/spdy/mod.rs"]
#[allow(unused_imports, reason = "what the server uses of it")]
pub(crate) mod spdy;
#[path = "../../../cri/src/streaming/stream.rs"]
pub(crate) mod stream;

/// What of port forwards is needed.
pub(crate) mod port_forward {
    use super::stream::{Input, Output};

    pub(in crate::streaming) struct Forward {
        pub(in crate::streaming) port: u16,
        pub(in crate::streaming) input: Input,
        pub(in crate::streaming) output: Output,
        pub(in crate::streaming) error: Output,
    }
}

/// Sends all of it; returns what came back until the end.
pub(crate) async fn talk(sent: Vec<u8>, paired: bool) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(4096);
    let (session, run) = spdy::open(server, Stall::Reset);
    let (from, to) = tokio::io::split(client);
    let verb = async {
        if paired {
            forwards(session).await;
        } else {
            streams(session).await;
        }
    };
    // That it was no SPDY is no finding.
    let (received, (), _, ()) = tokio::join!(read(from), write(to, sent), run, verb);
    received
}

async fn read(mut from: ReadHalf<tokio::io::DuplexStream>) -> Vec<u8> {
    let mut received = Vec::new();
    let _ = from.read_to_end(&mut received).await;
    received
}

async fn write(mut to: WriteHalf<tokio::io::DuplexStream>, sent: Vec<u8>) {
    let _ = to.write_all(&sent).await;
    let _ = to.shutdown().await;
}

async fn streams(mut session: Session) {
    let mut echoes = tokio::task::JoinSet::new();
    while let Some(stream) = session.streams.recv().await {
        assert!(stream.id % 2 == 1);
        match stream.input {
            Some(input) => drop(echoes.spawn(echo(input, stream.output))),
            None => stream.output.finish(),
        }
    }
    session.queue.closed().await;
    echoes.join_all().await;
}

async fn forwards(session: Session) {
    let (sender, mut receiver) = mpsc::channel(16);
    let serve = async {
        let mut echoes = tokio::task::JoinSet::new();
        while let Some(forward) = receiver.recv().await {
            let Forward {
                port,
                input,
                output,
                error,
            } = forward;
            assert_ne!(port, 0);
            drop(error);
            echoes.spawn(echo(input, output));
        }
        session.queue.closed().await;
        echoes.join_all().await;
    };
    tokio::select! {
        () = serve => {}
        () = pairs::forwards(session.streams, sender) => {}
    }
}

async fn echo(mut input: Input, output: Output) {
    while let Some(piece) = input.next().await {
        assert!(!piece.is_empty());
        if output.send(piece).await.is_err() {
            return;
        }
    }
    output.finish();
}
