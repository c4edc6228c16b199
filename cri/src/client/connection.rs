//! The connection to a server of CRI: HTTP/2 on its Unix socket, by hyper, with tonic's clients on it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use anyhow::{Result, anyhow};
use hyper::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rtc_cri::proto::extension::pulls_client::PullsClient;
use rtc_cri::proto::image_service_client::ImageServiceClient;
use rtc_cri::proto::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::{Code, Status};

/// The largest answer, in bytes: the kubelet's limit.
const ANSWER_MAX: usize = 16 << 20;

/// HTTP/2 wants a name of the server, though a socket has none.
static ORIGIN: LazyLock<Uri> = LazyLock::new(|| Uri::from_static("http://localhost"));

/// A connection; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Server(Channel);

/// hyper's, as tonic takes it.
#[derive(Debug, Clone)]
pub(super) struct Channel(http2::SendRequest<Body>);

impl tower_service::Service<hyper::Request<Body>> for Channel {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    ///
    /// There is no server, or it may not be used: what to do.
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let shown = socket.display();
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!(
                "no server: there is no socket {shown}: start rtc-cri (systemctl start rtc-cri), or say where it is with \
                 --socket PATH"
            ),
            ErrorKind::ConnectionRefused => anyhow!(
                "no server: nobody listens on {shown}: rtc-cri has ended; start it again (systemctl start rtc-cri; \
                 journalctl -u rtc-cri says why it ended)"
            ),
            ErrorKind::PermissionDenied => anyhow!(
                "{shown}: permission denied: be root, or of the group that socket_gid names in config.toml"
            ),
            _ => anyhow!("connect to {shown}: {error}"),
        })?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| anyhow!("{shown}: {error}: is it the socket of a CRI server?"))?;
        // What ends it is told by the calls.
        tokio::spawn(connection);
        Ok(Self(Channel(sender)))
    }

    /// RuntimeService.
    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::with_origin(self.0.clone(), ORIGIN.clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// ImageService.
    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::with_origin(self.0.clone(), ORIGIN.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    /// rtc-cri's own.
    pub(super) fn pulls(&self) -> PullsClient<Channel> {
        PullsClient::with_origin(self.0.clone(), ORIGIN.clone())
    }
}

/// The answer to a call; an error names the call.
///
/// # Errors
///
/// What the server said, in its words.
pub(super) fn answer<T>(call: &str, result: std::result::Result<tonic::Response<T>, Status>) -> Result<T> {
    result
        .map(tonic::Response::into_inner)
        .map_err(|status| anyhow!("{call}: {}", words(&status)))
}

fn words(status: &Status) -> String {
    match (status.code(), status.message()) {
        // Of the transport: it says "h2 protocol error" and the like.
        (Code::Unknown | Code::Internal | Code::Cancelled, message)
            if message.contains("error") && source(status) =>
        {
            format!("the server has gone, or does not speak CRI ({message})")
        }
        (code, "") => code.description().to_owned(),
        (_, message) => message.to_owned(),
    }
}

fn source(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
