//! Seccomp: which profile a container runs under.
//!
//! `RuntimeDefault` is ours ([`super::seccomp_default`]), `Localhost` a file of the node, and none at all is unconfined, as
//! for every other runtime: the kubelet says `RuntimeDefault` where it is meant. A privileged container has none.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxSeccomp};

use super::{Facts, seccomp_default, security_profile};
use crate::error::{Error, Kind, Result};
use crate::proto::security_profile::ProfileType;
use crate::proto::{ContainerConfig, LinuxContainerSecurityContext};

/// The most bytes of a profile.
const MOST: u64 = 1 << 20;
const FIELD: &str = "config.linux.security_context.seccomp";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Unconfined,
    Default,
    File(PathBuf),
}

/// Reads a profile. Off the runtime's threads: it is on a disk.
///
/// # Errors
///
/// `InvalidArgument`: it can't be read, or is too long.
pub(super) async fn read(path: &Path) -> Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let invalid = |error: std::io::Error| {
        Error::invalid(format_args!("{FIELD}.localhost_ref: {}: {error}", path.display()))
    };
    let file = tokio::fs::File::open(path).await.map_err(invalid)?;
    let mut text = Vec::new();
    file.take(MOST + 1)
        .read_to_end(&mut text)
        .await
        .map_err(invalid)?;
    if text.len() as u64 > MOST {
        return Err(Error::invalid(format_args!(
            "{FIELD}.localhost_ref: {}: is longer than {MOST} bytes",
            path.display()
        )));
    }
    Ok(text)
}

/// The file of the profile, where it is one.
///
/// # Errors
///
/// `InvalidArgument`: no absolute path, or a profile of no known kind.
pub(super) fn file(config: &ContainerConfig) -> Result<Option<PathBuf>> {
    let context = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    Ok(match context.map(wanted).transpose()? {
        Some(Wanted::File(path)) => Some(path),
        _ => None,
    })
}

/// The profile for the container; `text` is what was read of its file.
///
/// # Errors
///
/// `InvalidArgument`: no profile; `FailedPrecondition`: the kernel has no seccomp.
pub(super) fn profile(
    facts: &Facts,
    context: &LinuxContainerSecurityContext,
    held: impl Fn(Capability) -> bool,
    text: Option<&[u8]>,
) -> Result<Option<LinuxSeccomp>> {
    let wanted = wanted(context)?;
    if wanted == Wanted::Unconfined {
        return Ok(None);
    }
    if !facts.seccomp {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("{FIELD}: the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"),
        ));
    }
    match wanted {
        Wanted::Unconfined => Ok(None),
        Wanted::Default => Ok(Some(seccomp_default::profile(held))),
        Wanted::File(path) => {
            let text = text.unwrap_or_default();
            serde_json::from_slice(text).map(Some).map_err(|error| {
                Error::invalid(format_args!("{FIELD}.localhost_ref: {}: {error}", path.display()))
            })
        }
    }
}

fn wanted(context: &LinuxContainerSecurityContext) -> Result<Wanted> {
    if context.privileged {
        return Ok(Wanted::Unconfined);
    }
    let Some(profile) = &context.seccomp else {
        #[expect(deprecated, reason = "clients from before 1.19 have only this")]
        return by_name(&context.seccomp_profile_path);
    };
    match security_profile::kind(FIELD, profile)? {
        ProfileType::RuntimeDefault => Ok(Wanted::Default),
        ProfileType::Unconfined => Ok(Wanted::Unconfined),
        ProfileType::Localhost => at(&profile.localhost_ref),
    }
}

/// The names of before: `runtime/default`, `docker/default`, `unconfined`, `localhost/<path>`.
fn by_name(name: &str) -> Result<Wanted> {
    match name {
        "" | "unconfined" => Ok(Wanted::Unconfined),
        "runtime/default" | "docker/default" => Ok(Wanted::Default),
        other => match other.strip_prefix("localhost/") {
            Some(path) => at(path),
            None => Err(Error::invalid(format_args!(
                "config.linux.security_context.seccomp_profile_path: {other:?}: must be runtime/default, unconfined or \
                 localhost/<path>"
            ))),
        },
    }
}

fn at(path: &str) -> Result<Wanted> {
    // The kubelet's own prefix of before.
    let path = Path::new(path.strip_prefix("localhost/").unwrap_or(path));
    if !path.is_absolute() {
        return Err(Error::invalid(format_args!(
            "{FIELD}.localhost_ref: {:?}: must be an absolute path",
            path.display()
        )));
    }
    Ok(Wanted::File(path.to_owned()))
}
