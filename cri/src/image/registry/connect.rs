//! Connections to a host: name, address, proxy, TLS.
//!
//! ```text
//! name -> address -> TCP ──────────────────────────────────────────> [TLS] the host
//!                    TCP ─> [TLS] proxy ─> CONNECT, or SOCKS ───────> [TLS] the host
//!                                      └─> (plain HTTP: the whole address is in the request)
//! ```

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::hosts::{Host, TlsFiles};
use super::names::Names;
use super::proxy::{Kind, Proxies, Proxy};
use super::tls;

pub(super) const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a proxy's answer to CONNECT.
const MAX_HEAD: usize = 8 << 10;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The other side speaks no TLS.
#[derive(Debug)]
pub(super) struct NoTls(std::io::Error);

impl std::fmt::Display for NoTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TLS: {}", self.0)
    }
}

impl StdError for NoTls {}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpConnector<Names>,
    /// A redirect may lead to HTTPS from a host that speaks HTTP.
    secure: Arc<OnceCell<TlsConnector>>,
    /// To proxies that speak TLS: none of the host's certificates are theirs.
    to_proxy: Arc<OnceCell<TlsConnector>>,
    proxies: Arc<Proxies>,
    dial_timeout: Duration,
}

impl Connector {
    /// Reads the files of the host's TLS.
    ///
    /// # Errors
    ///
    /// One of these files.
    pub(super) fn new(host: &Host, names: &Names, proxies: Arc<Proxies>) -> anyhow::Result<Self> {
        let mut http = HttpConnector::new_with_resolver(names.clone());
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(30)));
        http.set_connect_timeout(Some(host.dial_timeout));
        // The system's certificates are many: read when they are needed, which a mirror may spare.
        let special = host.tls != TlsFiles::default();
        let secure = special.then(|| tls::configuration(&host.tls)).transpose()?;
        let secure = secure.map(|configuration| TlsConnector::from(Arc::new(configuration)));
        Ok(Self {
            http,
            secure: Arc::new(OnceCell::new_with(secure)),
            to_proxy: Arc::default(),
            proxies,
            dial_timeout: host.dial_timeout,
        })
    }

    async fn connect(self, uri: Uri) -> Result<Stream, BoxError> {
        let proxy = self.proxies.of(&uri)?.cloned();
        let secure = uri.scheme_str() == Some("https");
        let dial_timeout = self.dial_timeout;
        let dial = async {
            match &proxy {
                None => self.tcp(uri.clone()).await,
                Some(proxy) => {
                    let through = self.through(proxy, &uri, secure).await;
                    through
                        .map_err(|error| format!("proxy {proxy}: {}", super::client::chain(&*error)).into())
                }
            }
        };
        let io = tokio::time::timeout(dial_timeout, dial).await.map_err(|_| {
            let proxy = proxy.as_ref().map(|proxy| format!("proxy {proxy}: "));
            let proxy = proxy.unwrap_or_default();
            format!("{proxy}no connection in {} s", dial_timeout.as_secs_f32())
        })??;
        if !secure {
            let proxied = proxy.is_some_and(|proxy| proxy.kind != Kind::Socks5);
            return Ok(Stream::new(io, proxied));
        }
        let connector = self.secure.get_or_try_init(usual_tls).await?;
        let handshake = connector.connect(server_name(&uri)?, io);
        match tokio::time::timeout(TLS_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::new(Box::new(stream), false)),
            Ok(Err(error)) if speaks_no_tls(&error) => Err(NoTls(error).into()),
            Ok(Err(error)) => Err(format!("TLS: {error}").into()),
            // It may wait for the end of a line of HTTP.
            Err(_) => {
                let why = format!("no handshake in {} s", TLS_TIMEOUT.as_secs());
                Err(NoTls(std::io::Error::new(std::io::ErrorKind::TimedOut, why)).into())
            }
        }
    }

    async fn tcp(&self, uri: Uri) -> Result<BoxIo, BoxError> {
        Ok(Box::new(self.http.clone().call(uri).await?.into_inner()))
    }

    /// To the host's address by a proxy, or only to the proxy, where that takes requests themselves.
    async fn through(&self, proxy: &Proxy, uri: &Uri, secure: bool) -> Result<BoxIo, BoxError> {
        let mut io = self.tcp(proxy.uri.clone()).await?;
        if proxy.kind == Kind::Https {
            let connector = self.to_proxy.get_or_try_init(usual_tls).await?;
            let stream = connector.connect(server_name(&proxy.uri)?, io).await;
            io = Box::new(stream.map_err(|error| format!("TLS: {error}"))?);
        }
        if proxy.kind == Kind::Socks5 {
            let mut socks = SocksV5::new(proxy.uri.clone(), Once(Some(Stream::new(io, false))));
            if let Some((name, password)) = &proxy.user {
                socks = socks.with_auth(name.clone(), password.clone());
            }
            return Ok(socks.call(uri.clone()).await?.0.into_inner());
        }
        if secure {
            connect_through(&mut io, proxy, uri).await?;
        }
        Ok(io)
    }
}

/// CONNECT (RFC 9110, 9.3.6).
async fn connect_through(io: &mut BoxIo, proxy: &Proxy, uri: &Uri) -> Result<(), BoxError> {
    let place = format!(
        "{}:{}",
        uri.host().unwrap_or_default(),
        uri.port_u16().unwrap_or(443)
    );
    let mut head = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some(basic) = basic(proxy) {
        head.push_str(&format!("Proxy-Authorization: {}\r\n", basic.to_str()?));
    }
    io.write_all((head + "\r\n").as_bytes()).await?;
    io.flush().await?;
    // Byte by byte: what is behind the head is the host's.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_HEAD {
            return Err("its answer to CONNECT has no end".into());
        }
        let mut byte = [0];
        if io.read(&mut byte).await? == 0 {
            return Err("it hung up on CONNECT".into());
        }
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    let status = status
        .strip_prefix("HTTP/")
        .and_then(|rest| Some(rest.split_once(' ')?.1));
    match status {
        Some(status) if status.starts_with('2') => Ok(()),
        Some(status) => {
            let status: String = status.chars().filter(|c| !c.is_control()).take(100).collect();
            Err(format!("it answers CONNECT {place} with {status}").into())
        }
        None => Err("it speaks no HTTP".into()),
    }
}

/// What a proxy that knows its users wants to see.
pub(super) fn basic(proxy: &Proxy) -> Option<HeaderValue> {
    let (name, password) = proxy.user.as_ref()?;
    let mut value =
        HeaderValue::from_str(&format!("Basic {}", BASE64.encode(format!("{name}:{password}")))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn server_name(uri: &Uri) -> Result<ServerName<'static>, BoxError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    Ok(ServerName::try_from(host)?)
}

/// By the system's certificates.
async fn usual_tls() -> Result<TlsConnector, BoxError> {
    let read = tokio::task::spawn_blocking(|| tls::configuration(&TlsFiles::default()));
    Ok(TlsConnector::from(Arc::new(read.await??)))
}

fn speaks_no_tls(error: &std::io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
        || error.kind() == std::io::ErrorKind::UnexpectedEof
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection that is there already, for SOCKS to be spoken on.
struct Once(Option<Stream>);

impl Service<Uri> for Once {
    type Response = Stream;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().ok_or_else(|| "connected once".into()))
    }
}

/// What bytes go through: TCP, TLS, TLS in TLS.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type BoxIo = Box<dyn Io>;

/// A connection, with TLS or without.
pub(super) struct Stream(TokioIo<BoxIo>, bool);

impl Stream {
    /// `proxied`: the other side is a proxy that takes requests with their whole address.
    fn new(io: BoxIo, proxied: bool) -> Self {
        Self(TokioIo::new(io), proxied)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.1)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
