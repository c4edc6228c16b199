//! Namespaces: a mount namespace of the container's own, the rest mostly the pod's, by the paths that its shim knows.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType};

use super::Asked;
use crate::error::{Error, Result};
use crate::proto::{IdMapping, LinuxContainerSecurityContext, NamespaceMode, UserNamespace};

const FIELD: &str = "config.linux.security_context.namespace_options";

/// The namespaces of a container, and the id maps of its user namespace.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) list: Vec<LinuxNamespace>,
    pub(super) uids: Vec<LinuxIdMapping>,
    pub(super) gids: Vec<LinuxIdMapping>,
}

impl Namespaces {
    /// Those that are asked for.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: modes or id maps that can't be, or are not the pod's.
    pub(super) fn of(
        asked: &Asked<'_>,
        context: &LinuxContainerSecurityContext,
        cgroup2: bool,
    ) -> Result<Self> {
        let options = context.namespace_options.clone().unwrap_or_default();
        let of_pod = |kind: &str| format!("/proc/{}/ns/{kind}", asked.sandbox_pid);
        let mut list = vec![
            namespace(LinuxNamespaceType::Mount, None),
            namespace(LinuxNamespaceType::Network, Some(of_pod("net"))),
            namespace(LinuxNamespaceType::Ipc, Some(of_pod("ipc"))),
            namespace(LinuxNamespaceType::Uts, Some(of_pod("uts"))),
        ];
        let pid = match mode("pid", options.pid)? {
            NamespaceMode::Container => None,
            NamespaceMode::Pod | NamespaceMode::Node => Some(of_pod("pid")),
            NamespaceMode::Target => match asked.target_pid {
                Some(pid) => Some(format!("/proc/{pid}/ns/pid")),
                None => {
                    return Err(Error::invalid(format_args!(
                        "{FIELD}.target_id: {:?}: is no running container of the pod",
                        options.target_id
                    )));
                }
            },
        };
        list.push(namespace(LinuxNamespaceType::Pid, pid));
        // With v1 its hierarchies would be shown by names that the host has not; a privileged one manages the host's.
        if cgroup2 && !context.privileged {
            list.push(namespace(LinuxNamespaceType::Cgroup, None));
        }
        let pods = asked
            .pod
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.as_ref())
            .and_then(|options| options.userns_options.as_ref());
        let users = options.userns_options.as_ref();
        let (uids, gids) = maps(users)?;
        if (uids.clone(), gids.clone()) != maps(pods)? {
            return Err(Error::invalid(format_args!(
                "{FIELD}.userns_options: {users:?}: must be the pod's, {pods:?}"
            )));
        }
        if !uids.is_empty() {
            list.push(namespace(LinuxNamespaceType::User, Some(of_pod("user"))));
        }
        Ok(Self { list, uids, gids })
    }

    /// Whether there is a user namespace.
    pub(super) fn users(&self) -> bool {
        !self.uids.is_empty()
    }
}

fn namespace(kind: LinuxNamespaceType, path: Option<String>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path.map(Into::into));
    namespace
}

fn mode(field: &str, mode: i32) -> Result<NamespaceMode> {
    NamespaceMode::try_from(mode)
        .map_err(|_| Error::invalid(format_args!("{FIELD}.{field}: {mode}: is no mode of a namespace")))
}

type Maps = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// Empty ones: no user namespace.
fn maps(users: Option<&UserNamespace>) -> Result<Maps> {
    let Some(users) = users else {
        return Ok(Maps::default());
    };
    let field = format!("{FIELD}.userns_options");
    match mode("userns_options.mode", users.mode)? {
        NamespaceMode::Node if users.uids.is_empty() && users.gids.is_empty() => Ok(Maps::default()),
        NamespaceMode::Node => Err(Error::invalid(format_args!(
            "{field}: mode NODE has no maps: leave out uids and gids"
        ))),
        NamespaceMode::Pod => Ok((
            one(&format!("{field}.uids"), &users.uids)?,
            one(&format!("{field}.gids"), &users.gids)?,
        )),
        NamespaceMode::Container | NamespaceMode::Target => Err(Error::invalid(format_args!(
            "{field}.mode: {}: must be POD or NODE",
            users.mode
        ))),
    }
}

/// The one line that there must be, as the field has it.
fn one(field: &str, maps: &[IdMapping]) -> Result<Vec<LinuxIdMapping>> {
    if maps.len() != 1 {
        return Err(Error::invalid(format_args!(
            "{field}: {} lines: must be one",
            maps.len()
        )));
    }
    mappings(field, maps)
}

/// Id maps of CRI as OCI's.
///
/// # Errors
///
/// `InvalidArgument`: a line that ends beyond the ids there are, or maps nothing.
pub(super) fn mappings(field: &str, maps: &[IdMapping]) -> Result<Vec<LinuxIdMapping>> {
    let line = |map: &IdMapping| {
        let ends = |first: u32| first.checked_add(map.length).is_some();
        if map.length == 0 || !ends(map.host_id) || !ends(map.container_id) {
            return Err(Error::invalid(format_args!(
                "{field}: {map:?}: the length must be at least 1, and the last id below 4294967295"
            )));
        }
        LinuxIdMappingBuilder::default()
            .container_id(map.container_id)
            .host_id(map.host_id)
            .size(map.length)
            .build()
            .map_err(|error| Error::invalid(format_args!("{field}: {error}")))
    };
    maps.iter().map(line).collect()
}
