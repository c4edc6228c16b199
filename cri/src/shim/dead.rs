//! `containerd-shim-rtc-v2 delete`: what is left of a shim that is gone, or of one of its containers.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::start::command;
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
        let child = command(program, id, bundle)
            .arg("delete")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = match tokio::time::timeout(DEADLINE, child.wait_with_output()).await {
            Ok(output) => output?,
            Err(_) => bail!("it does not end within {DEADLINE:?}"),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{}: {}", output.status, said.trim());
        }
        for line in said.lines() {
            log::warn(format_args!("{id}: {line}"));
        }
        Ok(())
    };
    Ok(deleting
        .await
        .with_context(|| format!("{} delete, for {id}", program.display()))?)
}
