//! Which proxy a host is reached through: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment, each
//! also in lower case. Pure.
//!
//! ```text
//! HTTPS_PROXY=http://ann:secret@proxy.example:3128     also https://, socks5://, or without a scheme: http://
//! NO_PROXY=*                                           none at all
//!          example.com         it, and what is below it     .example.com, *.example.com   only what is below it
//!          10.0.0.0/8          addresses of a network       10.0.0.1, [fd00::1]           an address
//!          example.com:5000    any of these, but the network: this port only
//! ```
//!
//! The rules are those of Go's `httpproxy`, which containerd and the kubelet go by; `ALL_PROXY` is curl's. What is on this
//! machine has no proxy.

use std::net::IpAddr;

use hyper::Uri;

use super::hosts::is_loopback;

/// The proxies of an environment. They hold passwords: no Debug.
pub(crate) struct Proxies {
    /// For `http://`.
    http: Parsed,
    /// For `https://`.
    https: Parsed,
    exceptions: Exceptions,
}

/// What a variable says. One that can't be understood is an error of who needs it.
type Parsed = Result<Option<Proxy>, String>;

/// One proxy; its password is not to be shown.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(super) kind: Kind,
    /// Its address, with a port.
    pub(super) uri: Uri,
    /// User name and password.
    pub(super) user: Option<(String, String)>,
    /// That says so.
    variable: &'static str,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    /// The proxy itself speaks TLS.
    Https,
    Socks5,
}

/// As it is named to a person: without its user.
impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Socks5 => "socks5",
        };
        let place = self.uri.authority().map_or("", |authority| authority.as_str());
        write!(f, "{scheme}://{place} ({})", self.variable)
    }
}

impl Proxies {
    /// Those of this process.
    pub(crate) fn of_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Those of an environment: each variable by its name.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| {
                let value = variable(name)?;
                (!value.trim().is_empty()).then_some((*name, value))
            })
        };
        let of = |names: &[&'static str]| {
            let said = first(names).or_else(|| first(&["ALL_PROXY", "all_proxy"]));
            said.map(|(name, value)| parse(name, value.trim())).transpose()
        };
        let exceptions = first(&["NO_PROXY", "no_proxy"]).unwrap_or_default().1;
        Self {
            http: of(&["HTTP_PROXY", "http_proxy"]),
            https: of(&["HTTPS_PROXY", "https_proxy"]),
            exceptions: Exceptions::read(&exceptions),
        }
    }

    /// The one for an address.
    ///
    /// # Errors
    ///
    /// The variable that says which can't be understood.
    pub(crate) fn of(&self, uri: &Uri) -> Result<Option<&Proxy>, String> {
        let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else {
            return Ok(None);
        };
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if is_loopback(authority.as_str()) || self.exceptions.hold(host, port) {
            return Ok(None);
        }
        let said = if secure { &self.https } else { &self.http };
        said.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }
}

/// The value may hold a password: it is in no error.
fn parse(variable: &'static str, value: &str) -> Result<Proxy, String> {
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let (kind, usual) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Kind::Http, 80),
        "https" => (Kind::Https, 443),
        // Names are resolved by the proxy in both, as Go has it.
        "socks5" | "socks5h" => (Kind::Socks5, 1080),
        other => {
            return Err(format!(
                "{variable}: {other}: is no scheme of a proxy; http, https and socks5 are"
            ));
        }
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    let wrong = || format!("{variable}: is not http://[user:password@]host[:port]");
    let parsed: hyper::http::uri::Authority = place.parse().map_err(|_| wrong())?;
    if parsed.host().is_empty() || (parsed.port_u16().is_none() && parsed.host() != place) {
        return Err(wrong());
    }
    let port = parsed.port_u16().unwrap_or(usual);
    let uri = format!("http://{}:{port}/", parsed.host())
        .parse()
        .map_err(|_| wrong())?;
    let user = user.map(|user| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        (decoded(name), decoded(password))
    });
    Ok(Proxy {
        kind,
        uri,
        user,
        variable,
    })
}

/// Without `%20` and the like (RFC 3986, 2.1).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What `NO_PROXY` names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exceptions {
    all: bool,
    some: Vec<Exception>,
}

#[derive(Debug, PartialEq, Eq)]
enum Exception {
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    Name {
        /// In lower case, with a dot before it.
        dotted: String,
        /// The name itself, too, not only what is below it.
        itself: bool,
        port: Option<u16>,
    },
}

impl Exceptions {
    /// What can't be an exception is none, as Go has it.
    fn read(text: &str) -> Self {
        let mut read = Self::default();
        for entry in text.split(',') {
            let entry = entry.trim().to_ascii_lowercase();
            if entry == "*" {
                read.all = true;
            } else if !entry.is_empty() {
                read.some.extend(Exception::read(&entry));
            }
        }
        read
    }

    fn hold(&self, host: &str, port: u16) -> bool {
        let host = host
            .trim_matches(['[', ']'])
            .trim_end_matches('.')
            .to_ascii_lowercase();
        self.all || self.some.iter().any(|exception| exception.holds(&host, port))
    }
}

impl Exception {
    fn read(entry: &str) -> Option<Self> {
        if let Some((address, length)) = entry.split_once('/') {
            let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (length <= most).then_some(Self::Network(address, length));
        }
        // An address of IPv6 has colons of its own.
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().ok()?))
            }
            _ => (entry, None),
        };
        let host = host.trim_matches(['[', ']']);
        if let Ok(address) = host.parse() {
            return Some(Self::Address(address, port));
        }
        let host = host
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(host);
        if host.trim_matches('.').is_empty() {
            return None;
        }
        let below = host.starts_with('.');
        Some(Self::Name {
            dotted: if below {
                host.to_owned()
            } else {
                format!(".{host}")
            },
            itself: !below,
            port,
        })
    }

    fn holds(&self, host: &str, port: u16) -> bool {
        match self {
            Self::Network(network, length) => host
                .parse()
                .is_ok_and(|address| bits(address, *length) == bits(*network, *length)),
            Self::Address(address, only) => {
                host.parse().is_ok_and(|host: IpAddr| host == *address)
                    && only.is_none_or(|only| only == port)
            }
            Self::Name {
                dotted,
                itself,
                port: only,
            } => {
                let named = host.ends_with(dotted) || (*itself && host == &dotted[1..]);
                named && only.is_none_or(|only| only == port)
            }
        }
    }
}

/// The first bits of an address, with its family.
fn bits(address: IpAddr, length: u8) -> (bool, u128) {
    let shift = |most: u8, value: u128| value.checked_shr(u32::from(most - length.min(most))).unwrap_or(0);
    match address {
        IpAddr::V4(address) => (true, shift(32, u128::from(address.to_bits()))),
        IpAddr::V6(address) => (false, shift(128, address.to_bits())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|name| {
            let found = variables.iter().find(|(found, _)| *found == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    /// The proxy for an address, as it is told; nothing: none.
    fn told(proxies: &Proxies, address: &str) -> String {
        match proxies.of(&address.parse().unwrap()) {
            Ok(proxy) => proxy.map(ToString::to_string).unwrap_or_default(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn each_scheme_has_its_variable() {
        let both = proxies(&[
            ("HTTP_PROXY", "a:1"),
            ("https_proxy", "https://b"),
            ("ALL_PROXY", "socks5://c"),
        ]);
        assert_eq!(told(&both, "http://x.example/"), "http://a:1 (HTTP_PROXY)");
        assert_eq!(told(&both, "https://x.example/"), "https://b:443 (https_proxy)");
        let all = proxies(&[("ALL_PROXY", "socks5://c"), ("HTTP_PROXY", "")]);
        assert_eq!(told(&all, "http://x.example/"), "socks5://c:1080 (ALL_PROXY)");
        assert_eq!(told(&proxies(&[]), "https://x.example/"), "");
    }

    #[test]
    fn what_is_on_this_machine_has_none() {
        let all = proxies(&[("ALL_PROXY", "http://p")]);
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert_eq!(told(&all, &format!("http://{host}/")), "", "{host}");
        }
    }

    #[test]
    fn exceptions_are_go_s() {
        let holds = |entry: &str, host: &str, port: u16| Exceptions::read(entry).hold(host, port);
        for (entry, host, port, expected) in [
            ("*", "a.example", 443, true),
            ("*", "10.0.0.1", 443, true),
            ("example.com", "example.com", 443, true),
            ("example.com", "a.EXAMPLE.com", 443, true),
            ("example.com", "notexample.com", 443, false),
            (".example.com", "a.example.com", 443, true),
            (".example.com", "example.com", 443, false),
            ("*.example.com", "a.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("example.com:5000", "example.com", 5000, true),
            ("example.com:5000", "example.com", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("0.0.0.0/0", "11.1.2.3", 443, true),
            ("0.0.0.0/0", "fd00::1", 443, false),
            ("10.0.0.1", "10.0.0.1", 443, true),
            ("10.0.0.1", "10.0.0.11", 443, false),
            ("10.0.0.1:5000", "10.0.0.1", 5000, true),
            ("10.0.0.1:5000", "10.0.0.1", 443, false),
            ("fd00::/16", "[fd00::1]", 443, true),
            ("fd00::1", "[fd00::1]", 443, true),
            ("[fd00::1]:5000", "[fd00::1]", 5000, true),
            ("[fd00::1]:5000", "[fd00::1]", 443, false),
            (" b.example , a.example,", "a.example", 443, true),
            ("a.example:port", "a.example", 443, false),
            ("10.0.0.0/99", "10.0.0.1", 443, false),
            ("", "a.example", 443, false),
            (".", "a.example", 443, false),
        ] {
            assert_eq!(holds(entry, host, port), expected, "{entry} {host}:{port}");
        }
    }

    #[test]
    fn a_user_is_read_and_never_shown() {
        let with = proxies(&[("HTTPS_PROXY", "http://ann%40x:s3c%2Fret@[fd00::1]:3128/path")]);
        assert_eq!(
            told(&with, "https://x.example/"),
            "http://[fd00::1]:3128 (HTTPS_PROXY)"
        );
        let uri = "https://x.example/".parse().unwrap();
        let user = with.of(&uri).ok().flatten().and_then(|proxy| proxy.user.clone());
        assert_eq!(user, Some(("ann@x".into(), "s3c/ret".into())));
    }

    #[test]
    fn a_variable_that_is_wrong_is_an_error_of_who_needs_it() {
        for value in [
            "ftp://p:s3cret@h",
            "http://ann:s3cret@",
            "http://ann:s3cret@h:port",
            "http://a b",
        ] {
            let wrong = proxies(&[("HTTPS_PROXY", value), ("NO_PROXY", "b.example")]);
            let error = told(&wrong, "https://a.example/");
            assert!(error.starts_with("error: HTTPS_PROXY: "), "{value}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
            assert_eq!(told(&wrong, "http://a.example/"), "");
            assert_eq!(told(&wrong, "https://b.example/"), "");
        }
    }
}
