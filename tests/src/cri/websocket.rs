//! A WebSocket client of Kubernetes' channel protocols, written by hand: what is sent can be wrong, and it shares nothing
//! with the server's library.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::registry::Result;
use crate::wait::DEADLINE;

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// v5: the channel that follows is closed.
pub(crate) const CLOSE: u8 = 255;

/// Opcodes of frames.
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
const CLOSING: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The head of a request that opens one, but for its protocol.
pub(crate) const HEAD: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Connects, sends a request with this head, and reads the head of the answer.
///
/// # Errors
///
/// Nobody listens, or answers.
pub(crate) fn ask(method: &str, url: &str, head: &str) -> Result<(TcpStream, String)> {
    let rest = url.strip_prefix("http://").with_context(|| url.to_owned())?;
    let (address, path) = rest.split_once('/').with_context(|| url.to_owned())?;
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n"
    )?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("the head of the answer")?;
        answer.push(byte[0]);
    }
    Ok((stream, String::from_utf8(answer)?))
}

/// A connection.
#[derive(Debug)]
pub(crate) struct WebSocket(TcpStream);

/// What a server said until it closed.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) error: String,
    /// The code of its close frame; `None`: it only hung up.
    pub(crate) closed: Option<u16>,
}

impl Said {
    /// The status on the error channel.
    pub(crate) fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.error).with_context(|| format!("{self:?}"))
    }

    /// It is the exit status of a command, and this one.
    pub(crate) fn exited(&self, code: i32) -> Result {
        let status = self.status()?;
        let found = match status["status"].as_str() {
            Some("Success") => "0",
            _ => status["details"]["causes"][0]["message"]
                .as_str()
                .unwrap_or_default(),
        };
        ensure!(found == code.to_string(), "expected exit status {code}: {self:?}");
        Ok(())
    }
}

impl WebSocket {
    /// Opens a URL with a protocol.
    ///
    /// # Errors
    ///
    /// With the answer, where it is no upgrade.
    pub(crate) fn open(url: &str, protocol: &str) -> Result<Self> {
        let (stream, answer) = ask(
            "GET",
            url,
            &format!("{HEAD}Sec-WebSocket-Protocol: {protocol}\r\n"),
        )?;
        let lower = answer.to_lowercase();
        let wanted = format!("sec-websocket-protocol: {protocol}\r\n");
        ensure!(
            lower.starts_with("http/1.1 101 ") && lower.contains(&wanted.to_lowercase()),
            "{answer}"
        );
        Ok(Self(stream))
    }

    /// The same connection, for another thread: one sends, the other reads.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.0
    }

    /// Sends bytes that are no frame, perhaps.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result {
        Ok(self.0.write_all(bytes)?)
    }

    /// Sends a frame.
    pub(crate) fn frame(&mut self, opcode: u8, payload: &[u8]) -> Result {
        const MASK: [u8; 4] = [7, 1, 255, 0];
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | u8::try_from(length)?),
            length @ ..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length)?.to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend(u64::try_from(length)?.to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(
            payload
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        self.raw(&frame)
    }

    /// Sends data on a channel.
    pub(crate) fn send(&mut self, channel: u8, data: &[u8]) -> Result {
        self.frame(BINARY, &[&[channel], data].concat())
    }

    /// The next frame: its opcode and payload. `None`: the server has hung up.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; 2];
        match self.0.read_exact(&mut head) {
            Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                return Ok(None);
            }
            read => read.context("a frame")?,
        }
        ensure!(head[0] & 0x80 != 0, "the server cuts messages into pieces");
        ensure!(head[1] & 0x80 == 0, "the server masks");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            short => short.into(),
        };
        ensure!(length < 1 << 24, "a frame of {length} bytes");
        let mut payload = vec![0; usize::try_from(length)?];
        self.0.read_exact(&mut payload)?;
        Ok(Some((head[0] & 0xf, payload)))
    }

    /// What comes on this channel, until it has this text.
    pub(crate) fn until(&mut self, channel: u8, wanted: &str) -> Result<String> {
        let mut text = String::new();
        while !text.contains(wanted) {
            match self.next()? {
                Some((BINARY, payload)) if payload.first() == Some(&channel) => {
                    text += &String::from_utf8_lossy(&payload[1..]);
                }
                Some((CLOSING, _)) | None => bail!("the end, without {wanted:?}: {text:?}"),
                Some(_) => {}
            }
        }
        Ok(text)
    }

    /// All that comes, to the end.
    pub(crate) fn all(mut self) -> Result<Said> {
        let mut said = Said::default();
        while let Some((opcode, payload)) = self.next()? {
            match (opcode, payload.split_first()) {
                (CLOSING, _) => {
                    said.closed = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    self.frame(CLOSING, &payload)?;
                    break;
                }
                (TEXT | BINARY, Some((&channel, data))) => {
                    let text = match channel & !b'0' {
                        STDOUT => &mut said.stdout,
                        STDERR => &mut said.stderr,
                        ERROR => &mut said.error,
                        _ => bail!("data on channel {channel}"),
                    };
                    *text += &String::from_utf8_lossy(data);
                }
                _ => {}
            }
        }
        Ok(said)
    }

    /// Fills what the server takes without reading it further: its streams and the connection.
    pub(crate) fn fill(&mut self, channel: u8) -> Result {
        self.0.set_write_timeout(Some(Duration::from_millis(500)))?;
        let piece = [channel; 32 << 10];
        while self.frame(BINARY, &piece).is_ok() {}
        Ok(())
    }
}
