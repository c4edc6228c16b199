//! HTTP/1.1 to one host: requests, redirects, time limits.
//!
//! ```text
//! Client::send --> a connection of the pool, or a new one (connect.rs)
//!            <-- 2xx, 4xx, 5xx: the caller's
//!            <-- 3xx: followed; what is a secret of this host stays behind where it leads to another
//! ```

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioExecutor;

use super::Failure;
use super::connect::{Connector, NoTls, TLS_TIMEOUT, basic};
use super::hosts::{Host, Scheme};
use super::names::Names;
use super::proxy::{Kind, Proxies};

/// A manifest, a configuration or a token: at most some megabytes.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// As Go's client has it.
const MAX_REDIRECTS: usize = 10;
const AGENT: &str = concat!("rtc-cri/", env!("CARGO_PKG_VERSION"));

/// A request, made anew for each host and try. Its body may be a secret: no Debug.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Ask {
    pub(super) fn new(method: Method, uri: Uri) -> Self {
        Self {
            method,
            uri,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// Speaks to one host of a registry, and to where that sends it.
pub(super) struct Client {
    inner: hyper_util::client::legacy::Client<Connector, Full<Bytes>>,
    /// The headers of `hosts.toml`, for this authority only.
    headers: HeaderMap,
    authority: String,
    proxies: Arc<Proxies>,
    /// `HttpsThenHttp` came to speak HTTP.
    plain: AtomicBool,
    scheme: Scheme,
    /// No answer, or no more of it, for so long.
    stall: Duration,
    wait: Duration,
}

impl Client {
    /// Reads the files of its TLS that `hosts.toml` names: not on a thread of the runtime.
    ///
    /// # Errors
    ///
    /// One of these files.
    pub(super) fn new(
        host: &Host,
        names: &Names,
        proxies: &Arc<Proxies>,
        stall: Duration,
    ) -> anyhow::Result<Self> {
        let connector = Connector::new(host, names, Arc::clone(proxies))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &host.headers {
            let mut value = HeaderValue::from_str(value)?;
            value.set_sensitive(true);
            headers.append(HeaderName::from_bytes(name.as_bytes())?, value);
        }
        Ok(Self {
            inner: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector),
            headers,
            authority: host.authority.clone(),
            proxies: Arc::clone(proxies),
            plain: AtomicBool::new(false),
            scheme: host.scheme,
            stall,
            wait: host.dial_timeout + TLS_TIMEOUT + stall,
        })
    }

    /// `scheme://authority` of the host as it is spoken to now.
    pub(super) fn base(&self) -> String {
        let plain = match self.scheme {
            Scheme::Https => false,
            Scheme::Http => true,
            Scheme::HttpsThenHttp => self.plain.load(Ordering::Relaxed),
        };
        format!("{}://{}", if plain { "http" } else { "https" }, self.authority)
    }

    /// Sends it and follows where it is sent. Any answer but a redirect is the caller's, errors too.
    ///
    /// # Errors
    ///
    /// No answer came, or one that leads nowhere.
    pub(super) async fn send(&self, ask: Ask) -> Result<Response<Incoming>, Failure> {
        let (mut uri, mut origin) = (ask.uri.clone(), ask.uri.clone());
        let mut method = ask.method.clone();
        let mut secrets = true;
        for _ in 0..=MAX_REDIRECTS {
            secrets &= same_host(&uri, &origin);
            if !secrets && !ask.body.is_empty() {
                return Err(Failure::wrong(
                    "a request with credentials was sent on to another host",
                ));
            }
            let request = self.request(&ask, &method, &uri, secrets)?;
            let response = match tokio::time::timeout(self.wait, self.inner.request(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) if self.falls_back(&uri, &error) => {
                    self.plain.store(true, Ordering::Relaxed);
                    let path = uri.path_and_query().map_or("/", |path| path.as_str());
                    uri = parse_uri(&format!("http://{}{path}", self.authority))?;
                    origin = uri.clone();
                    continue;
                }
                Ok(Err(error)) => return Err(unreachable(&uri, &error)),
                Err(_) => return Err(Failure::Stalled(self.wait)),
            };
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            if response.status() == StatusCode::SEE_OTHER && method != Method::HEAD {
                method = Method::GET;
            }
            uri = follow(&uri, &response)?;
        }
        Err(Failure::wrong(format_args!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    fn request(
        &self,
        ask: &Ask,
        method: &Method,
        uri: &Uri,
        secrets: bool,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let body = if *method == ask.method {
            ask.body.clone()
        } else {
            Bytes::new()
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.extend(ask.headers.clone());
        if secrets && self.is_own(uri) {
            for (name, value) in &self.headers {
                // What the flow of tokens found wins over a fixed header.
                if name != AUTHORIZATION || !headers.contains_key(AUTHORIZATION) {
                    headers.append(name, value.clone());
                }
            }
        }
        if !secrets {
            headers.remove(AUTHORIZATION);
        }
        if uri.scheme_str() == Some("http")
            && let Ok(Some(proxy)) = self.proxies.of(uri)
            && proxy.kind != Kind::Socks5
            && let Some(basic) = basic(proxy)
        {
            headers.insert(PROXY_AUTHORIZATION, basic);
        }
        Ok(request)
    }

    /// Whether it is of this host as it is spoken to: by the same scheme, too.
    fn is_own(&self, uri: &Uri) -> bool {
        let base = self.base();
        let own = base.split_once("://");
        uri.scheme_str()
            .zip(uri.authority().map(hyper::http::uri::Authority::as_str))
            == own
    }

    /// Whether the other side of `HttpsThenHttp` speaks no TLS.
    fn falls_back(&self, uri: &Uri, error: &(dyn StdError + 'static)) -> bool {
        self.scheme == Scheme::HttpsThenHttp
            && uri.scheme_str() == Some("https")
            && uri
                .authority()
                .is_some_and(|authority| authority.as_str() == self.authority)
            && causes(error).any(<dyn StdError>::is::<NoTls>)
    }

    /// The next bytes of an answer; `None` at its end.
    ///
    /// # Errors
    ///
    /// The connection broke, or nothing came for the stall time.
    pub(super) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            match tokio::time::timeout(self.stall, body.frame()).await {
                Err(_) => return Err(Failure::Stalled(self.stall)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Failure::Broken(chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// A whole answer that is small.
    ///
    /// # Errors
    ///
    /// It has more than `most` bytes; it did not come whole, or not in time.
    pub(super) async fn whole(&self, body: Incoming, most: usize) -> Result<Vec<u8>, Failure> {
        // However little comes at a time.
        let limit = self.stall.max(WHOLE_TIMEOUT);
        let whole = tokio::time::timeout(limit, self.read_whole(body, most));
        let late = || Failure::Broken(format!("it did not come whole in {} s", limit.as_secs()));
        whole.await.unwrap_or_else(|_| Err(late()))
    }

    async fn read_whole(&self, mut body: Incoming, most: usize) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next(&mut body).await? {
            if all.len() + bytes.len() > most {
                return Err(Failure::wrong(format_args!(
                    "the answer has more than {most} bytes"
                )));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Scheme, host and port: where a secret may go again.
pub(super) fn same_host(one: &Uri, other: &Uri) -> bool {
    let place = |uri: &Uri| {
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        (secure, uri.host().map(str::to_ascii_lowercase), port)
    };
    place(one) == place(other)
}

pub(super) fn parse_uri(text: &str) -> Result<Uri, Failure> {
    text.parse()
        .map_err(|error| Failure::wrong(format_args!("not an address: {error}")))
}

/// Where an answer leads. Its address may hold a signature: it is in no error.
fn follow<B>(from: &Uri, response: &Response<B>) -> Result<Uri, Failure> {
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .ok_or_else(|| Failure::wrong("a redirect that says not where"))?;
    join(from, location).ok_or_else(|| Failure::wrong("a redirect to what is no address of HTTP"))
}

/// A reference as it is meant at `from` (RFC 3986, 5.2), without its fragment.
fn join(from: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().unwrap_or_default();
    let scheme = from.scheme_str()?;
    let authority = from.authority()?;
    let uri: Uri = if reference.starts_with("http://") || reference.starts_with("https://") {
        reference.parse().ok()?
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}").parse().ok()?
    } else if reference.starts_with('/') {
        format!("{scheme}://{authority}{reference}").parse().ok()?
    } else if reference.is_empty() || reference.split(['/', '?']).next()?.contains(':') {
        return None;
    } else {
        let directory = from
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{reference}")
            .parse()
            .ok()?
    };
    let plain = uri
        .authority()
        .is_some_and(|authority| !authority.as_str().contains('@'));
    plain.then_some(uri)
}

fn unreachable(uri: &Uri, error: &(dyn StdError + 'static)) -> Failure {
    let place = uri.authority().map_or("", |authority| authority.as_str());
    Failure::Unreachable(format!("{place}: {}", chain(error)))
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for error in causes(error) {
        let one = error.to_string();
        // Some say their cause themselves.
        if text.ends_with(&one) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&one);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn client(scheme: Scheme, authority: &str) -> Client {
        let host = Host {
            scheme,
            authority: authority.into(),
            path: "/v2".into(),
            resolve: true,
            pull: true,
            upstream: true,
            tls: super::super::hosts::TlsFiles::default(),
            headers: vec![("x-secret".into(), "s".into())],
            dial_timeout: Duration::from_secs(5),
            source: String::new(),
        };
        let proxies = Arc::new(Proxies::read(|_| None));
        Client::new(&host, &Names::new().unwrap(), &proxies, Duration::from_secs(1)).unwrap()
    }

    #[tokio::test]
    async fn headers_of_a_host_go_to_it_by_its_scheme_only() {
        let client = client(Scheme::Https, "a.example:5000");
        let sent = |address: &str| {
            let ask = Ask::new(Method::GET, uri(address));
            let request = client.request(&ask, &Method::GET, &ask.uri, true).unwrap();
            request.headers().contains_key("x-secret")
        };
        assert!(sent("https://a.example:5000/v2/"));
        for other in ["http://a.example:5000/token", "https://a.example/token"] {
            assert!(!sent(other), "{other}");
        }
        client.plain.store(true, Ordering::Relaxed);
        assert!(sent("https://a.example:5000/v2/"));
    }

    #[tokio::test]
    async fn a_small_answer_that_trickles_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let mut piece = &b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"[..];
            while stream.write_all(piece).is_ok() {
                piece = b"x";
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let client = client(Scheme::Http, &address);
        let ask = Ask::new(Method::GET, uri(&format!("http://{address}/v2/")));
        let response = client.send(ask).await.unwrap();
        let failure = client.whole(response.into_body(), 1 << 20).await.unwrap_err();
        assert!(
            failure.to_string().contains("did not come whole in 2 s"),
            "{failure}"
        );
        assert!(failure.passes());
    }

    #[test]
    fn a_redirect_leads_where_it_says() {
        let from = uri("https://a.example:5000/v2/x/blobs/sha256:1?ns=b");
        for (location, expected) in [
            ("https://b.example/y?sig=1#frag", "https://b.example/y?sig=1"),
            ("//b.example/y", "https://b.example/y"),
            ("/y/z", "https://a.example:5000/y/z"),
            ("y?z=1", "https://a.example:5000/v2/x/blobs/y?z=1"),
        ] {
            assert_eq!(join(&from, location), Some(uri(expected)), "{location}");
        }
        for location in [
            "ftp://b.example/",
            "file:///etc/passwd",
            "https://ann:pw@b.example/",
            "",
            "https://",
            "data:x",
        ] {
            assert_eq!(join(&from, location), None, "{location}");
        }
    }

    #[test]
    fn another_scheme_host_or_port_is_another_host() {
        let one = uri("https://a.example/x");
        assert!(same_host(&one, &uri("https://A.example:443/y")));
        for other in [
            "http://a.example/x",
            "https://b.example/x",
            "https://a.example:444/x",
            "https://a.example.b/",
        ] {
            assert!(!same_host(&one, &uri(other)), "{other}");
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        let inner = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        assert_eq!(chain(&inner), "refused");
        let outer = anyhow::Error::new(inner).context("connect");
        assert_eq!(chain(outer.as_ref()), "connect: refused");
    }
}
