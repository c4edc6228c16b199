//! Kill.

use nix::errno::Errno;
use rtc_runtime::sys::process::pidfd_send_signal;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::process::Verb;

/// Sends a signal to a process, or to all of the container.
pub(crate) async fn kill(container: &Container, exec_id: &str, signal: u32, all: bool) -> Result<()> {
    let signal = i32::try_from(signal).unwrap_or(-1);
    let process = container.process(exec_id)?;
    process.phase().allows(Verb::Kill)?;
    if all && exec_id.is_empty() {
        return container.runtime.kill_all(&container.id, signal).await;
    }
    let gone = || Error::text(Kind::NotFound, "process already finished");
    let pidfd = process.pidfd().ok_or_else(gone)?;
    match pidfd_send_signal(&pidfd, signal) {
        Err(error) if error.errno == Errno::ESRCH => Err(gone()),
        sent => sent.map_err(|error| Error::new(Kind::Unknown, error)),
    }
}
