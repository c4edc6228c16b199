//! AppArmor: which profile a container runs under.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::{Facts, security_profile};
use crate::error::{Error, Kind, Result};
use crate::proto::LinuxContainerSecurityContext;
use crate::proto::security_profile::ProfileType;

/// The profile that is ours.
pub(crate) const DEFAULT: &str = "rtc-default";
/// What the kernel has (securityfs).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// The tool that compiles and loads profiles.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
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
    match security_profile::kind(FIELD, profile)? {
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

/// The names of the profiles that the kernel has, for [`profile`]; our own is loaded where the container needs it. Blocks: it
/// may run `apparmor_parser`.
///
/// # Errors
///
/// `FailedPrecondition`: securityfs is not mounted, or ours can't be loaded.
pub(super) fn ready(facts: &Facts, context: &LinuxContainerSecurityContext) -> Result<Vec<String>> {
    if !facts.apparmor {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(LOADED).map_err(|error| {
        Error::text(
            Kind::FailedPrecondition,
            format_args!("{FIELD}: {LOADED}: {error}: mount securityfs"),
        )
    })?;
    let loaded = names(&text);
    let ours = matches!(wanted(context)?, Wanted::Unset | Wanted::Default) && !context.privileged;
    if ours && !loaded.iter().any(|name| name == DEFAULT) {
        load().map_err(|error| {
            Error::text(
                Kind::FailedPrecondition,
                format_args!("{FIELD}: load the profile {DEFAULT:?}: {error:#}"),
            )
        })?;
    }
    Ok(loaded)
}

/// Lines are `name (enforce)`; the name may have blanks.
fn names(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.rsplit_once(" ("));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// Whether the tool that loads profiles is there.
pub(super) fn has_parser() -> bool {
    PARSERS.iter().any(|path| Path::new(path).exists())
}

fn load() -> anyhow::Result<()> {
    let parser = PARSERS
        .iter()
        .find(|path| Path::new(path).exists())
        .context("apparmor_parser is not installed")?;
    // Who signals a container: the shim, which runs under our own label.
    let own = std::fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| std::fs::read_to_string("/proc/self/attr/current"))
        .unwrap_or_default();
    let text = text(&own, Path::new("/etc/apparmor.d"));
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {parser}"))?;
    child.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{parser}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Our profile: a container may do what its capabilities and its mounts let it, but mount, write what is the machine's in
/// `/proc` and `/sys`, and trace or signal others.
fn text(own: &str, directory: &Path) -> String {
    let own = own
        .trim()
        .split(' ')
        .next()
        .filter(|own| !own.is_empty())
        .unwrap_or("unconfined");
    let has = |name: &str| directory.join(name).exists();
    // Rules that this version does not know are not mediated, instead of denied.
    let abi = if has("abi/3.0") { "abi <abi/3.0>,\n" } else { "" };
    let tunables = if has("tunables/global") {
        "#include <tunables/global>"
    } else {
        "@{PROC}=/proc/"
    };
    let base = if has("abstractions/base") {
        "  #include <abstractions/base>\n"
    } else {
        ""
    };
    let manager = if own == "unconfined" {
        String::new()
    } else {
        format!("  signal (receive) peer={own},\n")
    };
    format!(
        "{abi}{tunables}\n\nprofile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{\n{base}{RULES}{manager}}}\n"
    )
}

/// In deny rules a pattern must leave out what is let through: there is no exception to a denial.
const RULES: &str = "\
  file,
  capability,
  network,
  umount,
  deny mount,

  # Of /proc only what is below the number of a process, and System V's limits, which are the container's own.
  deny @{PROC}/* w,
  deny @{PROC}/[^1-9s]*/** w,
  deny @{PROC}/scsi/** w,
  deny @{PROC}/sysvipc/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??} w,
  deny @{PROC}/sys/kernel/[^s]** w,
  deny @{PROC}/sys/kernel/s[^h]** w,
  deny @{PROC}/sys/kernel/sh[^m]** w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  # Of /sys only the container's cgroup.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,

  # Among the container's own processes, and from the host.
  ptrace (trace,tracedby,read,readby) peer=rtc-default,
  signal (send,receive) peer=rtc-default,
  signal (receive) peer=unconfined,
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SecurityProfile;

    fn context(profile: Option<(ProfileType, &str)>) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor: profile.map(|(kind, name)| SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: name.into(),
            }),
            ..Default::default()
        }
    }

    fn of(context: &LinuxContainerSecurityContext) -> Result<Option<String>> {
        profile(&Facts::for_tests(), context, |name| name == "web")
    }

    #[test]
    fn nothing_said_is_the_default_profile() {
        assert_eq!(of(&context(None)).unwrap().as_deref(), Some(DEFAULT));
        assert_eq!(
            of(&context(Some((ProfileType::RuntimeDefault, ""))))
                .unwrap()
                .as_deref(),
            Some(DEFAULT)
        );
        assert_eq!(of(&context(Some((ProfileType::Unconfined, "")))).unwrap(), None);
    }

    #[test]
    fn a_privileged_container_has_no_default_but_what_it_names() {
        let privileged = |profile| LinuxContainerSecurityContext {
            privileged: true,
            ..context(profile)
        };
        assert_eq!(of(&privileged(None)).unwrap(), None);
        assert_eq!(
            of(&privileged(Some((ProfileType::RuntimeDefault, "")))).unwrap(),
            None
        );
        let named = privileged(Some((ProfileType::Localhost, "web")));
        assert_eq!(of(&named).unwrap().as_deref(), Some("web"));
    }

    #[test]
    fn a_profile_that_is_not_loaded_is_refused() {
        assert_eq!(
            of(&context(Some((ProfileType::Localhost, "localhost/web"))))
                .unwrap()
                .as_deref(),
            Some("web")
        );
        let error = of(&context(Some((ProfileType::Localhost, "db")))).unwrap_err();
        assert_eq!(error.kind, Kind::FailedPrecondition);
        assert!(error.to_string().contains("\"db\": is not loaded"), "{error}");
        for bad in [
            (ProfileType::Localhost, ""),
            (ProfileType::Localhost, "a b"),
            (ProfileType::Unconfined, "web"),
        ] {
            assert_eq!(of(&context(Some(bad))).unwrap_err().kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn the_names_of_before_are_known() {
        let named = |name: &str| {
            let mut context = context(None);
            #[expect(deprecated, reason = "as old clients say it")]
            context.apparmor_profile.push_str(name);
            of(&context)
        };
        assert_eq!(named("runtime/default").unwrap().as_deref(), Some(DEFAULT));
        assert_eq!(named("unconfined").unwrap(), None);
        assert_eq!(named("localhost/web").unwrap().as_deref(), Some("web"));
        assert!(named("localhost/db").is_err() && named("web").is_err());
    }

    #[test]
    fn without_apparmor_only_what_needs_none_is_let_through() {
        let facts = Facts {
            apparmor: false,
            ..Facts::for_tests()
        };
        let of = |context| profile(&facts, &context, |_| true);
        assert_eq!(of(context(None)).unwrap(), None);
        assert_eq!(of(context(Some((ProfileType::Unconfined, "")))).unwrap(), None);
        for kind in [(ProfileType::RuntimeDefault, ""), (ProfileType::Localhost, "web")] {
            assert_eq!(
                of(context(Some(kind))).unwrap_err().kind,
                Kind::FailedPrecondition
            );
        }
    }

    #[test]
    fn the_profile_lets_its_own_manager_signal() {
        let text = text("unconfined\n", Path::new("/no/such"));
        assert!(
            text.starts_with("@{PROC}=/proc/\n\nprofile rtc-default flags="),
            "{text}"
        );
        assert!(
            !text.contains("#include") && text.ends_with("peer=unconfined,\n}\n"),
            "{text}"
        );
        let text = super::text("rtc-cri (enforce)\n", Path::new("/no/such"));
        assert!(text.contains("  signal (receive) peer=rtc-cri,\n}"), "{text}");
    }

    #[test]
    fn loaded_profiles_are_read_by_name() {
        assert_eq!(names("web (enforce)\nan app (complain)\n\n"), ["web", "an app"]);
    }
}
