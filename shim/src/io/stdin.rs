//! Standard input from a FIFO: when it ends.
//!
//! ```text
//! open: a reader, no writer -> (the client opens it, writes) -> starting: a writer -> CloseIO, or the process' end
//!                                     `-> closes it -> starting: none, the input is complete
//! ```
//!
//! As in containerd's shim the input ends when CloseIO was called and the client has closed it: a client may go and come
//! back. But a client that has written all of it and has closed it before the process starts may have had no task yet to
//! call CloseIO on: `ctr run` loses the end of a short input that way when the FIFO has a reader long before its call of
//! Create returns. The kernel tells such a client from one that did not come yet: POLLHUP is about writers since a reader
//! opened the FIFO (fifo(7) does not say so; Linux, `pipe_poll`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use rtc_runtime::sys::Named as _;

use super::fifo::{Fifo, failed, own};
use crate::error::Result;

/// The shim's side of it.
#[derive(Debug)]
pub(crate) struct Stdin {
    /// Until the process starts: tells about the client.
    reader: Option<OwnedFd>,
    /// From then on: keeps the input from ending.
    writer: Option<OwnedFd>,
    closed: bool,
}

impl Stdin {
    /// Opens the FIFO for reading, which lets a client that waits for that go on.
    ///
    /// # Errors
    ///
    /// As [`Fifo::find`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // With a writer of our own at this time, the kernel would not tell.
        let reader = Fifo::find("stdin", path)?.reopen(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        Ok(Self {
            reader: Some(reader),
            writer: None,
            closed: false,
        })
    }

    /// The end for the process: blocking, and of this owner.
    ///
    /// # Errors
    ///
    /// As open(2) and fchown(2).
    pub(crate) fn end(&self, owner: (u32, u32)) -> Result<Option<OwnedFd>> {
        let Some(reader) = &self.reader else {
            return Ok(None);
        };
        // Without a writer, opening waits for one.
        let end = reopen(reader, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        fcntl(&end, FcntlArg::F_SETFL(OFlag::empty()))
            .call(|| "fcntl(F_SETFL)".into())
            .map_err(failed)?;
        own(&end, owner)?;
        Ok(Some(end))
    }

    /// The process is about to start. Returns the shim's reader, the first time.
    ///
    /// # Errors
    ///
    /// As open(2).
    pub(crate) fn starting(&mut self) -> Result<Option<OwnedFd>> {
        let Some(reader) = self.reader.take() else {
            return Ok(None);
        };
        if !self.closed && !has_come_and_gone(&reader) {
            self.writer = Some(reopen(&reader, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?);
        }
        Ok(Some(reader))
    }

    /// Nothing more comes from us.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.writer = None;
    }
}

/// Whether there was a writer since this reader was opened, and is none now.
fn has_come_and_gone(reader: &OwnedFd) -> bool {
    let mut waiting = [PollFd::new(reader.as_fd(), PollFlags::empty())];
    let polled = poll(&mut waiting, PollTimeout::ZERO);
    polled.is_ok()
        && waiting[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn reopen(fd: &OwnedFd, flags: OFlag) -> Result<OwnedFd> {
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(name.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "stdin: open".into())
        .map_err(failed)
}
