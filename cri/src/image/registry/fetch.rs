//! What a pull fetches: a registry's hosts are asked in turn, again after a while where that may help; a blob goes on where
//! a broken connection left it.
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue, RANGE};
use hyper::{Method, Response, StatusCode};
use oci_spec::image::{Descriptor, Digest};

use super::Failure;
use super::auth::{Authorizer, Given, retry_after, said};
use super::blob::Blob;
use super::client::{Ask, Client, parse_uri};
use super::digest;
use super::hosts::{self, Host};
use super::manifest::{self, MAX_DOCUMENT};
use super::names::Names;
use super::proxy::Proxies;
use super::rounds::{Rounds, Step};
use crate::error::{Error, Kind, Result};
use crate::image::Wanted;
use crate::image::progress::Progress;
use crate::image::reference::{Object, Reference};
use crate::locked;
use crate::log;

/// A registry, as one pull sees it.
pub(crate) struct Registry {
    reference: Reference,
    hosts: Vec<Served>,
    /// Hosts, by number, that gave what was wrong or could not be reached: the others are asked first.
    out: Mutex<BTreeMap<usize, Failure>>,
}

pub(super) struct Served {
    host: Host,
    pub(super) client: Client,
    authorizer: Authorizer,
}

/// What a tag or digest stands for.
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    /// The document itself, where it came with the answer.
    pub(crate) content: Option<Vec<u8>>,
}

impl Registry {
    /// Reads the hosts' configuration.
    ///
    /// # Errors
    ///
    /// A file that can't be read or understood.
    pub(crate) async fn open(
        reference: &Reference,
        certs_dir: &Path,
        given: Given,
        proxies: Proxies,
        stall: Duration,
    ) -> Result<Self> {
        let (reference, certs_dir) = (reference.clone(), certs_dir.to_owned());
        let make = move || Self::make(reference, &certs_dir, &given, proxies, stall);
        let made = tokio::task::spawn_blocking(make);
        made.await.map_err(|error| Error::new(Kind::Unknown, error))?
    }

    fn make(
        reference: Reference,
        certs_dir: &Path,
        given: &Given,
        proxies: Proxies,
        stall: Duration,
    ) -> Result<Self> {
        let names = Names::new()?;
        let proxies = Arc::new(proxies);
        let mut served = Vec::new();
        for host in hosts::of(certs_dir, &reference.domain)? {
            let client = Client::new(&host, &names, &proxies, stall)
                .map_err(|error| Error::new(Kind::FailedPrecondition, error).context(host.name()))?;
            let credentials = given.of(&reference.domain, &host);
            served.push(Served {
                authorizer: Authorizer::new(credentials, reference.path.clone()),
                client,
                host,
            });
        }
        Ok(Self {
            reference,
            hosts: served,
            out: Mutex::default(),
        })
    }

    /// What the reference stands for now. `ask_only`: by HEAD, for what may be here already.
    ///
    /// # Errors
    ///
    /// Each host that was asked, and why it did not tell.
    pub(crate) async fn resolve(&self, ask_only: bool) -> Result<Resolved> {
        let object = match &self.reference.object {
            Object::Tag(tag) => tag,
            Object::Digest(digest) => digest,
        };
        let by_digest = match &self.reference.object {
            Object::Tag(_) => None,
            Object::Digest(digest) => {
                let parsed = digest.parse::<Digest>();
                Some(parsed.map_err(|error| Error::invalid(format_args!("digest {digest}: {error}")))?)
            }
        };
        let path = format!("manifests/{object}");
        let mut rounds = self.rounds(|host| host.pull && (host.resolve || by_digest.is_some()))?;
        loop {
            let (at, served) = self.next(&mut rounds).await?;
            match self.resolve_at(served, &path, by_digest.as_ref(), ask_only).await {
                Ok(resolved) => {
                    self.succeeded_at(at);
                    return Ok(resolved);
                }
                Err(failure) => self.failed_at(&mut rounds, at, failure),
            }
        }
    }

    /// What each host says to the reference: the digest it stands for there, or why not. None is asked twice.
    pub(crate) async fn probe(&self) -> Vec<String> {
        let (Object::Tag(object) | Object::Digest(object)) = &self.reference.object;
        let path = format!("manifests/{object}");
        let mut answers = Vec::with_capacity(self.hosts.len());
        for served in &self.hosts {
            let answer = self.resolve_at(served, &path, None, false).await;
            let base = served.client.base();
            answers.push(match answer {
                Ok(resolved) => format!("{base}: has it: {}", resolved.digest),
                Err(failure) => format!("{base}: {failure}"),
            });
        }
        answers
    }

    async fn resolve_at(
        &self,
        served: &Served,
        path: &str,
        asked: Option<&Digest>,
        ask_only: bool,
    ) -> std::result::Result<Resolved, Failure> {
        if ask_only {
            match served.ask(&self.reference, Method::HEAD, path, 0).await {
                Ok(response) => {
                    if let Some(digest) = named_digest(&response, asked) {
                        let content = None;
                        return Ok(Resolved { digest, content });
                    }
                }
                // Not every registry knows HEAD.
                Err(Failure::Wrong(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        let response = served.ask(&self.reference, Method::GET, path, 0).await?;
        let named = named_digest(&response, asked);
        let content = served.client.whole(response.into_body(), MAX_DOCUMENT).await?;
        let digest = match named {
            Some(digest) => digest,
            None => parse_digest(&digest::sha256(&content))?,
        };
        digest::verify(&digest, &content)?;
        Ok(Resolved {
            digest,
            content: Some(content),
        })
    }

    /// A manifest or an index, by its descriptor.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.document(&format!("manifests/{digest}"), digest).await
    }

    /// A configuration.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub(crate) async fn configuration(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.document(&format!("blobs/{digest}"), digest).await
    }

    async fn document(&self, path: &str, digest: &Digest) -> Result<Vec<u8>> {
        let mut rounds = self.rounds(|host| host.pull)?;
        loop {
            let (at, served) = self.next(&mut rounds).await?;
            match served.document(&self.reference, path, digest).await {
                Ok(content) => {
                    self.succeeded_at(at);
                    return Ok(content);
                }
                Err(failure) => self.failed_at(&mut rounds, at, failure),
            }
        }
    }

    /// A layer, from the first byte to the last into its unpacker; its digest and size are verified before it is finished.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`], or the unpacker's.
    pub(crate) async fn layer(
        &self,
        descriptor: &Descriptor,
        wanted: &Wanted,
        progress: &Progress,
    ) -> Result<()> {
        let kind = descriptor.media_type().as_ref();
        let Some(writer) = wanted.begin(kind).await? else {
            progress.here(descriptor.size(), 0);
            return Ok(());
        };
        let blob = Blob::new(descriptor, wanted, progress, writer);
        let mut blob = blob.map_err(|failure| self.wrong(failure))?;
        let mut rounds = self.rounds(|host| host.pull)?;
        loop {
            let (at, served) = self.next(&mut rounds).await?;
            let before = blob.taken;
            let Err(failure) = blob.fetch(served, &self.reference).await else {
                self.succeeded_at(at);
                break;
            };
            if blob.taken > before {
                rounds.progressed();
            }
            self.failed_at(&mut rounds, at, failure);
        }
        // Another pull may have brought it meanwhile.
        if let Some(writer) = blob.writer {
            writer.finish().await?;
        }
        progress.here(descriptor.size(), blob.taken);
        Ok(())
    }

    /// Those hosts that may be asked, in their order.
    fn rounds(&self, may: impl Fn(&Host) -> bool) -> Result<Rounds> {
        let all: Vec<usize> = (0..self.hosts.len())
            .filter(|at| may(&self.hosts[*at].host))
            .collect();
        if all.is_empty() {
            let why = format_args!(
                "no host of {} may be asked: see its hosts.toml",
                self.reference.domain
            );
            return Err(Error::text(Kind::FailedPrecondition, why));
        }
        Ok(Rounds::new(self.in_turn(all)))
    }

    /// The host to ask now; waits where it has to.
    async fn next(&self, rounds: &mut Rounds) -> Result<(usize, &Served)> {
        loop {
            match rounds.next() {
                Step::Ask(at) => return Ok((at, &self.hosts[at])),
                Step::Pause(pause) => tokio::time::sleep(pause).await,
                Step::GiveUp => {
                    let named = |(at, failure): (usize, Failure)| (self.hosts[at].client.base(), failure);
                    // Those that were given up earlier were tried, too.
                    let mut all = self.out_locked().clone();
                    all.extend(std::mem::take(&mut rounds.told));
                    let told: Vec<_> = all.into_iter().map(named).collect();
                    return Err(self.failed(&told));
                }
            }
        }
    }

    fn failed_at(&self, rounds: &mut Rounds, at: usize, failure: Failure) {
        log::debug(|| {
            format!(
                "{} from {}: {failure}",
                self.reference,
                self.hosts[at].client.base()
            )
        });
        if matches!(failure, Failure::Unreachable(_) | Failure::Wrong(_)) {
            self.out_locked().insert(at, failure.clone());
        }
        rounds.failed(at, failure);
    }

    fn out_locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Failure>> {
        locked(&self.out)
    }

    /// Those that are out come last.
    fn in_turn(&self, mut all: Vec<usize>) -> Vec<usize> {
        let out = self.out_locked();
        all.sort_by_key(|at| out.contains_key(at));
        all
    }

    /// What was asked of it came, and was right.
    fn succeeded_at(&self, at: usize) {
        self.out_locked().remove(&at);
    }

    /// What was downloaded is not what can be taken.
    pub(crate) fn wrong(&self, failure: Failure) -> Error {
        self.failed(&[(String::new(), failure)])
    }

    /// One error of all that was tried: its kind is ours, or the last host's, which is the registry itself.
    fn failed(&self, told: &[(String, Failure)]) -> Error {
        let decides = told.iter().find(|(_, failure)| failure.is_ours()).or(told.last());
        let kind = decides.map_or(Kind::Unknown, |(_, failure)| failure.kind());
        let mut text = String::new();
        // What the kubelet looks for (cri-api, `ErrRegistryUnavailable`).
        if kind == Kind::Unavailable {
            text.push_str("RegistryUnavailable: ");
        }
        text.push_str(&format!("image {}", self.reference));
        for (at, (host, failure)) in told.iter().enumerate() {
            text.push_str(if at == 0 { ": " } else { "; " });
            if !host.is_empty() && !failure.is_ours() {
                text.push_str(&format!("{host}: "));
            }
            text.push_str(&failure.to_string());
        }
        Error::text(kind, text)
    }
}

impl Served {
    /// Asks for what is at a path of the repository, from a byte on.
    pub(super) async fn ask(
        &self,
        reference: &Reference,
        method: Method,
        path: &str,
        from: u64,
    ) -> std::result::Result<Response<Incoming>, Failure> {
        let address = format!(
            "{}{}/{}/{path}",
            self.client.base(),
            self.host.path,
            reference.path
        );
        let namespace = namespace(&self.host, reference);
        let mut ask = Ask::new(method, parse_uri(&format!("{address}{namespace}"))?);
        if path.starts_with("manifests/") {
            ask = ask.header(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        }
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            ask = ask.header(RANGE, range);
        }
        let response = self.authorizer.send(&self.client, ask).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let wait = retry_after(response.headers());
        let status = response.status();
        let limit = rate_limit(response.headers());
        let mut what = format!("{path}: {}", said(&self.client, response).await);
        if status == StatusCode::TOO_MANY_REQUESTS {
            what.push_str(&limit);
        }
        if let Some(wait) = wait {
            what.push_str(&format!("; it asks to come again in {} s", wait.as_secs()));
        }
        Err(match status.as_u16() {
            401 | 403 => Failure::Denied(what),
            404 | 410 => Failure::Absent(what),
            408 | 429 | 500 | 502..=504 => Failure::Busy(what, wait),
            _ => Failure::Wrong(what),
        })
    }

    async fn document(
        &self,
        reference: &Reference,
        path: &str,
        digest: &Digest,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let response = self.ask(reference, Method::GET, path, 0).await?;
        let content = self.client.whole(response.into_body(), MAX_DOCUMENT).await?;
        digest::verify(digest, &content)?;
        Ok(content)
    }
}

/// Where a host is asked for what the reference stands for.
pub(crate) fn address(host: &Host, reference: &Reference) -> String {
    let (Object::Tag(object) | Object::Digest(object)) = &reference.object;
    let (base, repository) = (host.name() + &host.path, &reference.path);
    format!(
        "{base}/{repository}/manifests/{object}{}",
        namespace(host, reference)
    )
}

/// A host that is not the registry by its own name is told whose image it is (containerd's, and CRI-O's).
fn namespace(host: &Host, reference: &Reference) -> String {
    let known = match reference.domain.as_str() {
        "docker.io" => "registry-1.docker.io",
        domain => domain,
    };
    if host.upstream && host.authority.eq_ignore_ascii_case(known) {
        String::new()
    } else {
        format!("?ns={}", reference.domain)
    }
}

/// How many requests the registry allows, as Docker Hub says it (`ratelimit-limit: 100;w=21600`).
fn rate_limit(headers: &HeaderMap) -> String {
    let number = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?;
        let (number, window) = text.split_once(";w=").unwrap_or((text, ""));
        let window = window
            .parse::<u64>()
            .ok()
            .map(|seconds| format!(" in {seconds} s"));
        Some((number.trim().parse::<u64>().ok()?, window.unwrap_or_default()))
    };
    match (number("ratelimit-limit"), number("ratelimit-remaining")) {
        (Some((limit, window)), Some((left, _))) => {
            format!("; its limit: {limit} requests{window}, {left} left")
        }
        (Some((limit, window)), None) => format!("; its limit: {limit} requests{window}"),
        _ => String::new(),
    }
}

/// The digest that was asked for, or that the header names.
fn named_digest<B>(response: &Response<B>, asked: Option<&Digest>) -> Option<Digest> {
    if let Some(asked) = asked {
        return Some(asked.clone());
    }
    let header = response.headers().get("docker-content-digest")?;
    header.to_str().ok()?.parse().ok()
}

fn parse_digest(text: &str) -> std::result::Result<Digest, Failure> {
    text.parse()
        .map_err(|error| Failure::wrong(format_args!("digest {text}: {error}")))
}
