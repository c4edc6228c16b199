//! Mounts that are added to a running container's root, and removed from it (crun's `mounts add`, `mounts remove`).
//!
//! ```text
//! parent  Hot::plan     what can be decided or opened on the host: bind sources are detached mounts from here on
//! child   joins the user and mount namespaces of the container
//!         Hot::attach   destinations are resolved inside the root, as at create; all are attached, or none stays
//! ```
//!
//! What is in the container now is hostile: nothing of it is trusted, its `/proc` least.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::fchdir;
use oci_spec::runtime::{Mount, Spec};

use super::mounts::{Planned, Planner, Step};
use super::options::{Change, Options};
use super::path::{InsidePath, Links, Root, open_error};
use super::{planner, tree};
use crate::sys::Named;
use crate::sys::mount::{self as sys, attr};
use crate::sys::open::openat2;

/// Filesystems that show what their opener sees: the runtime's processes, devices, cgroups, not the container's.
const OF_THE_OPENER: [&str; 8] = [
    "proc",
    "sysfs",
    "mqueue",
    "devpts",
    "cgroup",
    "cgroup2",
    "securityfs",
    "bpf",
];

/// Mounts to be added.
#[derive(Debug)]
pub struct Hot(Vec<(String, Planned)>);

impl Hot {
    /// Plans checked mounts for the container with this configuration; relative sources are relative to `bundle`.
    ///
    /// # Errors
    ///
    /// What can't be added to a running container; a source that can't be opened.
    pub fn plan(spec: &Spec, bundle: &Path, mounts: &[Mount]) -> Result<Hot> {
        let mut planner = planner(spec, bundle)?;
        let mut planned = Vec::with_capacity(mounts.len());
        for (index, mount) in mounts.iter().enumerate() {
            let one = plan_one(&mut planner, mount).with_context(|| format!("mounts[{index}]"))?;
            planned.push((mount.destination().display().to_string(), one));
        }
        Ok(Hot(planned))
    }

    /// In the child, in the container's mount namespace: attaches them in their order. A failure takes those before it
    /// back.
    ///
    /// # Errors
    ///
    /// The mount, and the system call that failed.
    pub fn attach(&mut self, root: OwnedFd, descriptors: &Descriptors) -> Result<()> {
        const READ_ONLY: Change = Change {
            set: attr::RDONLY,
            clear: 0,
        };
        umask(Mode::empty());
        let root = Root::new(root);
        let mut attached: Vec<InsidePath> = Vec::new();
        for (destination, planned) in &mut self.0 {
            let path = planned.destination.path.clone();
            let added = planned.execute(&root).and_then(|later| match later {
                Some(later) => tree::change_attached(&later.mount, READ_ONLY),
                None => Ok(()),
            });
            if let Err(error) = added {
                for path in attached.iter().rev() {
                    // What the container has done to it meanwhile is its own.
                    let _ = remove(&root, path, descriptors);
                }
                return Err(error).with_context(|| format!("mount {destination}"));
            }
            attached.push(path);
        }
        Ok(())
    }
}

fn plan_one(planner: &mut Planner<'_>, mount: &Mount) -> Result<Planned> {
    let fs_type = mount.typ().as_deref().unwrap_or("none");
    let options = Options::parse(fs_type, mount.options().as_deref().unwrap_or_default())?;
    if options.remount {
        bail!("options: remount: only a new mount can be added to a running container");
    }
    if !options.bind && OF_THE_OPENER.contains(&fs_type) {
        bail!("type: {fs_type:?}: can't be added to a running container: it would show what is the host's");
    }
    if options.copy_symlink {
        bail!("options: copy-symlink: only a mount can be added to a running container");
    }
    let mut planned = planner.plan(mount, options)?;
    if let Step::Bind { source, .. } = &mut planned.step {
        source.open_for_good()?;
    }
    Ok(planned)
}

/// `/proc/self/fd` of the host, by which a mount that is held by a descriptor can be named (umount2(2) takes paths only).
#[derive(Debug)]
pub struct Descriptors(OwnedFd);

impl Descriptors {
    /// In the child, while it sees the host's `/proc`.
    ///
    /// # Errors
    ///
    /// There is no `/proc`.
    pub fn open() -> Result<Descriptors> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let fd =
            openat2(sys::cwd(), c"/proc/self/fd", flags, 0).call(|| "openat2(\"/proc/self/fd\")".into())?;
        Ok(Descriptors(fd))
    }
}

/// In the child, in the container's mount namespace: removes the mounts at these destinations, the last one first.
///
/// # Errors
///
/// A path that is none, leads to nothing, or to no mount point.
pub fn detach(root: OwnedFd, mounts: &[Mount], descriptors: &Descriptors) -> Result<()> {
    let root = Root::new(root);
    let paths = mounts
        .iter()
        .map(|mount| InsidePath::new(mount.destination()))
        .collect::<Result<Vec<_>>>()?;
    // All are looked at before the first is gone.
    for (index, path) in paths.iter().enumerate() {
        if path.is_root() {
            bail!("mounts[{index}].destination: /: the root filesystem can't be removed");
        }
        root.open(path, 0, Links::Follow)
            .map_err(|errno| open_error(path, errno))
            .with_context(|| format!("mounts[{index}]"))?;
    }
    for (index, path) in paths.iter().enumerate().rev() {
        remove(&root, path, descriptors).with_context(|| format!("mounts[{index}]"))?;
    }
    Ok(())
}

fn remove(root: &Root, path: &InsidePath, descriptors: &Descriptors) -> Result<()> {
    let mount = root
        .open(path, 0, Links::Follow)
        .map_err(|errno| open_error(path, errno))?;
    fchdir(&descriptors.0).call(|| "fchdir(\"/proc/self/fd\")".into())?;
    let number = CString::new(mount.as_raw_fd().to_string())?;
    sys::detach(&number).map_err(|errno| {
        let hint = if errno == Errno::EINVAL {
            " (it is no mount point)"
        } else {
            ""
        };
        crate::sys::Error {
            call: format!("umount2(\"{path}\", DETACH){hint}"),
            errno,
        }
    })?;
    Ok(())
}
