//! Exec: a process of the container whose stdio are FIFOs (Task Exec).
//!
//! ```text
//! FIFOs ── Exec, Start ── stdin, resize ──> ... ──> stdout, stderr ── Wait ── drained ── status ── Delete ── FIFOs removed
//! the client has gone: Kill, with all that it started ── Wait ── Delete ── FIFOs removed
//! rtc-cri was killed: the next start finds the FIFOs, and does the same
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::connection::{Notice, over};
use super::fifos::{Fifos, Outputs, feed, relay};
use super::remote::{Remote, Streams, Wanted};
use super::status::Outcome;
use super::stream::Input;
use super::terminal;
use crate::container::{clean, exec_sync};
use crate::error::{Kind, Result};
use crate::id;
use crate::log;
use crate::node::Node;
use crate::proto::ExecRequest;
use crate::shim::Shim;
use crate::spec;

/// How long what was killed may take until its shim says that it has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names of directories of FIFOs, which are names of processes, too.
const PREFIX: &str = "exec-";

/// Runs it, to its end or its client's.
pub(super) async fn serve(node: &Arc<Node>, request: &ExecRequest, remote: Remote, mut notice: Notice) {
    let Remote { streams, end, queue } = remote;
    let (running, outputs) = match start(node, request).await {
        Ok(started) => started,
        Err(error) => {
            log::debug(|| format!("Exec: container {}: {error}", request.container_id));
            let failed = format!("error executing command in container: {error}");
            return end.tell(&Outcome::Failed(failed)).await;
        }
    };
    let outcome = tokio::select! {
        ended = running.talk(streams, outputs) => Ok(ended),
        why = over(&queue, &mut notice) => Err(why),
    };
    // The connection ends with the last of its streams.
    drop(queue);
    match outcome {
        Ok(Ok(code)) => {
            let exit = Outcome::Exit(code);
            tokio::join!(end.tell(&exit), running.delete());
        }
        Ok(Err(error)) => {
            let failed = Outcome::Failed(error.to_string());
            tokio::join!(end.tell(&failed), running.end());
        }
        Err(Some(why)) => {
            let failed = Outcome::Failed(format!("the command was killed: {why}"));
            tokio::join!(end.tell(&failed), running.end());
        }
        Err(None) => running.end().await,
    }
}

/// Starts it. What fails leaves nothing.
async fn start(node: &Arc<Node>, request: &ExecRequest) -> Result<(Running, Outputs)> {
    let container = super::running(node, &request.container_id)?;
    let shim = node.shim_of(&container.record().sandbox)?;
    let init = exec_sync::init(node, &container.id).await?;
    let process = spec::process::for_exec(&init, &request.cmd, request.tty);
    let exec_id: String = PREFIX.chars().chain(id::new()?.chars().take(16)).collect();
    let directory = clean::bundle(node, &container.id).join(&exec_id);
    let running = Running {
        shim,
        container: container.id.clone(),
        fifos: Fifos::make(directory, Wanted::of_exec(request))?,
        exec_id,
    };
    let outputs = running.fifos.outputs()?;
    let Running {
        shim,
        container,
        exec_id,
        fifos,
    } = &running;
    let started = async {
        shim.add_exec(container, exec_id, &process, fifos.stdio()).await?;
        shim.start_exec(container, exec_id).await
    };
    match started.await {
        Ok(()) => Ok((running, outputs)),
        Err(error) => {
            running.end().await;
            Err(error)
        }
    }
}

/// A process, as long as its shim knows it.
struct Running {
    shim: Arc<Shim>,
    container: String,
    exec_id: String,
    fifos: Fifos,
}

impl Running {
    /// Passes on what goes in and out, until it has ended. Returns its exit code.
    async fn talk(&self, streams: Streams, outputs: Outputs) -> Result<u32> {
        let (tell, ended) = watch::channel(false);
        let exit = async {
            let exit = self.shim.wait_exec(&self.container, &self.exec_id).await;
            tell.send_replace(true);
            exit
        };
        let whole = async {
            let stdout = relay(outputs.stdout, streams.stdout, ended.clone());
            let stderr = relay(outputs.stderr, streams.stderr, ended.clone());
            tokio::join!(exit, stdout, stderr).0
        };
        let beside = async {
            tokio::join!(self.feed(streams.stdin), self.resize(streams.resize));
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            exit = whole => exit.map(|exit| exit.status),
            never = beside => match never {},
        }
    }

    async fn feed(&self, input: Option<Input>) {
        let (Some(mut input), Some(path)) = (input, self.fifos.stdin()) else {
            return;
        };
        feed(path, &mut input).await;
        // What still comes is dropped.
        drop(input);
        if let Err(error) = self.shim.close_stdin(&self.container, &self.exec_id).await {
            log::debug(|| format!("Exec: container {}: {error}", self.container));
        }
    }

    async fn resize(&self, input: Option<Input>) {
        terminal::resize(&self.shim, &self.container, &self.exec_id, input).await;
    }

    /// Kills it, if it runs, and removes it.
    async fn end(&self) {
        end(&self.shim, &self.container, &self.exec_id).await;
    }

    /// Removes it: it has ended.
    async fn delete(&self) {
        delete(&self.shim, &self.container, &self.exec_id).await;
    }
}

async fn end(shim: &Shim, container: &str, exec_id: &str) {
    match shim.kill_exec(container, exec_id).await {
        // It never ran, or has ended by itself.
        Err(error) if [Kind::NotFound, Kind::FailedPrecondition].contains(&error.kind) => {}
        Err(error) => log::warn(format_args!("Exec: container {container}: {error}")),
        Ok(()) => {
            let ended = shim.wait_exec(container, exec_id);
            let _ = tokio::time::timeout(PATIENCE, ended).await;
        }
    }
    delete(shim, container, exec_id).await;
}

async fn delete(shim: &Shim, container: &str, exec_id: &str) {
    match shim.delete_exec(container, exec_id).await {
        Err(error) if error.kind != Kind::NotFound => {
            log::warn(format_args!("Exec: container {container}: {error}"));
        }
        _ => {}
    }
}

/// Ends what an earlier rtc-cri that was killed has left of streams: nobody reads what they write. What is ended is seen at
/// once, and ended in the background.
pub(crate) fn end_left(node: &Node, container: &str, shim: &Arc<Shim>) {
    let Ok(entries) = std::fs::read_dir(clean::bundle(node, container)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().map(str::to_owned) else {
            continue;
        };
        let runs = name.starts_with(PREFIX);
        if !runs && !name.starts_with(super::attach::PREFIX) {
            continue;
        }
        let (shim, container) = (Arc::clone(shim), container.to_owned());
        tokio::spawn(async move {
            if runs {
                end(&shim, &container, &name).await;
            }
            if let Err(error) = tokio::fs::remove_dir_all(entry.path()).await {
                log::warn(format_args!("{}: {error}", entry.path().display()));
            }
        });
    }
}
