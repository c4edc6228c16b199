//! The socket, and the services on it.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::error::Result;
use crate::node::Node;
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;
use crate::service::image::Images;
use crate::service::runtime::Runtime;

/// The largest request, in bytes, as the kubelet's limit is for answers.
const MESSAGE_MAX: usize = 16 << 20;

/// Serves until `end`.
///
/// # Errors
///
/// The socket can't be made.
pub(crate) async fn serve(node: Arc<Node>, end: impl Future<Output = ()>) -> Result<()> {
    let socket = &node.config.socket;
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("socket: {}", directory.display()))?;
    }
    // One that a killed server left.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("socket: {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("socket: {}", socket.display()))?;
    let runtime = RuntimeServiceServer::new(Runtime {
        node: Arc::clone(&node),
    });
    let images = ImageServiceServer::new(Images {
        node: Arc::clone(&node),
    });
    Server::builder()
        .add_service(
            runtime
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
        )
        .add_service(
            images
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            end.await;
            node.events.close();
        })
        .await
        .context("serve")?;
    let _ = std::fs::remove_file(socket);
    Ok(())
}
