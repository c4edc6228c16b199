//! A pod's network namespace has a name in the file system: CNI plugins are told a path, and open it in a process of their
//! own, as long as the pod has a network, be its shim dead or alive.
//!
//! ```text
//! /proc/<shim>/fd/N ── open, and look whether it is the one ──> our descriptor ── bind ──> /run/netns/rtc-<id>
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::Result;
use crate::shim::Namespace;

/// Where `ip netns` and the others have theirs.
const DIRECTORY: &str = "/run/netns";
/// Once for each time that it was pinned.
const LAYERS_MAX: usize = 16;

/// Where the network namespace of a sandbox is pinned.
pub(crate) fn path(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("rtc-{id}"))
}

/// Pins the namespace that a shim holds.
///
/// # Errors
///
/// The shim is gone, or its number is another's by now; what mount(2) says. Nothing is pinned then.
pub(crate) fn pin(namespace: &Namespace, target: &Path) -> Result<()> {
    let found = File::open(&namespace.path)
        .with_context(|| format!("the shim's network namespace: {}", namespace.path.display()))?;
    let inode = found.metadata().context("the shim's network namespace")?.ino();
    if inode != namespace.inode {
        return Err(anyhow::anyhow!(
            "the shim's network namespace: {}: is not net:[{}]: the shim is gone",
            namespace.path.display(),
            namespace.inode
        )
        .into());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)
        .context(DIRECTORY)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(target)
        .with_context(|| target.display().to_string())?;
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    let pinned = mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    if let Err(errno) = pinned {
        // Ours, and nothing is mounted on it.
        let _ = std::fs::remove_file(target);
        return Err(anyhow::Error::from(errno)
            .context(format!("pin the network namespace at {}", target.display()))
            .into());
    }
    Ok(())
}

/// Unpins it. One that is not pinned is what is wanted.
///
/// # Errors
///
/// What umount2(2) or unlink(2) says.
pub(crate) fn unpin(target: &Path) -> Result<()> {
    unmount(target)?;
    match std::fs::remove_file(target) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| target.display().to_string())?
        }
        _ => Ok(()),
    }
}

fn unmount(target: &Path) -> anyhow::Result<()> {
    for _ in 0..LAYERS_MAX {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // No mount point, or no file.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("unpin {}", target.display())),
        }
    }
    bail!("unpin {}: it is a mount again and again", target.display())
}
