//! Terminals on the test's side: the master of a pseudo-terminal, made here or received over a console socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;
use crate::wait::{DEADLINE, until};

/// The master end, and what has been read from it so far.
pub(crate) struct Terminal {
    master: File,
    seen: Vec<u8>,
    ended: bool,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> Self {
        Self {
            master: File::from(master),
            seen: Vec::new(),
            ended: false,
        }
    }

    /// A new pseudo-terminal: master and slave.
    pub(crate) fn open() -> Result<(Self, OwnedFd)> {
        let pair = nix::pty::openpty(None, None).context("openpty")?;
        Ok((Self::new(pair.master), pair.slave))
    }

    /// Waits for a runtime to connect to the console socket and send a master.
    pub(crate) fn receive(listener: &UnixListener) -> Result<Self> {
        let mut descriptors = receive(listener)?;
        ensure!(
            descriptors.len() == 1,
            "{} descriptors over the console socket",
            descriptors.len()
        );
        Ok(Self::new(descriptors.remove(0)))
    }

    /// Reads what is there, waiting a moment for it.
    fn read_some(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50_u16))? == 1 {
            let mut buffer = [0; 4096];
            // EIO is how a master says that the last slave is closed.
            match self.master.read(&mut buffer) {
                Ok(0) | Err(_) => self.ended = true,
                Ok(length) => self.seen.extend_from_slice(&buffer[..length]),
            }
        }
        Ok(())
    }

    /// All that has been printed so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits until this text has been printed.
    pub(crate) fn wait_for(&mut self, text: &str) -> Result<String> {
        let waited = until(&format!("{text:?} on the terminal"), || {
            self.read_some()?;
            let seen = self.text();
            ensure!(!self.ended || seen.contains(text), "the terminal was closed");
            Ok(Some(seen).filter(|seen| seen.contains(text)))
        });
        waited.with_context(|| format!("seen: {:?}", self.text()))
    }

    /// Reads until the last slave is closed; returns all that was printed.
    pub(crate) fn read_to_end(&mut self) -> Result<String> {
        until("the terminal to be closed", || {
            self.read_some()?;
            Ok(self.ended.then_some(()))
        })
        .with_context(|| format!("seen: {:?}", self.text()))?;
        Ok(self.text())
    }

    /// Types.
    pub(crate) fn type_in(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Changes the size; processes of the foreground group get SIGWINCH.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::set_window_size(&self.master, rows, columns)
    }
}

/// A listening socket at a path of any length (the address itself holds at most 107 bytes).
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    let directory = File::open(path.parent().context("no parent")?)?;
    let name = path.file_name().context("no name")?;
    let short = Path::new("/proc/self/fd")
        .join(std::os::fd::AsRawFd::as_raw_fd(&directory).to_string())
        .join(name);
    UnixListener::bind(&short).with_context(|| path.display().to_string())
}

/// Waits for a runtime to connect, and gives the descriptors it sends.
pub(crate) fn receive(listener: &UnixListener) -> Result<Vec<OwnedFd>> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE)?;
    ensure!(poll(&mut fds, timeout)? == 1, "nobody connects to the socket");
    let (stream, _) = listener.accept()?;
    Ok(sys::receive_descriptors(&stream)?.1)
}
