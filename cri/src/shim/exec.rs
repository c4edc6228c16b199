//! ExecSync of `rtc.shim.v1`: a process in a container, and what it writes.

use std::time::Duration;

use oci_spec::runtime::Process;
use rtc_shim::protocol::{self, ShimClient, exec_sync_response::What};

use super::Shim;
use crate::error::{Error, Kind, Result};

/// What runs.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub(crate) container: &'a str,
    pub(crate) process: &'a Process,
    /// After so long everything that it started is killed; `None`: never.
    pub(crate) timeout: Option<Duration>,
    /// How long to wait for output of processes that it left behind.
    pub(crate) drain: Duration,
    /// So many bytes of each stream are kept; the rest is read and dropped.
    pub(crate) output_max: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// As of a shell: 128 + n for signal n.
    pub(crate) code: u32,
    /// It was killed because its time was over.
    pub(crate) timed_out: bool,
}

impl Shim {
    /// Runs a process in a container, to its end. Dropped on the way, the shim kills what runs: it has a connection of its
    /// own, since ttrpc tells a server of the end of a connection, and of nothing less.
    ///
    /// # Errors
    ///
    /// `NotFound`, `FailedPrecondition`: the container does not run; why the program can't be executed.
    pub(crate) async fn exec_sync(&self, exec: &Exec<'_>) -> Result<Output> {
        const CALL: &str = "ExecSync";
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = protocol::ExecSyncRequest {
            container: exec.container.to_owned(),
            process: serde_json::to_vec(exec.process).map_err(anyhow::Error::from)?,
            // Less than a millisecond is no "never".
            timeout_milliseconds: exec.timeout.map_or(0, |time| milliseconds(time).max(1)),
            drain_milliseconds: milliseconds(exec.drain),
            ..Default::default()
        };
        let own = ShimClient::new(Self::dial(&self.address, &self.id).await?);
        let mut stream = self
            .wait_for(CALL, |context| async { own.exec_sync(context, &request).await })
            .await?;
        let mut output = Output::default();
        loop {
            let message = stream.recv().await.map_err(|error| self.error(CALL, error))?;
            let Some(message) = message else {
                return Err(Error::text(
                    Kind::Unknown,
                    "the shim ended ExecSync without an exit",
                ));
            };
            match message.what {
                Some(What::Stdout(piece)) => keep(&mut output.stdout, &piece, exec.output_max),
                Some(What::Stderr(piece)) => keep(&mut output.stderr, &piece, exec.output_max),
                Some(What::Exit(exit)) => {
                    output.code = exit.code;
                    output.timed_out = exit.timed_out;
                    return Ok(output);
                }
                // It asks whether we are there.
                _ => {}
            }
        }
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8], max: usize) {
    let room = max.saturating_sub(kept.len());
    kept.extend_from_slice(piece.get(..room).unwrap_or(piece));
}
