//! The checks of a whole configuration, section by section.
//!
//! Each section is a pure function that returns the first error, which begins with the path of the field, and adds
//! to a list of warnings where runc too warns and goes on.

use anyhow::{Result, bail};
use oci_spec::runtime::{Hook, Hooks, Spec};

use crate::annotations::Annotations;

use super::validate_namespaces::Namespaces;
use super::{validate_linux, validate_mounts, validate_process};

/// Warnings found on the way, each beginning with the path of the field.
pub(super) type Warnings = Vec<String>;

/// Checks everything; returns the warnings.
pub(super) fn spec(spec: &Spec) -> Result<Warnings> {
    let mut warnings = Warnings::new();
    version(spec.version())?;
    root(spec)?;
    let namespaces = match spec.linux() {
        Some(linux) => Namespaces::check(linux)?,
        None => Namespaces::default(),
    };
    if let Some(process) = spec.process() {
        warnings.extend(validate_process::process(process, "process.")?);
    }
    uts_names(spec, namespaces)?;
    validate_mounts::mounts(spec, namespaces, &mut warnings)?;
    if let Some(linux) = spec.linux() {
        validate_linux::linux(linux, namespaces, &mut warnings)?;
    }
    if let Some(hooks) = spec.hooks() {
        self::hooks(hooks)?;
    }
    if let Some(annotations) = spec.annotations() {
        if annotations.contains_key("") {
            bail!("annotations: a key is empty");
        }
        let (_, unknown) = Annotations::read(annotations.iter())?;
        warnings.extend(unknown);
    }
    Ok(warnings)
}

/// SemVer 2.0.0 with major 1; a newer minor adds only what may be ignored (`config.md`, "Specification version").
fn version(version: &str) -> Result<()> {
    if version.is_empty() {
        bail!("ociVersion: missing");
    }
    let invalid = || anyhow::anyhow!("ociVersion: {version:?}: must be a version such as \"1.3.0\"");
    // Build metadata and a pre-release may follow the three numbers.
    let (core, rest) = match version.find(['-', '+']) {
        Some(i) => (&version[..i], &version[i..]),
        None => (version, ""),
    };
    let numbers: Vec<&str> = core.split('.').collect();
    let is_number = |n: &&str| !n.is_empty() && n.len() < 10 && n.bytes().all(|b| b.is_ascii_digit());
    let is_suffix = |b: u8| b.is_ascii_alphanumeric() || b".-+".contains(&b);
    if numbers.len() != 3 || !numbers.iter().all(is_number) || rest.len() == 1 || !rest.bytes().all(is_suffix)
    {
        return Err(invalid());
    }
    if numbers[0] != "1" {
        bail!(
            "ociVersion: {version:?}: major version {} is not supported; rtc knows 1",
            numbers[0]
        );
    }
    Ok(())
}

fn root(spec: &Spec) -> Result<()> {
    let Some(root) = spec.root() else {
        bail!("root: missing")
    };
    no_nul("root.path", root.path().as_os_str().as_encoded_bytes())?;
    if root.path().as_os_str().is_empty() {
        bail!("root.path: missing");
    }
    Ok(())
}

/// Hostname and domainname, at most 64 bytes (`__NEW_UTS_LEN`), in a UTS namespace that is not the host's.
fn uts_names(spec: &Spec, namespaces: Namespaces) -> Result<()> {
    for (field, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let Some(name) = value.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        if name.len() > 64 {
            bail!("{field}: {name:?}: must be at most 64 bytes");
        }
        no_nul(field, name.as_bytes())?;
        if !namespaces.private(super::validate_namespaces::UTS) {
            bail!("{field}: {name:?}: needs a namespace of type \"uts\" in linux.namespaces");
        }
    }
    Ok(())
}

/// `hooks`: paths are absolute and timeouts, in seconds, above zero.
fn hooks(hooks: &Hooks) -> Result<()> {
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (i, one) in list.iter().flatten().enumerate() {
            hook(one, &format!("hooks.{kind}[{i}]"))?;
        }
    }
    Ok(())
}

fn hook(hook: &Hook, field: &str) -> Result<()> {
    if !hook.path().is_absolute() {
        bail!("{field}.path: {:?}: must be absolute", hook.path());
    }
    no_nul(
        &format!("{field}.path"),
        hook.path().as_os_str().as_encoded_bytes(),
    )?;
    if let Some(timeout) = hook.timeout().filter(|t| *t <= 0) {
        bail!("{field}.timeout: {timeout}: must be above 0 seconds");
    }
    for (i, arg) in hook.args().iter().flatten().enumerate() {
        no_nul(&format!("{field}.args[{i}]"), arg.as_bytes())?;
    }
    for (i, variable) in hook.env().iter().flatten().enumerate() {
        environment(variable, || format!("{field}.env[{i}]"))?;
    }
    Ok(())
}

/// `NAME=value`, with a name.
pub(super) fn environment(variable: &str, field: impl Fn() -> String) -> Result<()> {
    if variable.find('=').is_none_or(|i| i == 0) {
        bail!("{}: {variable:?}: must be NAME=value", field());
    }
    if variable.as_bytes().contains(&0) {
        bail!("{}: {variable:?}: must not contain a NUL byte", field());
    }
    Ok(())
}

/// What becomes a C string cannot hold a NUL byte.
pub(super) fn no_nul(field: &str, bytes: &[u8]) -> Result<()> {
    if bytes.contains(&0) {
        bail!(
            "{field}: {:?}: must not contain a NUL byte",
            String::from_utf8_lossy(bytes)
        );
    }
    Ok(())
}
