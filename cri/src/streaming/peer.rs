//! The other side of a connection: whether it has hung up, and when it last did something.
//!
//! A framing's reader waits where a stream is not read, and so does not see the end of the connection behind what it has not
//! taken. The kernel tells of it apart from the data: EPOLLRDHUP, which needs an epoll of our own, since tokio asks for it
//! together with EPOLLIN only. No client of ours closes one half of TCP and listens on. Where what was not taken fills the
//! connection, the end can't come either, and the framings ping: what is gone answers with a reset.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::Instant;

/// Tells when a socket's other side has gone.
#[derive(Debug)]
pub(super) struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Watches a socket. It need not outlive it.
    ///
    /// # Errors
    ///
    /// Descriptors are all in use.
    pub(super) fn watch(socket: impl AsFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLRDHUP, 0))?;
        wait_for(epoll.0).map(Self)
    }

    /// Waits until it has gone.
    pub(super) async fn gone(&self) {
        if self.0.readable().await.is_err() {
            // The runtime ends.
            std::future::pending::<()>().await;
        }
    }
}

#[expect(
    deprecated,
    reason = "sound for an OwnedFd; the replacement is unsafe, which this crate forbids"
)]
fn wait_for(epoll: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(epoll, Interest::READABLE)
}

/// A connection that notes when a byte last passed.
#[derive(Debug)]
pub(super) struct Noted<S> {
    inner: S,
    last: Arc<Last>,
}

/// When a byte last passed.
#[derive(Debug)]
pub(super) struct Last {
    start: Instant,
    /// Milliseconds after the start.
    passed: AtomicU64,
}

impl Last {
    fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.passed.store(now, Ordering::Relaxed);
    }

    /// Waits until none has passed for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let last = self.start + Duration::from_millis(self.passed.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }
}

impl<S> Noted<S> {
    pub(super) fn new(inner: S) -> (Self, Arc<Last>) {
        let last = Arc::new(Last {
            start: Instant::now(),
            passed: AtomicU64::new(0),
        });
        let noted = Self {
            inner,
            last: Arc::clone(&last),
        };
        (noted, last)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if read.is_ready() {
            self.last.note();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        if written.is_ready() {
            self.last.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_hangup_is_seen_behind_what_was_not_read() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut client, server) = (client.unwrap(), server.unwrap().0);
        let hangup = Hangup::watch(&server).unwrap();
        client.write_all(b"not read").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), hangup.gone()).await;
        assert!(early.is_err());
        drop(client);
        hangup.gone().await;
    }

    #[tokio::test]
    async fn what_passes_puts_the_end_off() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let (mut noted, last) = Noted::new(ours);
        let limit = Duration::from_millis(100);
        let start = Instant::now();
        let talk = async {
            tokio::time::sleep(limit / 2).await;
            theirs.write_all(b"x").await.unwrap();
            noted.read_u8().await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = talk => {}
            () = last.idle(limit) => {}
        }
        assert!(start.elapsed() >= limit / 2 + limit);
    }
}
