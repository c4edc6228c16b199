//! `binary:///program?key=value`: a logger that is run for a process, as containerd's shim does (`core/runtime/v2/logging`).
//!
//! | descriptor | |
//! |---|---|
//! | 0, 1, 2 | `/dev/null` |
//! | 3 | reads the process' standard output |
//! | 4 | reads its standard error |
//! | 5 | is written a byte (`binary-v2`) and closed when the logger is ready |
//!
//! Its environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE`, its arguments are the query. It ends by itself at the end
//! of what it reads, and so it does when the shim has died; when the process is let go of it is told to by SIGTERM.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::execve;
use rtc_runtime::process::worker::{self, Report, Worker};
use rtc_runtime::sys::{Errno, Named as _, clone, fd, process};
use tokio::io::Interest;
use tokio::time::timeout;

use super::child::{Child, LAST_WORDS};
use super::copy::{Stream, stream};
use super::logger::Inlets;
use super::target::Binary;
use super::{Request, null, pipe};
use crate::error::{self, Error, Kind};
use crate::pollable::Pollable;

/// The first number that a logger gets, after its stdio, and the last.
const NUMBERS: std::ops::RangeInclusive<RawFd> = 3..=5;

/// A logger that was started.
pub(crate) struct Starting {
    worker: Worker,
    channel: Stream,
    ready: Stream,
    says_ready: bool,
    program: PathBuf,
}

/// Starts it.
///
/// # Errors
///
/// `InvalidArgument` for an id that can't be passed on; as clone3(2).
pub(crate) fn start(program: &Binary, request: &Request) -> error::Result<(Child, Inlets, Starting)> {
    let command = Command::new(program, request)?;
    let (stdout, into_stdout) = pipe()?;
    let (stderr, into_stderr) = pipe()?;
    let (ready, says_ready) = pipe()?;
    let worker = fork(&command, &[stdout, stderr, says_ready])?;
    let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(anyhow::Error::from);
    let child = Child::adopt(clone::Child {
        pid: worker.child.pid,
        pidfd: clone(worker.child.pidfd.as_fd())?,
    });
    let starting = Starting {
        channel: stream(clone(worker.as_fd())?, Interest::READABLE)?,
        worker,
        ready: stream(ready, Interest::READABLE)?,
        says_ready: program.says_ready,
        program: program.program.clone(),
    };
    let inlets = Inlets {
        stdout: into_stdout,
        stderr: Some(into_stderr),
    };
    Ok((child, inlets, starting))
}

impl Starting {
    /// Waits until it is ready, at most [`LAST_WORDS`].
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` with what the kernel says about the program, or where it did not say that it is ready;
    /// `DeadlineExceeded`.
    pub(crate) async fn ready(self) -> error::Result<()> {
        let program = self.program.display();
        match timeout(LAST_WORDS, self.wait()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("stdout: the logger {program}: {error:#}"),
            )),
            Err(_) => Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!(
                    "stdout: the logger {program} is not ready after {} s",
                    LAST_WORDS.as_secs()
                ),
            )),
        }
    }

    async fn wait(&self) -> Result<()> {
        self.executed().await?;
        let read = |ready: &Pollable<OwnedFd>| Ok(nix::unistd::read(&ready.0, &mut [0])?);
        let said = self.ready.async_io(Interest::READABLE, read).await?;
        if said == 0 && self.says_ready {
            bail!("it closed descriptor 5, or ended, before it wrote a byte to it");
        }
        Ok(())
    }

    /// The worker's end of the channel is closed by `execve`.
    async fn executed(&self) -> Result<()> {
        loop {
            let mut there = self.channel.readable().await?;
            match self.worker.receive() {
                Ok(None) => return Ok(()),
                Ok(Some(Report::Failed(text))) => bail!(text),
                Ok(Some(_)) => {}
                Err(error) if error.errno == Errno::EAGAIN => there.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What is executed.
struct Command {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    fn new(binary: &Binary, request: &Request) -> error::Result<Self> {
        let text = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| {
                Error::text(
                    Kind::InvalidArgument,
                    "id, namespace: a NUL in it can't be passed on",
                )
            })
        };
        let program = text(binary.program.as_os_str().as_bytes())?;
        let arguments = binary.arguments.iter().map(|argument| text(argument.as_bytes()));
        Ok(Self {
            arguments: std::iter::once(Ok(program.clone()))
                .chain(arguments)
                .collect::<error::Result<_>>()?,
            environment: vec![
                text(format!("CONTAINER_ID={}", request.id).as_bytes())?,
                text(format!("CONTAINER_NAMESPACE={}", request.namespace).as_bytes())?,
            ],
            program,
        })
    }

    /// In the copy of the shim.
    fn execute(&self, ends: &[OwnedFd; 3]) -> Result<Infallible> {
        let mut duplicates = Vec::with_capacity(ends.len());
        for end in ends {
            duplicates.push(
                fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(NUMBERS.end() + 1)).call(|| "fcntl(F_DUPFD)".into())?,
            );
        }
        for (number, duplicate) in NUMBERS.zip(duplicates) {
            fd::duplicate_onto(duplicate, number)?;
        }
        process::default_sigpipe();
        execve(&self.program, &self.arguments, &self.environment)
            .call(|| format!("execve({:?})", self.program))
            .map_err(Into::into)
    }
}

/// Forks it, with `/dev/null` as its stdio.
fn fork(command: &Command, ends: &[OwnedFd; 3]) -> error::Result<Worker> {
    // Nothing that the worker needs itself may have the numbers that the logger's descriptors get.
    let mut fillers = vec![null(OFlag::O_RDWR)?];
    while fillers
        .last()
        .is_some_and(|last| last.as_raw_fd() <= *NUMBERS.end())
    {
        fillers.push(null(OFlag::O_RDWR)?);
    }
    let null = fillers[0].as_fd();
    let keep = ends.each_ref().map(AsRawFd::as_raw_fd);
    let worker = worker::fork(Some([null; 3]), &keep, |_| {
        command.execute(ends).map(|never| match never {})
    });
    Ok(worker?)
}
