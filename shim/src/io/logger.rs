//! The shim's side of a log: `file://` and `cri://`, written by a process of ours ([`super::writer`]), and `binary://`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use rtc_runtime::log;
use rtc_runtime::process::worker;
use rtc_runtime::sys::{Errno, Named as _, fd, process};
use tokio::io::Interest;
use tokio::time::{Instant, timeout, timeout_at};

use super::child::{Child, LAST_WORDS};
use super::copy::{Stream, nonblocking, stream};
use super::fifo::failed;
use super::writer::{self, Answer, Log, Order, Sources};
use super::{Request, binary, null, pipe};
use crate::error::{Error, Kind, Result};

/// How long a log may take to open its file, and to open it again.
const PATIENCE: Duration = LAST_WORDS;
/// How much longer the writer has than it was told, until it is not waited for.
const MARGIN: Duration = Duration::from_millis(500);

/// Takes the output of a process.
#[derive(Debug)]
pub(crate) struct Logger {
    child: Child,
    /// To the writer; a program has none.
    control: Option<Control>,
}

/// The ends that the process gets. A terminal has one.
#[derive(Debug)]
pub(crate) struct Inlets {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The socket, and whose turn it is to hear an answer.
#[derive(Debug)]
struct Control {
    socket: Stream,
    turn: tokio::sync::Mutex<()>,
    number: AtomicU32,
}

impl Logger {
    /// Starts the process that writes a log, and waits until the file is open.
    ///
    /// # Errors
    ///
    /// The file can't be opened (`FailedPrecondition`), or not in time.
    pub(crate) async fn write(log: Log, terminal: bool) -> Result<(Self, Inlets)> {
        let (stdout, into_stdout) = source()?;
        let (stderr, into_stderr) = if terminal { None } else { Some(source()?) }.unzip();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .call(|| "socketpair".into())
        .map_err(failed)?;
        let null = null(OFlag::O_RDWR)?;
        let mut keep = vec![stdout.as_raw_fd(), theirs.as_raw_fd()];
        keep.extend(stderr.as_ref().map(AsRawFd::as_raw_fd));
        let sources = Sources { stdout, stderr };
        let worker = worker::fork(Some([null.as_fd(); 3]), &keep, move |_| {
            let _ = nix::sys::prctl::set_name(c"rtc-log");
            let status = i32::from(writer::run(&log, sources, theirs).is_err());
            process::exit(status)
        });
        // Its channel is closed here: all that it says goes over the socket.
        let child = Child::adopt(worker?.child);
        let control = Control {
            socket: stream(ours, Interest::READABLE)?,
            turn: tokio::sync::Mutex::default(),
            number: AtomicU32::new(0),
        };
        let logger = Self {
            child,
            control: Some(control),
        };
        logger.opened().await?;
        Ok((
            logger,
            Inlets {
                stdout: into_stdout,
                stderr: into_stderr,
            },
        ))
    }

    /// Runs a program as the logger, and waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// It can't be executed, or is not ready in time.
    pub(crate) async fn run(program: &super::target::Binary, request: &Request) -> Result<(Self, Inlets)> {
        let (child, inlets, starting) = binary::start(program, request)?;
        let logger = Self { child, control: None };
        match starting.ready().await {
            Ok(()) => Ok((logger, inlets)),
            Err(error) => {
                logger.child.signal(nix::libc::SIGKILL);
                Err(error)
            }
        }
    }

    async fn opened(&self) -> Result<()> {
        let Some(control) = &self.control else {
            return Ok(());
        };
        match timeout(PATIENCE, control.hear()).await {
            Ok(Ok(Answer::Opened)) => Ok(()),
            Ok(Ok(Answer::Failed(why))) => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("stdout: {why}"),
            )),
            Ok(Ok(other)) => Err(Error::text(
                Kind::Unknown,
                format_args!("the logger says {other:?}"),
            )),
            Ok(Err(error)) => Err(error.context("the logger ended").into()),
            Err(_) => Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!(
                    "stdout: the log is not open after {} s: its file system hangs",
                    PATIENCE.as_secs()
                ),
            )),
        }
    }

    /// Lets the log's path be opened again, after it was renamed. On return nothing is written to the old file any more.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` where it can't be opened (the old file stays in use); `DeadlineExceeded` where its file system
    /// hangs; `Unimplemented` with a logger that is a program.
    pub(crate) async fn reopen(&self) -> Result<()> {
        let Some(control) = &self.control else {
            return Err(Error::text(
                Kind::Unimplemented,
                "a logger of binary:// opens its own files",
            ));
        };
        let deadline = Instant::now() + PATIENCE;
        let late = |_| {
            Error::text(
                Kind::DeadlineExceeded,
                "the logger does not answer: its file system hangs",
            )
        };
        let turn = timeout_at(deadline, control.turn.lock()).await.map_err(late)?;
        let number = control.number.fetch_add(1, Ordering::Relaxed);
        control.order(Order::Reopen(number), None)?;
        let answer = loop {
            match timeout_at(deadline, control.hear()).await.map_err(late)? {
                Ok(Answer::Reopened(answered, why)) if answered == number => {
                    break why;
                }
                Ok(Answer::Warning(text)) => log::warn(text),
                // Of an earlier one, that was not waited for.
                Ok(_) => {}
                Err(error) => return Err(error.context("the logger has ended").into()),
            }
        };
        drop(turn);
        if answer.is_empty() {
            return Ok(());
        }
        Err(Error::text(Kind::FailedPrecondition, answer))
    }

    /// Gives a client a copy of the output from now on: `streams` is of [`writer::STDOUT`] and [`writer::STDERR`]. It is
    /// closed at the end of these, or when the client is a megabyte behind.
    ///
    /// # Errors
    ///
    /// `Unimplemented` with a logger that is a program; the logger is too busy.
    pub(crate) fn attach(&self, streams: u8, client: &OwnedFd) -> Result<()> {
        match &self.control {
            Some(control) => control.order(Order::Attach(streams), Some(client)),
            None => Err(Error::text(
                Kind::Unimplemented,
                "a logger of binary:// keeps the output to itself",
            )),
        }
    }

    /// After the process' end: waits until the logger has all of the output and has ended.
    pub(crate) async fn finish(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(control) = &self.control else {
            self.child.ended(deadline).await;
            return;
        };
        let milliseconds = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = control.order(Order::Finish(milliseconds), None) {
            log::warn(format_args!("end a logger: {error}"));
        }
        self.child.ended(deadline + MARGIN).await;
        // What it had to say about the disk.
        while let Ok(Some(answer)) = control.heard() {
            if let Answer::Warning(text) = answer {
                log::warn(text);
            }
        }
    }
}

impl Drop for Logger {
    /// Lets it end: a program is asked to, the writer sees the end of its socket. Either has a while.
    fn drop(&mut self) {
        if self.control.is_none() {
            self.child.signal(nix::libc::SIGTERM);
        }
        self.child.clone().end_behind();
    }
}

impl Control {
    fn order(&self, order: Order, descriptor: Option<&OwnedFd>) -> Result<()> {
        let descriptor = descriptor.map(AsFd::as_fd);
        fd::send(&self.socket.get_ref().0, &order.encode(), descriptor.as_slice())
            .context("the logger")
            .map_err(|error| Error::new(Kind::Unavailable, error))
    }

    /// The next answer.
    async fn hear(&self) -> anyhow::Result<Answer> {
        loop {
            let mut ready = self.socket.readable().await?;
            match self.heard()? {
                Some(answer) => return Ok(answer),
                None => ready.clear_ready(),
            }
        }
    }

    /// The next answer; `None`: not yet.
    fn heard(&self) -> anyhow::Result<Option<Answer>> {
        let length = match fd::next_length(&self.socket.get_ref().0) {
            Ok(0) => anyhow::bail!("it is at its end"),
            Ok(length) => length,
            Err(error) if error.errno == Errno::EAGAIN => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut message = vec![0; length];
        let (length, _) = fd::receive_with(&self.socket.get_ref().0, &mut message, MsgFlags::MSG_DONTWAIT)?;
        let answer = Answer::decode(&message[..length]);
        answer.map(Some).context("an answer that is none")
    }
}

/// A pipe: what the writer reads, without ever waiting in it, and what the process writes to.
fn source() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe()?;
    nonblocking(&read)?;
    Ok((read, write))
}
