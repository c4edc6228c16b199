//! The streams of a remote command by WebSocket, as the client of Kubernetes speaks it: `v5.channel.k8s.io`, else `v4`.
//!
//! ```text
//! GET <path of the URL> ── 101 Switching Protocols ──> binary messages: a channel's number, then its bytes
//!   0 stdin ->   1 stdout <-   2 stderr <-   3 the end of it, a metav1.Status <-   4 size of the terminal ->
//!   255 <channel>: no more on it (v5)
//! ```

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::streaming::accept;

/// Closes one channel.
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// The largest message of a server, in bytes.
const MESSAGE_MAX: usize = 16 << 20;
/// The longest error of a server, in bytes.
const ERROR_MAX: usize = 4 << 10;

type Stream = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// What a server sends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
    Error,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    closes: bool,
}

/// The half that sends.
#[derive(Debug)]
pub(super) struct Sender {
    sink: SplitSink<Stream, Message>,
    closes: bool,
}

/// The half that receives.
#[derive(Debug)]
pub(super) struct Receiver(SplitStream<Stream>);

impl Socket {
    /// Opens a URL that Exec or Attach answered with.
    ///
    /// # Errors
    ///
    /// It can't be reached, or does not speak this.
    pub(super) async fn open(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("the server's URL {url:?}"))?;
        let authority = uri
            .authority()
            .with_context(|| format!("the server's URL {url:?} has no host"))?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "the server's streams are at {authority}, by TLS: this client does not speak it; take crictl exec"
        );
        let stream = TcpStream::connect((
            authority.host().trim_matches(['[', ']']),
            authority.port_u16().unwrap_or(80),
        ))
        .await
        .with_context(|| format!("connect to {authority}"))?;
        // Keys are answered one by one.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        let key = key()?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority.as_str())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, format!("{V5},{V4}"))
            .body(http_body_util::Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            bail!("{}", refusal(response).await);
        }
        let closes = agreed(response.headers(), &key)?;
        let upgraded = hyper::upgrade::on(response).await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX))
            .write_buffer_size(0);
        let stream =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
        Ok(Self { stream, closes })
    }

    pub(super) fn split(self) -> (Sender, Receiver) {
        let (sink, source) = self.stream.split();
        let sender = Sender {
            sink,
            closes: self.closes,
        };
        (sender, Receiver(source))
    }
}

/// 16 random bytes.
fn key() -> Result<String> {
    let digits = crate::id::new().map_err(|error| anyhow!("{error}"))?;
    let bytes: Vec<u8> = digits.bytes().step_by(4).take(16).collect();
    Ok(STANDARD.encode(bytes))
}

/// Whether the protocol that the server chose can close a channel.
fn agreed(headers: &HeaderMap, key: &str) -> Result<bool> {
    let header = |name: HeaderName| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    ensure!(
        accept(key.as_bytes()).is_some_and(|accept| header(SEC_WEBSOCKET_ACCEPT) == accept),
        "the server answers, but does not speak WebSocket"
    );
    match header(SEC_WEBSOCKET_PROTOCOL) {
        V5 => Ok(true),
        V4 => Ok(false),
        other => bail!("the server speaks {other:?}, and neither {V5} nor {V4}"),
    }
}

async fn refusal(response: hyper::Response<hyper::body::Incoming>) -> String {
    let status = response.status();
    let limited = http_body_util::Limited::new(response.into_body(), ERROR_MAX);
    let body = http_body_util::BodyExt::collect(limited).await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
    match text {
        Ok(text) if !text.is_empty() => format!("{status}: {text}"),
        _ => status.to_string(),
    }
}

impl Sender {
    /// Input of the command.
    pub(super) async fn stdin(&mut self, data: &[u8]) -> Result<()> {
        self.send(0, data).await
    }

    /// There is no more input.
    pub(super) async fn end_stdin(&mut self) -> Result<()> {
        if self.closes {
            self.send(255, &[0]).await
        } else {
            // v4 has no word for it.
            Ok(())
        }
    }

    /// The size of the terminal, in characters.
    pub(super) async fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(4, size.as_bytes()).await
    }

    async fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        match self.sink.send(Message::binary(message)).await {
            Ok(()) => Ok(()),
            // The command has ended; what the server says of it is yet to be read.
            Err(error) if is_end(&error) => Ok(()),
            Err(error) => Err(error).context("send to the command"),
        }
    }
}

fn is_end(error: &tokio_tungstenite::tungstenite::Error) -> bool {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    matches!(
        error,
        Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Io(_)
            | Error::Protocol(ProtocolError::SendAfterClosing | ProtocolError::ResetWithoutClosingHandshake)
    )
}

impl Receiver {
    /// The next that comes; `None`: the end.
    ///
    /// # Errors
    ///
    /// The connection broke off.
    pub(super) async fn next(&mut self) -> Result<Option<(Channel, Bytes)>> {
        loop {
            let message = match self.0.next().await {
                None => return Ok(None),
                Some(Err(error)) if is_end(&error) => return Ok(None),
                Some(message) => message.context("read from the command")?,
            };
            let mut bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return Ok(None),
                _ => continue,
            };
            if bytes.is_empty() {
                continue;
            }
            match bytes.split_to(1)[0] {
                1 => return Ok(Some((Channel::Stdout, bytes))),
                2 => return Ok(Some((Channel::Stderr, bytes))),
                3 => return Ok(Some((Channel::Error, bytes))),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_must_answer_to_the_key_and_choose_a_protocol() {
        let key = key().unwrap();
        let headers = |accept: &str, protocol: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse().unwrap());
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
            headers
        };
        let right = accept(key.as_bytes()).unwrap();
        assert!(agreed(&headers(&right, V5), &key).unwrap());
        assert!(!agreed(&headers(&right, V4), &key).unwrap());
        let error = agreed(&headers(&right, "channel.k8s.io"), &key)
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"channel.k8s.io\""), "{error}");
        assert!(agreed(&headers("x", V5), &key).is_err());
    }
}
