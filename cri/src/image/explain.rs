//! `rtc-cri image explain`: what a pull would do, for a person. Pure, but for reading `certs.d`.
//!
//! ```text
//! reference -> hosts.toml -> endpoints, in their order; each with what is allowed, TLS, headers' names, proxy, credentials
//! ```
//!
//! It goes through what a pull goes through (`registry/`), so that it can't tell anything else than what happens. No value
//! of a header, and no password of a proxy, is in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reference::{Object, Reference};
use super::registry::auth::Given;
use super::registry::fetch::{self, Registry};
use super::registry::hosts::{self, Host, Scheme};
use super::registry::proxy::Proxies;
use crate::error::Result;

/// Whose proxies are meant.
pub(crate) struct Environment {
    /// For a person: `rtc-cri (pid 12)`.
    pub(crate) whose: String,
    pub(crate) proxies: Proxies,
}

/// What a pull of a reference would ask, in its order.
///
/// # Errors
///
/// The reference, or the `hosts.toml` of its registry: as PullImage answers them.
pub(crate) fn explain(name: &str, certs_dir: &Path, environment: &Environment) -> Result<String> {
    let reference = Reference::parse(name)?;
    let hosts = hosts::of(certs_dir, &reference.domain)?;
    let mut text = format!("image     {reference}\n");
    text.push_str(&places(certs_dir, &reference.domain)?);
    text.push_str(&format!(
        "proxies   those of the environment of {}\n",
        environment.whose
    ));
    for (at, host) in hosts.iter().enumerate() {
        text.push_str(&format!("\n{}  {}\n", at + 1, fetch::address(host, &reference)));
        for (what, value) in told(host, &reference, &environment.proxies) {
            text.push_str(&format!("   {what:<12} {value}\n"));
        }
    }
    text.push_str(
        "\nCredentials come with each pull, and rtc-cri keeps none: from the kubelet (imagePullSecrets, credential \
         provider\nplugins, its config.json), crictl pull --creds, rtc-cri image pull --user.\n",
    );
    Ok(text)
}

/// Asks each endpoint for the image, without credentials; a line for each.
///
/// # Errors
///
/// As [`explain`].
pub(crate) async fn probe(
    name: &str,
    certs_dir: &Path,
    environment: Environment,
    stall: Duration,
) -> Result<String> {
    let reference = Reference::parse(name)?;
    let given = Given::read(None)?;
    let registry = Registry::open(&reference, certs_dir, given, environment.proxies, stall).await?;
    let mut text = String::from("\nasked just now, without credentials:\n");
    for (at, answer) in registry.probe().await.into_iter().enumerate() {
        text.push_str(&format!("{}  {answer}\n", at + 1));
    }
    Ok(text)
}

/// Where the registry's files are looked for; the first that is there counts.
fn places(certs_dir: &Path, registry: &str) -> Result<String> {
    let all = hosts::places(certs_dir, registry);
    let found = hosts::directory(certs_dir, registry)?;
    let found = all.iter().position(|place| Some(place) == found.as_ref());
    let mut text = String::new();
    for (at, place) in all.iter().enumerate() {
        let what = match found {
            Some(found) if at > found => "is not looked at",
            Some(found) if at == found && place.join("hosts.toml").exists() => "has a hosts.toml",
            Some(found) if at == found => "is there, without a hosts.toml",
            _ => "is not there",
        };
        let head = if at == 0 { "certs.d" } else { "" };
        text.push_str(&format!("{head:<9} {}: {what}\n", place.display()));
    }
    Ok(text)
}

fn told(host: &Host, reference: &Reference, proxies: &Proxies) -> Vec<(&'static str, String)> {
    let mut told = vec![
        ("from", host.source.clone()),
        ("asked for", asked_for(host, reference)),
    ];
    told.push(("TLS", tls(host)));
    let pairs: Vec<_> = host
        .tls
        .client
        .iter()
        .map(|(certificate, key)| pair(certificate, key))
        .collect();
    if !pairs.is_empty() {
        told.push(("certificate", pairs.join(", ")));
    }
    if !host.headers.is_empty() {
        let mut names: Vec<_> = host.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.dedup();
        told.push(("headers", names.join(", ")));
    }
    let address = fetch::address(host, reference).parse();
    let proxy = match address.as_ref().map(|uri| proxies.of(uri)) {
        Ok(Ok(None)) => "none".into(),
        Ok(Ok(Some(proxy))) => proxy.to_string(),
        Ok(Err(why)) => format!("the pull fails: {why}"),
        Err(why) => why.to_string(),
    };
    told.push(("proxy", proxy));
    told.push((
        "connection",
        format!("within {} s", host.dial_timeout.as_secs_f32()),
    ));
    told.push(("credentials", credentials(host, reference)));
    if let Some(error) = host.unusable() {
        told.push(("PROBLEM", format!("the pull fails: {error:#}")));
    }
    told
}

fn asked_for(host: &Host, reference: &Reference) -> String {
    let tag = matches!(reference.object, Object::Tag(_));
    match (host.pull, host.resolve) {
        (true, true) if tag => "what the tag means, and content",
        (true, true) => "content",
        (true, false) if tag => "content, not what the tag means (capabilities: no resolve)",
        (true, false) => "content (capabilities: no resolve, which a digest does not need)",
        (false, _) => "nothing (capabilities: no pull)",
    }
    .into()
}

fn tls(host: &Host) -> String {
    let how = match (host.scheme, host.tls.skip_verify) {
        (Scheme::Http, _) => return "none: plain HTTP".into(),
        (_, Some(true)) => "not verified (skip_verify, or a registry of this machine)".into(),
        _ if host.tls.ca.is_empty() => "verified by the system's authorities".to_owned(),
        _ => format!("verified by the system's authorities and {}", list(&host.tls.ca)),
    };
    match host.scheme {
        Scheme::HttpsThenHttp => format!("{how}; plain HTTP where the host speaks no TLS"),
        _ => how,
    }
}

fn credentials(host: &Host, reference: &Reference) -> String {
    let registry = &reference.domain;
    let fixed = host
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let of_pull = if Given::would_go(registry, host) {
        "those of the pull, when it asks for them".to_owned()
    } else {
        format!("none: those of a pull are for {registry}, unless their server address is this host")
    };
    if fixed {
        format!("the fixed header authorization; then {of_pull}")
    } else {
        of_pull
    }
}

fn pair(certificate: &Path, key: &Path) -> String {
    if certificate == key {
        certificate.display().to_string()
    } else {
        format!("{} with {}", certificate.display(), key.display())
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
