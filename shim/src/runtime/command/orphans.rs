//! The orphans of a subreaper: with a foreign runtime the shim gets its containers' processes by reparenting, and with them
//! everything else that loses its parent below it.
//!
//! What nobody here waits for is collected when it has ended. A process that a runtime has just made is known only when
//! the runtime's command is over: so none is collected while a command runs.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rtc_runtime::sys::process;
use tokio::io::Interest;

use crate::error::Result;
use crate::pollable::wait_for;
use crate::reaper;

static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);

/// A command of a runtime that runs.
pub(super) struct InFlight(());

impl InFlight {
    pub(super) fn begin() -> Self {
        IN_FLIGHT.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if IN_FLIGHT.fetch_sub(1, Ordering::Relaxed) == 1 {
            reaper::collect_orphans();
        }
    }
}

/// Makes this process the parent of all orphans below it, and collects them from now on.
///
/// # Errors
///
/// As prctl(2) and signalfd(2).
pub(super) fn adopt_all() -> Result<()> {
    if !reaper::live_with_orphans() {
        return Ok(());
    }
    process::set_child_subreaper().context("become a subreaper")?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    // Workers, and so the runtime, start with no signal blocked.
    signals.thread_block().context("block SIGCHLD")?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&signals, flags).context("signalfd(SIGCHLD)")?;
    let signals = wait_for(signals, Interest::READABLE).context("hear of children")?;
    tokio::spawn(async move {
        while let Ok(mut ready) = signals.readable().await {
            while let Ok(Some(_)) = signals.get_ref().0.read_signal() {}
            ready.clear_ready();
            if IN_FLIGHT.load(Ordering::Relaxed) == 0 {
                reaper::collect_orphans();
            }
        }
    });
    Ok(())
}
