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
use std::fs::File;
use std::io::Read as _;
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
                    // It may be elsewhere by now: what the container moved is left to it.
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
    if options.copy_up {
        bail!(
            "options: tmpcopyup: what is copied would be changed meanwhile by the container: copy it from inside"
        );
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

    /// Of a mount of one of the kernel's own file systems, or one that covers a part of one (a masked or read-only path):
    /// which. Both are named by the number of the mount, not by paths.
    fn confining(&self, mount: &OwnedFd) -> Result<Option<String>> {
        let information = self.read(&format!("../fdinfo/{}", mount.as_raw_fd()))?;
        let number = information
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:"))
            .context("fdinfo: mnt_id is missing")?
            .trim();
        Ok(confining(&self.read("../mountinfo")?, number))
    }

    fn read(&self, path: &str) -> Result<String> {
        let fd = openat2(&self.0, &CString::new(path)?, libc::O_RDONLY, 0)
            .call(|| format!("openat2(\"/proc/self/fd/{path}\")"))?;
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text)?;
        Ok(text)
    }
}

/// The kernel's file system in `mountinfo` (proc(5)) of which this mount is one, or in which it is mounted.
fn confining(mountinfo: &str, number: &str) -> Option<String> {
    let line = |number: &str| {
        mountinfo
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&number))
    };
    let kind = |fields: &[&str]| {
        let dash = fields.iter().position(|field| *field == "-")?;
        fields.get(dash + 1).map(|kind| (*kind).to_owned())
    };
    let own = line(number)?;
    let below = own.get(1).and_then(|parent| line(parent));
    let kinds = [kind(&own), below.and_then(|fields| kind(&fields))];
    kinds
        .into_iter()
        .flatten()
        .find(|kind| OF_THE_OPENER.contains(&kind.as_str()))
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
        root.open(path, 0, Links::Refuse)
            .map_err(|errno| open_error(path, errno))
            .with_context(|| format!("mounts[{index}]"))?;
    }
    for (index, path) in paths.iter().enumerate().rev() {
        remove(&root, path, descriptors).with_context(|| format!("mounts[{index}]"))?;
    }
    Ok(())
}

/// The container chooses what a path leads to: never over a link, and never to what confines it.
fn remove(root: &Root, path: &InsidePath, descriptors: &Descriptors) -> Result<()> {
    let mount = root
        .open(path, 0, Links::Refuse)
        .map_err(|errno| open_error(path, errno))?;
    if let Some(kind) = descriptors.confining(&mount)? {
        bail!("{path}: is a mount of {kind}, or in one: it confines the container, and stays");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_covers_a_part_of_the_kernels_file_systems_confines() {
        let mountinfo = "30 1 0:20 / / rw - overlay overlay rw\n31 30 0:21 / /proc rw shared:1 - proc proc rw\n\
                         32 31 0:21 /sys /proc/sys ro - proc proc rw\n33 31 0:5 /null /proc/kcore rw - tmpfs tmpfs rw\n\
                         34 30 8:1 /volume /data rw - ext4 /dev/sda rw\n";
        let kind = |number| confining(mountinfo, number);
        for confines in ["31", "32", "33"] {
            assert_eq!(kind(confines).as_deref(), Some("proc"), "{confines}");
        }
        assert_eq!((kind("34"), kind("30"), kind("99")), (None, None, None));
    }
}
