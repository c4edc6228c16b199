//! `linux.sysctl`: only what belongs to a namespace of the container.

use anyhow::{Result, bail};

use super::validate::no_nul;
use super::validate_namespaces::{IPC, NETWORK, Namespaces, USER, UTS};

/// Kernel parameters of an IPC namespace that have no prefix of their own (`ipc/ipc_sysctl.c`).
const IPC_PARAMETERS: [&str; 11] = [
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Checks one parameter. Names come with dots or with slashes, as `sysctl(8)` takes them. What a joined network namespace
/// is (the host's own?) is checked when it is joined.
pub(super) fn sysctl(name: &str, value: &str, namespaces: Namespaces) -> Result<()> {
    let field = format!("linux.sysctl[{name:?}]");
    no_nul(&field, name.as_bytes())?;
    no_nul(&field, value.as_bytes())?;
    let dotted = dotted(name);
    // Neither empty components nor such as begin with a dot ("/" here): `net/../kernel/core_pattern` is no way out.
    if dotted
        .split('.')
        .any(|part| part.is_empty() || part.starts_with('/') || part.contains("//"))
    {
        bail!("{field}: must be a name such as net.core.somaxconn");
    }
    let (needed, typ) = if IPC_PARAMETERS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        (IPC, "ipc")
    } else if dotted.starts_with("net.") {
        (NETWORK, "network")
    } else if dotted == "kernel.domainname" {
        (UTS, "uts")
    } else if dotted.starts_with("user.") {
        (USER, "user")
    } else if dotted == "kernel.hostname" {
        bail!("{field}: set hostname instead");
    } else {
        bail!("{field}: does not belong to a namespace, it would change the host");
    };
    if !namespaces.private(needed) {
        bail!("{field}: needs a namespace of type {typ:?} in linux.namespaces");
    }
    Ok(())
}

/// The form with dots: where the first separator is a slash, `.` and `/` change places (`net/ipv4/conf/eth0.1/x`).
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_string(),
    }
}
