//! The process that writes a container's log: one for each, a fork of the shim. A log file system that hangs stops this
//! container and nothing else.
//!
//! ```text
//! process --pipes--> writer --> the file
//!                      | '----> clients that attached: a copy, and dropped when they are slow
//!            control   |
//! shim  <--------------'
//!        -> Reopen, Attach (with a descriptor), Finish      <- Opened or Failed; Done; Warning
//! ```
//!
//! It ends when the shim said Finish and the pipes are at their end, or the deadline of that is over. Where the shim has
//! died (the control socket is at its end) it goes on for a while: the container's last words are logged.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use rtc_runtime::sys::{Named as _, fd};

use super::crilog::{Entries, Stream};
use super::logfile::{Kind, LogFile};
use super::target::CriLog;

/// How much is read at once, in bytes. It is on the stack.
const CHUNK: usize = 8 * 1024;
/// How much is written at once, in bytes, or a little more.
const BATCH: usize = 16 * 1024;
/// How much a client may be behind before it is dropped, in bytes.
const CLIENT_BEHIND_MAX: usize = 1024 * 1024;
/// How long it goes on without the shim.
const WITHOUT_SHIM: Duration = Duration::from_secs(10);

/// The largest number of an order.
pub(crate) const NUMBER_MAX: u32 = (1 << 24) - 1;
/// The bits of [`Order::Attach`].
pub(crate) const STDOUT: u8 = 1;
/// As [`STDOUT`].
pub(crate) const STDERR: u8 = 2;

/// What the shim says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Open the path again; answered with the number.
    Reopen(u32),
    /// The descriptor that comes along gets a copy of these streams from now on; answered with the number.
    Attach(u32, u8),
    /// End with the pipes, or after so many milliseconds.
    Finish(u32),
}

/// What the writer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The file is open.
    Opened,
    /// It is not, and this is the last word.
    Failed(String),
    /// The answer to the order of this number: empty, or why it was not done.
    Done(u32, String),
    /// For the shim's log.
    Warning(String),
}

impl Order {
    /// As it is sent.
    pub(crate) fn encode(self) -> [u8; 5] {
        let (kind, number) = match self {
            Self::Reopen(number) => (b'R', number),
            Self::Attach(number, streams) => (b'A', number << 8 | u32::from(streams)),
            Self::Finish(milliseconds) => (b'F', milliseconds),
        };
        let mut message = [kind; 5];
        message[1..].copy_from_slice(&number.to_le_bytes());
        message
    }

    fn decode(message: &[u8]) -> Option<Self> {
        let (kind, number) = message.split_first()?;
        let number = u32::from_le_bytes(number.try_into().ok()?);
        match kind {
            b'R' => Some(Self::Reopen(number)),
            b'A' => Some(Self::Attach(number >> 8, number as u8)),
            b'F' => Some(Self::Finish(number)),
            _ => None,
        }
    }
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Opened => fd::text_message(b'O', ""),
            Self::Failed(text) => fd::text_message(b'E', text),
            Self::Done(number, why) => fd::text_message(b'D', &format!("{number} {why}")),
            Self::Warning(text) => fd::text_message(b'W', text),
        }
    }

    /// From what was received.
    pub(crate) fn decode(message: &[u8]) -> Option<Self> {
        let (kind, text) = message.split_first()?;
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'O' => Some(Self::Opened),
            b'E' => Some(Self::Failed(text)),
            b'D' => {
                let (number, why) = text.split_once(' ')?;
                Some(Self::Done(number.parse().ok()?, why.to_owned()))
            }
            b'W' => Some(Self::Warning(text)),
            _ => None,
        }
    }
}

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Log {
    /// Bytes as they come.
    Plain(std::path::PathBuf),
    /// Entries.
    Cri(CriLog),
}

/// Where it comes from.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The reading end of a pipe.
    pub(crate) stdout: OwnedFd,
    /// The reading end of a pipe; none with a terminal.
    pub(crate) stderr: Option<OwnedFd>,
}

/// Runs until the log is done.
///
/// # Errors
///
/// The file can't be opened, which the shim was told; as poll(2).
pub(crate) fn run(log: &Log, sources: Sources, control: OwnedFd) -> Result<()> {
    let (file, kind) = match log {
        Log::Plain(path) => (path, Kind::Plain),
        Log::Cri(log) => (&log.path, Kind::Cri),
    };
    let file = match LogFile::open(file, kind) {
        Ok(file) => file,
        Err(error) => {
            tell(&control, &Answer::Failed(format!("{error:#}")));
            return Err(error);
        }
    };
    tell(&control, &Answer::Opened);
    Writer::new(log, file, sources, control).run()
}

/// A shim that does not listen misses it.
fn tell(control: &OwnedFd, answer: &Answer) {
    let _ = nix::sys::socket::send(
        std::os::fd::AsRawFd::as_raw_fd(control),
        &answer.encode(),
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
    );
}

struct Writer {
    file: LogFile,
    output: Output,
    sources: Vec<Source>,
    /// Gone when the shim is.
    control: Option<OwnedFd>,
    clients: Vec<Client>,
    deadline: Option<Instant>,
}

struct Source {
    pipe: OwnedFd,
    stream: u8,
    /// `None`: bytes as they come.
    entries: Option<Entries>,
}

impl Writer {
    fn new(log: &Log, file: LogFile, sources: Sources, control: OwnedFd) -> Self {
        let (max_line, output) = match log {
            Log::Plain(_) => (None, Output::new(None, 0)),
            Log::Cri(log) => (Some(log.max_line), Output::new(log.max_size, log.max_files)),
        };
        let from_terminal = sources.stderr.is_none();
        let source = |pipe, stream, name| Source {
            pipe,
            stream,
            entries: max_line.map(|max_line| Entries::new(name, max_line, from_terminal)),
        };
        let stdout = source(sources.stdout, STDOUT, Stream::Stdout);
        let stderr = sources.stderr.map(|pipe| source(pipe, STDERR, Stream::Stderr));
        Self {
            file,
            output,
            sources: std::iter::once(stdout).chain(stderr).collect(),
            control: Some(control),
            clients: Vec::new(),
            deadline: None,
        }
    }

    fn run(mut self) -> Result<()> {
        while let Some(ready) = self.wait()? {
            let mut ready = ready.into_iter();
            let mut next = || ready.next().is_some_and(|events| !events.is_empty());
            let ordered = self.control.is_some() && next();
            let readable: Vec<bool> = self.sources.iter().map(|_| next()).collect();
            for client in &mut self.clients {
                client.turn(next());
            }
            self.clients.retain(|client| !client.gone);
            let mut readable = readable.into_iter();
            let mut sources = std::mem::take(&mut self.sources);
            sources.retain_mut(|source| readable.next() != Some(true) || self.read(source));
            self.sources = sources;
            self.write_out();
            // After the output that was there before.
            if ordered {
                self.obey();
            }
        }
        Ok(())
    }

    /// Waits until there is something to do, and tells for each descriptor what: control, sources, clients. `None`: it is
    /// done.
    fn wait(&mut self) -> Result<Option<Vec<PollFlags>>> {
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let written = self.clients.iter().all(|client| client.behind.is_empty());
        if left.is_some_and(|left| left.is_zero() || self.sources.is_empty() && written) {
            return Ok(None);
        }
        let mut waiting: Vec<PollFd<'_>> = Vec::with_capacity(3 + self.clients.len());
        waiting.extend(
            self.control
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        waiting.extend(
            self.sources
                .iter()
                .map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)),
        );
        waiting.extend(self.clients.iter().map(|client| {
            let behind = !client.behind.is_empty();
            let events = if behind {
                PollFlags::POLLOUT
            } else {
                PollFlags::empty()
            };
            PollFd::new(client.fd.as_fd(), events)
        }));
        let timeout = match left {
            None => PollTimeout::NONE,
            // Not a little less, which would be a busy wait at the end.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let events = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        Ok(Some(waiting.iter().map(events).collect()))
    }

    /// Reads once from a pipe that has something, or its end. `false`: the end.
    fn read(&mut self, source: &mut Source) -> bool {
        let mut chunk = [0; CHUNK];
        let length = match nix::unistd::read(&source.pipe, &mut chunk) {
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => return true,
            Err(_) => 0,
        };
        let bytes = &chunk[..length];
        let now = SystemTime::now();
        let (output, file) = (&mut self.output, &mut self.file);
        match &mut source.entries {
            None => {
                output.held.extend_from_slice(bytes);
                output.written(file);
            }
            Some(entries) if bytes.is_empty() => {
                entries.finish(now, |entry| {
                    output.entry(file, entry.length_max(), |held| entry.append_to(held));
                });
            }
            Some(entries) => {
                entries.take(bytes, now, |entry| {
                    output.entry(file, entry.length_max(), |held| entry.append_to(held));
                });
            }
        }
        for client in &mut self.clients {
            client.copy(source.stream, bytes);
        }
        self.clients.retain(|client| !client.gone);
        !bytes.is_empty()
    }

    fn write_out(&mut self) {
        self.output.flush(&mut self.file);
        if let (Some(warning), Some(control)) = (self.output.warning.take(), &self.control) {
            tell(control, &Answer::Warning(warning));
        }
    }

    fn obey(&mut self) {
        let Some(control) = &self.control else { return };
        let mut message = [0; 16];
        let (length, descriptor) = match fd::receive_with(control, &mut message, MsgFlags::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(error) if error.errno == Errno::EAGAIN => return,
            Err(_) => (0, None),
        };
        if length == 0 {
            self.control = None;
            self.end_within(WITHOUT_SHIM);
            return;
        }
        match (Order::decode(&message[..length]), descriptor) {
            (Some(Order::Reopen(number)), _) => {
                let why = self
                    .file
                    .reopen()
                    .map_or_else(|error| format!("{error:#}"), |()| String::new());
                tell(control, &Answer::Done(number, why));
            }
            (Some(Order::Attach(number, streams)), Some(descriptor)) => {
                let alive = self.sources.iter().fold(0, |all, source| all | source.stream);
                let client = (streams & alive != 0).then(|| Client::new(descriptor, streams & alive));
                self.clients.extend(client.flatten());
                tell(control, &Answer::Done(number, String::new()));
            }
            (Some(Order::Finish(milliseconds)), _) => {
                self.end_within(Duration::from_millis(milliseconds.into()));
            }
            _ => {}
        }
    }

    fn end_within(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

/// What is on its way to the file.
struct Output {
    held: Vec<u8>,
    max_size: Option<u64>,
    files: usize,
    /// What went wrong and was not told yet.
    warning: Option<String>,
    /// Told once, until something was written again.
    failing: bool,
}

impl Output {
    fn new(max_size: Option<u64>, files: usize) -> Self {
        Self {
            held: Vec::new(),
            max_size,
            files,
            warning: None,
            failing: false,
        }
    }

    /// Takes an entry of at most so many bytes; rotates the file before it where it would get too long.
    fn entry(&mut self, file: &mut LogFile, length_max: usize, append: impl FnOnce(&mut Vec<u8>)) {
        let size = file.size() + self.held.len() as u64;
        if size > 0 && self.max_size.is_some_and(|max| size + length_max as u64 > max) {
            self.flush(file);
            if let Err(error) = file.rotate(SystemTime::now(), self.files) {
                self.failed(&error);
            }
        }
        append(&mut self.held);
        self.written(file);
    }

    /// Writes when there is enough.
    fn written(&mut self, file: &mut LogFile) {
        if self.held.len() >= BATCH {
            self.flush(file);
        }
    }

    fn flush(&mut self, file: &mut LogFile) {
        if self.held.is_empty() {
            return;
        }
        match file.append(&self.held) {
            Ok(()) => self.failing = false,
            Err(error) => self.failed(&error.context("what the container prints is lost")),
        }
        self.held.clear();
        self.held.shrink_to(BATCH);
    }

    fn failed(&mut self, error: &anyhow::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            self.warning = Some(format!("{error:#}"));
        }
    }
}

/// Who gets a copy.
struct Client {
    fd: OwnedFd,
    streams: u8,
    behind: Vec<u8>,
    gone: bool,
}

impl Client {
    fn new(fd: OwnedFd, streams: u8) -> Option<Self> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).call(|| "fcntl".into()).ok()?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).ok()?;
        Some(Self {
            fd,
            streams,
            behind: Vec::new(),
            gone: false,
        })
    }

    /// Passes on what a stream brought; nothing is its end.
    fn copy(&mut self, stream: u8, bytes: &[u8]) {
        if self.streams & stream == 0 || self.gone {
            return;
        }
        if bytes.is_empty() {
            self.streams &= !stream;
            self.gone = self.streams == 0 && self.behind.is_empty();
        } else if self.behind.len() + bytes.len() > CLIENT_BEHIND_MAX {
            self.gone = true;
        } else {
            let was_up_to_date = self.behind.is_empty();
            self.behind.extend_from_slice(bytes);
            if was_up_to_date {
                self.write();
            }
        }
    }

    /// Its descriptor tells something: it takes more, or it is gone.
    fn turn(&mut self, ready: bool) {
        if ready && self.behind.is_empty() {
            self.gone = true;
        } else if ready {
            self.write();
        }
    }

    fn write(&mut self) {
        match nix::unistd::write(&self.fd, &self.behind) {
            Ok(length) => {
                self.behind.drain(..length);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.gone = true,
        }
        if self.behind.is_empty() {
            self.behind.shrink_to(CHUNK);
            self.gone |= self.streams == 0;
        }
    }
}
