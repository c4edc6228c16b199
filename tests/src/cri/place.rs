//! Where a test's server lives: mount, network, IPC and UTS namespaces of the test's, so that no two tests meet.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::registry::Result;

/// What servers, shims and CNI plugins keep in fixed places.
const OWN: [&str; 6] = [
    "/run/netns",
    "/run/containerd",
    "/run/rtc-cri",
    "/run/lock",
    "/var/lib/cni",
    "/var/lib/rtc-cri",
];

/// Moves this process, and what it will start, into them.
pub(crate) fn enter() -> Result {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).context("unshare")?;
    // Nothing goes out; inside, mounts are shared, as on a node (mount propagation).
    for propagation in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | propagation,
            None::<&str>,
        )
        .with_context(|| format!("mount(/, {propagation:?})"))?;
    }
    for directory in OWN {
        fs::create_dir_all(directory).context(directory)?;
        mount(
            Some("tmpfs"),
            directory,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=711"),
        )
        .context(directory)?;
    }
    busybox(&["ip", "link", "set", "lo", "up"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

/// A tool, to its end.
pub(crate) fn busybox(args: &[&str]) -> Result {
    let output = Command::new("/bin/busybox").args(args).output()?;
    ensure!(
        output.status.success(),
        "busybox {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
