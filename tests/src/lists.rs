//! The lists beside the tests: skips that are allowed on a machine, failures that are expected of a peer.
//!
//! `skips/MACHINE.txt`: one reason per line, exactly as the test gives it; lines that begin with `#` say why.
//! `exceptions/PEER.txt`: `test_name: reason` or `area/*: reason` per line, for a runtime whose file is named so (`runc`, `crun`,
//! `containerd-shim-runc-v2`), and for our shim when it runs another runtime (`binary-name`).

use std::path::Path;

const HOST_SKIPS: &str = include_str!("../skips/host.txt");
const VM_SKIPS: &str = include_str!("../skips/vm.txt");
const QEMU_SKIPS: &str = include_str!("../skips/qemu.txt");
const RUNC_EXCEPTIONS: &str = include_str!("../exceptions/runc.txt");
const SHIM_EXCEPTIONS: &str = include_str!("../exceptions/containerd-shim-runc-v2.txt");
const CRUN_EXCEPTIONS: &str = include_str!("../exceptions/crun.txt");

const CONTAINERD_EXCEPTIONS: &str = include_str!("../exceptions/containerd.txt");
const FOREIGN_EXCEPTIONS: &str = include_str!("../exceptions/binary-name.txt");

/// Our shim with a runtime that is not built into it.
pub(crate) const FOREIGN: &str = "binary-name";

/// containerd in place of our CRI server.
pub(crate) const CONTAINERD: &str = "containerd";

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether a test may skip for this reason on this machine.
pub(crate) fn skip_is_allowed(machine: &str, reason: &str) -> bool {
    let allowed = match machine {
        "vm" => VM_SKIPS,
        "qemu" => QEMU_SKIPS,
        _ => HOST_SKIPS,
    };
    lines(allowed).any(|line| line == reason)
}

/// Which of the peers the runtime under test is: its file's name, if there is a list for it.
pub(crate) fn peer(rtc: &Path) -> Option<&'static str> {
    match rtc.file_name()?.to_str()? {
        "runc" => Some("runc"),
        "crun" => Some("crun"),
        "containerd-shim-runc-v2" => Some("containerd-shim-runc-v2"),
        _ => None,
    }
}

/// Why this peer is expected to fail this test, if it is: by its name, or with all of its area (`area/*`).
pub(crate) fn expected_failure(peer: Option<&str>, area: &str, test: &str) -> Option<&'static str> {
    let exceptions = match peer? {
        "runc" => RUNC_EXCEPTIONS,
        "containerd-shim-runc-v2" => SHIM_EXCEPTIONS,
        CONTAINERD => CONTAINERD_EXCEPTIONS,
        FOREIGN => FOREIGN_EXCEPTIONS,
        _ => CRUN_EXCEPTIONS,
    };
    let all = format!("{area}/*");
    lines(exceptions).find_map(|line| {
        let rest = line.strip_prefix(test).or_else(|| line.strip_prefix(&all))?;
        rest.strip_prefix(':').map(str::trim)
    })
}
