//! rtnetlink(7), as much of it as moving a network device takes.
//!
//! ```text
//! nlmsghdr (16 bytes) | ifinfomsg (16) or ifaddrmsg (8) | rtattr (4) value, padded to 4 | rtattr ...
//! ```
//!
//! Numbers are in the machine's byte order. A request is answered by messages of the same number and an
//! acknowledgement, which is an error that may be 0; a list ends with NLMSG_DONE. The kernel answers at once.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::sys::{Errno, Error, Named, Result};

/// `NLM_F_*` of a request.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// All there are: `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;
/// In an answer: what was listed changed meanwhile (`NLM_F_DUMP_INTR`).
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub(super) const CREATE: u16 = 0x400 | 0x200;

const ERROR: u16 = 0x2;
const DONE: u16 = 0x3;

const HEADER: usize = 16;
/// The kernel's lists come in parts below this.
const BUFFER: usize = 1 << 16;
/// How often a list is asked for again that changed while it was made.
const TRIES: u32 = 10;

/// One message to the kernel.
#[derive(Debug)]
pub(super) struct Request {
    /// For errors: `RTM_NEWLINK "eth0"`.
    what: String,
    bytes: Vec<u8>,
}

impl Request {
    /// A request of this type, with the fixed part of its body. `what` names it in errors.
    pub(super) fn new(what: impl Into<String>, kind: u16, body: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(body);
        Request {
            what: what.into(),
            bytes,
        }
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(&mut self, flags: u16, sequence: u32) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// A socket to the network namespace in which it was made, wherever its owner is then.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// In the network namespace of this process.
    pub(super) fn open() -> Result<Socket> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .call(|| "socket(AF_NETLINK, NETLINK_ROUTE)".into())?;
        Ok(Socket {
            fd,
            sequence: Cell::new(0),
        })
    }

    /// Sends a request and waits for its end. Gives the bodies of the answers.
    ///
    /// # Errors
    ///
    /// What the kernel answers, as a call named after the request.
    pub(super) fn ask(&self, request: Request, flags: u16) -> Result<Vec<Vec<u8>>> {
        let Request { what, .. } = &request;
        let what = what.clone();
        self.exchange(request, REQUEST | ACK | flags, &what)
            .map(|(answers, _)| answers)
    }

    /// Lists what there is, as it was at one moment.
    ///
    /// # Errors
    ///
    /// As [`Socket::ask`].
    pub(super) fn list(&self, request: impl Fn() -> Request) -> Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        for _ in 0..TRIES {
            let request = request();
            let what = request.what.clone();
            let (found, whole) = self.exchange(request, REQUEST | DUMP, &what)?;
            answers = found;
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    fn exchange(&self, mut request: Request, flags: u16, what: &str) -> Result<(Vec<Vec<u8>>, bool)> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        request.finish(flags, sequence);
        let name = || format!("rtnetlink({what})");
        send(self.fd.as_raw_fd(), &request.bytes, MsgFlags::empty()).call(name)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                received => received.call(name)?,
            };
            let failed = |errno| Error { call: name(), errno };
            let Some(datagram) = buffer.get(..length) else {
                return Err(failed(Errno::EMSGSIZE));
            };
            for message in Messages(datagram) {
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok((answers, whole)),
                    ERROR => match number(message.body, 0) {
                        Some(0) => return Ok((answers, whole)),
                        code => {
                            let errno = code.unwrap_or(0).cast_signed().wrapping_neg();
                            return Err(failed(Errno::from_raw(errno)));
                        }
                    },
                    _ => answers.push(message.body.to_vec()),
                }
            }
        }
    }
}

/// Four bytes as a number.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(two.try_into().ok()?))
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram; what is cut off is none.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = number(self.0, 0)? as usize;
        let whole = self.0.get(..length).filter(|whole| whole.len() >= HEADER)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: half(whole, 4)?,
            flags: half(whole, 6)?,
            sequence: number(whole, 8)?,
            body: &whole[HEADER..],
        })
    }
}

/// The value of an attribute behind the fixed part of a body, which has this many bytes.
pub(super) fn attribute(body: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    /// `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`.
    const FLAGS: u16 = 0xc000;
    let mut rest = body.get(fixed..)?;
    loop {
        let length = half(rest, 0)? as usize;
        let whole = rest.get(..length).filter(|whole| whole.len() >= 4)?;
        if half(whole, 2)? & !FLAGS == kind {
            return Some(&whole[4..]);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_length_and_padded_attributes() {
        let mut request = Request::new("x", 16, &[0; 16])
            .attribute(3, b"lo\0")
            .attribute(28, &7_u32.to_ne_bytes());
        request.finish(REQUEST | ACK, 9);
        assert_eq!(request.bytes.len(), 16 + 16 + 8 + 8);
        let message = Messages(&request.bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (16, 5, 9));
        assert_eq!(attribute(message.body, 16, 3), Some(&b"lo\0"[..]));
        assert_eq!(attribute(message.body, 16, 28), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(message.body, 16, 4), None);
    }

    #[test]
    fn what_is_cut_off_or_too_short_is_nothing() {
        assert!(Messages(&[]).next().is_none());
        assert!(
            Messages(&[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .next()
                .is_none()
        );
        let request = Request::new("x", 16, &[0; 16]).attribute(3, b"lo\0");
        for length in 0..request.bytes.len() {
            assert!(Messages(&request.bytes[..length]).next().is_none());
            let _ = attribute(&request.bytes[..length], 16, 3);
        }
        assert_eq!(attribute(&[0; 8], 0, 3), None);
    }

    #[test]
    fn the_loopback_device_is_asked_for_by_name() {
        let socket = Socket::open().unwrap();
        let ask = |name: &[u8]| socket.ask(Request::new("RTM_GETLINK", 18, &[0; 16]).attribute(3, name), 0);
        let answers = ask(b"lo\0").unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(number(&answers[0], 4), Some(1));
        let error = ask(b"nosuch\0").unwrap_err();
        assert_eq!(error.to_string(), "rtnetlink(RTM_GETLINK): No such device");
    }
}
