//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use oci_spec::runtime::Process;

use super::{State, clean};
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::{ExecSyncRequest, ExecSyncResponse};
use crate::shim::Exec;
use crate::spec;

/// So many bytes of each stream are kept, and the rest dropped: what a container writes is not to fill our memory
/// (CVE-2022-31030), without an error, as the contract has it (`ExecSyncResponse` of CRI). The kubelet takes no longer answer,
/// so both together are cut to as much: what a probe's exit code says counts, however much it wrote.
const OUTPUT_MAX: usize = 16 << 20;

/// Room for the fields of an answer, in bytes.
const FRAME: usize = 64;

/// How long output of processes is waited for that the command left in the background.
const DRAIN: Duration = Duration::from_millis(500);

/// ExecSync. A client that goes ends the command.
pub(crate) async fn exec_sync(node: &Arc<Node>, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
    if request.cmd.is_empty() {
        return Err(Error::invalid(
            "cmd: is empty: must be a program and its arguments",
        ));
    }
    let Ok(seconds) = u64::try_from(request.timeout) else {
        return Err(Error::invalid(format_args!(
            "timeout: {}: must be seconds, or 0 for no limit",
            request.timeout
        )));
    };
    let container = node.container(&request.container_id)?;
    let record = container.record();
    if !matches!(record.state, State::Running { .. }) {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!(
                "container_id: {} must run, and is {}",
                container.id,
                record.state.word()
            ),
        ));
    }
    let shim = node.shim_of(&record.sandbox)?;
    let init = init(node, &container.id).await?;
    let exec = Exec {
        container: &container.id,
        process: &spec::process::for_exec(&init, &request.cmd, false),
        timeout: (seconds != 0).then(|| Duration::from_secs(seconds)),
        drain: DRAIN,
        output_max: OUTPUT_MAX,
    };
    let output = shim.exec_sync(&exec).await?;
    if output.timed_out {
        return Err(Error::text(
            Kind::DeadlineExceeded,
            format_args!(
                "cmd: {:?} took longer than timeout, {seconds} s: it was killed",
                request.cmd
            ),
        ));
    }
    let (mut stdout, mut stderr) = (output.stdout, output.stderr);
    fit(&mut stdout, &mut stderr, OUTPUT_MAX - FRAME);
    Ok(ExecSyncResponse {
        stdout,
        stderr,
        exit_code: output.code.cast_signed(),
    })
}

/// Cuts both to so many bytes together; what one doesn't need of its half is the other's.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, most: usize) {
    stdout.truncate(most - stderr.len().min(most / 2));
    stderr.truncate(most - stdout.len());
}

/// The container's first process, as CreateContainer kept it.
pub(crate) async fn init(node: &Node, id: &str) -> Result<Process> {
    let path = clean::bundle(node, id).join(PROCESS);
    let text = tokio::fs::read(&path)
        .await
        .with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)
}

/// Of the bundle: `process` of `config.json` alone, which is much less to read for each probe.
pub(super) const PROCESS: &str = "process.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_of_both_streams_is_cut_to_what_fits_together() {
        for (lengths, kept) in [
            ((3, 4), (3, 4)),
            ((20, 0), (10, 0)),
            ((0, 20), (0, 10)),
            ((20, 20), (5, 5)),
            ((20, 3), (7, 3)),
            ((3, 20), (3, 7)),
        ] {
            let (mut stdout, mut stderr) = (vec![1; lengths.0], vec![2; lengths.1]);
            fit(&mut stdout, &mut stderr, 10);
            assert_eq!((stdout.len(), stderr.len()), kept, "{lengths:?}");
        }
    }
}
