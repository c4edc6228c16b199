//! The daemon's life: one thread that serves containerd until it is told to go.
//!
//! ```text
//! serve: Task (as v3 and as v2), Sandbox, rtc.shim.v1 ──────> shim: the pod's containers ──> events ──> publisher
//!    Shutdown of the last ──> no new client; the socket goes; events are passed on; the last answer is written; exit 0
//! ```

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use rtc_shim::protocol::create_shim;
use tokio::io::AsyncReadExt;

use crate::bootstrap::Identity;
use crate::events::Events;
use crate::extension::Extension;
use crate::sandbox::SandboxService;
use crate::shim::Shim;
use crate::task::TaskService;
use crate::{log, signals};

/// How long the shim's end waits for events that containerd does not take, and then for clients that wait for something.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);

/// How often a shim that was not used yet looks for its bundle, which is in memory, under /run.
const UNUSED_CHECK: Duration = Duration::from_secs(10);

/// The Task API's name before containerd 2.0, with the same methods and messages.
const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// Serves on the socket until the shutdown.
///
/// # Errors
///
/// The kernel has no room for us; nobody knows of this shim.
pub(crate) fn serve(listener: UnixListener, told: UnixStream, identity: Identity) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    runtime.block_on(run(listener, told, identity))
}

async fn run(listener: UnixListener, told: UnixStream, identity: Identity) -> Result<()> {
    let identity = Arc::new(identity);
    let (events, publisher) = Events::queue(&identity);
    let publisher = tokio::spawn(publisher.run());
    let shim = Shim::new(identity.namespace.clone(), events.clone());

    let task: Arc<dyn Task + Send + Sync> = Arc::new(TaskService(shim.clone()));
    let mut server = Server::new().add_listener(Listener::try_from(listener).context("listen")?);
    let mut v2 = create_task(task.clone());
    if let Some(methods) = v2.remove(TASK_V3) {
        v2.insert(TASK_V2.into(), methods);
    }
    let sandbox = Arc::new(SandboxService::new(shim.clone()));
    let extension = Arc::new(Extension(shim.clone()));
    server = server
        .register_service(v2)
        .register_service(create_task(task))
        .register_service(create_sandbox(sandbox))
        .register_service(create_shim(extension));
    server.start().await.context("serve")?;
    log::debug(|| format!("serving on {:?}", identity.socket));

    tokio::select! {
        () = shim.over() => {}
        asked = signals::end_asked_for(&shim) => asked.context("wait for signals")?,
        () = never_used(&shim, &identity) => log::warn("ends: its bundle has gone, and nobody has used it"),
        never = never_told(told) => never?,
    }
    server.stop_listen().await;
    // Before the socket's name is free: whoever makes a shim of it then starts anew.
    let _ = std::fs::remove_file(&identity.socket);
    events.close();
    if tokio::time::timeout(DRAIN_DEADLINE, publisher).await.is_err() {
        log::warn("events were lost: containerd did not take them in time");
    }
    // Waits for the answers on their way.
    let _ = tokio::time::timeout(ANSWER_DEADLINE, server.disconnect()).await;
    Ok(())
}

/// Returns where a container was never created and the bundle has gone: containerd was killed after `start`, and has
/// forgotten the shim, or could not reach it.
async fn never_used(shim: &Shim, identity: &Identity) {
    while shim.is_unused() {
        tokio::time::sleep(UNUSED_CHECK).await;
        if shim.is_unused() && !identity.bundle.exists() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Returns only where `start` has ended before it could tell anybody of this shim.
async fn never_told(channel: UnixStream) -> Result<()> {
    channel.set_nonblocking(true)?;
    let mut channel = tokio::net::UnixStream::from_std(channel)?;
    match channel.read_u8().await {
        Ok(_) => {
            drop(channel);
            std::future::pending().await
        }
        Err(_) => bail!("start has ended before it could name this shim"),
    }
}
