//! A logger's process: a child of the shim, collected whenever it ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rtc_runtime::log;
use rtc_runtime::sys::process::{self, Exit};
use rtc_runtime::sys::{self, clone};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::reaper;

/// How long a logger has from when it should end until it is killed, as in containerd (`binaryIOProcTermTimeout`).
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 12 });

/// A child that is collected by itself.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<Option<Exit>>,
}

impl Child {
    /// Takes care of a child that was just made.
    pub(crate) fn adopt(child: clone::Child) -> Self {
        reaper::adopt(child.pid);
        let (tell, ended) = watch::channel(None);
        let pidfd = Arc::new(child.pidfd);
        let collected = pidfd.clone();
        tokio::spawn(async move {
            match reaper::collect(child.pid, &*collected).await {
                Ok(exit) => _ = tell.send(Some(exit)),
                Err(error) => log::warn(format_args!("a logger: {error:#}")),
            }
        });
        Self { pidfd, ended }
    }

    /// Waits until it has ended; `false`: not until the deadline.
    pub(crate) async fn ended(&self, deadline: Instant) -> bool {
        let mut ended = self.ended.clone();
        // An error is the end of the task, which has collected it.
        timeout_at(deadline, ended.wait_for(Option::is_some))
            .await
            .is_ok()
    }

    /// How it ended, where it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.ended.borrow()
    }

    /// Sends it a signal, unless it was collected.
    pub(crate) fn signal(&self, signal: i32) {
        if self.exit().is_none() {
            let _: sys::Result<()> = process::pidfd_send_signal(&*self.pidfd, signal);
        }
    }

    /// Kills it if it is still there after [`LAST_WORDS`].
    pub(crate) fn end_behind(self) {
        if self.exit().is_some() {
            return;
        }
        tokio::spawn(async move {
            let mut ended = self.ended.clone();
            if timeout(LAST_WORDS, ended.wait_for(Option::is_some))
                .await
                .is_err()
            {
                log::warn("a logger did not end, and is killed");
                self.signal(nix::libc::SIGKILL);
            }
        });
    }
}
