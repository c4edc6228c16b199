//! A pod's shim: started, connected to, asked over ttrpc (containerd's Task v3 and Sandbox, `rtc.shim.v1`).
//!
//! ```text
//! start.rs    containerd-shim-rtc-v2 start ──> the address of its socket
//! sandbox.rs  CreateSandbox StartSandbox ... ShutdownSandbox       the pod
//! task.rs     Create Start Kill Wait Delete ...                    its containers
//! exec.rs     ExecSync (a stream)
//! streams.rs  Exec ... ResizePty CloseIO, Attach                   processes behind FIFOs
//! dead.rs     containerd-shim-rtc-v2 delete, for one that is gone
//! cgroup.rs   where shims are
//! messages.rs what they say
//! info.rs     containerd-shim-rtc-v2 -info: what its runtime can do
//! ```
//!
//! The connection ends with the shim, and only so. Whoever waits for an answer then gets `Unavailable`, and
//! [`Shim::is_lost`] says why. Each call but those that wait for an end has a deadline of its own.

pub(crate) mod cgroup;
mod dead;
mod exec;
pub(crate) mod info;
mod messages;
mod options;
mod sandbox;
pub(crate) mod start;
mod streams;
mod task;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use rtc_shim::protocol::ShimClient;

use crate::error::{Error, Kind, Result};

pub(crate) use dead::delete;
pub(crate) use exec::Exec;
pub(crate) use options::Options;
pub(crate) use sandbox::Namespace;
pub(crate) use streams::Stdio;
pub(crate) use task::{Exit, Mount, Phase, Task};

/// Calls that make or change something: a worker, mounts, systemd.
const LONG: Duration = Duration::from_secs(120);
/// Calls that only ask.
const SHORT: Duration = Duration::from_secs(10);
/// How long connecting may take: where its socket is there, a shim listens.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a shim may take for its first answer: the containers of one that gives none are killed at a restart, and the
/// machine may be busy then.
const PROBE: Duration = Duration::from_secs(30);
/// The shim's own deadline is so much later than ours, which has the better words.
const LATER: Duration = Duration::from_secs(1);

/// A shim that runs, and serves one sandbox.
pub(crate) struct Shim {
    /// Its ttrpc socket, `unix:///...`.
    pub(crate) address: String,
    /// The sandbox.
    id: String,
    /// Its process.
    pid: u32,
    release: String,
    features: Vec<String>,
    lost: AtomicBool,
    tasks: TaskClient,
    sandboxes: SandboxClient,
    own: ShimClient,
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shim")
            .field("address", &self.address)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Shim {
    /// Connects to the shim of a sandbox that an earlier rtc-cri started.
    ///
    /// # Errors
    ///
    /// `Unavailable`: nobody listens there: it is gone.
    pub(crate) async fn reconnect(address: &str, sandbox: &str, bundle: &Path) -> Result<Arc<Self>> {
        let shim = Self::connect(address, sandbox).await?;
        messages::relay(sandbox, bundle);
        Ok(shim)
    }

    /// Connects, and asks what it can do.
    async fn connect(address: &str, sandbox: &str) -> Result<Arc<Self>> {
        let client = Self::dial(address, sandbox).await?;
        let mut shim = Self {
            address: address.to_owned(),
            id: sandbox.to_owned(),
            pid: 0,
            release: String::new(),
            features: Vec::new(),
            lost: AtomicBool::new(false),
            tasks: TaskClient::new(client.clone()),
            sandboxes: SandboxClient::new(client.clone()),
            own: ShimClient::new(client),
        };
        let info = shim
            .call("Info", PROBE, |context| async {
                shim.own.info(context, &Default::default()).await
            })
            .await?;
        shim.pid = info.pid;
        shim.release = info.release;
        shim.features = info.features;
        Ok(Arc::new(shim))
    }

    /// A connection to it.
    async fn dial(address: &str, sandbox: &str) -> Result<Client> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let connecting = tokio::net::UnixStream::connect(Path::new(path));
        let stream = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(Error::text(
                    Kind::Unavailable,
                    format_args!("the shim of sandbox {sandbox} is gone: {path}: {error}"),
                ));
            }
            Err(_) => {
                return Err(Error::text(
                    Kind::DeadlineExceeded,
                    format_args!("the shim of sandbox {sandbox} takes no connection: {path}"),
                ));
            }
        };
        Ok(Client::new(Socket::from(stream)))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its release, as `0.1.0`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// Whether it can do something that not every release of it can: a name of `rtc.shim.v1`'s Info.
    pub(crate) fn can(&self, feature: &str) -> bool {
        self.features.iter().any(|one| one == feature)
    }

    /// Whether the connection has ended, and so the shim.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// One call, with a deadline.
    async fn call<T, F>(
        &self,
        call: &'static str,
        patience: Duration,
        send: impl FnOnce(ttrpc::context::Context) -> F,
    ) -> Result<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let context = ttrpc::context::with_duration(patience + LATER);
        match tokio::time::timeout(patience, send(context)).await {
            Ok(answer) => answer.map_err(|error| self.error(call, error)),
            Err(_) => Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!(
                    "the shim (pid {}) does not answer {call} within {patience:?}",
                    self.pid
                ),
            )),
        }
    }

    /// A call that waits for an end, however long that takes.
    async fn wait_for<T, F>(
        &self,
        call: &'static str,
        send: impl FnOnce(ttrpc::context::Context) -> F,
    ) -> Result<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let answer = send(ttrpc::context::Context::default()).await;
        answer.map_err(|error| self.error(call, error))
    }

    fn error(&self, call: &'static str, error: ttrpc::Error) -> Error {
        let ttrpc::Error::RpcStatus(status) = error else {
            self.lost.store(true, Ordering::Relaxed);
            return Error::text(
                Kind::Unavailable,
                format_args!(
                    "the shim of sandbox {} (pid {}) is gone: {call}: {error}",
                    self.id, self.pid
                ),
            );
        };
        let kind = match status.code() {
            ttrpc::Code::INVALID_ARGUMENT => Kind::InvalidArgument,
            ttrpc::Code::NOT_FOUND => Kind::NotFound,
            ttrpc::Code::ALREADY_EXISTS => Kind::AlreadyExists,
            ttrpc::Code::FAILED_PRECONDITION => Kind::FailedPrecondition,
            ttrpc::Code::PERMISSION_DENIED => Kind::PermissionDenied,
            ttrpc::Code::RESOURCE_EXHAUSTED => Kind::ResourceExhausted,
            ttrpc::Code::UNAVAILABLE => Kind::Unavailable,
            ttrpc::Code::DEADLINE_EXCEEDED => Kind::DeadlineExceeded,
            ttrpc::Code::UNIMPLEMENTED => Kind::Unimplemented,
            _ => Kind::Unknown,
        };
        Error::text(kind, status.message)
    }
}
