//! The HTTP server of streams.
//!
//! ```text
//! GET or POST /exec/TOKEN, /attach/TOKEN, /portforward/TOKEN
//!   not so, no such token ──────────────> 404, 405
//!   no upgrade, a protocol of none ─────> 400, 403 with those that there are; the token is still good
//!   else: the token is taken ── 101 ──> the verb and its framing, until both have ended
//! the client has gone, is idle for too long, or the server ends: the verb sees to its end, and the client is told why, if it
//! is there
//! ```

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::connection::{self, Ending, Why};
use super::peer::{Hangup, Last, Noted};
use super::tokens::Tokens;
use super::upgrade::Upgrade;
use super::{Asked, Verb};
use crate::config::StreamingConfig;
use crate::error::Result;
use crate::locked;
use crate::log;
use crate::node::Node;
use crate::service::Running;

/// How long a client may take to say what it wants, its TLS included.
const GREETING: Duration = Duration::from_secs(30);
/// Connections that may be at that.
const GREETED_MAX: usize = 512;
/// The largest head of a request, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// What there is of it before, and while, it serves.
pub(crate) struct Streaming {
    /// Until it serves.
    listener: Mutex<Option<TcpListener>>,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    /// `None`: never.
    idle: Option<Duration>,
    pub(super) tokens: Tokens<Asked>,
    end: watch::Sender<bool>,
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A response without an upgrade, or its head.
pub(super) type Answer = Response<Full<Bytes>>;

impl Streaming {
    /// Binds it: from now on its URLs can be given out.
    ///
    /// # Errors
    ///
    /// The address is in use, or is none of this machine's; certificate or key can't be read.
    pub(crate) fn bind(config: &StreamingConfig) -> Result<Self> {
        let bound = || {
            let listener = TcpListener::bind(config.address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok::<_, std::io::Error>((listener, address))
        };
        let (listener, address) =
            bound().with_context(|| format!("streaming.address: {}", config.address))?;
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(certificate), Some(key)) => Some(Arc::new(tls(certificate, key)?)),
            _ => None,
        };
        Ok(Self {
            listener: Mutex::new(Some(listener)),
            address,
            tls,
            idle: (config.idle_timeout_seconds != 0)
                .then(|| Duration::from_secs(config.idle_timeout_seconds)),
            tokens: Tokens::default(),
            end: watch::Sender::new(false),
        })
    }

    /// The URL of a token.
    pub(super) fn url(&self, verb: &str, token: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/{verb}/{token}", self.address)
    }

    /// No more connections, and those that there are end; `service::idle` waits for them.
    pub(crate) fn close(&self) {
        self.end.send_replace(true);
    }
}

fn tls(certificate: &std::path::Path, key: &std::path::Path) -> anyhow::Result<ServerConfig> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("streaming.tls_cert: {}", certificate.display()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("streaming.tls_key: {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("streaming.tls_cert: {}: with tls_key", certificate.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until the end. Once.
pub(crate) async fn serve(node: Arc<Node>) {
    let streaming = &node.streaming;
    let taken = locked(&streaming.listener).take();
    let Some(listener) = taken else { return };
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error(format_args!("streams: {error}")),
    };
    let mut end = streaming.end.subscribe();
    let room = Arc::new(Semaphore::new(GREETED_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = end.wait_for(|end| *end) => return,
        };
        match accepted {
            Ok((client, _)) => {
                // Descriptors are everybody's: who has no token is not to take them all.
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                    continue;
                };
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    greet(node, client).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Descriptors may be all in use, which a moment may change.
                log::warn(format_args!("streams: accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, up to its upgrade.
async fn greet(node: Arc<Node>, client: TcpStream) {
    // Keys that are typed are not to wait for each other.
    let watched = client.set_nodelay(true).and_then(|()| keep_alive(&client));
    let hangup = match watched.and_then(|()| Hangup::watch(&client)) {
        Ok(hangup) => Arc::new(hangup),
        Err(error) => return log::warn(format_args!("streams: a client: {error}")),
    };
    let Some(tls) = node.streaming.tls.clone() else {
        return http(node, client, hangup).await;
    };
    match tokio::time::timeout(GREETING, TlsAcceptor::from(tls).accept(client)).await {
        Ok(Ok(client)) => http(node, client, hangup).await,
        Ok(Err(error)) => log::debug(|| format!("streams: a client: {error}")),
        Err(_) => {}
    }
}

/// A machine that is gone says nothing: the kernel asks.
fn keep_alive(client: &TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(client, sockopt::KeepAlive, &true)?;
    setsockopt(client, sockopt::TcpKeepIdle, &60)?;
    setsockopt(client, sockopt::TcpKeepInterval, &20)?;
    Ok(())
}

async fn http(
    node: Arc<Node>,
    client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    hangup: Arc<Hangup>,
) {
    let service = service_fn(|request| {
        let answer = respond(&node, request, &hangup);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        log::debug(|| format!("streams: a client: {error}"));
    }
}

fn respond(node: &Arc<Node>, mut request: Request<Incoming>, hangup: &Arc<Hangup>) -> Answer {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (Some(verb), Some(token)) = (parts.next().and_then(Verb::parse), parts.next()) else {
        return refusal(
            StatusCode::NOT_FOUND,
            "there are /exec/, /attach/ and /portforward/, with a token",
        );
    };
    if ![Method::GET, Method::POST].contains(request.method()) {
        let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return answer;
    }
    let mut upgrade = match Upgrade::negotiate(&request, verb) {
        Ok(upgrade) => upgrade,
        Err(refused) => return *refused,
    };
    let Some(asked) = node.streaming.tokens.take(token, |asked| asked.verb() == verb) else {
        return refusal(
            StatusCode::NOT_FOUND,
            "no such token: it is good once, for a minute after the call that gave the URL",
        );
    };
    if let Err(refused) = upgrade.adopt(&asked) {
        return *refused;
    }
    let answer = upgrade.answer();
    let upgrading = hyper::upgrade::on(&mut request);
    let (node, hangup) = (Arc::clone(node), Arc::clone(hangup));
    let running = Running::new();
    tokio::spawn(async move {
        let _running = running;
        match upgrading.await {
            Ok(upgraded) => {
                let (stream, last) = Noted::new(TokioIo::new(upgraded));
                let ending = ending(&node.streaming, &hangup, &last);
                connection::serve(&node, asked, upgrade, stream, ending).await;
            }
            Err(error) => log::debug(|| format!("streams: a client: {error}")),
        }
    });
    answer
}

/// Waits until there is nobody to serve, or nobody who serves.
async fn ending(streaming: &Streaming, hangup: &Hangup, last: &Last) -> Ending {
    let idle = async {
        match streaming.idle {
            Some(limit) => last.idle(limit).await,
            None => std::future::pending().await,
        }
    };
    let mut end = streaming.end.subscribe();
    tokio::select! {
        () = hangup.gone() => Ending::Client,
        () = idle => Ending::Ours(Why::Idle),
        _ = end.wait_for(|end| *end) => Ending::Ours(Why::Terminated),
    }
}

/// An answer that says why not.
pub(super) fn refusal(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
