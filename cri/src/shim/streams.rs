//! Processes whose stdio are FIFOs: Exec of containerd's Task service, and Attach of `rtc.shim.v1`. A container's first
//! process is `""` where an exec has its id.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::Process;
use rtc_shim::protocol::AttachRequest;

use super::{Exit, LONG, SHORT, Shim};
use crate::error::Result;

/// How long the start of an exec may take: longer than the shim lets it, so that the last word is the shim's, and no process
/// starts that nobody waits for.
const START: Duration = LONG.saturating_add(Duration::from_secs(10));

/// FIFOs that are there already; `None`: /dev/null.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stdio<'a> {
    pub(crate) stdin: Option<&'a Path>,
    pub(crate) stdout: Option<&'a Path>,
    /// Never with a terminal.
    pub(crate) stderr: Option<&'a Path>,
    pub(crate) terminal: bool,
}

fn name(path: Option<&Path>) -> String {
    path.map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

impl Shim {
    /// Makes a process known, which `start_exec` starts and `delete_exec` forgets.
    ///
    /// # Errors
    ///
    /// `NotFound`, `FailedPrecondition`: the container does not run.
    pub(crate) async fn add_exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &Process,
        stdio: Stdio<'_>,
    ) -> Result<()> {
        let value = serde_json::to_vec(process).map_err(anyhow::Error::from)?;
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            terminal: stdio.terminal,
            stdin: name(stdio.stdin),
            stdout: name(stdio.stdout),
            stderr: name(stdio.stderr),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value,
                ..Any::default()
            }),
            ..Default::default()
        };
        self.call("Exec", SHORT, |context| self.tasks.exec(context, &request))
            .await
            .map(drop)
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the container has ended; why the program can't be executed.
    pub(crate) async fn start_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call("Start", START, |context| self.tasks.start(context, &request))
            .await
            .map(drop)
    }

    /// Waits for its end, however long that takes.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable`: the shim is gone.
    pub(crate) async fn wait_exec(&self, id: &str, exec_id: &str) -> Result<Exit> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let ended = self
            .wait_for("Wait", |context| self.tasks.wait(context, &request))
            .await?;
        Ok(Exit::new(ended.exit_status, &ended.exited_at))
    }

    /// Kills it, and all that it started.
    ///
    /// # Errors
    ///
    /// `NotFound`: it has ended; `DeadlineExceeded`: it does not end of SIGKILL.
    pub(crate) async fn kill_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::KillRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: libc::SIGKILL.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        self.call("Kill", LONG, |context| self.tasks.kill(context, &request))
            .await
            .map(drop)
    }

    /// Forgets one that has ended, or was never started.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition`: it runs.
    pub(crate) async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call("Delete", LONG, |context| self.tasks.delete(context, &request))
            .await
            .map(drop)
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) async fn resize(&self, id: &str, exec_id: &str, rows: u16, columns: u16) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        self.call("ResizePty", SHORT, |context| {
            self.tasks.resize_pty(context, &request)
        })
        .await
        .map(drop)
    }

    /// Its input ends, once nobody has the FIFO open for writing any more.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(crate) async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = api::CloseIORequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call("CloseIO", SHORT, |context| self.tasks.close_io(context, &request))
            .await
            .map(drop)
    }

    /// Has a copy of the output written into FIFOs that are open for reading already.
    ///
    /// # Errors
    ///
    /// `NotFound`, `FailedPrecondition`: it has ended.
    pub(crate) async fn attach(&self, id: &str, stdio: Stdio<'_>) -> Result<()> {
        let request = AttachRequest {
            container: id.to_owned(),
            stdout: name(stdio.stdout),
            stderr: name(stdio.stderr),
            terminal: stdio.terminal,
            ..Default::default()
        };
        self.call("Attach", SHORT, |context| async {
            self.own.attach(context, &request).await
        })
        .await
        .map(drop)
    }
}
