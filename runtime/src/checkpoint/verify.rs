//! What was restored, compared with the configuration before any of it runs: an image says which capabilities, namespaces, maps and
//! filters its processes had, and CRIU gives them just that. Whoever could change an image, or gives the wrong one, must not get
//! more by it than the configuration of the container allows.
//!
//! | asked of each process | must be |
//! |---|---|
//! | sets of capabilities | within those of `process.capabilities` |
//! | no new privileges | set, where `process.noNewPrivileges` is |
//! | seccomp | a filter, where `linux.seccomp` is given |
//! | and of init | |
//! | namespaces | its own where one is to be made, that which is joined where there is a path |
//! | id maps | `linux.uidMappings`, `linux.gidMappings` |
//!
//! A process that has ended is not looked at, nor is the cgroup namespace where CRIU was told to leave cgroups alone. Not compared: which filter, which
//! user, the profile of a security module, which paths are masked or read-only, and what the memory holds: an image is as trusted as the
//! configuration, and is kept where nobody else writes.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{fstat, stat};
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, Process, Spec};

use crate::namespace::{IdMaps, Namespaces};
use crate::process::identity::Allowed;
use crate::sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
};

/// The kinds of namespaces that are compared, with their names below `/proc/<pid>/ns`.
const KINDS: [(libc::c_int, &str); 7] = [
    (CLONE_NEWNS, "mnt"),
    (CLONE_NEWPID, "pid"),
    (CLONE_NEWNET, "net"),
    (CLONE_NEWIPC, "ipc"),
    (CLONE_NEWUTS, "uts"),
    (CLONE_NEWUSER, "user"),
    (CLONE_NEWCGROUP, "cgroup"),
];
/// Lines of `/proc/<pid>/status` with a set of capabilities.
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Compares init, and all processes, with the configuration; its cgroup namespace only `with_cgroup`.
///
/// # Errors
///
/// The field, and what an image would have had instead.
pub(super) fn verify(
    spec: &Spec,
    namespaces: &Namespaces,
    with_cgroup: bool,
    all: (Pid, &[Pid]),
) -> Result<()> {
    let (init, all) = all;
    verify_namespaces(namespaces, with_cgroup, init)?;
    if namespaces.makes(CLONE_NEWUSER) {
        let default = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&default);
        IdMaps::new(linux)
            .check(init)
            .context("the image has other maps")?;
    }
    let user = namespace_of(init, "user")?;
    let limits = Limits::of(spec);
    for pid in all.iter().filter(|pid| pid.as_raw() > 0) {
        // In a user namespace below the container's any capability is within those of the container.
        if namespace_of(*pid, "user").is_ok_and(|own| own != user) && *pid != init {
            continue;
        }
        check_threads(&limits, *pid).with_context(|| format!("process {pid} of the image"))?;
    }
    Ok(())
}

/// Each thread has capabilities and a filter of its own.
fn check_threads(limits: &Limits, pid: Pid) -> Result<()> {
    let path = format!("/proc/{pid}/task");
    let threads = match fs::read_dir(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()), // it has ended
        threads => threads.with_context(|| path.clone())?,
    };
    for thread in threads {
        let path = thread.with_context(|| path.clone())?.path().join("status");
        match fs::read_to_string(&path) {
            Ok(status) => limits.check(&status)?,
            Err(error)
                if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(())
}

fn namespace_of(pid: Pid, kind: &str) -> Result<(u64, u64)> {
    identity(&format!("/proc/{pid}/ns/{kind}"))
}

fn identity(path: &str) -> Result<(u64, u64)> {
    let found = stat(path).with_context(|| format!("stat {path}"))?;
    Ok((found.st_dev, found.st_ino))
}

fn verify_namespaces(namespaces: &Namespaces, with_cgroup: bool, init: Pid) -> Result<()> {
    let kinds = KINDS
        .into_iter()
        .filter(|(flag, _)| with_cgroup || *flag != CLONE_NEWCGROUP);
    for (flag, kind) in kinds {
        let found = namespace_of(init, kind)?;
        if let Some(joined) = namespaces.joined(flag) {
            let joined = fstat(joined.as_fd()).context("fstat a namespace")?;
            if found != (joined.st_dev, joined.st_ino) {
                bail!("linux.namespaces: {kind}: the image has another one than that which is to be joined");
            }
        } else if namespaces.makes(flag) && found == identity(&format!("/proc/self/ns/{kind}"))? {
            bail!("linux.namespaces: {kind}: the image has none of its own: it would be the host's");
        }
    }
    Ok(())
}

/// What a process may have at most, and must have at least.
struct Limits {
    capabilities: u64,
    no_new_privileges: bool,
    seccomp: bool,
}

impl Limits {
    fn of(spec: &Spec) -> Self {
        let process = spec.process().as_ref();
        Self {
            capabilities: process.map_or(0, |process| Allowed::of(process).0),
            no_new_privileges: process.and_then(Process::no_new_privileges).unwrap_or(false),
            seccomp: spec
                .linux()
                .as_ref()
                .is_some_and(|linux| linux.seccomp().is_some()),
        }
    }

    /// Compares with the text of `/proc/<pid>/status`.
    fn check(&self, status: &str) -> Result<()> {
        if status.contains("\nState:\tZ") {
            return Ok(());
        }
        let value = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.map(str::trim)
        };
        for set in SETS {
            let text = value(set).with_context(|| format!("{set} is missing"))?;
            let found = u64::from_str_radix(text, 16).with_context(|| format!("{set}: {text:?}"))?;
            if found & !self.capabilities != 0 {
                bail!(
                    "process.capabilities: it has {set} {found:#x}, of which {:#x} is not allowed by the configuration",
                    found & !self.capabilities
                );
            }
        }
        if self.no_new_privileges && value("NoNewPrivs") != Some("1") {
            bail!("process.noNewPrivileges: it may gain privileges");
        }
        // 2: a filter.
        if self.seccomp && value("Seccomp") != Some("2") {
            bail!("linux.seccomp: it has no filter");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(process: &str, linux: &str) -> Limits {
        let text = format!(
            r#"{{"ociVersion": "1.2.0", "process": {{"cwd": "/", "user": {{}}, {process}}}, "linux": {{{linux}}}}}"#
        );
        Limits::of(&serde_json::from_str(&text).unwrap())
    }

    fn status(set: &str, privileges: u8, seccomp: u8) -> String {
        let sets: String = SETS.iter().map(|name| format!("{name}:\t{set}\n")).collect();
        format!("Name:\tCapEff: x\n{sets}NoNewPrivs:\t{privileges}\nSeccomp:\t{seccomp}\n")
    }

    const CHOWN: &str = r#""capabilities": {"bounding": ["CAP_CHOWN"]}, "noNewPrivileges": true"#;

    #[test]
    fn capabilities_are_within_the_configured_ones() {
        let limits = limits(CHOWN, "");
        limits.check(&status("0000000000000001", 1, 0)).unwrap();
        limits.check(&status("0000000000000000", 1, 2)).unwrap();
        let error = limits.check(&status("0000000000200001", 1, 0)).unwrap_err();
        assert!(error.to_string().contains("0x200000 is not allowed"), "{error}");
    }

    #[test]
    fn a_process_without_its_defences_is_refused() {
        let all = limits(CHOWN, r#""seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}"#);
        all.check(&status("0", 1, 2)).unwrap();
        assert!(all.check(&status("0", 0, 2)).is_err());
        assert!(all.check(&status("0", 1, 0)).is_err());
        assert!(limits(r#""args": []"#, "").check(&status("0", 0, 0)).is_ok());
    }

    #[test]
    fn our_own_namespaces_are_not_a_containers() {
        let text = r#"{"namespaces": [{"type": "network"}]}"#;
        let namespaces = Namespaces::open(&serde_json::from_str(text).unwrap()).unwrap();
        let error = verify_namespaces(&namespaces, true, nix::unistd::getpid()).unwrap_err();
        assert!(error.to_string().contains("it would be the host's"), "{error}");
        let text = r#"{"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]}"#;
        let namespaces = Namespaces::open(&serde_json::from_str(text).unwrap()).unwrap();
        verify_namespaces(&namespaces, true, nix::unistd::getpid()).unwrap();
    }
}
