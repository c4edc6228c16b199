//! What parent and child say to each other while a container's process is made: a `SOCK_SEQPACKET` pair.
//!
//! ```text
//! parent                                    child
//!   | ---- Go: ids are mapped, in its cgroup --> |   only where it has to wait for that
//!   | <------------------------------ Prepared - |   only with prestart or createRuntime hooks
//!   | ---- Go: the hooks have run -------------> |
//!   | <------------------- Terminal + master fd - |   only with a terminal
//!   | <---------------- SeccompListener + its fd - |   only with a filter that notifies; answered by Go
//!   | <--------------------------------- Ready - |   all is set up, the program was found
//!   | ---- Go: all is recorded ----------------> |   only with a gate, where it waits next
//!   | <----------------------------- Executing - |   without a gate: nothing is left but the program
//!   | <------------------------ Failed + text -- |   at any time, then it exits
//!   | <--------------------------------- (end) - |   the program runs (close-on-exec), or the child died
//! ```
//!
//! Warnings may come at any time. Nothing the child executes holds its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::sys::fd::{TEXT_MAX, text_message};
use crate::sys::{self, Named, fd};

/// What the child says.
#[derive(Debug)]
pub enum Message {
    /// Its namespaces and mounts are there; it waits for the hooks of the runtime namespace.
    Prepared,
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// The listener of its seccomp filter (seccomp_unotify(2)); it waits until that was handed over.
    SeccompListener(OwnedFd),
    /// Set up; only the gate and the program are left.
    Ready,
    /// Nothing is left but the program: an end without this is the child's.
    Executing,
    /// Something the user should know that stops nothing.
    Warning(String),
    /// It could not go on, and exits.
    Failed(String),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Both ends, close-on-exec: the parent's, the child's.
    pub fn pair() -> Result<(Self, Self)> {
        let (parent, child) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .call(|| "socketpair".into())?;
        Ok((Self(parent), Self(child)))
    }

    /// This end by a number of `least` or more, for a process that is about to give the lower ones other meanings.
    pub fn above(self, least: RawFd) -> Result<Self> {
        Ok(Self(fd::duplicate_above(&self.0, least)?))
    }

    /// The parent lets the child go on.
    pub fn go(&self) -> Result<()> {
        fd::send(self, b"G", &[]).context("tell the container's process to go on")
    }

    /// The child waits for [`Channel::go`].
    ///
    /// # Errors
    ///
    /// The parent has gone, and with it the reason to live.
    pub fn wait_for_go(&self) -> Result<()> {
        let mut byte = [0];
        loop {
            // By read(2), as `send_bytes`.
            match nix::unistd::read(self, &mut byte) {
                Ok(1) if byte == *b"G" => return Ok(()),
                Err(sys::Errno::EINTR) => {}
                Ok(_) | Err(_) => bail!("the runtime has gone"),
            }
        }
    }

    /// The child's half.
    pub fn send(&self, message: &Message) -> sys::Result<()> {
        match message {
            Message::Prepared => self.send_bytes(b"P"),
            Message::Terminal(master) => fd::send(self, b"T", &[master.as_fd()]),
            Message::SeccompListener(listener) => fd::send(self, b"S", &[listener.as_fd()]),
            Message::Ready => self.send_bytes(b"R"),
            Message::Executing => self.send_bytes(b"X"),
            Message::Warning(text) => self.send_text(b'W', text),
            Message::Failed(text) => self.send_text(b'F', text),
        }
    }

    /// By write(2), which a seccomp profile for a program allows. SIGPIPE is ignored, as long as the process is ours.
    fn send_bytes(&self, bytes: &[u8]) -> sys::Result<()> {
        nix::unistd::write(self, bytes)
            .call(|| "write(channel)".into())
            .map(drop)
    }

    fn send_text(&self, kind: u8, text: &str) -> sys::Result<()> {
        self.send_bytes(&text_message(kind, text))
    }

    /// The parent's half. `None`: the child executes its program, or has died.
    ///
    /// # Errors
    ///
    /// What is no message: never from our own child.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut buffer = [0; TEXT_MAX + 1];
        let (length, received) = fd::receive(self, &mut buffer)?;
        let text = || String::from_utf8_lossy(&buffer[1..length]).into_owned();
        let with_fd = || {
            received
                .as_ref()
                .map(|_| ())
                .ok_or_else(|| anyhow!("a message without its descriptor"))
        };
        Ok(match buffer[..length].first() {
            None => None,
            Some(b'P') => Some(Message::Prepared),
            Some(b'R') => Some(Message::Ready),
            Some(b'X') => Some(Message::Executing),
            Some(b'W') => Some(Message::Warning(text())),
            Some(b'F') => Some(Message::Failed(text())),
            Some(kind @ (b'T' | b'S')) => {
                with_fd()?;
                received.map(|fd| {
                    if *kind == b'T' {
                        Message::Terminal(fd)
                    } else {
                        Message::SeccompListener(fd)
                    }
                })
            }
            Some(other) => bail!("an unknown message {other:#x} from the container's process"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_arrives_whole_and_then_the_end() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Failed("mount /proc: no".into())).unwrap();
        drop(child);
        assert!(
            matches!(parent.receive().unwrap(), Some(Message::Failed(text)) if text == "mount /proc: no")
        );
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn a_text_of_any_length_arrives_cut_at_a_character() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Warning("é".repeat(TEXT_MAX))).unwrap();
        let Some(Message::Warning(text)) = parent.receive().unwrap() else {
            panic!("no warning")
        };
        assert!(text.len() <= TEXT_MAX && text.chars().all(|c| c == 'é'));
    }

    #[test]
    fn the_child_learns_that_the_parent_has_gone() {
        let (parent, child) = Channel::pair().unwrap();
        drop(parent);
        assert!(child.wait_for_go().is_err());
    }
}
