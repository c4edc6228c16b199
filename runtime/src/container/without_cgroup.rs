//! The processes of a container that has no cgroup, as those of an ordinary user may not: found by the namespaces that
//! they share with init, as long as init lives.
//!
//! By the PID namespace, which nothing can leave, where that is the container's own. Else by user and mount namespace
//! together (another container may share one of them): a process that has made a mount namespace of its own is not found.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::cgroup::kill_listed;
use crate::container::state::Record;

/// How often processes are listed and killed: they may fork meanwhile.
const ROUNDS: usize = 20;

/// The processes in init's PID namespace, or where that is not the container's own, in its other two. None where those are
/// the caller's too, or init has ended.
///
/// # Errors
///
/// `/proc` can't be read.
pub(super) fn processes(record: &Record) -> Result<Vec<Pid>> {
    let kinds: &[&str] = if record.owns_pids {
        &["pid"]
    } else {
        &["user", "mnt"]
    };
    let of = |process: &str| -> Option<Vec<PathBuf>> {
        let links = kinds
            .iter()
            .map(|kind| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok());
        links.collect()
    };
    let wanted = match record.pidfd()? {
        Some(_) => of(&record.pid.to_string()),
        None => None,
    };
    let Some(wanted) = wanted.filter(|wanted| of("self").as_ref() != Some(wanted)) else {
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
    match record.signal(libc::SIGKILL) {
        // It may have waited for those.
        Err(_) if !killed.is_empty() => Ok(()),
        signalled => signalled,
    }
}
