//! Copying between two descriptors that never block the shim: a slow end stops this copy alone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rtc_runtime::sys::{Errno, Named as _};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fifo::failed;
use crate::error::{Error, Kind, Result};
use crate::pollable::{Pollable, wait_for};

/// A pipe, a FIFO or a terminal.
pub(crate) type Stream = AsyncFd<Pollable<OwnedFd>>;

/// How much is read at once, in bytes: the memory is there only while there is something to copy.
const CHUNK: usize = 4096;

/// What has been silent so long after the end of a process, has nothing left of what that wrote.
const SILENCE: Duration = Duration::from_millis(100);

/// Makes a descriptor one that never blocks, and that tells when it is ready.
pub(crate) fn stream(fd: OwnedFd, interest: Interest) -> Result<Stream> {
    nonblocking(&fd)?;
    wait_for(fd, interest).map_err(|error| Error::new(Kind::Unknown, error))
}

/// Makes an open file one that never blocks, for all who share it.
pub(crate) fn nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL)
        .call(|| "fcntl(F_GETFL)".into())
        .map_err(failed)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags))
        .call(|| "fcntl(F_SETFL)".into())
        .map(drop)
        .map_err(failed)
}

/// How far a copy is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    copied: AtomicU64,
    /// The sink takes no more at the moment.
    blocked: AtomicBool,
    /// The copy ends where the source has nothing more at the moment.
    ending: AtomicBool,
}

/// Copies until the source is at its end, which for a terminal is that nobody has its other side open (`EIO`). When nobody
/// reads the sink any more (`EPIPE`): returns, or goes on without where `discard` says so.
pub(crate) async fn copy(from: &Stream, to: Option<&Stream>, discard: bool, progress: &Progress) {
    let mut to = to;
    while let Ok(mut ready) = from.readable().await {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = match ready.try_io(|fd| read(&fd.get_ref().0, &mut chunk)) {
                Err(_nothing_there) if progress.ending.load(Ordering::Relaxed) => return,
                Err(_nothing_there) => break,
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(length)) => length,
            };
            if let Some(sink) = to
                && write_all(sink, &chunk[..length], progress).await.is_err()
            {
                if !discard {
                    return;
                }
                to = None;
            }
            progress.copied.fetch_add(length as u64, Ordering::Relaxed);
            // What never stops writing has its turn like everything else.
            tokio::task::yield_now().await;
        }
    }
}

/// Writes all, waiting where the sink is full.
pub(crate) async fn write_all(to: &Stream, mut bytes: &[u8], progress: &Progress) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match write(&to.get_ref().0, bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                progress.blocked.store(true, Ordering::Relaxed);
                let written = to.async_io(Interest::WRITABLE, |fd| write(&fd.0, bytes)).await;
                progress.blocked.store(false, Ordering::Relaxed);
                bytes = &bytes[written?..];
            }
            written => bytes = &bytes[written?..],
        }
    }
    Ok(())
}

fn read(fd: impl AsFd, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match nix::unistd::read(&fd, buffer) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

fn write(fd: impl AsFd, bytes: &[u8]) -> std::io::Result<usize> {
    loop {
        match nix::unistd::write(&fd, bytes) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// A copy that goes on by itself.
#[derive(Debug)]
pub(crate) struct Copy {
    task: tokio::task::AbortHandle,
    progress: std::sync::Arc<Progress>,
    /// Closed with the end of the task, however it comes.
    ended: watch::Receiver<()>,
}

impl Copy {
    /// Starts it. `body` gets what it has to keep up to date.
    pub(crate) fn start<F>(body: impl FnOnce(std::sync::Arc<Progress>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let progress = std::sync::Arc::<Progress>::default();
        let (alive, ended) = watch::channel(());
        let body = body(progress.clone());
        let task = tokio::spawn(async move {
            let _alive = alive;
            body.await;
        });
        Self {
            task: task.abort_handle(),
            progress,
            ended,
        }
    }

    /// After the end of the process: waits until all that it wrote was passed on, at most until the deadline. What others
    /// that it left behind write later is not waited for.
    pub(crate) fn drained(&self, deadline: Instant) -> impl Future<Output = ()> + Send + use<> {
        let (progress, mut ended) = (self.progress.clone(), self.ended.clone());
        async move {
            loop {
                let before = progress.copied.load(Ordering::Relaxed);
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || timeout(left.min(SILENCE), ended.changed()).await.is_ok() {
                    return;
                }
                let silent = progress.copied.load(Ordering::Relaxed) == before;
                if silent && !progress.blocked.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }

    /// Whether its sink is full.
    pub(crate) fn is_blocked(&self) -> bool {
        self.progress.blocked.load(Ordering::Relaxed)
    }

    /// Ends it: at once, or where its sink is full once that has taken what is there.
    pub(crate) fn end(&self) {
        self.progress.ending.store(true, Ordering::Relaxed);
        if !self.is_blocked() {
            self.abort();
        }
    }

    /// Ends it where it is.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.abort();
    }
}
