//! Credentials: whose they are, and how a host takes them.
//!
//! ```text
//! request --> 401, WWW-Authenticate: Bearer realm="https://auth.example/token",service="r",scope="repository:x:pull"
//!             GET  realm?service=..&scope=..   (Basic of user and password, or nothing)      -> {"token": ...}
//!             POST realm  grant_type=refresh_token | password                                -> {"access_token": ...}
//!         --> the request again, Authorization: Bearer ...
//! ```
//!
//! Credentials of a request are the registry's that its image is of (`server_address` may name another): a mirror under
//! another address gets none, whatever it asks for. No type here that holds a secret has Debug.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Failure;
use super::challenge::{Challenge, challenges};
use super::client::{Ask, Client, parse_uri};
use super::hosts::Host;
use crate::error::{Error, Result};
use crate::proto::AuthConfig;

/// Bytes of a token service's answer.
const MAX_TOKEN: usize = 1 << 20;
/// Bytes of an answer that is an error.
const MAX_REASON: usize = 64 << 10;

/// What was given to show to a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Credentials {
    None,
    User {
        name: String,
        password: String,
    },
    /// For the token service (`docker login` of some registries gives one).
    Identity(String),
    /// Sent as it is.
    Registry(String),
}

/// The credentials of a pull and where they may go.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Given {
    credentials: Credentials,
    /// `host[:port]` that they are for; `None`: the registry of the image.
    server: Option<String>,
}

impl Given {
    /// Reads those of the request. The first of these that is there counts: identity token, user name, `auth`, registry
    /// token (containerd's order; it knows no registry tokens).
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: `auth` is not base64 of `name:password`.
    pub(crate) fn read(auth: Option<&AuthConfig>) -> Result<Self> {
        let mut given = Self {
            credentials: Credentials::None,
            server: None,
        };
        let Some(auth) = auth else {
            return Ok(given);
        };
        given.server = server(&auth.server_address);
        given.credentials = if !auth.identity_token.is_empty() {
            Credentials::Identity(auth.identity_token.clone())
        } else if !auth.username.is_empty() {
            Credentials::User {
                name: auth.username.clone(),
                password: auth.password.clone(),
            }
        } else if !auth.auth.is_empty() {
            decode(&auth.auth).ok_or_else(|| Error::invalid("auth.auth: must be base64 of name:password"))?
        } else if !auth.registry_token.is_empty() {
            Credentials::Registry(auth.registry_token.clone())
        } else {
            Credentials::None
        };
        Ok(given)
    }

    /// Whether credentials of a pull that name no server go to a host.
    pub(crate) fn would_go(registry: &str, host: &Host) -> bool {
        let some = Self {
            credentials: Credentials::Registry(String::new()),
            server: None,
        };
        some.of(registry, host) != Credentials::None
    }

    /// What a host gets of them.
    pub(super) fn of(&self, registry: &str, host: &Host) -> Credentials {
        let theirs = match self.server.as_deref() {
            // As they are written in configurations of old.
            Some("docker.io" | "index.docker.io" | "registry-1.docker.io") if registry == "docker.io" => {
                host.upstream
            }
            Some(server) if server.eq_ignore_ascii_case(registry) => {
                host.upstream || host.authority.eq_ignore_ascii_case(registry)
            }
            Some(server) => host.authority.eq_ignore_ascii_case(server),
            None => host.upstream || host.authority.eq_ignore_ascii_case(registry),
        };
        if theirs {
            self.credentials.clone()
        } else {
            Credentials::None
        }
    }
}

/// The host of `https://index.docker.io/v1/` or of `registry.example:5000`.
fn server(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    (!authority.is_empty()).then(|| authority.to_owned())
}

fn decode(auth: &str) -> Option<Credentials> {
    let bytes = BASE64.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (name, password) = text.split_once(':')?;
    Some(Credentials::User {
        name: name.into(),
        password: password.trim_matches('\0').into(),
    })
}

/// How requests of one host are authorized, for one repository: what was learned is kept.
pub(super) struct Authorizer {
    credentials: Credentials,
    /// As `library/busybox`.
    repository: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    header: Option<HeaderValue>,
    /// Counts changes of `header`.
    version: u64,
}

impl Authorizer {
    pub(super) fn new(credentials: Credentials, repository: String) -> Self {
        let mut state = State::default();
        if let Credentials::Registry(token) = &credentials {
            state.header = bearer(token);
        }
        Self {
            credentials,
            repository,
            state: Mutex::new(state),
        }
    }

    /// Sends a request of the host; where it asks who we are, once more with the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::send`]; and `Denied`.
    pub(super) async fn send(
        &self,
        client: &Client,
        ask: Ask,
    ) -> std::result::Result<Response<Incoming>, Failure> {
        // A token may have run out during a long pull; a second 401 in a row means what it says.
        for last in [false, true] {
            let (header, version) = {
                let state = self.state.lock().await;
                (state.header.clone(), state.version)
            };
            let mut ask = ask.clone();
            if let Some(header) = header {
                ask = ask.header(AUTHORIZATION, header);
            }
            let response = client.send(ask).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            if last {
                return Err(self.denied(&said(client, response).await));
            }
            let challenges = challenges(response.headers());
            let mut state = self.state.lock().await;
            // Of several requests that were refused at once one asks.
            if state.version == version {
                match self.answer(client, &challenges).await? {
                    Some(header) => state.header = Some(header),
                    None => {
                        drop(state);
                        return Err(self.denied(&said(client, response).await));
                    }
                }
                state.version += 1;
            }
        }
        Err(self.denied("401 Unauthorized"))
    }

    fn denied(&self, what: &str) -> Failure {
        let hint = match self.credentials {
            Credentials::None => "no credentials were given for this host",
            _ => "the credentials given are not accepted",
        };
        Failure::Denied(format!("{what}: {hint}"))
    }

    /// What a challenge wants to see; `None`: there is no answer to it.
    async fn answer(
        &self,
        client: &Client,
        challenges: &[Challenge],
    ) -> std::result::Result<Option<HeaderValue>, Failure> {
        let named = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if matches!(self.credentials, Credentials::Registry(_)) {
            return Ok(None);
        }
        if let Some(challenge) = named("bearer") {
            let token = self.token(client, challenge).await?;
            let header = bearer(&token).ok_or_else(|| Failure::wrong("the token can't be sent"))?;
            return Ok(Some(header));
        }
        if named("basic").is_some()
            && let Credentials::User { name, password } = &self.credentials
        {
            let header = basic(name, password)
                .ok_or_else(|| Failure::wrong("user name and password can't be sent"))?;
            return Ok(Some(header));
        }
        Ok(None)
    }

    async fn token(&self, client: &Client, challenge: &Challenge) -> std::result::Result<String, Failure> {
        let realm = challenge
            .parameter("realm")
            .ok_or_else(|| Failure::wrong("WWW-Authenticate: Bearer without realm"))?;
        let realm_uri = parse_uri(realm)?;
        let plain = match realm_uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => {
                return Err(Failure::wrong(format_args!(
                    "token service {realm:?}: must be https:// or http://"
                )));
            }
        };
        let has_secret = !matches!(self.credentials, Credentials::None);
        if plain && has_secret && client.base().starts_with("https:") {
            let why = format_args!("token service {realm:?}: credentials are not sent by plain HTTP");
            return Err(Failure::wrong(why));
        }
        let form = Form {
            realm,
            service: challenge.parameter("service").unwrap_or_default(),
            scope: challenge
                .parameter("scope")
                .map_or_else(|| format!("repository:{}:pull", self.repository), str::to_owned),
        };
        let ask = match &self.credentials {
            Credentials::Identity(token) => {
                form.post(&[("grant_type", "refresh_token"), ("refresh_token", token)])?
            }
            Credentials::User { name, password } => {
                let header = basic(name, password)
                    .ok_or_else(|| Failure::wrong("user name and password can't be sent"))?;
                let first = self
                    .request(client, form.get(name)?.header(AUTHORIZATION, header))
                    .await;
                match first {
                    // It knows only OAuth 2.
                    Err(Failure::Absent(_)) => {
                        let fields = [
                            ("grant_type", "password"),
                            ("username", name),
                            ("password", password),
                        ];
                        form.post(&fields)?
                    }
                    other => return other,
                }
            }
            Credentials::None | Credentials::Registry(_) => form.get("")?,
        };
        self.request(client, ask).await
    }

    async fn request(&self, client: &Client, ask: Ask) -> std::result::Result<String, Failure> {
        let place = ask.uri.authority().map(ToString::to_string).unwrap_or_default();
        let response = client.send(ask).await?;
        let status = response.status();
        let retry = retry_after(response.headers());
        if !status.is_success() {
            let what = format!("token service {place}: {}", said(client, response).await);
            return Err(match status.as_u16() {
                400 | 401 | 403 => self.denied(&what),
                404 | 405 => Failure::Absent(what),
                429 | 500.. => Failure::Busy(what, retry),
                _ => Failure::Wrong(what),
            });
        }
        let body = client.whole(response.into_body(), MAX_TOKEN).await?;
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        // serde's errors may show what they read.
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| {
            Failure::wrong(format_args!(
                "token service {place}: the answer is not JSON with a token"
            ))
        })?;
        answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Failure::wrong(format_args!("token service {place}: the answer has no token")))
    }
}

/// An answer that is an error: its status, and its reason where the body says one.
pub(super) async fn said(client: &Client, response: Response<Incoming>) -> String {
    let status = response.status();
    let body = client.whole(response.into_body(), MAX_REASON).await;
    format!("{status}{}", body.map(|body| reason(&body)).unwrap_or_default())
}

/// What a registry or a token service says of an error, made short.
///
/// ```text
/// {"errors": [{"code": "DENIED", "message": "..."}]}           distribution-spec, "Error Codes"
/// {"error": "invalid_grant", "error_description": "..."}       RFC 6749, 5.2
/// {"details": "..."} {"message": "..."}                        Docker Hub's token service, GitLab
/// ```
fn reason(body: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let first = &json["errors"][0];
    let fields = [
        &first["code"],
        &first["message"],
        &json["error"],
        &json["error_description"],
        &json["details"],
        &json["message"],
    ];
    let parts: Vec<String> = fields
        .iter()
        .filter_map(|field| field.as_str())
        .map(|text| text.chars().filter(|c| !c.is_control()).take(200).collect())
        .filter(|text: &String| !text.is_empty())
        .take(2)
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(": "))
    }
}

/// What is asked of a token service.
struct Form<'a> {
    realm: &'a str,
    service: &'a str,
    scope: String,
}

impl Form<'_> {
    /// (Docker's registry, "Token Authentication Specification".)
    fn get(&self, account: &str) -> std::result::Result<Ask, Failure> {
        let mut fields = Vec::new();
        if !self.service.is_empty() {
            fields.push(("service", self.service));
        }
        // One for each; in a POST they are one field (RFC 6749, 3.3).
        fields.extend(self.scope.split_whitespace().map(|scope| ("scope", scope)));
        if !account.is_empty() {
            fields.push(("account", account));
        }
        let separator = if self.realm.contains('?') { '&' } else { '?' };
        let uri = parse_uri(&format!("{}{separator}{}", self.realm, encode(&fields)))?;
        Ok(Ask::new(Method::GET, uri))
    }

    /// (The same's "Oauth2 Token Authentication".)
    fn post(&self, fields: &[(&str, &str)]) -> std::result::Result<Ask, Failure> {
        let mut all = vec![
            ("service", self.service),
            ("scope", &self.scope),
            ("client_id", "rtc-cri"),
        ];
        all.extend(fields);
        let mut ask = Ask::new(Method::POST, parse_uri(self.realm)?).header(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        ask.body = Bytes::from(encode(&all));
        Ok(ask)
    }
}

/// `application/x-www-form-urlencoded`.
fn encode(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(format!("Bearer {token}"))
}

fn basic(name: &str, password: &str) -> Option<HeaderValue> {
    secret(format!("Basic {}", BASE64.encode(format!("{name}:{password}"))))
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(hyper::header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(
        date.duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::hosts;
    use super::*;

    fn given(auth: AuthConfig) -> Given {
        Given::read(Some(&auth)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn user(server_address: &str) -> Given {
        given(AuthConfig {
            username: "ann".into(),
            password: "pw".into(),
            server_address: server_address.into(),
            ..AuthConfig::default()
        })
    }

    fn gets(given: &Given, registry: &str, host: &Host) -> bool {
        given.of(registry, host) != Credentials::None
    }

    #[test]
    fn credentials_of_a_request_are_read_in_containerds_order() {
        let is = |auth: AuthConfig, expected: Credentials| assert!(given(auth).credentials == expected);
        let mut auth = AuthConfig {
            registry_token: "r".into(),
            ..AuthConfig::default()
        };
        is(auth.clone(), Credentials::Registry("r".into()));
        auth.auth = BASE64.encode("bob:p:w\0");
        let name = |name: &str, password: &str| Credentials::User {
            name: name.into(),
            password: password.into(),
        };
        is(auth.clone(), name("bob", "p:w"));
        auth.username = "ann".into();
        is(auth.clone(), name("ann", ""));
        auth.identity_token = "i".into();
        is(auth, Credentials::Identity("i".into()));
        is(AuthConfig::default(), Credentials::None);
        for bad in ["%", "Ym9i"] {
            let auth = AuthConfig {
                auth: bad.into(),
                ..AuthConfig::default()
            };
            assert!(Given::read(Some(&auth)).is_err(), "{bad}");
        }
    }

    fn host(authority: &str, upstream: bool) -> Host {
        let mut host = hosts::of(std::path::Path::new("/nonexistent"), authority)
            .unwrap()
            .remove(0);
        host.upstream = upstream;
        host
    }

    #[test]
    fn credentials_are_never_sent_to_a_mirror_of_another_host() {
        let (mirror, itself) = (host("mirror.example", false), host("a.example", true));
        let moved = host("real.example:8443", true);
        for given in [user(""), user("a.example"), user("https://A.example/v2/")] {
            assert!(gets(&given, "a.example", &itself));
            assert!(
                gets(&given, "a.example", &moved),
                "the administrator says where the registry is"
            );
            assert!(!gets(&given, "a.example", &mirror));
        }
        let other = user("other.example");
        assert!(!gets(&other, "a.example", &itself) && !gets(&other, "a.example", &mirror));
        let of_mirror = user("mirror.example");
        assert!(gets(&of_mirror, "a.example", &mirror) && !gets(&of_mirror, "a.example", &itself));
    }

    #[test]
    fn docker_hub_has_many_names() {
        let hub = host("docker.io", true);
        assert_eq!(hub.authority, "registry-1.docker.io");
        for server in [
            "",
            "docker.io",
            "https://index.docker.io/v1/",
            "registry-1.docker.io",
        ] {
            assert!(gets(&user(server), "docker.io", &hub), "{server}");
        }
        assert!(!gets(
            &user("index.docker.io"),
            "a.example",
            &host("a.example", true)
        ));
    }

    #[test]
    fn what_is_asked_of_a_token_service_is_encoded() {
        let form = Form {
            realm: "https://a.example/token?x=1",
            service: "r e",
            scope: "repository:a/b:pull".into(),
        };
        let get = form.get("ann&b").unwrap();
        let expected =
            "https://a.example/token?x=1&service=r%20e&scope=repository%3Aa%2Fb%3Apull&account=ann%26b";
        assert_eq!(get.uri.to_string(), expected);
        let post = form.post(&[("refresh_token", "a+b=")]).unwrap();
        let body = String::from_utf8(post.body.to_vec()).unwrap();
        assert!(
            body.ends_with("&client_id=rtc-cri&refresh_token=a%2Bb%3D"),
            "{body}"
        );
    }

    #[test]
    fn several_scopes_are_several_parameters_and_one_field() {
        let form = Form {
            realm: "https://a.example/token",
            service: "",
            scope: "repository:a:pull repository:b:pull".into(),
        };
        let get = form.get("").unwrap().uri.to_string();
        assert!(
            get.ends_with("?scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull"),
            "{get}"
        );
        let post = form.post(&[]).unwrap();
        let body = String::from_utf8(post.body.to_vec()).unwrap();
        assert!(
            body.contains("scope=repository%3Aa%3Apull%20repository%3Ab%3Apull"),
            "{body}"
        );
    }

    #[test]
    fn what_is_said_of_an_error_is_shown_and_made_harmless() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u001b[31m down"}]}"#,
                " (TOOMANYREQUESTS: slow[31m down)",
            ),
            (
                r#"{"error":"invalid_grant","error_description":"no"}"#,
                " (invalid_grant: no)",
            ),
            (
                r#"{"details":"incorrect username or password"}"#,
                " (incorrect username or password)",
            ),
            (r#"{"errors":[]}"#, ""),
            ("<html>", ""),
            ("[1]", ""),
        ] {
            assert_eq!(reason(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn secrets_in_headers_are_not_printed() {
        for header in [bearer("s3cret").unwrap(), basic("ann", "s3cret").unwrap()] {
            assert_eq!(format!("{header:?}"), "Sensitive");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let mut headers = HeaderMap::new();
        let mut of = |text: &str| {
            headers.insert(hyper::header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("soon"), None);
    }
}
