//! Which hosts are asked for a registry's images: containerd's `hosts.toml`, and Docker's certificate files.
//!
//! ```text
//! certs.d/registry.example_5000_/hosts.toml   a registry with a port; or registry.example:5000/
//! certs.d/registry.example/{ca.crt,client.cert,client.key}
//! certs.d/_default/hosts.toml                 every registry that has no directory
//! ```
//!
//! Read for each pull. The hosts are asked in the order of the file, `server` (left out: the registry itself) last. Where
//! containerd goes on without a file that it can't read, and so without its mirrors, the pull fails here and says why.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::tls;
use super::values::{capabilities, duration, headers, pairs, texts, truth};
use crate::error::{Error, Kind, Result};
use crate::log;

/// How long to wait for a connection (containerd's default).
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A host that may have the images of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) scheme: Scheme,
    /// `host[:port]`.
    pub(crate) authority: String,
    /// Of its API, as `/v2`; without a slash at its end.
    pub(crate) path: String,
    /// It may say what a tag means.
    pub(crate) resolve: bool,
    /// Content may be fetched from it.
    pub(crate) pull: bool,
    /// It is the registry itself: the one that credentials are for, whatever its address is.
    pub(crate) upstream: bool,
    pub(crate) tls: TlsFiles,
    /// Sent with each request of this host and no other.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) dial_timeout: Duration,
    /// What says so, for a person: a file and its key.
    pub(crate) source: String,
}

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// HTTPS, and HTTP where the other side speaks no TLS.
    HttpsThenHttp,
}

/// What a host's TLS needs besides the system's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// PEM files of authorities.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of a certificate and of its key, which may be the same.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    /// `None`: as is usual, and not said.
    pub(crate) skip_verify: Option<bool>,
}

impl Host {
    /// As it is named to a person.
    pub(crate) fn name(&self) -> String {
        let scheme = if self.scheme == Scheme::Http {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{}", self.authority)
    }

    /// Why its TLS can't be set up: a file that is not what it must be. It reads them.
    pub(crate) fn unusable(&self) -> Option<anyhow::Error> {
        (self.scheme != Scheme::Http)
            .then(|| tls::configuration(&self.tls).err())
            .flatten()
    }

    fn new() -> Self {
        Self {
            scheme: Scheme::Https,
            authority: String::new(),
            path: "/v2".into(),
            resolve: true,
            pull: true,
            upstream: false,
            tls: TlsFiles::default(),
            headers: Vec::new(),
            dial_timeout: DIAL_TIMEOUT,
            source: "built in: the registry itself".into(),
        }
    }

    /// With TLS options, what is said to be plain HTTP is tried by HTTPS first, as containerd does.
    fn settle(mut self) -> Self {
        let options = self.tls != TlsFiles::default();
        if self.scheme == Scheme::Http && options && port(&self.authority) != Some("80") {
            self.scheme = Scheme::HttpsThenHttp;
        }
        self
    }
}

/// The hosts for a registry, in the order in which they are asked.
///
/// # Errors
///
/// A file that can't be read, or says what is not known: its path and the key.
pub(crate) fn of(certs_dir: &Path, registry: &str) -> Result<Vec<Host>> {
    let Some(directory) = directory(certs_dir, registry)? else {
        return Ok(vec![default(registry, TlsFiles::default())]);
    };
    let path = directory.join("hosts.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.is_empty() => {}
        Ok(text) => {
            return parse(&text, &directory, registry).map_err(|why| wrong(&path, why));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(&path, error)),
    }
    let tls = certificate_files(&directory).map_err(|error| wrong(&directory, error))?;
    let mut host = default(registry, tls);
    if host.tls != default(registry, TlsFiles::default()).tls {
        host.source
            .push_str(&format!("; certificates: {}", directory.display()));
    }
    Ok(vec![host])
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::text(
        Kind::FailedPrecondition,
        format_args!("{}: {why}", path.display()),
    )
}

/// The first of [`places`] that is there.
///
/// # Errors
///
/// One that can't be looked at.
pub(crate) fn directory(certs_dir: &Path, registry: &str) -> Result<Option<PathBuf>> {
    for path in places(certs_dir, registry) {
        match path.try_exists() {
            Ok(true) => return Ok(Some(path)),
            Ok(false) => {}
            Err(error) => return Err(wrong(&path, error)),
        }
    }
    Ok(None)
}

/// Where a registry's directory is looked for, in this order.
pub(crate) fn places(certs_dir: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    names.into_iter().map(|name| certs_dir.join(name)).collect()
}

/// The registry itself, where no file says otherwise.
fn default(registry: &str, tls: TlsFiles) -> Host {
    let mut host = Host {
        upstream: true,
        tls,
        ..Host::new()
    };
    if registry == "docker.io" {
        host.authority = "registry-1.docker.io".into();
        return host;
    }
    host.authority = registry.into();
    if is_loopback(registry) {
        host.scheme = match port(registry) {
            None | Some("443") => Scheme::Https,
            Some("80") => {
                return Host {
                    scheme: Scheme::Http,
                    ..host
                };
            }
            Some(_) => Scheme::HttpsThenHttp,
        };
        // A file that says no is obeyed, where containerd overrules it.
        host.tls.skip_verify.get_or_insert(true);
    }
    host
}

fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    (!port.contains(']')).then_some(port)
}

/// `localhost`, `127.0.0.0/8` or `::1`, with or without a port.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match port(authority) {
        Some(port) => &authority[..authority.len() - port.len() - 1],
        None => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Docker's: `*.crt` are authorities, `*.cert` certificates of ours with their `*.key`.
fn certificate_files(directory: &Path) -> std::io::Result<TlsFiles> {
    let mut tls = TlsFiles::default();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(tls),
        Err(error) => return Err(error),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = if key.exists() { key } else { path.clone() };
                tls.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

type Parsed<T> = std::result::Result<T, String>;

fn parse(text: &str, directory: &Path, registry: &str) -> Parsed<Vec<Host>> {
    let mut file: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let named = match file.remove("host") {
        None => Table::new(),
        Some(Value::Table(named)) => named,
        Some(_) => return Err("host: must be tables, as [host.\"https://mirror.example\"]".into()),
    };
    let file_name = directory.join("hosts.toml").display().to_string();
    let mut hosts = Vec::with_capacity(named.len() + 1);
    for (url, options) in named {
        let Value::Table(options) = options else {
            return Err(format!("host.{url:?}: must be a table"));
        };
        let mut parsed =
            host(Some(&url), options, directory).map_err(|why| format!("host.{url:?}: {why}"))?;
        parsed.source = format!("{file_name}: host.{url:?}");
        hosts.push(parsed);
    }
    let server = match file.remove("server") {
        None => None,
        Some(Value::String(server)) if server.is_empty() => None,
        Some(Value::String(server)) => Some(server),
        Some(_) => return Err("server: must be a text".into()),
    };
    let has_options = !file.is_empty();
    let upstream = host(server.as_deref(), file, directory).map_err(|why| format!("server: {why}"))?;
    hosts.push(if server.is_some() {
        Host {
            upstream: true,
            source: format!("{file_name}: server"),
            ..upstream
        }
    } else {
        let mut itself = default(registry, upstream.tls);
        if has_options {
            itself.source.push_str(&format!("; options: {file_name}"));
        }
        Host {
            resolve: upstream.resolve,
            pull: upstream.pull,
            headers: upstream.headers,
            dial_timeout: upstream.dial_timeout,
            ..itself
        }
    });
    Ok(hosts)
}

/// A host with its options; no URL: only the options.
fn host(url: Option<&str>, options: Table, directory: &Path) -> Parsed<Host> {
    let mut host = Host::new();
    let mut override_path = false;
    for (key, value) in options {
        let named = |why: String| format!("{key}: {why}");
        match key.as_str() {
            "capabilities" => (host.resolve, host.pull) = capabilities(&value).map_err(named)?,
            "ca" => {
                let files = texts(&value).map_err(named)?;
                host.tls.ca = files.iter().map(|file| directory.join(file)).collect();
            }
            "client" => host.tls.client = pairs(&value, directory).map_err(named)?,
            "skip_verify" => host.tls.skip_verify = Some(truth(&value).map_err(named)?),
            "header" => host.headers = headers(&value).map_err(named)?,
            "override_path" => override_path = truth(&value).map_err(named)?,
            "dial_timeout" => {
                let text = value.as_str().ok_or("dial_timeout: must be a text, as \"5s\"")?;
                host.dial_timeout = duration(text).map_err(named)?;
            }
            // Newer containerds have more.
            _ => log::warn(format_args!(
                "{}/hosts.toml: {key}: is not known",
                directory.display()
            )),
        }
    }
    if let Some(url) = url {
        (host.scheme, host.authority, host.path) = split_url(url, override_path)?;
    }
    Ok(host.settle())
}

/// The scheme, the authority and the path of the API.
fn split_url(url: &str, override_path: bool) -> Parsed<(Scheme, String, String)> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some((scheme, _)) => return Err(format!("scheme {scheme:?}: must be https or http")),
        None => (Scheme::Https, url),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let parsed = authority.parse::<hyper::http::uri::Authority>();
    let has_place = |parsed: hyper::http::uri::Authority| {
        !parsed.host().is_empty() && (parsed.port_u16().is_some() || parsed.host() == authority)
    };
    if authority.contains('@') || !parsed.is_ok_and(has_place) {
        return Err(format!("{authority:?} is not a host or host:port"));
    }
    let mut path = path.trim_end_matches('/').to_owned();
    if path.contains(['?', '#']) || path.parse::<hyper::Uri>().is_err() && !path.is_empty() {
        return Err(format!("{path:?} is not a path"));
    }
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Ok((scheme, authority.into(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Host> {
        parse(text, Path::new("/certs.d/r"), "registry.example").unwrap()
    }

    fn names(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|host| host.name() + &host.path).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
        let hosts = parsed(
            "server = \"https://up.example\"\n[host.\"https://z.example\"]\n[host.\"http://a.example:5000\"]\n\
             [host.\"m.example/proxy\"]\n[host.\"https://n.example/v2/\"]\n",
        );
        let expected = [
            "https://z.example/v2",
            "http://a.example:5000/v2",
            "https://m.example/proxy/v2",
            "https://n.example/v2",
            "https://up.example/v2",
        ];
        assert_eq!(names(&hosts), expected);
        let upstream: Vec<bool> = hosts.iter().map(|host| host.upstream).collect();
        assert_eq!(upstream, [false, false, false, false, true]);
    }

    #[test]
    fn without_a_server_the_registry_itself_is_asked_last() {
        let hosts = parsed("skip_verify = true\n[host.\"https://m.example\"]\n");
        assert_eq!(
            names(&hosts),
            ["https://m.example/v2", "https://registry.example/v2"]
        );
        assert_eq!(hosts[1].tls.skip_verify, Some(true));
        assert_eq!(hosts[0].tls.skip_verify, None);
        let hub = parse("[host.\"https://m.example\"]", Path::new("/"), "docker.io").unwrap();
        assert_eq!(names(&hub)[1], "https://registry-1.docker.io/v2");
    }

    #[test]
    fn every_option_is_read() {
        let hosts = parsed(
            "[host.\"https://m.example/api\"]\n capabilities = [\"Pull\"]\n ca = \"ca.pem\"\n \
             client = [[\"c.pem\", \"/k.pem\"], [\"d.pem\", \"d.key\"]]\n skip_verify = false\n override_path = true\n \
             dial_timeout = \"1m1.5s\"\n [host.\"https://m.example/api\".header]\n x-one = \"1\"\n x-two = [\"2\", \"3\"]\n",
        );
        let host = &hosts[0];
        assert_eq!(host.path, "/api");
        assert_eq!((host.resolve, host.pull), (false, true));
        assert_eq!(host.tls.ca, [PathBuf::from("/certs.d/r/ca.pem")]);
        let pair = |a: &str, b: &str| (PathBuf::from(a), PathBuf::from(b));
        let pairs = [
            pair("/certs.d/r/c.pem", "/k.pem"),
            pair("/certs.d/r/d.pem", "/certs.d/r/d.key"),
        ];
        assert_eq!(host.tls.client, pairs);
        assert_eq!(host.tls.skip_verify, Some(false));
        assert_eq!(host.dial_timeout, Duration::from_millis(61_500));
        let header = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            host.headers,
            [header("x-one", "1"), header("x-two", "2"), header("x-two", "3")]
        );
        let one = parsed("[host.\"https://m.example\"]\nclient = \"both.pem\"\nca = [\"a\", \"b\"]");
        assert_eq!(
            one[0].tls.client,
            [pair("/certs.d/r/both.pem", "/certs.d/r/both.pem")]
        );
        assert_eq!(one[0].tls.ca.len(), 2);
        let two = parsed("[host.\"https://m.example\"]\nclient = [\"both.pem\", [\"c.pem\", \"\"]]");
        let both = ["/certs.d/r/both.pem", "/certs.d/r/c.pem"].map(|file| pair(file, file));
        assert_eq!(two[0].tls.client, both);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (text, expected) in [
            ("server = 1", "server: must be a text"),
            ("host = 1", "host: must be tables"),
            ("[host]\n\"https://a\" = 1", "must be a table"),
            ("[host.\"ftp://a\"]", "scheme \"ftp\""),
            ("[host.\"https://\"]", "is not a host"),
            ("[host.\"https://a:port\"]", "is not a host"),
            ("[host.\"https://a:99999\"]", "is not a host"),
            ("[host.\"https://ann:pw@a\"]", "is not a host"),
            ("[host.\"https://a/b?c\"]", "is not a path"),
            (
                "[host.\"https://a\"]\ncapabilities = [\"eat\"]",
                "capabilities: \"eat\"",
            ),
            ("[host.\"https://a\"]\nca = 1", "ca: must be a text"),
            (
                "[host.\"https://a\"]\nclient = [[\"a\"]]",
                "client: must be files",
            ),
            (
                "[host.\"https://a\"]\nskip_verify = \"yes\"",
                "skip_verify: must be true",
            ),
            (
                "[host.\"https://a\"]\ndial_timeout = \"5\"",
                "dial_timeout: \"5\" is not a time",
            ),
            ("[host.\"https://a\"]\ndial_timeout = \"0s\"", "is not a time"),
            (
                "[host.\"https://a\".header]\n\"a b\" = \"c\"",
                "is not the name of a header",
            ),
            ("server = ", "line 1"),
        ] {
            let error = parse(text, Path::new("/"), "r").unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_bad_header_is_not_told_with_its_value() {
        let error = parse(
            "[host.\"https://a\".header]\nauthorization = \"s3cret\\u0000\"",
            Path::new("/"),
            "r",
        )
        .unwrap_err();
        assert!(
            error.contains("authorization") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn loopback_registries_may_speak_plain_http() {
        let host = |registry: &str| default(registry, TlsFiles::default());
        assert_eq!(host("localhost:5000").scheme, Scheme::HttpsThenHttp);
        assert_eq!(host("127.0.0.2:5000").scheme, Scheme::HttpsThenHttp);
        assert_eq!(host("[::1]:5000").scheme, Scheme::HttpsThenHttp);
        assert_eq!(host("localhost:80").scheme, Scheme::Http);
        assert_eq!(host("localhost").scheme, Scheme::Https);
        assert_eq!(host("localhost:443").scheme, Scheme::Https);
        assert_eq!(host("localhost").tls.skip_verify, Some(true));
        assert_eq!(host("registry.example:5000").scheme, Scheme::Https);
        assert_eq!(host("registry.example:5000").tls.skip_verify, None);
        assert_eq!(host("localhost.example:5000").scheme, Scheme::Https);
    }

    #[test]
    fn a_file_that_wants_a_loopback_registry_verified_is_obeyed() {
        let hosts = parse("skip_verify = false", Path::new("/"), "localhost:5000").unwrap();
        assert_eq!(hosts[0].tls.skip_verify, Some(false));
        let hosts = parse("dial_timeout = \"1s\"", Path::new("/"), "localhost:5000").unwrap();
        assert_eq!(hosts[0].tls.skip_verify, Some(true));
    }

    #[test]
    fn each_host_says_where_it_is_from() {
        let hosts = parsed("[host.\"https://m.example\"]\n");
        assert_eq!(
            hosts[0].source,
            "/certs.d/r/hosts.toml: host.\"https://m.example\""
        );
        assert_eq!(hosts[1].source, "built in: the registry itself");
        let hosts = parsed("server = \"https://s.example\"");
        assert_eq!(hosts[0].source, "/certs.d/r/hosts.toml: server");
        let hosts = parsed("skip_verify = true");
        assert_eq!(
            hosts[0].source,
            "built in: the registry itself; options: /certs.d/r/hosts.toml"
        );
    }

    #[test]
    fn plain_http_with_tls_options_is_tried_by_tls_first() {
        let hosts = parsed(
            "[host.\"http://a:5000\"]\nca = \"c\"\n[host.\"http://b:80\"]\nca = \"c\"\n[host.\"http://c\"]\n",
        );
        let schemes: Vec<Scheme> = hosts.iter().map(|host| host.scheme).collect();
        assert_eq!(schemes[..3], [Scheme::HttpsThenHttp, Scheme::Http, Scheme::Http]);
    }

    #[test]
    fn the_directory_of_a_registry_is_found() {
        let root = std::env::temp_dir().join(format!("rtc-cri-hosts-{}", std::process::id()));
        for name in [
            "a.example_5000_",
            "a.example:5000",
            "b.example:5000",
            "_default",
            "c.example",
        ] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::write(root.join("c.example/z.crt"), "").unwrap();
        std::fs::write(root.join("c.example/client.cert"), "").unwrap();
        std::fs::write(root.join("c.example/client.key"), "").unwrap();
        std::fs::write(root.join("_default/hosts.toml"), "[host.\"http://m.example\"]").unwrap();
        let found = |registry: &str| directory(&root, registry).unwrap().unwrap();
        assert_eq!(found("a.example:5000"), root.join("a.example_5000_"));
        assert_eq!(found("b.example:5000"), root.join("b.example:5000"));
        assert_eq!(found("b.example"), root.join("_default"));
        assert_eq!(
            names(&of(&root, "b.example").unwrap()),
            ["http://m.example/v2", "https://b.example/v2"]
        );
        let certificates = &of(&root, "c.example").unwrap()[0];
        assert_eq!(certificates.tls.ca, [root.join("c.example/z.crt")]);
        let pair = (
            root.join("c.example/client.cert"),
            root.join("c.example/client.key"),
        );
        assert_eq!(certificates.tls.client, [pair]);
        let none = of(&root.join("none"), "docker.io").unwrap();
        assert_eq!(names(&none), ["https://registry-1.docker.io/v2"]);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
