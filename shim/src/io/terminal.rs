//! The terminal of a process: its master is relayed to the FIFOs of the client, or to a logger.
//!
//! ```text
//! stdin FIFO --copy--> master --copy--> stdout FIFO, or the pipe of a logger
//!      |                 |
//!      end of input:     end (EIO) when the last process closed the terminal
//!      ^D, and a while later the terminal is hung up
//! ```
//!
//! The end of the input is CloseIO and the end of all writers. A shell leaves at the `^D`; what does not, because its
//! client is gone, is hung up, as containerd's own shim does at once.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};
use rtc_runtime::sys::tty::{self, Size};
use tokio::io::Interest;
use tokio::time::{Instant, sleep, timeout};

use super::copy::{Copy, Progress, Stream, copy, stream, write_all};
use super::fifo::failed;
use crate::error::Result;

/// How long a process has after the end of its input, until its terminal is hung up.
const AFTER_INPUT: Duration = Duration::from_secs(2);

/// A terminal that is relayed.
#[derive(Debug)]
pub(crate) struct Terminal {
    line: Arc<Line>,
    input: Option<Copy>,
}

/// What hanging up takes away.
#[derive(Debug, Default)]
struct Line {
    master: Mutex<Option<Arc<Stream>>>,
    output: Mutex<Option<Copy>>,
}

impl Line {
    fn master(&self) -> Option<Arc<Stream>> {
        self.master.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn output(&self) -> MutexGuard<'_, Option<Copy>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the master, once its copies have noticed: the processes of the session get SIGHUP.
    fn hang_up(&self) {
        self.master.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.output().take();
    }
}

impl Terminal {
    /// Relays from now on: `output` is where all that is printed goes; it is thrown away where there is none.
    pub(crate) fn relay(master: OwnedFd, output: Option<OwnedFd>) -> Result<Self> {
        let master = Arc::new(stream(master, Interest::READABLE | Interest::WRITABLE)?);
        let output = output.map(|fd| stream(fd, Interest::WRITABLE)).transpose()?;
        let line = Arc::new(Line::default());
        *line.master.lock().unwrap_or_else(PoisonError::into_inner) = Some(master.clone());
        let printed = Copy::start(|progress| async move {
            copy(&master, output.as_ref(), true, &progress).await;
        });
        *line.output() = Some(printed);
        Ok(Self { line, input: None })
    }

    /// Feeds it from now on: `input` is the reading end of a FIFO.
    pub(crate) fn feed(&mut self, input: OwnedFd) -> Result<()> {
        let (line, input) = (self.line.clone(), stream(input, Interest::READABLE)?);
        self.input = Some(Copy::start(|progress| feed(line, input, progress)));
        Ok(())
    }

    /// Changes its size. Without effect once it was hung up.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match self.line.master() {
            Some(master) => tty::set_size(&master.get_ref().0, Size { rows, columns }).map_err(failed),
            None => Ok(()),
        }
    }

    /// As [`Copy::drained`].
    pub(crate) fn drained(&self, deadline: Instant) -> Option<impl Future<Output = ()> + Send + use<>> {
        let output = self.line.output();
        output.as_ref().map(|output| output.drained(deadline))
    }

    /// After the process' end: nothing is fed to the terminal any more, and it is hung up. Where its reader is slow, what was
    /// printed is kept for it, and the hang-up is left to [`Terminal::close`].
    pub(crate) fn end(&mut self) {
        self.input.take();
        let mut output = self.line.output();
        if let Some(copy) = &*output {
            copy.end();
            if copy.is_blocked() {
                return;
            }
        }
        output.take();
        drop(output);
        self.line.hang_up();
    }

    /// Hangs up.
    pub(crate) fn close(&mut self) {
        self.input.take();
        self.line.hang_up();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.close();
    }
}

/// Passes the input on, and its end.
async fn feed(line: Arc<Line>, input: Stream, progress: Arc<Progress>) {
    let Some(master) = line.master() else { return };
    copy(&input, Some(&master), false, &progress).await;
    drop(input);
    let end = tcgetattr(&master.get_ref().0)
        .map(|settings| settings.control_chars[SpecialCharacterIndices::VEOF as usize]);
    if let Ok(end) = end {
        // A process that does not read its terminal is hung up all the same.
        let _ = timeout(AFTER_INPUT, write_all(&master, &[end], &progress)).await;
    }
    drop(master);
    sleep(AFTER_INPUT).await;
    line.hang_up();
}
