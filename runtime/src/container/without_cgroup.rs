//! The processes of a container that has no cgroup, as those of an ordinary user may not: found by the namespace that
//! they share with init, as long as init lives.
//!
//! A process can leave neither its user namespace for one that is not below, nor (itself) its PID namespace. Those in
//! namespaces below that the container has made are not found by the one; they end with init by the other.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::cgroup::kill_listed;
use crate::container::state::Record;

/// How often processes are listed and killed: they may fork meanwhile.
const ROUNDS: usize = 20;

/// The processes in init's PID namespace, or where that is not the container's own, in its user namespace. None where
/// that is the caller's too, or init has ended.
///
/// # Errors
///
/// `/proc` can't be read.
pub(super) fn processes(record: &Record) -> Result<Vec<Pid>> {
    let kind = if record.owns_pids { "pid" } else { "user" };
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
    let wanted = match record.pidfd()? {
        Some(_) => of(&record.pid.to_string()),
        None => None,
    };
    let Some(wanted) = wanted.filter(|wanted: &PathBuf| of("self").as_ref() != Some(wanted)) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok())
            && of(&pid.to_string()).as_ref() == Some(&wanted)
        {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(Pid::from_raw).collect())
}

/// Kills them all, init last: it is by init that they are found.
///
/// # Errors
///
/// As [`processes`].
pub(super) fn kill(record: &Record) -> Result<()> {
    let mut killed = Vec::new();
    for _ in 0..ROUNDS {
        let listed = processes(record)?;
        let others = listed.into_iter().filter(|pid| pid.as_raw() != record.pid);
        if !kill_listed(others.collect(), &mut killed)? {
            break;
        }
    }
    record.signal(libc::SIGKILL)
}
