//! What client and server agree on in the heads of a connection, before it is upgraded.
//!
//! ```text
//! Upgrade: SPDY/3.1    X-Stream-Protocol-Version: the client's first that is ours
//! Upgrade: websocket   Sec-WebSocket-Protocol: the same; SPDY/3.1+portforward.k8s.io: SPDY in its messages
//! ```

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::remote;
use super::server::{Answer, refusal};
use super::websocket::{self, Protocol};
use super::{Asked, Verb};

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
/// Of port forwarding over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same, inside of WebSocket's messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What was agreed on.
#[derive(Debug)]
pub(super) enum Upgrade {
    /// With the protocol of its streams.
    Spdy(&'static str),
    WebSocket {
        protocol: Protocol,
        accept: String,
        /// The ports of the query, for port forwarding.
        ports: Vec<u16>,
    },
    /// SPDY in WebSocket's messages: port forwarding only.
    Tunnel { accept: String },
}

type Refused = Box<Answer>;

fn refused(status: StatusCode, text: &str) -> Refused {
    Box::new(refusal(status, text))
}

impl Upgrade {
    /// Reads the head of a request.
    ///
    /// # Errors
    ///
    /// The answer to a client that wants no upgrade, wants it wrongly, or speaks nothing of ours.
    pub(super) fn negotiate<B>(request: &Request<B>, verb: Verb) -> Result<Self, Refused> {
        let headers = request.headers();
        let upgrades = words(headers, CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
        let to: Vec<&str> = words(headers, UPGRADE).collect();
        if !upgrades {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "this URL is for a connection that is upgraded: `Connection: Upgrade` with `Upgrade: SPDY/3.1` or `websocket`",
            ));
        }
        if to.iter().any(|word| word.eq_ignore_ascii_case("websocket")) {
            return Self::websocket(request, verb);
        }
        if to.iter().any(|word| word.eq_ignore_ascii_case(SPDY)) {
            return Self::spdy(headers, verb);
        }
        Err(refused(
            StatusCode::BAD_REQUEST,
            "Upgrade: must be SPDY/3.1 or websocket",
        ))
    }

    fn spdy(headers: &HeaderMap, verb: Verb) -> Result<Self, Refused> {
        let ours: &[&'static str] = match verb {
            Verb::Exec | Verb::Attach => &remote::SPDY,
            Verb::PortForward => &[PORT_FORWARD],
        };
        let asked: Vec<&str> = words(headers, PROTOCOL_VERSION).collect();
        if asked.is_empty() {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "X-Stream-Protocol-Version: is missing",
            ));
        }
        match asked.iter().find_map(|name| ours.iter().find(|one| *one == name)) {
            Some(protocol) => Ok(Self::Spdy(protocol)),
            None => {
                let mut answer = unknown("X-Stream-Protocol-Version", ours);
                for name in ours {
                    answer
                        .headers_mut()
                        .append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
                }
                Err(answer)
            }
        }
    }

    fn websocket<B>(request: &Request<B>, verb: Verb) -> Result<Self, Refused> {
        let headers = request.headers();
        if request.method() != Method::GET {
            return Err(refused(
                StatusCode::METHOD_NOT_ALLOWED,
                "WebSocket is opened with GET",
            ));
        }
        if !words(headers, SEC_WEBSOCKET_VERSION).any(|version| version == "13") {
            let mut answer = refused(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version: must be 13");
            answer
                .headers_mut()
                .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            return Err(answer);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let Some(accept) = key.and_then(websocket::accept) else {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "Sec-WebSocket-Key: must be 16 bytes in base64",
            ));
        };
        let asked: Vec<&str> = words(headers, SEC_WEBSOCKET_PROTOCOL).collect();
        let ours: &[Protocol] = match verb {
            Verb::Exec | Verb::Attach => &websocket::REMOTE,
            Verb::PortForward if asked.contains(&TUNNEL) => return Ok(Self::Tunnel { accept }),
            Verb::PortForward => &websocket::FORWARD,
        };
        let named = |name: &str| ours.iter().find(|one| one.name == name);
        let found = match asked.is_empty() {
            true => named(""),
            false => asked.iter().find_map(|name| named(name)),
        };
        let Some(protocol) = found else {
            let names = ours.iter().map(|one| one.name).filter(|name| !name.is_empty());
            return Err(unknown("Sec-WebSocket-Protocol", &names.collect::<Vec<_>>()));
        };
        let ports = match verb {
            Verb::PortForward => ports(request.uri().query().unwrap_or_default())
                .map_err(|text| refused(StatusCode::BAD_REQUEST, &text))?,
            Verb::Exec | Verb::Attach => Vec::new(),
        };
        Ok(Self::WebSocket {
            protocol: *protocol,
            accept,
            ports,
        })
    }

    /// Takes the ports of the call, where the query has none.
    ///
    /// # Errors
    ///
    /// The answer to a client that needs some, and has none or too many.
    pub(super) fn adopt(&mut self, asked: &Asked) -> Result<(), Refused> {
        let (Self::WebSocket { ports, .. }, Asked::PortForward(target)) = (self, asked) else {
            return Ok(());
        };
        if ports.is_empty() {
            ports.clone_from(&target.ports);
        }
        match ports.len() {
            1..=websocket::PORTS_MAX => Ok(()),
            count => Err(refused(
                StatusCode::BAD_REQUEST,
                &format!(
                    "port: {count} of them: give 1 to {}, `?port=80&port=443`",
                    websocket::PORTS_MAX
                ),
            )),
        }
    }

    /// The head of the answer.
    pub(super) fn answer(&self) -> Answer {
        let mut answer = Response::new(Full::new(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let (to, accept, name) = match self {
            Self::Spdy(protocol) => {
                headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
                (SPDY, None, "")
            }
            Self::WebSocket { protocol, accept, .. } => ("websocket", Some(accept), protocol.name),
            Self::Tunnel { accept } => ("websocket", Some(accept), TUNNEL),
        };
        headers.insert(UPGRADE, HeaderValue::from_static(to));
        if let Some(Ok(accept)) = accept.map(HeaderValue::try_from) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if !name.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        answer
    }
}

/// The words of a header that is a list, in all its lines.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

fn unknown(header: &str, ours: &[&str]) -> Refused {
    refused(
        StatusCode::FORBIDDEN,
        &format!(
            "{header}: none of them is known: must be one of {}",
            ours.join(", ")
        ),
    )
}

/// `port=80&port=443,8080`.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let mut ports = Vec::new();
    for text in values.flat_map(|value| value.split(',')) {
        match text.parse() {
            Ok(port @ 1..) => ports.push(port),
            _ => return Err(format!("port: {text:?}: must be 1 to 65535")),
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/exec/x?port=80,81&port=82");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn status(headers: &[(&str, &str)], verb: Verb) -> u16 {
        let refused = Upgrade::negotiate(&request(headers), verb).unwrap_err();
        refused.status().as_u16()
    }

    const SPDY_UPGRADE: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_client_s_first_protocol_that_is_ours_is_taken() {
        let mut headers = SPDY_UPGRADE.to_vec();
        assert_eq!(status(&headers, Verb::Exec), 400);
        headers.push((
            "X-Stream-Protocol-Version",
            "v5.channel.k8s.io, v4.channel.k8s.io",
        ));
        headers.push(("X-Stream-Protocol-Version", "v3.channel.k8s.io"));
        let agreed = Upgrade::negotiate(&request(&headers), Verb::Exec).unwrap();
        assert!(matches!(agreed, Upgrade::Spdy("v4.channel.k8s.io")));
        let answer = agreed.answer();
        assert_eq!(answer.status().as_u16(), 101);
        assert_eq!(answer.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(answer.headers()["upgrade"], "SPDY/3.1");
        let refused = Upgrade::negotiate(&request(&headers), Verb::PortForward).unwrap_err();
        assert_eq!(refused.status().as_u16(), 403);
        assert_eq!(
            refused.headers()["x-accepted-stream-protocol-versions"],
            "portforward.k8s.io"
        );
    }

    #[test]
    fn websocket_s_handshake_is_rfc_6455_s() {
        let mut headers = WEBSOCKET.to_vec();
        headers.push(("Sec-WebSocket-Protocol", "v9.channel.k8s.io,v5.channel.k8s.io"));
        let answer = Upgrade::negotiate(&request(&headers), Verb::Exec)
            .unwrap()
            .answer();
        assert_eq!(
            answer.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        headers[4].1 = "chat";
        assert_eq!(status(&headers, Verb::Attach), 403);
        headers.truncate(4);
        let answer = Upgrade::negotiate(&request(&headers), Verb::Exec)
            .unwrap()
            .answer();
        assert!(!answer.headers().contains_key("sec-websocket-protocol"));
        headers[3].1 = "c2hvcnQ=";
        assert_eq!(status(&headers, Verb::Exec), 400);
        headers[2].1 = "8";
        assert_eq!(status(&headers, Verb::Exec), 426);
    }

    #[test]
    fn ports_are_in_the_query_or_spdy_is_inside() {
        let mut headers = WEBSOCKET.to_vec();
        headers.push(("Sec-WebSocket-Protocol", "v4.channel.k8s.io"));
        let agreed = Upgrade::negotiate(&request(&headers), Verb::PortForward).unwrap();
        assert!(matches!(agreed, Upgrade::WebSocket { ports, .. } if ports == [80, 81, 82]));
        headers[4].1 = TUNNEL;
        let agreed = Upgrade::negotiate(&request(&headers), Verb::PortForward).unwrap();
        assert!(matches!(agreed, Upgrade::Tunnel { .. }));
        assert_eq!(status(&headers, Verb::Exec), 403);
        assert_eq!(ports("port=0").unwrap_err(), "port: \"0\": must be 1 to 65535");
        assert!(ports("port=65536").is_err());
        assert!(ports("port=").is_err());
        assert!(ports("a=b").unwrap().is_empty());
    }

    #[test]
    fn no_upgrade_is_no_stream() {
        assert_eq!(status(&[], Verb::Exec), 400);
        assert_eq!(status(&[("Upgrade", "SPDY/3.1")], Verb::Exec), 400);
        let other = [("Connection", "Upgrade"), ("Upgrade", "h2c")];
        assert_eq!(status(&other, Verb::Exec), 400);
    }
}
