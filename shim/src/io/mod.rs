//! Standard input and output of a container's process: what the four fields of the Task API ask for.
//!
//! ```text
//! ""                nothing: /dev/null
//! /path, fifo://    a FIFO of containerd: the process writes to it without us between
//! binary://         a logger that is run for the process
//! file://           a file, written by a process of ours
//! cri://            a log in the format of CRI, written by a process of ours
//! terminal          the master of its terminal, relayed
//! ```
//!
//! ```text
//! open -> (the process is born, ChildEnds are dropped) -> attach_terminal -> starting -> ... -> it ends -> drain -> close
//! ```

mod binary;
mod child;
mod copy;
mod crilog;
pub(crate) mod fifo;
mod logfile;
mod logger;
#[cfg(test)]
mod logger_tests;
mod stdin;
mod target;
mod terminal;
#[cfg(test)]
mod terminal_tests;
#[cfg(test)]
mod tests;
mod writer;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use rtc_runtime::sys::Named as _;
use tokio::io::Interest;
use tokio::time::Instant;

use self::copy::{Copy, copy, stream};
use self::fifo::{Fifo, emptied, failed, own};
use self::logger::{Inlets, Logger};
use self::stdin::Stdin;
use self::target::Target;
use self::terminal::Terminal;
use self::writer::Log;
use crate::error::{Error, Kind, Result};

/// What a request says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// Owner and group of what the process gets.
    pub(crate) owner: (u32, u32),
    /// What a logger is told.
    pub(crate) namespace: String,
    /// What a logger is told.
    pub(crate) id: String,
    /// It gets pipes in place of FIFOs, and the shim copies: [`fifo::needs_pipes`].
    pub(crate) pipes: bool,
}

/// The process' ends: its descriptors 0, 1 and 2. To be dropped once it has them.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The shim's side, as long as the process is known. Dropping it is [`Io::close`].
#[derive(Debug, Default)]
pub(crate) struct Io(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Keeps the readers of the output from seeing an end.
    holds: Vec<OwnedFd>,
    stdin: Option<Stdin>,
    /// The input's pipe, in place of its FIFO, until the process starts.
    stdin_pipe: Option<OwnedFd>,
    /// From its output's pipes to FIFOs.
    copies: Vec<Copy>,
    /// From a FIFO to its input's pipe.
    stdin_copy: Option<Copy>,
    /// For the terminal that is yet to come: its input, once the process starts, and its output.
    for_terminal: (Option<OwnedFd>, Option<OwnedFd>),
    has_terminal: bool,
    terminal: Option<Terminal>,
    logger: Option<Arc<Logger>>,
}

impl Io {
    /// Opens what the request names. Is to be called in the context of the asynchronous runtime.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what can't be meant; `FailedPrecondition` for a FIFO that is not there.
    pub(crate) async fn open(request: &Request) -> Result<(Self, ChildEnds)> {
        let stdin = Target::parse("stdin", &request.stdin)?;
        let (stdout, stderr) = outputs(request)?;
        let mut state = State {
            has_terminal: request.terminal,
            ..State::default()
        };
        // The cheap things that may be refused come first.
        let input = if request.terminal {
            state.stdin = stdin_fifo(&stdin)?;
            null(OFlag::O_RDWR)?
        } else {
            state.input(request, &stdin)?
        };
        let inlets = match &stdout {
            Target::Logger(logger) => {
                let (logger, inlets) = start_logger(logger, request).await?;
                state.logger = Some(Arc::new(logger));
                inlets
            }
            _ if request.terminal => {
                if let Target::Fifo(path) = &stdout {
                    let fifo = Fifo::open("stdout", path)?;
                    // To see whether its reader has everything, see `drain`; it keeps no reader from its end.
                    state
                        .holds
                        .push(fifo.reopen(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
                    state.for_terminal.1 = Some(fifo.into_hold());
                }
                Inlets {
                    stdout: null(OFlag::O_RDWR)?,
                    stderr: None,
                }
            }
            _ => Inlets {
                stdout: state.output(request, "stdout", &stdout)?,
                stderr: Some(state.output(request, "stderr", &stderr)?),
            },
        };
        let ends = state.ends(request, input, inlets)?;
        Ok((Self(Mutex::new(state)), ends))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Relays the terminal whose master this is, from now on.
    ///
    /// # Errors
    ///
    /// It is no terminal's.
    pub(crate) fn attach_terminal(&self, master: OwnedFd) -> Result<()> {
        let mut state = self.state();
        let (input, output) = std::mem::take(&mut state.for_terminal);
        let mut terminal = Terminal::relay(master, output)?;
        if let Some(input) = input {
            terminal.feed(input)?;
        }
        state.terminal = Some(terminal);
        Ok(())
    }

    /// The program is about to start: from now on its input does not end before CloseIO, and it is copied where that is to
    /// be done. Is to be called once, before or after [`Io::attach_terminal`].
    ///
    /// # Errors
    ///
    /// As open(2).
    pub(crate) fn starting(&self) -> Result<()> {
        let mut state = self.state();
        let Some(reader) = state.stdin.as_mut().map(Stdin::starting).transpose()?.flatten() else {
            return Ok(());
        };
        if let Some(pipe) = state.stdin_pipe.take() {
            let from = stream(reader, Interest::READABLE)?;
            let to = stream(pipe, Interest::WRITABLE)?;
            state.stdin_copy = Some(Copy::start(|progress| async move {
                copy(&from, Some(&to), false, &progress).await;
            }));
        } else if let Some(terminal) = &mut state.terminal {
            terminal.feed(reader)?;
        } else if state.has_terminal {
            state.for_terminal.0 = Some(reader);
        }
        Ok(())
    }

    /// Changes the size of the terminal. Without one it does nothing, as in containerd's shim.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match &self.state().terminal {
            Some(terminal) => terminal.resize(rows, columns),
            None => Ok(()),
        }
    }

    /// Nothing more comes on its standard input from us: it ends when no client has it open any more either.
    pub(crate) fn close_stdin(&self) {
        if let Some(stdin) = &mut self.state().stdin {
            stdin.close();
        }
    }

    /// After the process' end: returns when all of its output was passed on, or patience is over. Readers of FIFOs then see
    /// the end.
    pub(crate) async fn drain(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (copies, terminal, logger, holds) = {
            let mut state = self.state();
            let copies: Vec<_> = state.copies.iter().map(|copy| copy.drained(deadline)).collect();
            let terminal = state
                .terminal
                .as_ref()
                .and_then(|terminal| terminal.drained(deadline));
            let holds = std::mem::take(&mut state.holds);
            (copies, terminal, state.logger.clone(), holds)
        };
        for copy in copies {
            copy.await;
        }
        if let Some(terminal) = terminal {
            terminal.await;
        }
        for hold in holds {
            emptied(hold, deadline).await;
        }
        self.end();
        if let Some(logger) = logger {
            logger.finish(deadline).await;
        }
    }

    /// Readers see the end now, for which containerd waits before it deletes a process; unless somebody whom the process has
    /// left still writes: what that writes to a pipe is copied on. A terminal ends with its process, but not before what was
    /// printed has found its reader; a logger behind it sees its end.
    fn end(&self) {
        let mut state = self.state();
        state.stdin = None;
        state.stdin_pipe = None;
        state.stdin_copy = None;
        if let Some(terminal) = &mut state.terminal {
            terminal.end();
        }
    }

    /// Opens the path of the log again, which was renamed before. On return nothing is written to the old file any more.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: there is no log of ours, or its path can't be opened (the old file stays in use);
    /// `Unimplemented` for a logger that is a program; `DeadlineExceeded` where the file system hangs.
    pub(crate) async fn reopen_log(&self) -> Result<()> {
        self.logger()?.reopen().await
    }

    /// Gives a client a copy of the output from now on, at most of these streams: a pipe or a socket. It is closed at the
    /// end of the output, or when the client is a megabyte behind; it never holds up the log.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: there is no log of ours; `Unimplemented` for a logger that is a program; `DeadlineExceeded`
    /// where its file system hangs.
    pub(crate) async fn attach(&self, client: &OwnedFd, stdout: bool, stderr: bool) -> Result<()> {
        let stdout = if stdout { writer::STDOUT } else { 0 };
        let stderr = if stderr { writer::STDERR } else { 0 };
        self.logger()?.attach(stdout | stderr, client).await
    }

    fn logger(&self) -> Result<Arc<Logger>> {
        let none = || {
            Error::text(
                Kind::FailedPrecondition,
                "the output goes to no log of the shim's",
            )
        };
        self.state().logger.clone().ok_or_else(none)
    }

    /// Lets go of everything: the readers of the output see its end, once nobody else has it open; a terminal is hung up.
    pub(crate) fn close(&self) {
        *self.state() = State::default();
    }
}

impl State {
    /// What the process gets: with a terminal nothing, since that is what it gets then.
    fn ends(&mut self, request: &Request, stdin: OwnedFd, inlets: Inlets) -> Result<ChildEnds> {
        if request.terminal {
            if self.logger.is_some() {
                self.for_terminal.1 = Some(inlets.stdout);
            }
            return Ok(ChildEnds {
                stdin,
                stdout: null(OFlag::O_RDWR)?,
                stderr: null(OFlag::O_RDWR)?,
            });
        }
        let stderr = match inlets.stderr {
            Some(stderr) => stderr,
            None => null(OFlag::O_WRONLY)?,
        };
        if self.logger.is_some() {
            own(&inlets.stdout, request.owner)?;
            own(&stderr, request.owner)?;
        }
        Ok(ChildEnds {
            stdin,
            stdout: inlets.stdout,
            stderr,
        })
    }

    /// The process' standard input.
    fn input(&mut self, request: &Request, target: &Target) -> Result<OwnedFd> {
        self.stdin = stdin_fifo(target)?;
        let end = match &self.stdin {
            Some(_) if request.pipes => {
                let (read, write) = pipe()?;
                own(&read, request.owner)?;
                self.stdin_pipe = Some(write);
                Some(read)
            }
            Some(stdin) => stdin.end(request.owner)?,
            None => None,
        };
        end.map_or_else(|| null(OFlag::O_RDONLY), Ok)
    }

    /// The process' standard output or standard error.
    fn output(&mut self, request: &Request, field: &'static str, target: &Target) -> Result<OwnedFd> {
        let path = match target {
            // A logger was handled before.
            Target::Null | Target::Logger(_) => return null(OFlag::O_WRONLY),
            Target::Fifo(path) => path,
        };
        let fifo = Fifo::open(field, path)?;
        if !request.pipes {
            let end = fifo.end(OFlag::O_WRONLY, request.owner)?;
            self.holds.push(fifo.into_hold());
            return Ok(end);
        }
        let (read, write) = pipe()?;
        own(&write, request.owner)?;
        let from = stream(read, Interest::READABLE)?;
        let to = stream(fifo.into_hold(), Interest::WRITABLE)?;
        self.copies.push(Copy::start(|progress| async move {
            copy(&from, Some(&to), true, &progress).await;
        }));
        Ok(write)
    }
}

/// Starts what takes the output.
async fn start_logger(logger: &target::Logger, request: &Request) -> Result<(Logger, Inlets)> {
    let log = match logger {
        target::Logger::Binary(program) => return Logger::run(program, request).await,
        target::Logger::File(path) => Log::Plain(path.clone()),
        target::Logger::Cri(log) => Log::Cri(log.clone()),
    };
    Logger::write(log, request.terminal).await
}

/// Standard input, where it is a FIFO.
fn stdin_fifo(target: &Target) -> Result<Option<Stdin>> {
    match target {
        Target::Null => Ok(None),
        Target::Fifo(path) => Stdin::open(path).map(Some),
        Target::Logger(_) => {
            let text = "stdin: a logger gives no input; it is a FIFO or empty";
            Err(Error::text(Kind::InvalidArgument, text))
        }
    }
}

/// Where the output goes. A logger takes both streams, also where standard error names none, as in containerd.
fn outputs(request: &Request) -> Result<(Target, Target)> {
    let stdout = Target::parse("stdout", &request.stdout)?;
    if request.terminal {
        return Ok((stdout, Target::Null));
    }
    let stderr = Target::parse("stderr", &request.stderr)?;
    let refused = |why: &str| {
        let text = format!("stderr: {:?}: {why}", request.stderr);
        Err(Error::text(Kind::InvalidArgument, text))
    };
    match (&stdout, &stderr) {
        (Target::Logger(_), Target::Null) => Ok((stdout.clone(), stdout)),
        (Target::Logger(_), other) if *other != stdout => {
            refused("a logger takes both streams; it is the same as stdout, or empty")
        }
        (Target::Null | Target::Fifo(_), Target::Logger(_)) => {
            refused("a logger takes both streams; name it as stdout too")
        }
        _ => Ok((stdout, stderr)),
    }
}

fn null(flag: OFlag) -> Result<OwnedFd> {
    open("/dev/null", flag | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(\"/dev/null\")".into())
        .map_err(failed)
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
        .call(|| "pipe2".into())
        .map_err(failed)
}
