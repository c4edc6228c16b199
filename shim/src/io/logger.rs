//! The shim's side of a log: `file://` and `cri://`, written by a process of ours ([`super::writer`]), and `binary://`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use rtc_runtime::log;
use rtc_runtime::process::worker;
use rtc_runtime::sys::{Errno, Named as _, fd, process};
use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::child::{Child, LAST_WORDS};
use super::copy::{Stream, nonblocking, stream};
use super::fifo::failed;
use super::writer::{Answer, Log, NUMBER_MAX, Order, Sources};
use super::{Request, binary, null, pipe};
use crate::error::{Error, Kind, Result};

/// How long a log may take to open its file, and to open it again.
const PATIENCE: Duration = LAST_WORDS;
/// Of an order that comes too late.
const ENDED: &str = "the logger has ended";
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

/// The socket to a writer, and who waits for what to be said.
#[derive(Debug)]
struct Control {
    socket: Arc<Stream>,
    next: AtomicU32,
    waiting: Arc<Waiting>,
    listener: AbortHandle,
}

/// The numbers of orders that were not answered yet. The first one, 0, is for the file to be opened.
type Waiting = Mutex<Vec<(u32, oneshot::Sender<String>)>>;

impl Logger {
    /// Starts the process that writes a log, and waits until the file is open.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the file can't be opened; `DeadlineExceeded`: not in time.
    pub(crate) async fn write(log: Log, terminal: bool) -> Result<(Self, Inlets)> {
        let (stdout, into_stdout) = source()?;
        let (stderr, into_stderr) = (!terminal).then(source).transpose()?.unzip();
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .call(|| "socketpair".into())
            .map_err(failed)?;
        let control = Control::new(ours)?;
        let opened = control.expect(0);
        let child = fork(log, Sources { stdout, stderr }, theirs)?;
        let logger = Self {
            child,
            control: Some(control),
        };
        let hangs = "the log is not open: its file system hangs";
        let inlets = Inlets {
            stdout: into_stdout,
            stderr: into_stderr,
        };
        match answered(opened, hangs).await {
            Ok(()) => Ok((logger, inlets)),
            Err(error) => Err(Error::text(error.kind, format_args!("stdout: {error}"))),
        }
    }

    /// Runs a program as the logger, and waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: it can't be executed, or did not say so; `DeadlineExceeded`.
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

    /// Lets the log's path be opened again, after it was renamed. On return nothing is written to the old file any more.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` where it can't be opened (the old file stays in use); `DeadlineExceeded` where its file system
    /// hangs; `Unimplemented` with a logger that is a program.
    pub(crate) async fn reopen(&self) -> Result<()> {
        self.ask(Order::Reopen, None).await
    }

    /// Gives a client a copy of the output from now on: `streams` is of [`super::writer::STDOUT`] and
    /// [`super::writer::STDERR`]. It is closed at the end of these, or when the client is a megabyte behind.
    ///
    /// # Errors
    ///
    /// As [`Logger::reopen`].
    pub(crate) async fn attach(&self, streams: u8, client: &OwnedFd) -> Result<()> {
        self.ask(|number| Order::Attach(number, streams), Some(client))
            .await
    }

    /// Gives an order and waits until it was done.
    async fn ask(&self, order: impl FnOnce(u32) -> Order, descriptor: Option<&OwnedFd>) -> Result<()> {
        let Some(control) = &self.control else {
            let text = "a logger of binary:// has its files and its output to itself";
            return Err(Error::text(Kind::Unimplemented, text));
        };
        let number = control.next.fetch_add(1, Ordering::Relaxed) & NUMBER_MAX;
        let done = control.expect(number);
        control.order(order(number), descriptor)?;
        answered(done, "the logger does not answer: its file system hangs").await
    }

    /// After the process' end: waits until the logger has all of the output and has ended.
    pub(crate) async fn finish(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(control) = &self.control else {
            self.child.ended(deadline).await;
            return;
        };
        // Rounded up: it never gives up before the deadline.
        let milliseconds = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
        if let Err(error) = control.order(Order::Finish(milliseconds), None)
            && self.child.exit().is_none()
        {
            log::warn(format_args!("end a logger: {error}"));
        }
        self.child.ended(deadline + MARGIN).await;
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

/// Makes the process that writes.
fn fork(log: Log, sources: Sources, control: OwnedFd) -> Result<Child> {
    let null = null(OFlag::O_RDWR)?;
    let mut keep = vec![sources.stdout.as_raw_fd(), control.as_raw_fd()];
    keep.extend(sources.stderr.as_ref().map(AsRawFd::as_raw_fd));
    let worker = worker::fork(Some([null.as_fd(); 3]), &keep, move |_| {
        let _ = nix::sys::prctl::set_name(c"rtc-log");
        let status = i32::from(super::writer::run(&log, sources, control).is_err());
        process::exit(status)
    });
    // Its channel is closed here: all that it says goes over the socket.
    Ok(Child::adopt(worker?.child))
}

/// Waits for the answer to an order.
async fn answered(answer: oneshot::Receiver<String>, late: &str) -> Result<()> {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(why)) if why.is_empty() => Ok(()),
        Ok(Ok(why)) => Err(Error::text(Kind::FailedPrecondition, why)),
        Ok(Err(_)) => Err(Error::text(Kind::FailedPrecondition, ENDED)),
        Err(_) => Err(Error::text(
            Kind::DeadlineExceeded,
            format_args!("{late} ({} s)", PATIENCE.as_secs()),
        )),
    }
}

impl Control {
    /// Listens from now on.
    fn new(socket: OwnedFd) -> Result<Self> {
        let socket = Arc::new(stream(socket, Interest::READABLE)?);
        let waiting = Arc::<Waiting>::default();
        let (heard, answers) = (socket.clone(), waiting.clone());
        let listener = tokio::spawn(async move {
            if let Err(error) = listen(&heard, &answers).await {
                log::warn(format_args!("hear a logger: {error:#}"));
            }
            lock(&answers).clear();
        });
        Ok(Self {
            socket,
            next: AtomicU32::new(1),
            waiting,
            listener: listener.abort_handle(),
        })
    }

    fn expect(&self, number: u32) -> oneshot::Receiver<String> {
        let (tell, answer) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        // Whoever does not wait any more.
        waiting.retain(|(_, tell)| !tell.is_closed());
        waiting.push((number, tell));
        answer
    }

    fn order(&self, order: Order, descriptor: Option<&OwnedFd>) -> Result<()> {
        let descriptor = descriptor.map(AsFd::as_fd);
        let sent = fd::send(&self.socket.get_ref().0, &order.encode(), descriptor.as_slice());
        sent.map_err(|error| match error.errno {
            Errno::EPIPE | Errno::ECONNRESET => Error::text(Kind::FailedPrecondition, ENDED),
            // It hears nothing: the socket is full.
            _ => Error::text(Kind::Unavailable, format_args!("the logger: {error}")),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It shares the socket, whose end is a message to the writer.
        self.listener.abort();
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, Vec<(u32, oneshot::Sender<String>)>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears everything that a writer says, to its end.
async fn listen(socket: &Stream, waiting: &Waiting) -> anyhow::Result<()> {
    loop {
        let mut ready = socket.readable().await?;
        let length = match fd::next_length(&socket.get_ref().0) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.errno == Errno::EAGAIN => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut message = vec![0; length];
        let (length, _) = fd::receive_with(&socket.get_ref().0, &mut message, MsgFlags::MSG_DONTWAIT)?;
        let (number, why) = match Answer::decode(&message[..length]).context("an answer that is none")? {
            Answer::Opened => (0, String::new()),
            Answer::Failed(why) => (0, why),
            Answer::Done(number, why) => (number, why),
            Answer::Warning(text) => {
                log::warn(text);
                continue;
            }
        };
        let mut waiting = lock(waiting);
        if let Some(at) = waiting.iter().position(|(known, _)| *known == number) {
            // Perhaps nobody waits for it any more.
            let _ = waiting.swap_remove(at).1.send(why);
        }
    }
}

/// A pipe: what the writer reads, without ever waiting in it, and what the process writes to.
fn source() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe()?;
    nonblocking(&read)?;
    Ok((read, write))
}
