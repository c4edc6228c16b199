//! Annotations of config.json that change what the runtime does: those of crun (crun(1), "EXTENSIONS TO OCI") that are
//! followed here. `org.systemd.property.*` is with [`crate::cgroup`].
//!
//! An annotation that a runtime does not know is none of its business (runtime-spec, "Annotations"), but whoever writes
//! `run.oci.handler` expects a virtual machine: what is not followed of crun's is told.

use anyhow::{Result, bail};

/// What all of crun's begin with.
const PREFIX: &str = "run.oci.";
/// Leaves the supplementary groups of the caller (`1`).
const KEEP_ORIGINAL_GROUPS: &str = "run.oci.keep_original_groups";
/// Refuses a seccomp profile that names a system call which nobody knows (`1`).
const SECCOMP_FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";
/// Which option of a mount takes `linux.mountLabel`.
const MOUNT_CONTEXT_TYPE: &str = "run.oci.mount_context_type";
/// Files for the output of hooks.
const HOOKS_STDOUT: &str = "run.oci.hooks.stdout";
const HOOKS_STDERR: &str = "run.oci.hooks.stderr";

/// What mount options take an SELinux context (mount(8)).
const CONTEXT_TYPES: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// What a container's annotations ask of the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Supplementary groups of the caller are kept, and none are set.
    pub keep_original_groups: bool,
    /// An unknown system call in `linux.seccomp` is an error.
    pub seccomp_fail_unknown: bool,
    /// The mount option that takes `linux.mountLabel`, where it is not `context`.
    pub mount_context_type: Option<&'static str>,
    /// Where hooks' standard output goes: an absolute path.
    pub hooks_stdout: Option<String>,
    /// Where hooks' standard error goes.
    pub hooks_stderr: Option<String>,
}

impl Annotations {
    /// Reads them. Gives a warning for each of crun's that is not followed.
    ///
    /// # Errors
    ///
    /// A value that is none, by the annotation's name.
    pub fn read<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(Self, Vec<String>)> {
        let (mut read, mut warnings) = (Self::default(), Vec::new());
        for (key, value) in all.filter(|(key, _)| key.starts_with(PREFIX)) {
            match key.as_str() {
                KEEP_ORIGINAL_GROUPS => read.keep_original_groups = switch(key, value)?,
                SECCOMP_FAIL_UNKNOWN => read.seccomp_fail_unknown = switch(key, value)?,
                MOUNT_CONTEXT_TYPE => match CONTEXT_TYPES.into_iter().find(|known| known == value) {
                    Some(known) => read.mount_context_type = Some(known),
                    None => bail!(
                        "annotations[{key:?}]: {value:?}: use one of {}",
                        CONTEXT_TYPES.join(", ")
                    ),
                },
                HOOKS_STDOUT => read.hooks_stdout = Some(path(key, value)?),
                HOOKS_STDERR => read.hooks_stderr = Some(path(key, value)?),
                _ => warnings.push(format!(
                    "annotations[{key:?}]: ignored, rtc does not do what crun does with it"
                )),
            }
        }
        warnings.sort();
        Ok((read, warnings))
    }
}

fn switch(key: &str, value: &str) -> Result<bool> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" | "" => Ok(false),
        _ => bail!("annotations[{key:?}]: {value:?}: must be 1 or 0"),
    }
}

fn path(key: &str, value: &str) -> Result<String> {
    if !value.starts_with('/') || value.contains('\0') {
        bail!("annotations[{key:?}]: {value:?}: must be an absolute path");
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<(Annotations, Vec<String>)> {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Annotations::read(pairs.iter().map(|(key, value)| (key, value)))
    }

    #[test]
    fn those_of_others_mean_nothing_and_those_not_followed_are_told() {
        let (found, warnings) = read(&[("io.x/run.oci.", "?"), ("run.oci.handler", "krun")]).unwrap();
        assert_eq!(found, Annotations::default());
        assert_eq!(
            warnings,
            ["annotations[\"run.oci.handler\"]: ignored, rtc does not do what crun does with it"]
        );
    }

    #[test]
    fn values_are_what_crun_takes() {
        let (found, warnings) = read(&[
            ("run.oci.keep_original_groups", "1"),
            ("run.oci.seccomp_fail_unknown_syscall", "0"),
            ("run.oci.mount_context_type", "rootcontext"),
            ("run.oci.hooks.stderr", "/var/log/hooks"),
        ])
        .unwrap();
        assert!(warnings.is_empty());
        assert!(found.keep_original_groups && !found.seccomp_fail_unknown);
        assert_eq!(found.mount_context_type, Some("rootcontext"));
        assert_eq!(found.hooks_stderr.as_deref(), Some("/var/log/hooks"));
        for (key, value) in [
            ("run.oci.keep_original_groups", "maybe"),
            ("run.oci.mount_context_type", "ctx"),
            ("run.oci.hooks.stdout", "log"),
        ] {
            let error = read(&[(key, value)]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("annotations[{key:?}]: {value:?}: ")),
                "{error}"
            );
        }
    }
}
