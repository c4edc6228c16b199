//! The kubelet's own API, as the API server uses it: exec, attach, port-forward and logs of its pods.
//!
//! ```text
//! let api = node.api()?;                                         // TLS to port 10250; anybody may do anything
//! let mut session = api.exec(Way::Spdy, &pod, "main", &["cat"], "input=1&output=1")?;
//! session.send(b"in\n")?;
//! session.end_input()?;
//! session.all()?.exited(0)?;                                     // what it said, to the end
//! api.get("/containerLogs/default/web-node/main?tailLines=2")?   // status and body
//! ```
//!
//! A kubelet passes SPDY on to the CRI server as it is, and WebSocket with protocol v4 as well. With v5 it does the same up
//! to 1.35; since then (`ExtendWebSocketsToKubelet`) it speaks SPDY with the server itself.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail, ensure};

use super::{Node, StaticPod, patience, tunnel};
use crate::cri::spdy::{Frame, Spdy};
use crate::cri::websocket::{BINARY, CLOSE, RESIZE, STDIN, STDOUT, Said, WebSocket};
use crate::registry::Result;
use crate::wait::within;

const V4: &str = "v4.channel.k8s.io";

/// How streams are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Spdy,
    /// With this protocol.
    WebSocket(&'static str),
}

/// All that clients of our time use.
pub(crate) const WAYS: [Way; 3] = [Way::Spdy, Way::WebSocket(V4), Way::WebSocket("v5.channel.k8s.io")];

impl Way {
    /// Whether a client can end its input and go on to listen.
    pub(crate) fn ends_input(self) -> bool {
        self != Self::WebSocket(V4)
    }
}

/// A way to the API.
pub(crate) struct Api {
    address: SocketAddr,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// It is this status, and the body names each of these.
    pub(crate) fn is(&self, status: u16, parts: &[&str]) -> Result {
        ensure!(self.status == status, "expected {status}: {self:?}");
        crate::cri::names(&self.body, parts)
    }
}

impl Node<'_> {
    /// The way to its API, once the kubelet listens there.
    #[expect(clippy::unused_self, reason = "there is no kubelet without a node")]
    pub(crate) fn api(&self) -> Result<Api> {
        let address = within(patience(), "the kubelet's certificate", || {
            Ok(tunnel::open("node").ok())
        })?;
        let api = Api { address };
        within(patience(), "the kubelet's API", || Ok(api.get("/healthz").ok()))?.is(200, &["ok"])?;
        Ok(api)
    }
}

impl Api {
    /// A path's URL, as clients without TLS use it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// GET, to the end of the answer.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        self.ask("GET", path)
    }

    /// A request without a body, to the end of its answer.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        let mut stream = self.send(method, path)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("an answer without a body")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Answer {
            status: status.with_context(|| head.to_owned())?,
            body: body.to_owned(),
        })
    }

    /// Sends a request whose answer comes piece by piece. HTTP/1.0: it ends with the connection.
    pub(crate) fn send(&self, method: &str, path: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(patience()))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
        Ok(stream)
    }

    /// Starts a command in a container; the options are the kubelet's: `input`, `output`, `error`, `tty`, each `=1`.
    pub(crate) fn exec(
        &self,
        way: Way,
        pod: &StaticPod,
        container: &str,
        command: &[&str],
        options: &str,
    ) -> Result<Session> {
        let mut path = format!("{}?{options}", of_container("exec", pod, container));
        for word in command {
            write!(path, "&command={}", escaped(word))?;
        }
        Session::open(way, &self.url(&path), options)
    }

    /// Attaches to a container.
    pub(crate) fn attach(
        &self,
        way: Way,
        pod: &StaticPod,
        container: &str,
        options: &str,
    ) -> Result<Session> {
        let path = format!("{}?{options}", of_container("attach", pod, container));
        Session::open(way, &self.url(&path), options)
    }
}

/// The path of something of a container.
pub(crate) fn of_container(what: &str, pod: &StaticPod, container: &str) -> String {
    format!("{}/{container}", of_pod(what, pod))
}

/// The path of something of a pod.
pub(crate) fn of_pod(what: &str, pod: &StaticPod) -> String {
    let metadata = &pod.0["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
    format!("/{what}/{}/{}", text("namespace"), text("name"))
}

/// As a URL's query has it.
pub(crate) fn escaped(text: &str) -> String {
    let mut all = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            all.push(byte.into());
        } else {
            let _ = write!(all, "%{byte:02X}");
        }
    }
    all
}

/// A command's streams, or those of a container.
pub(crate) enum Session {
    Spdy(Streams),
    WebSocket(WebSocket),
}

/// Those that were asked for.
pub(crate) struct Streams {
    client: Spdy,
    error: u32,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl Streams {
    fn open(url: &str, options: &str) -> Result<Self> {
        let mut client = Spdy::open(url, V4)?;
        let error = client.stream(&[("streamtype", "error")])?;
        let mut wanted = |option: &str, kind| -> Result<Option<u32>> {
            let wanted = options.contains(option);
            wanted.then(|| client.stream(&[("streamtype", kind)])).transpose()
        };
        Ok(Self {
            error,
            stdin: wanted("input=1", "stdin")?,
            stdout: wanted("output=1", "stdout")?,
            stderr: wanted("error=1", "stderr")?,
            resize: wanted("tty=1", "resize")?,
            client,
        })
    }
}

impl Session {
    fn open(way: Way, url: &str, options: &str) -> Result<Self> {
        Ok(match way {
            Way::Spdy => Self::Spdy(Streams::open(url, options)?),
            Way::WebSocket(protocol) => Self::WebSocket(WebSocket::open(url, protocol)?),
        })
    }

    /// Sends input.
    pub(crate) fn send(&mut self, data: &[u8]) -> Result {
        match self {
            Self::Spdy(streams) => streams.client.send(streams.stdin.context("no input")?, data),
            Self::WebSocket(client) => client.send(STDIN, data),
        }
    }

    /// Ends the input; see [`Way::ends_input`].
    pub(crate) fn end_input(&mut self) -> Result {
        match self {
            Self::Spdy(streams) => streams.client.fin(streams.stdin.context("no input")?),
            Self::WebSocket(client) => client.frame(BINARY, &[CLOSE, STDIN]),
        }
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&mut self, width: u16, height: u16) -> Result {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        match self {
            Self::Spdy(streams) => {
                let stream = streams.resize.context("no terminal")?;
                streams.client.send(stream, size.as_bytes())
            }
            Self::WebSocket(client) => client.send(RESIZE, size.as_bytes()),
        }
    }

    /// What comes on standard output, until it has this text.
    pub(crate) fn until(&mut self, wanted: &str) -> Result<String> {
        let streams = match self {
            Self::WebSocket(client) => return client.until(STDOUT, wanted),
            Self::Spdy(streams) => streams,
        };
        let mut text = String::new();
        while !text.contains(wanted) {
            match streams.client.frame()? {
                Some(Frame::Data(id, data)) if Some(id) == streams.stdout => {
                    text += &String::from_utf8_lossy(&data);
                }
                Some(Frame::Data(id, data)) if id == streams.error => {
                    bail!("the end: {}", String::from_utf8_lossy(&data))
                }
                None => bail!("the end, without {wanted:?}: {text:?}"),
                Some(_) => {}
            }
        }
        Ok(text)
    }

    /// All that comes, to the end.
    pub(crate) fn all(self) -> Result<Said> {
        let mut streams = match self {
            Self::WebSocket(client) => return client.all(),
            Self::Spdy(streams) => streams,
        };
        let mut said = Said::default();
        let mut open: Vec<u32> = [Some(streams.error), streams.stdout, streams.stderr]
            .into_iter()
            .flatten()
            .collect();
        while !open.is_empty() {
            let Some(frame) = streams.client.frame()? else {
                break;
            };
            match frame {
                Frame::Data(id, data) => {
                    let text = String::from_utf8_lossy(&data);
                    match id {
                        _ if id == streams.error => said.error += &text,
                        _ if Some(id) == streams.stdout => said.stdout += &text,
                        _ if Some(id) == streams.stderr => said.stderr += &text,
                        _ => bail!("data on stream {id}"),
                    }
                }
                Frame::Fin(id) | Frame::Reset(id, _) => open.retain(|&other| other != id),
                _ => {}
            }
        }
        Ok(said)
    }
}
