//! A client of streams over SPDY/3.1, as the kubelet is one: for what no tool does, malformed frames and exact times.
//!
//! ```text
//! let mut client = Spdy::open(&url, "v4.channel.k8s.io")?;            // 101, or an error with the answer
//! let out = client.stream(&[("streamtype", "stdout")])?;              // SYN_STREAM, SYN_REPLY
//! while let Some(frame) = client.frame()? { ... }                     // `None`: the server has closed the connection
//! ```

use std::collections::VecDeque;
use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::registry::Result;

/// The longest that an answer is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection. Waits for what it reads and writes.
#[derive(Debug)]
pub(crate) struct Spdy {
    from: BufReader<TcpStream>,
    next: u32,
    /// Frames that came before a reply that was waited for.
    waiting: VecDeque<Frame>,
}

/// What the server sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Reply(u32),
    Data(u32, Vec<u8>),
    /// The server has closed its half.
    Fin(u32),
    /// With its status.
    Reset(u32, u32),
    Ping(u32),
    GoAway,
}

impl Spdy {
    /// Connects to a URL of Exec, Attach or PortForward, and upgrades.
    pub(crate) fn open(url: &str, protocol: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context(url.to_owned())?;
        let (address, path) = rest.split_once('/').context(url.to_owned())?;
        let mut socket = TcpStream::connect(address).with_context(|| address.to_owned())?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        write!(
            socket,
            "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut from = BufReader::with_capacity(256 << 10, socket);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if from.read(&mut byte)? == 0 {
                break;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(Self {
            from,
            next: 1,
            waiting: VecDeque::new(),
        })
    }

    /// The socket itself, for what is not SPDY.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        self.from.get_mut()
    }

    /// Opens a stream, and waits for the reply: what is sent before that is dropped by spdystream.
    pub(crate) fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let id = self.syn_stream(headers)?;
        loop {
            match self.read()? {
                Some(Frame::Reply(of)) if of == id => return Ok(id),
                Some(Frame::Reset(of, status)) if of == id => bail!("stream {id}: refused: {status}"),
                Some(frame) => self.waiting.push_back(frame),
                None => bail!("stream {id}: the connection ended before its reply"),
            }
        }
    }

    /// Opens a stream.
    pub(crate) fn syn_stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = block(headers, id == 1)?;
        self.control(1, &[&id.to_be_bytes(), &[0; 6], &block])?;
        Ok(id)
    }

    /// A control frame.
    pub(crate) fn control(&mut self, kind: u8, parts: &[&[u8]]) -> Result {
        let payload = parts.concat();
        let mut frame = vec![0x80, 3, 0, kind];
        frame.extend(u32::try_from(payload.len())?.to_be_bytes());
        frame.extend(payload);
        self.socket().write_all(&frame)?;
        Ok(())
    }

    /// Data of a stream.
    pub(crate) fn send(&mut self, id: u32, data: &[u8]) -> Result {
        let length = u32::try_from(data.len())?;
        ensure!(length < 1 << 24, "{length} bytes in one frame");
        let head = [id.to_be_bytes(), length.to_be_bytes()].concat();
        self.socket().write_all(&head)?;
        self.socket().write_all(data)?;
        Ok(())
    }

    /// Closes our half of a stream.
    pub(crate) fn fin(&mut self, id: u32) -> Result {
        let head = [id.to_be_bytes(), (1_u32 << 24).to_be_bytes()].concat();
        self.socket().write_all(&head)?;
        Ok(())
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>> {
        match self.waiting.pop_front() {
            Some(frame) => Ok(Some(frame)),
            None => self.read(),
        }
    }

    fn read(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.from.read_exact(&mut head) {
            Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                return Ok(None);
            }
            read => read.context("a frame")?,
        }
        let [a, b, c, d, flags, e, f, g] = head;
        let (first, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, e, f, g]));
        let mut payload = vec![0; length as usize];
        self.from.read_exact(&mut payload).context("a frame's payload")?;
        if first >> 31 == 0 {
            let fin = flags & 1 == 1;
            ensure!(!fin || payload.is_empty(), "data and an end in one frame");
            return Ok(Some(if fin {
                Frame::Fin(first)
            } else {
                Frame::Data(first, payload)
            }));
        }
        let word = |at: usize| {
            let word = payload.get(at..).and_then(|rest| rest.first_chunk());
            word.map(|word| u32::from_be_bytes(*word))
                .context("a frame that is too short")
        };
        Ok(Some(match first & 0xffff {
            2 => Frame::Reply(word(0)?),
            3 => Frame::Reset(word(0)?, word(4)?),
            6 => Frame::Ping(word(0)?),
            7 => Frame::GoAway,
            other => bail!("a frame of type {other}"),
        }))
    }
}

/// Headers that are stored, not compressed, as zlib reads it: the first block begins the connection's zlib stream.
fn block(headers: &[(&str, &str)], first: bool) -> Result<Vec<u8>> {
    let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend(u32::try_from(text.len())?.to_be_bytes());
        plain.extend(text.as_bytes());
    }
    let length = u16::try_from(plain.len())?;
    let mut block = Vec::new();
    if first {
        // zlib's header, with the checksum of SPDY's dictionary.
        block.extend([0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2]);
    }
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    // An empty block, where readers flush.
    block.extend([0, 0, 0, 0xff, 0xff]);
    Ok(block)
}
