//! A bundle: a directory with a `config.json`, read and checked once.
//!
//! ```text
//! config.json --read (bounded)--> bytes --parse--> Spec --validate--> Bundle
//!                                   |                ^
//!                                   | unknown capability names only:
//!                                   `-- leave them out, warn ---------'
//! ```
//!
//! Everything after [`Bundle::load`] may rely on what it checked: the code that makes a container does not check the
//! configuration again, and never meets a relative hook path or a second `pid` namespace. The checks read the
//! configuration only (they are pure), except that the bundle's rootfs must be a directory. What only the kernel
//! can tell (is this mount option supported here?) is not decided here.
//!
//! Sources: the OCI runtime specification 1.3 (`config.md`, `config-linux.md`); where it leaves room, runc's validator.
//! Unknown keys are no error (`config.md`, "Extensibility"); a key given twice is.

mod locate;
mod validate;
mod validate_linux;
mod validate_machine;
mod validate_mounts;
mod validate_namespaces;
mod validate_process;
mod validate_resources;
mod validate_sysctl;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use serde::de::DeserializeOwned;

use crate::log;
use crate::sys::Named as _;

/// Name of the configuration in a bundle.
pub const CONFIG: &str = "config.json";

/// Largest configuration read, in bytes. Real ones are below 100 KiB, with every seccomp rule and device of a large node.
pub const MAX_CONFIG_SIZE: u64 = 16 << 20;

/// A bundle whose configuration has been checked.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path of the bundle.
    pub dir: PathBuf,
    /// Absolute path of the container's root filesystem, a directory; symlinks in it are not resolved.
    pub rootfs: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The bytes of `config.json` that `spec` was parsed from: what is kept as the container's own copy. They parse
    /// without a warning (capability names that Linux lacks are blanked out).
    pub raw: Vec<u8>,
}

impl Bundle {
    /// Reads and checks the bundle in `dir`, relative to the current directory. Warnings go to the log. Errors name
    /// the field, its value and what is wrong with it.
    pub fn load(dir: &Path) -> Result<Bundle> {
        let dir = std::path::absolute(dir).with_context(|| format!("bundle {dir:?}"))?;
        let mut raw = read_config(&dir.join(CONFIG), MAX_CONFIG_SIZE)?;
        let (spec, warnings) = parse(&mut raw, &["process"]).context(CONFIG)?;
        for warning in warnings {
            log::warn(format_args!("{CONFIG}: {warning}"));
        }
        for warning in validate::spec(&spec).context(CONFIG)? {
            log::warn(format_args!("{CONFIG}: {warning}"));
        }
        let rootfs = rootfs_of(&dir, &spec).context(CONFIG)?;
        Ok(Bundle {
            dir,
            rootfs,
            spec,
            raw,
        })
    }
}

/// Parses and checks a whole configuration; returns it with the warnings. `raw` is changed as in [`Bundle::raw`].
///
/// This is all of [`Bundle::load`] that takes untrusted bytes: the entry of the fuzz target.
pub fn parse_spec(raw: &mut Vec<u8>) -> Result<(Spec, Vec<String>)> {
    let (spec, mut warnings): (Spec, _) = parse(raw, &["process"])?;
    warnings.extend(validate::spec(&spec)?);
    Ok((spec, warnings))
}

/// Parses a configuration kept from an earlier [`Bundle::load`], without checking it again.
pub fn parse_kept(raw: &[u8]) -> Result<Spec> {
    parse_json(raw)
}

/// Reads the process of `exec --process FILE` and checks what can be checked without the container.
pub fn load_process(file: &Path) -> Result<Process> {
    let raw = read_config(file, MAX_CONFIG_SIZE)?;
    let (process, warnings) = parse_process(raw).with_context(|| format!("{file:?}"))?;
    for warning in warnings {
        log::warn(format_args!("{file:?}: {warning}"));
    }
    Ok(process)
}

/// Parses and checks the process of an exec request that arrives as JSON; returns it with the warnings.
///
/// # Errors
///
/// Names the field.
pub fn parse_process(mut raw: Vec<u8>) -> Result<(Process, Vec<String>)> {
    let (process, mut warnings) = parse(&mut raw, &[])?;
    warnings.extend(validate_process::process(&process, "")?);
    Ok((process, warnings))
}

/// Checks a process that does not come from a file (an exec request, overrides on a command line); returns the warnings.
/// Fields are named without the leading `process.`.
pub fn check_process(process: &Process) -> Result<Vec<String>> {
    validate_process::process(process, "")
}

/// Checks a kernel parameter of a pod that has these namespaces (`CLONE_NEW*`) of its own.
pub fn check_sysctl(name: &str, value: &str, namespaces: libc::c_int) -> Result<()> {
    let namespaces = validate_namespaces::Namespaces::of(namespaces.cast_unsigned());
    validate_sysctl::sysctl(name, value, namespaces)
}

/// Checks mounts to be added to a running container with this configuration.
pub fn check_mounts(spec: &Spec, mounts: &[Mount]) -> Result<()> {
    let namespaces = match spec.linux() {
        Some(linux) => validate_namespaces::Namespaces::check(linux)?,
        None => validate_namespaces::Namespaces::default(),
    };
    let mut with_them = spec.clone();
    with_them.set_mounts(Some(mounts.to_vec()));
    let mut warnings = Vec::new();
    validate_mounts::mounts(&with_them, namespaces, &mut warnings)?;
    for warning in warnings {
        log::warn(warning);
    }
    Ok(())
}

/// Checks limits to be set on a running container. Fields are named without the leading `linux.resources.`.
pub fn check_resources(resources: &LinuxResources) -> Result<()> {
    validate_resources::resources(resources, "")
}

/// Reads a small JSON file that a caller names: a regular file of at most `limit` bytes, and not empty. Never waits, whatever
/// the path is (FIFO, terminal, socket).
pub fn read_config(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    let file = open().call(|| format!("open({path:?})"))?;
    let metadata = file.metadata().call(|| format!("fstat({path:?})"))?;
    if !metadata.is_file() {
        bail!("{path:?}: not a regular file");
    }
    if metadata.len() > limit {
        bail!("{path:?}: {} bytes: must be at most {limit}", metadata.len());
    }
    let raw = read_to_end(&file, metadata.len(), limit).with_context(|| format!("{path:?}"))?;
    if raw.iter().all(u8::is_ascii_whitespace) {
        bail!("{path:?}: is empty");
    }
    Ok(raw)
}

/// Reads at most `limit` bytes, in one `read` where the file has the size that `fstat` said.
fn read_to_end(mut file: &File, size: u64, limit: u64) -> Result<Vec<u8>> {
    let mut raw = vec![0; usize::try_from(size)? + 1];
    let mut filled = 0;
    loop {
        let n = file.read(&mut raw[filled..]).call(|| "read".into())?;
        filled += n;
        // One byte of room is left after the expected size: a short read there is the end.
        if n == 0 || (filled as u64 == size && filled < raw.len()) {
            raw.truncate(filled);
            return Ok(raw);
        }
        if filled as u64 > limit {
            bail!("grows while it is read: must be at most {limit} bytes");
        }
        if filled == raw.len() {
            raw.resize(filled * 2, 0);
        }
    }
}

fn parse<T: DeserializeOwned>(raw: &mut Vec<u8>, process: &[&str]) -> Result<(T, Vec<String>)> {
    let first = match serde_json::from_str(utf8(raw)?) {
        Ok(value) => return Ok((value, Vec::new())),
        Err(error) => error,
    };
    let Some((cleaned, names)) = locate::without_unknown_capabilities(raw, process) else {
        return Err(parse_error(raw, &first));
    };
    let value = parse_json(&cleaned)?;
    *raw = cleaned;
    let prefix: String = process.iter().map(|p| format!("{p}.")).collect();
    let names: Vec<String> = names.iter().map(|name| name.escape_debug().to_string()).collect();
    let warning = format!(
        "{prefix}capabilities: ignored, not known to rtc: {}",
        names.join(", ")
    );
    Ok((value, vec![warning]))
}

/// Parses JSON; an error names the field: `process.rlimits[2].type: ...`.
pub fn parse_json<T: DeserializeOwned>(raw: &[u8]) -> Result<T> {
    serde_json::from_str(utf8(raw)?).map_err(|error| parse_error(raw, &error))
}

/// The whole text at once: the parser would check each string on its own, a tenth of its time.
fn utf8(raw: &[u8]) -> Result<&str> {
    std::str::from_utf8(raw).map_err(|error| {
        let line = raw[..error.valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        anyhow::anyhow!("not valid JSON: line {line} is not UTF-8")
    })
}

/// serde_json's error with the path of the field before it.
fn parse_error(raw: &[u8], error: &serde_json::Error) -> anyhow::Error {
    let path = locate::path_at(raw, error.line(), error.column());
    let full = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = full.strip_suffix(&place).unwrap_or(&full);
    let what = match error.classify() {
        serde_json::error::Category::Eof => format!("ends too early{place}"),
        serde_json::error::Category::Data => explain(&path, text),
        _ => format!("not valid JSON: {text}{place}"),
    };
    if path.is_empty() {
        anyhow::anyhow!(what)
    } else {
        anyhow::anyhow!("{path}: {what}")
    }
}

/// Escapes control characters: oci-spec's messages repeat values as they are.
fn one_line(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().collect()
        } else {
            String::from(c)
        }
    };
    text.chars().map(escape).collect()
}

/// Puts serde's message about a value into our words: the value first, then what to do.
fn explain(path: &str, text: &str) -> String {
    let Some((value, expected)) = text
        .strip_prefix("unknown variant `")
        .and_then(|rest| rest.split_once("`, "))
    else {
        return one_line(text);
    };
    let last = path.rsplit(['.', '[']).next().unwrap_or("");
    let kind = match last {
        "type" if path.contains("rlimits") => "rlimit",
        "type" if path.contains("namespaces") => "namespace",
        "type" => "device type",
        "action" | "defaultAction" => "seccomp action",
        "op" => "seccomp operator",
        "policy" => "scheduler policy",
        "mode" if path.contains("memoryPolicy") => "memory policy mode",
        _ if path.contains("memoryPolicy") => "memory policy flag",
        _ if path.contains("architectures") => "seccomp architecture",
        _ if path.contains("flags") => "flag",
        _ => "value",
    };
    let choices = expected
        .trim_start_matches("expected ")
        .trim_start_matches("one of ")
        .replace('`', "");
    format!("{value:?}: unknown {kind}; use one of {choices}")
}

fn rootfs_of(dir: &Path, spec: &Spec) -> Result<PathBuf> {
    let Some(root) = spec.root() else {
        bail!("root: missing")
    };
    let rootfs = dir.join(root.path());
    let metadata = rootfs
        .metadata()
        .with_context(|| format!("root.path: {rootfs:?}"))?;
    if !metadata.is_dir() {
        bail!("root.path: {rootfs:?}: not a directory");
    }
    Ok(rootfs)
}

#[cfg(test)]
mod tests;
