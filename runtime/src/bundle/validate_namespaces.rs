//! `linux.namespaces`, and what depends on which of them the container does not share with the host: identity
//! mappings and time offsets.

use anyhow::{Result, bail};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType};

use super::validate::no_nul;

pub(super) const IPC: LinuxNamespaceType = LinuxNamespaceType::Ipc;
pub(super) const MOUNT: LinuxNamespaceType = LinuxNamespaceType::Mount;
pub(super) const NETWORK: LinuxNamespaceType = LinuxNamespaceType::Network;
pub(super) const TIME: LinuxNamespaceType = LinuxNamespaceType::Time;
pub(super) const USER: LinuxNamespaceType = LinuxNamespaceType::User;
pub(super) const UTS: LinuxNamespaceType = LinuxNamespaceType::Uts;

/// Most extents the kernel takes in one map (`UID_GID_MAP_MAX_EXTENTS`, Linux 4.15).
const MAX_MAPPINGS: usize = 340;

/// The namespaces named by the configuration, as `CLONE_NEW*` bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Namespaces {
    new: u32,
    joined: u32,
}

impl Namespaces {
    /// Made ones, as bits.
    pub(super) fn of(new: u32) -> Self {
        Self { new, joined: 0 }
    }

    /// Checks the list, the mappings and the offsets.
    pub(super) fn check(linux: &Linux) -> Result<Namespaces> {
        let mut namespaces = Namespaces::default();
        for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
            namespaces.add(i, namespace)?;
        }
        identity(linux, namespaces)?;
        time_offsets(linux, namespaces)?;
        Ok(namespaces)
    }

    fn add(&mut self, i: usize, namespace: &LinuxNamespace) -> Result<()> {
        let bit = namespace.typ() as u32;
        let name = name(namespace.typ());
        if (self.new | self.joined) & bit != 0 {
            bail!("linux.namespaces[{i}]: {name:?} is already there; name each type once");
        }
        match namespace.path() {
            // Go programs write an unset path as "": the same as none.
            Some(path) if !path.as_os_str().is_empty() => {
                if !path.is_absolute() {
                    bail!("linux.namespaces[{i}].path: {path:?}: must be absolute");
                }
                no_nul(
                    &format!("linux.namespaces[{i}].path"),
                    path.as_os_str().as_encoded_bytes(),
                )?;
                self.joined |= bit;
            }
            _ => self.new |= bit,
        }
        Ok(())
    }

    /// Whether the container has a namespace of this type of its own, made for it or joined by path.
    pub(super) fn private(self, typ: LinuxNamespaceType) -> bool {
        (self.new | self.joined) & typ as u32 != 0
    }

    /// Whether the namespace is made for the container.
    pub(super) fn is_new(self, typ: LinuxNamespaceType) -> bool {
        self.new & typ as u32 != 0
    }

    /// Whether the namespace is joined by path.
    pub(super) fn joined(self, typ: LinuxNamespaceType) -> bool {
        self.joined & typ as u32 != 0
    }
}

/// The name in the configuration (oci-spec's Display gives the one in `/proc/PID/ns`).
fn name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// A new user namespace needs both maps. Beside a joined one they may be given (containerd does) and must be what that
/// namespace already has, which is checked when it is joined.
fn identity(linux: &Linux, namespaces: Namespaces) -> Result<()> {
    let fields = [
        ("linux.uidMappings", linux.uid_mappings()),
        ("linux.gidMappings", linux.gid_mappings()),
    ];
    for (field, list) in fields {
        let list = list.as_deref().unwrap_or_default();
        if list.is_empty() {
            if namespaces.is_new(USER) {
                bail!("{field}: missing; a new namespace of type \"user\" needs it");
            }
            continue;
        }
        if !namespaces.private(USER) {
            bail!("{field}: needs a namespace of type \"user\" in linux.namespaces");
        }
        mappings(field, list)?;
    }
    Ok(())
}

/// Checks one map: the kernel would answer EINVAL to each of these without saying where.
pub(super) fn mappings(field: &str, list: &[LinuxIdMapping]) -> Result<()> {
    if list.len() > MAX_MAPPINGS {
        bail!("{field}: {} entries: must be at most {MAX_MAPPINGS}", list.len());
    }
    for (i, mapping) in list.iter().enumerate() {
        if mapping.size() == 0 {
            bail!("{field}[{i}].size: 0: must be at least 1");
        }
        for (key, first) in [
            ("containerID", mapping.container_id()),
            ("hostID", mapping.host_id()),
        ] {
            // 4294967295 is no id but (uid_t) -1.
            if u64::from(first) + u64::from(mapping.size()) > u64::from(u32::MAX) {
                bail!(
                    "{field}[{i}]: {key} {first} and size {}: goes past the largest id",
                    mapping.size()
                );
            }
        }
    }
    overlap(field, "containerID", list, LinuxIdMapping::container_id)?;
    overlap(field, "hostID", list, LinuxIdMapping::host_id)
}

fn overlap(
    field: &str,
    key: &str,
    list: &[LinuxIdMapping],
    first: impl Fn(&LinuxIdMapping) -> u32,
) -> Result<()> {
    // At most 340 entries, and two in practice: no need to sort.
    let end = |mapping: &LinuxIdMapping| u64::from(first(mapping)) + u64::from(mapping.size());
    for (i, one) in list.iter().enumerate() {
        let earlier = list[..i]
            .iter()
            .position(|other| u64::from(first(other)) < end(one) && u64::from(first(one)) < end(other));
        if let Some(j) = earlier {
            bail!("{field}[{i}].{key}: {}: overlaps {field}[{j}]", first(one));
        }
    }
    Ok(())
}

/// `linux.timeOffsets`: clocks that exist, in a new time namespace.
fn time_offsets(linux: &Linux, namespaces: Namespaces) -> Result<()> {
    let Some(offsets) = linux
        .time_offsets()
        .as_ref()
        .filter(|offsets| !offsets.is_empty())
    else {
        return Ok(());
    };
    if namespaces.joined(TIME) {
        bail!("linux.timeOffsets: cannot be set in a namespace of type \"time\" that is joined by path");
    }
    if !namespaces.private(TIME) {
        bail!("linux.timeOffsets: needs a namespace of type \"time\" in linux.namespaces");
    }
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            bail!("linux.timeOffsets: {clock:?}: unknown clock; use monotonic or boottime");
        }
        if let Some(nanoseconds) = offset.nanosecs().filter(|n| *n >= 1_000_000_000) {
            bail!("linux.timeOffsets.{clock}.nanosecs: {nanoseconds}: must be below 1000000000");
        }
    }
    Ok(())
}
