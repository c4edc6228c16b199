//! Mounts whose owners are mapped (`idmap`, `ridmap`, `uidMappings`, `gidMappings`; Linux 5.12).
//!
//! The kernel takes a mapping only as a user namespace that has it. The container's own does not exist yet when mounts
//! are prepared, so a namespace with the wanted mapping is made by a short-lived child, once per mapping:
//!
//! ```text
//! parent                                   child
//! clone3(NEWUSER) -----------------------> waits to be killed
//! writes /proc/<child>/{uid,gid}_map
//! opens /proc/<child>/ns/user
//! kills, reaps <--------------------------
//! mount_setattr(tree, IDMAP, namespace)
//! ```

mod option;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use oci_spec::runtime::{LinuxIdMapping, Mount};

use crate::sys::clone::{CLONE_NEWUSER, Child, Cloned, clone3};
use crate::sys::mount::{self as sys, AT_RECURSIVE, MountAttr, attr};
use crate::sys::process::{pidfd_send_signal, set_parent_death_signal};
use crate::sys::{Error, Named};

pub(crate) use option::Custom;

/// The user namespace of the container.
#[derive(Debug, Clone)]
pub(crate) enum Container<'a> {
    /// It has the host's.
    Host,
    /// It gets a new one with these mappings.
    New {
        /// Of users.
        uids: &'a [LinuxIdMapping],
        /// Of groups.
        gids: &'a [LinuxIdMapping],
    },
    /// It joins this one.
    Joined(PathBuf),
}

/// Gives mounts their mappings.
pub(crate) struct IdMapper<'a> {
    container: Container<'a>,
    /// Namespaces made, by the text of their mappings.
    made: Vec<(String, OwnedFd)>,
}

impl<'a> IdMapper<'a> {
    pub(crate) fn new(container: Container<'a>) -> IdMapper<'a> {
        IdMapper {
            container,
            made: Vec::new(),
        }
    }

    /// Whether a new user namespace of the container's does not have the user.
    pub(crate) fn lacks_user(&self, id: u32) -> bool {
        matches!(&self.container, Container::New { uids, .. } if !has(uids, id))
    }

    /// Whether a new user namespace of the container's does not have the group.
    pub(crate) fn lacks_group(&self, id: u32) -> bool {
        matches!(&self.container, Container::New { gids, .. } if !has(gids, id))
    }

    /// Maps the owners of a detached mount: as the option says, or the mount, otherwise as the container does.
    #[expect(
        clippy::disallowed_methods,
        reason = "in the parent: a namespace of the host's"
    )]
    pub(crate) fn apply(
        &mut self,
        tree: &OwnedFd,
        mount: &Mount,
        custom: Option<&Custom>,
        recursive: bool,
    ) -> Result<()> {
        let joined;
        let custom = custom.map(|custom| custom.resolve(&self.container)).transpose();
        let custom = custom.context("options: idmap")?;
        let namespace = match (mount.uid_mappings(), mount.gid_mappings(), &self.container) {
            _ if let Some([uids, gids]) = &custom => namespace_with(&mut self.made, uids, gids)?,
            (Some(uids), Some(gids), _) => namespace_with(&mut self.made, uids, gids)?,
            (None, None, Container::New { uids, gids }) => namespace_with(&mut self.made, uids, gids)?,
            (None, None, Container::Joined(path)) => {
                joined = File::open(path)
                    .map(OwnedFd::from)
                    .call(|| format!("open({path:?})"))?;
                &joined
            }
            (None, None, Container::Host) => bail!(
                "options: idmap: needs uidMappings and gidMappings where the container has no user namespace"
            ),
            (None, Some(_), _) => bail!("uidMappings: missing: gidMappings needs them too"),
            (Some(_), None, _) => bail!("gidMappings: missing: uidMappings needs them too"),
        };
        let change = MountAttr {
            set: attr::IDMAP,
            userns_fd: namespace.as_raw_fd() as u64,
            ..MountAttr::default()
        };
        let flags = if recursive { AT_RECURSIVE } else { 0 };
        sys::mount_setattr(tree, flags, &change).map_err(|errno| {
            let hint = match errno {
                Errno::ENOSYS => " (needs Linux 5.12)",
                Errno::EPERM => " (only root of the machine can map the owners of this filesystem)",
                Errno::EINVAL => " (this kernel can't map owners on the source's filesystem)",
                _ => "",
            };
            Error {
                call: format!("mount_setattr(IDMAP){hint}"),
                errno,
            }
        })?;
        Ok(())
    }
}

fn has(mappings: &[LinuxIdMapping], id: u32) -> bool {
    mappings.iter().any(|map| {
        id.checked_sub(map.container_id())
            .is_some_and(|offset| offset < map.size())
    })
}

fn namespace_with<'m>(
    made: &'m mut Vec<(String, OwnedFd)>,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<&'m OwnedFd> {
    let (uid_map, gid_map) = (map_text(uids), map_text(gids));
    let key = format!("{uid_map};{gid_map}");
    let at = match made.iter().position(|(known, _)| *known == key) {
        Some(at) => at,
        None => {
            let namespace =
                make_namespace(&uid_map, &gid_map).context("make a user namespace for an ID-mapped mount")?;
            made.push((key, namespace));
            made.len() - 1
        }
    };
    Ok(&made[at].1)
}

/// The mappings as `/proc/<pid>/uid_map` takes them: inside, outside, count.
fn map_text(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect()
}

/// Makes a user namespace with these mappings, in the form of `/proc/<pid>/uid_map`, which nobody is in.
///
/// # Errors
///
/// As clone3(2), or a mapping that the kernel refuses.
pub fn make_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    match clone3(CLONE_NEWUSER, None)? {
        Cloned::Child => {
            // Nothing else ends it should the parent be killed meanwhile.
            drop(set_parent_death_signal(libc::SIGKILL));
            loop {
                nix::unistd::pause();
            }
        }
        Cloned::Parent(child) => {
            let namespace = map_and_open(&child, uid_map, gid_map);
            pidfd_send_signal(&child.pidfd, libc::SIGKILL)?;
            waitid(Id::Pid(child.pid), WaitPidFlag::WEXITED).call(|| "waitid".into())?;
            namespace
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "in the parent: the host's /proc")]
fn map_and_open(child: &Child, uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let process = format!("/proc/{}", child.pid);
    for (file, map) in [("gid_map", gid_map), ("uid_map", uid_map)] {
        fs::write(format!("{process}/{file}"), map).call(|| format!("write({file}, {:?})", map.trim()))?;
    }
    let path = format!("{process}/ns/user");
    Ok(File::open(&path).call(|| format!("open({path:?})"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    #[test]
    fn mappings_are_written_inside_first() {
        let map = LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(100_000u32)
            .size(65536u32)
            .build()
            .unwrap();
        assert_eq!(map_text(&[map, map]), "0 100000 65536\n0 100000 65536\n");
    }
}
