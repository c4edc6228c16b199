//! AppArmor: which profile a container runs under.

use super::Facts;
use crate::error::{Error, Kind, Result};
use crate::proto::LinuxContainerSecurityContext;
use crate::proto::security_profile::ProfileType;

/// The profile that is ours.
pub(crate) const DEFAULT: &str = "rtc-default";
const FIELD: &str = "config.linux.security_context.apparmor";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Nothing is said.
    Unset,
    Unconfined,
    Default,
    Profile(String),
}

/// The name of the profile; `loaded` says whether the kernel has it. Nothing said is the default, where there is AppArmor:
/// the field's way, from before CRI could say it.
///
/// # Errors
///
/// `FailedPrecondition`: there is no AppArmor, or not the profile; `InvalidArgument`: what is asked for is none.
pub(super) fn profile(
    facts: &Facts,
    context: &LinuxContainerSecurityContext,
    loaded: impl Fn(&str) -> bool,
) -> Result<Option<String>> {
    let wanted = wanted(context)?;
    if !facts.apparmor {
        return match wanted {
            Wanted::Unset | Wanted::Unconfined => Ok(None),
            Wanted::Default | Wanted::Profile(_) => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("{FIELD}: this node has no AppArmor: leave it out, or say Unconfined"),
            )),
        };
    }
    match wanted {
        Wanted::Unconfined => Ok(None),
        Wanted::Unset | Wanted::Default if context.privileged => Ok(None),
        Wanted::Unset | Wanted::Default => Ok(Some(DEFAULT.to_owned())),
        Wanted::Profile(name) if loaded(&name) => Ok(Some(name)),
        Wanted::Profile(name) => Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("{FIELD}.localhost_ref: {name:?}: is not loaded: load it with apparmor_parser"),
        )),
    }
}

fn wanted(context: &LinuxContainerSecurityContext) -> Result<Wanted> {
    let Some(profile) = &context.apparmor else {
        #[expect(deprecated, reason = "clients from before 1.30 have only this")]
        return by_name(&context.apparmor_profile);
    };
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        Error::invalid(format_args!(
            "{FIELD}.profile_type: {}: is none",
            profile.profile_type
        ))
    })?;
    if kind != ProfileType::Localhost && !profile.localhost_ref.is_empty() {
        return Err(Error::invalid(format_args!(
            "{FIELD}.localhost_ref: {:?}: is for profile_type Localhost only",
            profile.localhost_ref
        )));
    }
    match kind {
        ProfileType::RuntimeDefault => Ok(Wanted::Default),
        ProfileType::Unconfined => Ok(Wanted::Unconfined),
        ProfileType::Localhost => named(&profile.localhost_ref),
    }
}

/// The names of before: `runtime/default`, `unconfined`, `localhost/<name>`.
fn by_name(name: &str) -> Result<Wanted> {
    match name {
        "" => Ok(Wanted::Unset),
        "runtime/default" => Ok(Wanted::Default),
        "unconfined" => Ok(Wanted::Unconfined),
        other if other.starts_with("localhost/") => named(other),
        other => Err(Error::invalid(format_args!(
            "config.linux.security_context.apparmor_profile: {other:?}: must be runtime/default, unconfined or \
             localhost/<name>"
        ))),
    }
}

fn named(name: &str) -> Result<Wanted> {
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid(format_args!(
            "{FIELD}.localhost_ref: {name:?}: is no name of a profile"
        )));
    }
    Ok(Wanted::Profile(name.to_owned()))
}

/// The names of the profiles that the kernel has.
///
/// # Errors
///
/// securityfs is not mounted.
pub(super) fn loaded() -> Result<Vec<String>> {
    const PATH: &str = "/sys/kernel/security/apparmor/profiles";
    let text = std::fs::read_to_string(PATH).map_err(|error| {
        Error::text(
            Kind::FailedPrecondition,
            format_args!("{FIELD}: {PATH}: {error}: mount securityfs"),
        )
    })?;
    // `name (enforce)`
    Ok(text
        .lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .map(|(name, _)| name.to_owned())
        .collect())
}
