//! The mounts that make a container's root: what containerd's snapshotter hands with Create. For workers only: any of
//! these calls can wait for a disk or a server.
//!
//! The options are those of fstab(5) as containerd's `core/mount` has them. A list of lower directories that is too long for
//! a page (mount(2) takes no more) is made relative to the directory that all of them are in. `uidmap=` and `gidmap=` map
//! the owners of files, for a pod with a user namespace.

mod idmap;
mod options;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use options::Options;

/// How many mounts one on top of the other are removed: more than any snapshotter makes.
const STACK_MAX: usize = 64;

/// The directory for the root of a bundle whose mounts come with the request.
pub(crate) fn directory(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Mounts all of them, in order, on the bundle's root.
///
/// # Errors
///
/// Names the mount. What was mounted before it is unmounted again.
pub(crate) fn mount_all(bundle: &Path, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let root = directory(bundle);
    match fs::DirBuilder::new().mode(0o711).create(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("mkdir {root:?}"));
        }
        _ => {}
    }
    for (i, wanted) in mounts.iter().enumerate() {
        let mounted = mount_one(&root, wanted)
            .with_context(|| format!("rootfs[{i}]: mount {} {:?}", wanted.type_, wanted.source));
        if let Err(error) = mounted {
            if let Err(undo) = unmount(bundle) {
                rtc_runtime::log::warn(format_args!("clean up: {undo:#}"));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Removes every mount on the bundle's root and below it. None is fine.
///
/// # Errors
///
/// As umount2(2).
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    let root = directory(bundle);
    // Of a worker that was killed.
    idmap::clean(&root);
    for _ in 0..STACK_MAX {
        match umount2(&root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // No mount, or no directory.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("unmount {root:?}")),
        }
    }
    bail!("unmount {root:?}: more than {STACK_MAX} mounts on top of each other")
}

fn mount_one(root: &Path, wanted: &Mount) -> Result<()> {
    let mut options = Options::parse(&wanted.options)?;
    let target = target(root, &wanted.target)?;
    let namespace = options.maps.as_ref().map(idmap::namespace).transpose()?;
    let is_overlay = wanted.type_ == "overlay";
    // An overlay has its layers mapped instead; they are copied into it, and can go when it is there.
    let _layers = match &namespace {
        Some(namespace) if is_overlay => Some(idmap::Layers::map(&mut options, root, namespace)?),
        _ => None,
    };
    let (directory, data) = options.data(&wanted.type_)?;
    if let Some(directory) = &directory {
        std::env::set_current_dir(directory).with_context(|| format!("chdir {directory:?}"))?;
    }
    let mounted = mount(
        Some(wanted.source.as_str()),
        &target,
        Some(wanted.type_.as_str()),
        options.flags,
        Some(data.as_str()),
    )
    .with_context(|| format!("mount({:?}, {:?}, {data:?})", options.flags, target));
    if directory.is_some() {
        std::env::set_current_dir("/").context("chdir /")?;
    }
    mounted?;
    let none = None::<&str>;
    if !options.propagation.is_empty() {
        mount(none, &target, none, options.propagation, none).context("change its propagation")?;
    }
    if options.flags.contains(MsFlags::MS_BIND) && options.flags.intersects(PER_MOUNT) {
        // A bind mount takes its own flags only when it is remounted.
        let flags = (options.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
        mount(none, &target, none, flags, none).context("remount with its flags")?;
    }
    match &namespace {
        Some(namespace) if !is_overlay => idmap::cover(&target, namespace),
        _ => Ok(()),
    }
}

const PER_MOUNT: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Where a mount goes: the root, or what is there at a path in it. That is the image's: no link in it leads outside.
fn target(root: &Path, inner: &str) -> Result<PathBuf> {
    if inner.is_empty() || inner == "/" {
        return Ok(root.to_owned());
    }
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use std::os::fd::{AsRawFd, IntoRawFd};
    let root = fs::File::open(root).with_context(|| format!("open {root:?}"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = openat2(&root, inner, how).with_context(|| format!("target {inner:?}: openat2"))?;
    // A worker is short-lived: the descriptor ends with it.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let _ = found.into_raw_fd();
    Ok(path.into())
}
