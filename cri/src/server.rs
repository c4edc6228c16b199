//! The socket, and the services on it.
//!
//! ```text
//! bind ── somebody answers there ──> refused: two servers would undo each other's work
//!      ── nobody does ──> replaced: a killed server left it
//! clients: HTTP/2 by hyper, tonic's routes on it
//! SIGTERM: no new calls ── streams end, those on their way come to their end, for a while ── the socket is removed
//! ```

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tonic::service::Routes;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::node::Node;
use crate::notify::{READY, STOPPING, notify};
use crate::proto::extension::pulls_server::PullsServer;
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;
use crate::service;
use crate::service::image::Images;
use crate::service::pulls::Pulls;
use crate::service::runtime::Runtime;
use crate::streaming;

/// The largest request, in bytes, as the kubelet's limit is for answers.
const MESSAGE_MAX: usize = 16 << 20;
/// How long calls on their way may take once the server shall end. What is cut off is found at the next start.
const FAREWELL: Duration = Duration::from_secs(20);
/// So many calls of one client at once. hyper's 200 is too few: a kubelet that drains a node has a StopContainer for each
/// container on its way, for as long as their grace, and would ask for Status behind them.
const CALLS_MAX: u32 = 4096;

/// Serves until `end`.
///
/// # Errors
///
/// The socket can't be made.
pub(crate) async fn serve(node: Arc<Node>, end: impl Future<Output = ()>) -> Result<()> {
    let config = &node.config;
    let listener = bind(config)?;
    let own = identity(&config.socket);
    let runtime = RuntimeServiceServer::new(Runtime {
        node: Arc::clone(&node),
    });
    let images = ImageServiceServer::new(Images {
        node: Arc::clone(&node),
    });
    let routes = Routes::new(
        runtime
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX),
    )
    .add_service(
        images
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX),
    )
    .add_service(PullsServer::new(Pulls {
        node: Arc::clone(&node),
    }))
    .prepare();
    let clients = GracefulShutdown::new();
    tokio::spawn(streaming::server::serve(Arc::clone(&node)));
    notify(READY);
    tokio::select! {
        () = accept(&listener, &routes, &clients, Allowed::of(config)) => {}
        () = end => {}
    }
    notify(STOPPING);
    node.events.close();
    node.streaming.close();
    let rest = async {
        clients.shutdown().await;
        service::idle().await;
    };
    if tokio::time::timeout(FAREWELL, rest).await.is_err() {
        log::warn("ends, though calls are on their way");
    }
    // Another server may have made its own meanwhile.
    if own.is_some() && identity(&config.socket) == own {
        let _ = std::fs::remove_file(&config.socket);
    }
    node.shims.remove_unused();
    Ok(())
}

/// Serves who comes, and never returns.
///
/// Not tonic's own server: that answers CANCELLED, in place of DEADLINE_EXCEEDED, where the time of a call is over. The
/// client's library knows its time itself, and ends the stream.
async fn accept(listener: &UnixListener, routes: &Routes, clients: &GracefulShutdown, allowed: Allowed) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) if allowed.is_allowed(&client) => client,
            Ok(_) => continue,
            Err(error) => {
                // Descriptors may be all in use, which a moment may change.
                log::warn(format_args!("accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(CALLS_MAX)
            .serve_connection(TokioIo::new(client), TowerToHyperService::new(routes.clone()));
        let connection = clients.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug(|| format!("a client: {error}"));
            }
        });
    }
}

fn bind(config: &Config) -> Result<UnixListener> {
    let socket = &config.socket;
    let shown = || format!("socket: {}", socket.display());
    if let Some(directory) = socket.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(shown)?;
    }
    remove_stale(socket).map_err(|error| error.context(shown()))?;
    // From its first moment on it is for those who may use it.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o117));
    let listener = UnixListener::bind(socket);
    nix::sys::stat::umask(old);
    let listener = listener.with_context(shown)?;
    if let Some(gid) = config.socket_gid {
        std::os::unix::fs::chown(socket, None, Some(gid)).with_context(shown)?;
    }
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).with_context(shown)?;
    Ok(listener)
}

/// Removes the socket that a killed server left.
///
/// # Errors
///
/// Somebody answers there; something else is there.
fn remove_stale(socket: &Path) -> Result<()> {
    let found = match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(anyhow::Error::from)?,
    };
    if !found.file_type().is_socket() {
        return Err(Error::text(
            Kind::FailedPrecondition,
            "something else is there: remove it, or choose another path",
        ));
    }
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        _ => {
            return Err(Error::text(
                Kind::FailedPrecondition,
                "another server listens there: stop it, or choose another path",
            ));
        }
    }
    Ok(std::fs::remove_file(socket).map_err(anyhow::Error::from)?)
}

/// Which file it is.
fn identity(socket: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(socket).ok()?;
    Some((found.dev(), found.ino()))
}

/// Whom to serve.
#[derive(Debug)]
struct Allowed {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Allowed {
    fn of(config: &Config) -> Self {
        Self {
            uids: config.allowed_uids.clone(),
            gids: config.allowed_gids.clone(),
        }
    }

    /// By what the kernel says of who connected (`SO_PEERCRED`).
    fn is_allowed(&self, client: &UnixStream) -> bool {
        let allowed = client.peer_cred().map(|peer| {
            self.allows(peer.uid(), peer.gid())
                .then_some(())
                .ok_or((peer.uid(), peer.gid()))
        });
        match allowed {
            Ok(Ok(())) => true,
            Ok(Err((uid, gid))) => {
                log::warn(format_args!(
                    "a client of uid {uid}, gid {gid} is refused: neither is in allowed_uids or allowed_gids"
                ));
                false
            }
            Err(error) => {
                log::warn(format_args!("a client is refused: {error}"));
                false
            }
        }
    }

    /// Root can do anything anyway.
    fn allows(&self, uid: u32, gid: u32) -> bool {
        let all = self.uids.is_empty() && self.gids.is_empty();
        all || uid == 0 || self.uids.contains(&uid) || self.gids.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_listed_is_not_served() {
        let allowed = |uids: &[u32], gids: &[u32], client: (u32, u32)| {
            let allowed = Allowed {
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            };
            allowed.allows(client.0, client.1)
        };
        assert!(allowed(&[], &[], (7, 7)));
        assert!(allowed(&[7], &[], (7, 1)));
        assert!(allowed(&[], &[1], (7, 1)));
        assert!(allowed(&[8], &[], (0, 0)));
        assert!(!allowed(&[8], &[8], (7, 7)));
    }

    #[test]
    fn a_living_servers_socket_stays_and_a_dead_ones_goes() {
        let directory = std::env::temp_dir().join(format!("rtc-cri-{}-socket", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("s");
        remove_stale(&socket).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = remove_stale(&socket).unwrap_err().to_string();
        assert!(error.contains("another server listens"), "{error}");
        drop(listener);
        remove_stale(&socket).unwrap();
        assert!(!socket.exists());
        std::fs::write(&socket, "precious").unwrap();
        assert!(remove_stale(&socket).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
