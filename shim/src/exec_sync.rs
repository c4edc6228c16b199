//! ExecSync: a process in a container, its output as a stream, and how it ended. No FIFOs, no events, one round trip.
//!
//! ```text
//! container --pipe--> shim --stream--> client      each piece is read when the one before it was written to the socket:
//!                                                  a client that does not read stops the process, not the shim
//! ends: what is in the pipes is passed on -> exit code
//! time is over, or the client has gone: everything that the exec started is killed
//! ```

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process::{self, Exit};
use rtc_shim::protocol::{CHUNK_MAX, ExecSyncExit, ExecSyncRequest, ExecSyncResponse};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use ttrpc::r#async::ServerStreamSender;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::io::ChildEnds;
use crate::pollable::{Pollable, wait_for};
use crate::runtime::{EXEC_PATIENCE, Exec, Started};
use crate::shim::Shim;
use crate::{descendants, log, reaper, stuck};

/// The first read, in bytes; a full one is followed by a larger one.
const FIRST_READ: usize = 4096;
/// After so much silence a client is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(5);
/// How long what was killed may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The exit code of what SIGKILL ended.
const KILLED: u32 = 128 + 9;

type Sender = ServerStreamSender<ExecSyncResponse>;

/// Runs it. The answer is complete when this returns.
///
/// # Errors
///
/// It could not be started, does not end of SIGKILL, or the client has gone.
pub(crate) async fn exec_sync(shim: Arc<Shim>, request: ExecSyncRequest, client: Sender) -> Result<()> {
    let container = shim.container(&request.container)?;
    container.may_exec()?;
    let time =
        (request.timeout_milliseconds != 0).then(|| Duration::from_millis(request.timeout_milliseconds));
    let limit = time.map(|time| Instant::now() + time);
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    let started = container.runtime.exec(Exec {
        container: container.id.clone(),
        process: request.process,
        stdio: ChildEnds {
            stdin: null.into(),
            stdout: stdout_end,
            stderr: stderr_end,
        },
        terminal: false,
        patience: time.map_or(EXEC_PATIENCE, |time| time.min(EXEC_PATIENCE)),
    });
    let started = match started.await {
        // Its program is on a file system that hangs: the time is over as for one that runs.
        Err(error)
            if error.kind == Kind::DeadlineExceeded && limit.is_some_and(|limit| limit <= Instant::now()) =>
        {
            return say_end(&client, KILLED, true).await;
        }
        started => started?,
    };
    let running = Running::new(&container, started);
    let (tell_end, end) = watch::channel(false);
    let drain = Duration::from_millis(request.drain_milliseconds);
    let output = async {
        let both = tokio::try_join!(
            relay(stdout, &client, as_stdout, end.clone(), drain),
            relay(stderr, &client, as_stderr, end.clone(), drain),
            keep_asking(&client, end.clone()),
        );
        both.map(drop)
    };
    let turn = {
        let ended = running.wait(limit);
        tokio::pin!(ended, output);
        tokio::select! {
            ended = &mut ended => {
                tell_end.send_replace(true);
                output.await.map(|()| ended)
            }
            Err(gone) = &mut output => Err(gone),
        }
    };
    let ended = match turn {
        Ok(ended) => ended,
        Err(gone) => {
            if !*end.borrow() {
                running.kill().await?;
            }
            return Err(anyhow::Error::from(gone).into());
        }
    };
    let (exit, timed_out) = ended?;
    say_end(&client, exit.status().cast_unsigned(), timed_out).await
}

/// The last message.
async fn say_end(client: &Sender, code: u32, timed_out: bool) -> Result<()> {
    let mut last = ExecSyncResponse::new();
    last.set_exit(ExecSyncExit {
        code,
        timed_out,
        ..ExecSyncExit::default()
    });
    Ok(client.send(&last).await.map_err(anyhow::Error::from)?)
}

/// The process, and the cgroup that it may have of its own.
struct Running<'a> {
    container: &'a Container,
    process: Child,
    cgroup: Option<String>,
}

impl<'a> Running<'a> {
    fn new(container: &'a Container, started: Started) -> Self {
        Self {
            container,
            process: started.process,
            cgroup: started.cgroup,
        }
    }

    /// Waits for its end, but not for longer than the limit: then it is killed.
    async fn wait(&self, limit: Option<Instant>) -> Result<(Exit, bool)> {
        let ended = async {
            match limit {
                None => reaper::ended(&self.process.pidfd).await.map(|()| true),
                Some(limit) => tokio::select! {
                    ended = reaper::ended(&self.process.pidfd) => ended.map(|()| true),
                    () = sleep_until(limit) => Ok(false),
                },
            }
        };
        if ended.await? {
            let exit = reaper::collect(self.process.pid, &self.process.pidfd).await?;
            self.remove_cgroup();
            return Ok((exit, false));
        }
        Ok((self.kill().await?, true))
    }

    /// Kills it and all that it started, and collects it.
    async fn kill(&self) -> Result<Exit> {
        if !self.kill_cgroup() {
            descendants::kill(self.process.pid);
        }
        let Child { pid, pidfd } = &self.process;
        match timeout(PATIENCE, reaper::collect(*pid, pidfd)).await {
            Ok(exit) => {
                self.remove_cgroup();
                Ok(exit?)
            }
            Err(_) => {
                let report = stuck::report(vec![pid.as_raw().cast_unsigned()]).await;
                if let Ok(pidfd) = pidfd.try_clone() {
                    reaper::collect_behind(Child { pid: *pid, pidfd });
                }
                let text = format!("process {pid} does not end of SIGKILL: {report}");
                log::warn(format_args!("container {}: {text}", self.container.id));
                Err(Error::text(Kind::DeadlineExceeded, text))
            }
        }
    }

    /// Returns whether it has a cgroup of its own.
    fn kill_cgroup(&self) -> bool {
        let Some(name) = &self.cgroup else { return false };
        let killed = self.container.kill_exec_cgroup(name);
        // It may have left it.
        let _ = process::pidfd_send_signal(&self.process.pidfd, nix::libc::SIGKILL);
        killed
    }

    fn remove_cgroup(&self) {
        if let Some(name) = &self.cgroup {
            self.container.remove_exec_cgroup(name);
        }
    }
}

/// Our end, which does not block, and the process'.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("fcntl(F_SETFL, O_NONBLOCK)")?;
    Ok((ours, theirs))
}

fn as_stdout(chunk: Vec<u8>) -> ExecSyncResponse {
    let mut message = ExecSyncResponse::new();
    message.set_stdout(chunk);
    message
}

fn as_stderr(chunk: Vec<u8>) -> ExecSyncResponse {
    let mut message = ExecSyncResponse::new();
    message.set_stderr(chunk);
    message
}

/// Passes on what comes, until all writers have closed; or until the process has ended and nothing came for as long as
/// `drain`.
async fn relay(
    pipe: OwnedFd,
    client: &Sender,
    message: fn(Vec<u8>) -> ExecSyncResponse,
    mut end: watch::Receiver<bool>,
    drain: Duration,
) -> ttrpc::Result<()> {
    let other = |error: std::io::Error| ttrpc::Error::Others(format!("the output of a process: {error}"));
    let pipe = wait_for(pipe, Interest::READABLE).map_err(other)?;
    let mut size = FIRST_READ;
    loop {
        let chunk = match read(&pipe, size) {
            Ok(chunk) if chunk.is_empty() => return Ok(()),
            Ok(chunk) => chunk,
            Err(Errno::EAGAIN) => {
                if !more(&pipe, &mut end, drain).await.map_err(other)? {
                    return Ok(());
                }
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(other(errno.into())),
        };
        if chunk.len() == size {
            size = (2 * size).min(CHUNK_MAX);
        }
        client.send(&message(chunk)).await?;
    }
}

fn read(pipe: &AsyncFd<Pollable<OwnedFd>>, size: usize) -> nix::Result<Vec<u8>> {
    let mut chunk = vec![0; size];
    let length = nix::unistd::read(pipe.get_ref().0.as_fd(), &mut chunk)?;
    chunk.truncate(length);
    Ok(chunk)
}

/// Waits until there is something to read. False: there will be nothing.
async fn more(
    pipe: &AsyncFd<Pollable<OwnedFd>>,
    end: &mut watch::Receiver<bool>,
    drain: Duration,
) -> std::io::Result<bool> {
    let readable = async { pipe.readable().await.map(|mut ready| ready.clear_ready()) };
    // Readiness of before the read is stale: ask the pipe itself after it was cleared.
    if *end.borrow() {
        return match timeout(drain, readable).await {
            Ok(ready) => ready.map(|()| true),
            Err(_) => Ok(false),
        };
    }
    tokio::select! {
        ready = readable => ready.map(|()| true),
        // Once more: it may have written between our read and its end.
        _ = end.wait_for(|end| *end) => Ok(true),
    }
}

/// Asks a client, from time to time, whether it is there, until the end.
async fn keep_asking(client: &Sender, mut end: watch::Receiver<bool>) -> ttrpc::Result<()> {
    while timeout(SILENCE, end.wait_for(|end| *end)).await.is_err() {
        client.send(&ExecSyncResponse::new()).await?;
    }
    Ok(())
}
