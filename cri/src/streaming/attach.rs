//! Attach: a copy of what the container's first process writes (`rtc.shim.v1` Attach), and its input.
//!
//! ```text
//! output ends                    the container has ended, or its client was too slow: the end
//! input ends, `stdin_once`       the container's input ends, for good; the output goes on
//! input ends, or it's a terminal others may attach and go on; the end, when nothing more is said for a while
//! the server ends                the input stays open, as everything of a container
//! ```

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::connection::{Notice, over};
use super::fifos::{Fifos, Outputs, feed, relay};
use super::remote::{Remote, Wanted};
use super::status::Outcome;
use super::stream::Input;
use super::terminal;
use crate::container::{Container, clean};
use crate::error::Result;
use crate::id;
use crate::log;
use crate::node::Node;
use crate::proto::AttachRequest;
use crate::shim::Shim;

/// Names of directories of FIFOs.
pub(super) const PREFIX: &str = "attach-";
/// How long after its output's end a container may be seen to run.
const PATIENCE: Duration = Duration::from_secs(5);

/// Attaches a client, until the container's end or its own.
pub(super) async fn serve(node: &Arc<Node>, request: &AttachRequest, remote: Remote, mut notice: Notice) {
    let Remote { streams, end, queue } = remote;
    let (attached, outputs) = match begin(node, request).await {
        Ok(begun) => begun,
        Err(error) => {
            log::debug(|| format!("Attach: container {}: {error}", request.container_id));
            let failed = format!("error attaching to container: {error}");
            return end.tell(&Outcome::Failed(failed)).await;
        }
    };
    let (tell, enough) = watch::channel(false);
    let whole = async {
        let stdout = relay(outputs.stdout, streams.stdout, enough.clone());
        let stderr = relay(outputs.stderr, streams.stderr, enough.clone());
        tokio::join!(stdout, stderr);
        attached.outcome(enough.clone()).await
    };
    let beside = async {
        tokio::join!(
            attached.feed(streams.stdin, &tell),
            attached.resize(streams.resize)
        );
        std::future::pending::<Infallible>().await
    };
    let (outcome, detached) = tokio::select! {
        outcome = whole => (Some(outcome), false),
        never = beside => match never {},
        why = over(&queue, &mut notice) => {
            let detached = why.is_some();
            (why.map(|why| Outcome::Failed(format!("detached: {why}"))), detached)
        }
    };
    drop(queue);
    let told = async {
        if let Some(outcome) = outcome {
            end.tell(&outcome).await;
        }
    };
    // A server that ends, or an idle client's, takes the input from nobody.
    let input = async {
        if !detached {
            attached.end_input().await;
        }
    };
    tokio::join!(told, input);
}

async fn begin(node: &Arc<Node>, request: &AttachRequest) -> Result<(Attached, Outputs)> {
    let container = super::running(node, &request.container_id)?;
    let record = container.record();
    let shim = node.shim_of(&record.sandbox)?;
    let bundle = clean::bundle(node, &container.id);
    let name: String = PREFIX.chars().chain(id::new()?.chars().take(16)).collect();
    let terminal = record.config.tty;
    let wanted = Wanted {
        // It has one already, for all that attach.
        stdin: false,
        stdout: request.stdout,
        stderr: request.stderr && !terminal,
        terminal,
    };
    let fifos = Fifos::make(bundle.join(name), wanted)?;
    let outputs = fifos.outputs()?;
    if wanted.stdout || wanted.stderr {
        shim.attach(&container.id, fifos.stdio()).await?;
    }
    let attached = Attached {
        shim,
        stdin: (request.stdin && record.config.stdin).then(|| bundle.join("stdin")),
        once: record.config.stdin_once && !terminal,
        container,
        fifos,
    };
    Ok((attached, outputs))
}

/// A client that is attached.
struct Attached {
    shim: Arc<Shim>,
    container: Arc<Container>,
    /// The container's input, where the client gives it.
    stdin: Option<PathBuf>,
    /// The container's input ends with the client's. A terminal's does not: its client may come back, as under containerd.
    once: bool,
    fifos: Fifos,
}

impl Attached {
    /// Passes on the input, to its end; then says whether it is enough.
    async fn feed(&self, input: Option<Input>, enough: &watch::Sender<bool>) {
        let (Some(mut input), Some(path)) = (input, &self.stdin) else {
            return;
        };
        feed(path, &mut input).await;
        drop(input);
        if self.once {
            self.end_input().await;
        } else {
            enough.send_replace(true);
        }
    }

    /// The container's input ends with that of its first client. Once more is fine.
    async fn end_input(&self) {
        if !self.once || self.stdin.is_none() {
            return;
        }
        if let Err(error) = self.shim.close_stdin(&self.container.id, "").await {
            log::debug(|| format!("Attach: container {}: {error}", self.container.id));
        }
    }

    async fn resize(&self, input: Option<Input>) {
        terminal::resize(&self.shim, &self.container.id, "", input).await;
    }

    /// Why the output has ended, or that there was none.
    async fn outcome(&self, mut enough: watch::Receiver<bool>) -> Outcome {
        let wants_output = self.fifos.stdio().stdout.is_some() || self.fifos.stdio().stderr.is_some();
        let patience = async {
            match wants_output {
                true => tokio::time::sleep(PATIENCE).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.container.exited() => Outcome::Complete,
            Ok(_) = enough.wait_for(|enough| *enough) => Outcome::Complete,
            () = patience => Outcome::Failed(
                "error attaching to container: it has closed its output, or wrote more than this client took in time".into(),
            ),
        }
    }
}
