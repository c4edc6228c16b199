//! A small client, for tests.

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::frame::{self, HEAD, Head};
use super::headers::{Decoder, dictionary};
use crate::streaming::stream::Id;

/// What the server sent.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::streaming) enum Frame {
    Reply(Id),
    Data(Id, Vec<u8>),
    Fin(Id),
    /// With its status.
    Reset(Id, u32),
    Ping(u32),
    /// The last stream, and the status.
    GoAway(Id, u32),
}

/// Compresses headers as zlib does.
pub(in crate::streaming) struct Encoder(Compress);

impl Encoder {
    pub(in crate::streaming) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        assert_eq!(compress.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
        Self(compress)
    }

    pub(in crate::streaming) fn block(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 1024);
        self.0
            .compress_vec(plain, &mut block, FlushCompress::Sync)
            .unwrap();
        block
    }
}

/// Headers before compression.
pub(in crate::streaming) fn plain(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut plain = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        plain.extend(text.as_bytes());
    }
    plain
}

/// A control frame.
pub(in crate::streaming) fn control(kind: u8, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [0x80, 3, 0, kind, flags, length[1], length[2], length[3]];
    [&head, payload.as_slice()].concat()
}

/// A client of a connection in memory.
pub(in crate::streaming) struct Client {
    pub(in crate::streaming) io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    pub(in crate::streaming) next: Id,
}

impl Client {
    pub(in crate::streaming) fn new(io: DuplexStream) -> Self {
        Self {
            io,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            next: 1,
        }
    }

    pub(in crate::streaming) fn syn_stream(&mut self, flags: u8, pairs: &[(&str, &str)]) -> (Id, Vec<u8>) {
        let id = self.next;
        self.next += 2;
        let block = self.encoder.block(&plain(pairs));
        (id, control(1, flags, &[&id.to_be_bytes(), &[0; 6], &block]))
    }

    pub(in crate::streaming) async fn open(&mut self, pairs: &[(&str, &str)]) -> Id {
        let (id, frame) = self.syn_stream(0, pairs);
        self.send(&frame).await;
        id
    }

    pub(in crate::streaming) async fn send(&mut self, frame: &[u8]) {
        self.io.write_all(frame).await.unwrap();
    }

    pub(in crate::streaming) async fn data(&mut self, id: Id, data: &[u8]) {
        self.send(&[&frame::data(id, false, data.len()), data].concat())
            .await;
    }

    pub(in crate::streaming) async fn fin(&mut self, id: Id) {
        self.send(&frame::data(id, true, 0)).await;
    }

    pub(in crate::streaming) async fn reset(&mut self, id: Id) {
        self.send(&frame::rst_stream(id, frame::Status::Cancel)).await;
    }

    /// `None`: the end.
    pub(in crate::streaming) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.ok()?;
        match frame::head(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let mut data = vec![0; length];
                self.io.read_exact(&mut data).await.ok()?;
                Some(if fin {
                    Frame::Fin(stream)
                } else {
                    Frame::Data(stream, data)
                })
            }
            Head::Control { kind, length, .. } => {
                let mut payload = vec![0; length];
                self.io.read_exact(&mut payload).await.ok()?;
                let word = |at: usize| u32::from_be_bytes(*payload[at..].first_chunk().unwrap());
                Some(match kind {
                    2 => {
                        self.decoder.read(&payload[4..]).unwrap();
                        Frame::Reply(word(0))
                    }
                    3 => Frame::Reset(word(0), word(4)),
                    6 => Frame::Ping(word(0)),
                    7 => Frame::GoAway(word(0), word(4)),
                    kind => panic!("a frame of type {kind}"),
                })
            }
        }
    }
}
