//! `containerd-shim-rtc-v2 delete`: what is left of a shim that is gone, or of one of its containers.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::start::{command, talk};
use crate::error::Result;
use crate::log;

/// The shim's own is 4 s.
const DEADLINE: Duration = Duration::from_secs(30);

/// Kills and removes what the bundle of a container, or of a sandbox, has a record of: processes, cgroup, mounts, runtime
/// state, the shim's socket. The bundle itself stays. Nothing to remove is fine.
///
/// # Errors
///
/// The program can't be run, or does not end.
pub(crate) async fn delete(program: &Path, id: &str, bundle: &Path) -> Result<()> {
    if !bundle.exists() {
        return Ok(());
    }
    let deleting = async {
        let output = talk(command(program, id, bundle).arg("delete"), &[], DEADLINE).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        for line in said.lines() {
            log::warn(format_args!("{id}: {line}"));
        }
        Ok::<(), anyhow::Error>(())
    };
    Ok(deleting
        .await
        .with_context(|| format!("{} delete, for {id}", program.display()))?)
}
