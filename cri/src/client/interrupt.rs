//! Ctrl-C and SIGTERM while something is half made: they end what is waited for, not what undoes it.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The person, or whoever started us, wants an end.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Listens for signals that would end this process; from here on they do not.
#[derive(Debug)]
pub(super) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupt {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for something, which is given up at a signal.
    ///
    /// # Errors
    ///
    /// [`Interrupted`], or its own.
    pub(super) async fn race<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.wait() => Err(Interrupted.into()),
            result = what => result,
        }
    }

    /// Whether a signal came since.
    ///
    /// # Errors
    ///
    /// [`Interrupted`].
    pub(super) async fn check(&mut self) -> Result<()> {
        // What signals bring is seen by the runtime's turn.
        self.race(async {
            tokio::task::yield_now().await;
            Ok(())
        })
        .await
    }

    /// Waits for a signal.
    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
