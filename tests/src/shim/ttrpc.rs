//! ttrpc by hand (the protocol of containerd's `ttrpc` repository, `PROTOCOL.md`): a frame is
//!
//! ```text
//! length: u32  stream: u32  type: u8 (1 request, 2 response, 3 data)  flags: u8  |  length bytes of protobuf
//! ```
//!
//! in big-endian order. A client's streams have odd numbers.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto;

pub(crate) use containerd_shim_protos::ttrpc::proto::Code;

use crate::wait::DEADLINE;

/// Type of a frame that asks.
pub(crate) const REQUEST: u8 = 1;
/// Type of a frame that answers.
pub(crate) const RESPONSE: u8 = 2;
/// Type of a frame that is a message of a stream.
const DATA: u8 = 3;
/// Flag: nothing more comes from this side.
const REMOTE_CLOSED: u8 = 1;
/// Flag: there is no message in this frame of data.
const NO_DATA: u8 = 4;

const HEADER: usize = 10;

/// One frame: header and body.
pub(crate) fn frame(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

/// Reads one frame: stream, type and body. `None` at the end of the stream.
pub(crate) fn read_frame(stream: &mut impl Read) -> std::io::Result<Option<(u32, u8, Vec<u8>)>> {
    let mut header = [0; HEADER];
    let first = stream.read(&mut header)?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[first..])?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut body = vec![0; number(0) as usize];
    stream.read_exact(&mut body)?;
    Ok(Some((number(4), header[8], body)))
}

/// A server's refusal.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// gRPC's code, which containerd turns back into an error of its own.
    pub(crate) code: Code,
    /// The text.
    pub(crate) message: String,
    /// Whether the shim is ours.
    pub(crate) ours: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// Checks on a call that is expected to be refused.
pub(crate) trait Refusal {
    /// Refused with this code. The Go shim has no code for most of its errors: there UNKNOWN does too.
    fn refused(self, code: Code) -> Result<Refused>;
    /// Refused with exactly this code, by any shim: containerd looks at it.
    fn refused_exactly(self, code: Code) -> Result<Refused>;
}

impl<T: fmt::Debug> Refusal for Result<T> {
    fn refused(self, code: Code) -> Result<Refused> {
        let refused = refusal(self, code)?;
        let unknown = !refused.ours && refused.code == Code::UNKNOWN;
        ensure!(
            refused.code == code || unknown,
            "expected {code:?}, got {refused}"
        );
        Ok(refused)
    }

    fn refused_exactly(self, code: Code) -> Result<Refused> {
        let refused = refusal(self, code)?;
        ensure!(refused.code == code, "expected {code:?}, got {refused}");
        Ok(refused)
    }
}

fn refusal<T: fmt::Debug>(result: Result<T>, code: Code) -> Result<Refused> {
    match result {
        Ok(answer) => bail!("expected {code:?}, got an answer: {answer:?}"),
        Err(error) => error
            .downcast::<Refused>()
            .with_context(|| format!("expected {code:?}")),
    }
}

/// A client's connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    next: u32,
    ours: bool,
    /// Answers that came while another was waited for.
    early: HashMap<u32, Vec<u8>>,
}

impl Connection {
    /// Connects to a socket. `ours` is for [`Refused`].
    pub(crate) fn open(socket: &Path, ours: bool) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream,
            next: 1,
            ours,
            early: HashMap::new(),
        })
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("write to the shim")
    }

    /// Sends a request whose body is protobuf already; returns its stream's number.
    pub(crate) fn send(&mut self, service: &str, method: &str, payload: Vec<u8>) -> Result<u32> {
        let mut request = proto::Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        let stream = self.next;
        self.next += 2;
        self.send_raw(&frame(stream, REQUEST, &request.write_to_bytes()?))?;
        Ok(stream)
    }

    /// Calls a method whose answer is a stream of messages, to be had by [`Connection::next_message`].
    pub(crate) fn open_stream(&mut self, service: &str, method: &str, payload: Vec<u8>) -> Result<u32> {
        let mut request = proto::Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        let stream = self.next;
        self.next += 2;
        let mut bytes = frame(stream, REQUEST, &request.write_to_bytes()?);
        bytes[HEADER - 1] = REMOTE_CLOSED;
        self.send_raw(&bytes)?;
        Ok(stream)
    }

    /// Waits for the next message of a stream: `None` at its end, or a [`Refused`]. Nothing else is asked on this
    /// connection meanwhile.
    pub(crate) fn next_message(&mut self, stream: u32) -> Result<Option<Vec<u8>>> {
        loop {
            let mut header = [0; HEADER];
            self.stream
                .read_exact(&mut header)
                .context("no answer from the shim")?;
            let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let mut body = vec![0; length as usize];
            self.stream.read_exact(&mut body)?;
            let (kind, flags) = (header[HEADER - 2], header[HEADER - 1]);
            if kind == RESPONSE {
                self.early.insert(stream, body);
                return self.receive(stream).map(|_| None);
            }
            ensure!(kind == DATA, "frame of type {kind}");
            if flags & NO_DATA == 0 {
                return Ok(Some(body));
            }
            if flags & REMOTE_CLOSED != 0 {
                return Ok(None);
            }
        }
    }

    /// Waits for the answer on a stream: its payload, or a [`Refused`].
    pub(crate) fn receive(&mut self, stream: u32) -> Result<Vec<u8>> {
        let body = match self.early.remove(&stream) {
            Some(body) => body,
            None => self.read_answer(stream)?,
        };
        let response = proto::Response::parse_from_bytes(&body).context("malformed response")?;
        let status = response.status.unwrap_or_default();
        match status.code.enum_value() {
            Ok(Code::OK) => Ok(response.payload),
            code => Err(Refused {
                code: code.unwrap_or(Code::UNKNOWN),
                message: status.message,
                ours: self.ours,
            }
            .into()),
        }
    }

    fn read_answer(&mut self, stream: u32) -> Result<Vec<u8>> {
        loop {
            let frame = read_frame(&mut self.stream).context("no answer from the shim")?;
            let (answered, kind, body) = frame.context("the shim hung up")?;
            ensure!(kind == RESPONSE, "frame of type {kind} from the shim");
            if answered == stream {
                return Ok(body);
            }
            self.early.insert(answered, body);
        }
    }

    /// Waits until the server hangs up.
    pub(crate) fn closed(&mut self) {
        while read_frame(&mut self.stream).is_ok_and(|frame| frame.is_some()) {}
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call<A: Message>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<A> {
        let stream = self.send(service, method, request.write_to_bytes()?)?;
        let payload = self.receive(stream)?;
        A::parse_from_bytes(&payload).with_context(|| format!("answer of {method}"))
    }
}
