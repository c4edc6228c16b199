//! What a process' stdio depends on in its configuration: rules on paths hold for a named FIFO, and not for a pipe; and its
//! user owns what it may open again as `/dev/stdout`.
//!
//! The configuration is on the tmpfs that containerd keeps bundles on; of it, only these few words are kept.

use std::path::Path;

use rtc_runtime::bundle::{self, CONFIG, MAX_CONFIG_SIZE};
use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::io::fifo;

/// How the stdio of a process is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Pipes instead of FIFOs.
    pub(crate) pipes: bool,
    /// The process' user and group, as the host sees them; 0 where the host has none of it.
    pub(crate) owner: (u32, u32),
}

/// The ids of a container's user namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IdMaps {
    uid_mappings: Option<Vec<Mapping>>,
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mapping {
    #[serde(rename = "containerID")]
    inside: u32,
    #[serde(rename = "hostID")]
    outside: u32,
    size: u32,
}

/// The words of a process that say who it is and how it is confined.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Process {
    selinux_label: Option<String>,
    apparmor_profile: Option<String>,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Deserialize)]
struct Config {
    process: Option<Process>,
    linux: Option<IdMaps>,
}

impl Process {
    fn needs(&self, maps: &IdMaps) -> Needs {
        Needs {
            pipes: fifo::needs_pipes(self.selinux_label.as_deref(), self.apparmor_profile.as_deref()),
            owner: (
                outside(self.user.uid, maps.uid_mappings.as_deref()),
                outside(self.user.gid, maps.gid_mappings.as_deref()),
            ),
        }
    }
}

/// An id as the host sees it.
fn outside(id: u32, maps: Option<&[Mapping]>) -> u32 {
    let Some(maps) = maps.filter(|maps| !maps.is_empty()) else {
        return id;
    };
    let map = maps
        .iter()
        .find(|map| id.checked_sub(map.inside).is_some_and(|offset| offset < map.size));
    map.and_then(|map| map.outside.checked_add(id - map.inside))
        .unwrap_or(0)
}

/// What the init of a bundle needs, and the ids for later processes of its container.
///
/// # Errors
///
/// There is no configuration that could be read: nothing could be created of it either.
pub(crate) fn of_bundle(directory: &Path) -> Result<(Needs, IdMaps)> {
    let read = || {
        let raw = bundle::read_config(&directory.join(CONFIG), MAX_CONFIG_SIZE)?;
        bundle::parse_json::<Config>(&raw)
    };
    let config = read().map_err(|error| Error::new(Kind::InvalidArgument, error))?;
    let maps = config.linux.unwrap_or_default();
    Ok((config.process.unwrap_or_default().needs(&maps), maps))
}

/// What a process of exec needs, given as JSON.
///
/// # Errors
///
/// It is no process.
pub(crate) fn of_process(json: &[u8], maps: &IdMaps) -> Result<Needs> {
    let process: Process =
        bundle::parse_json(json).map_err(|error| Error::new(Kind::InvalidArgument, error.context("spec")))?;
    Ok(process.needs(maps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(json: &str) -> Needs {
        of_process(json.as_bytes(), &IdMaps::default()).unwrap()
    }

    #[test]
    fn a_label_or_a_strict_profile_asks_for_pipes() {
        assert!(!needs(r#"{"args": ["a"], "cwd": "/"}"#).pipes);
        assert!(needs(r#"{"apparmorProfile": "strict"}"#).pipes);
        assert!(needs(r#"{"selinuxLabel": "a:b:c"}"#).pipes);
        let error = of_process(b"[", &IdMaps::default()).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
    }

    #[test]
    fn the_owner_is_the_user_as_the_host_sees_it() {
        assert_eq!(needs(r#"{"cwd": "/"}"#).owner, (0, 0));
        assert_eq!(needs(r#"{"user": {"uid": 1000, "gid": 7}}"#).owner, (1000, 7));
        let maps = r#"{"uidMappings": [{"containerID": 0, "hostID": 100000, "size": 10},
                                       {"containerID": 10, "hostID": 4294967290, "size": 100}],
                       "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 10}]}"#;
        let maps: IdMaps = bundle::parse_json(maps.as_bytes()).unwrap();
        for (user, owner) in [
            (r#"{"user": {"uid": 0, "gid": 0}}"#, (100_000, 200_000)),
            (r#"{"user": {"uid": 9, "gid": 9}}"#, (100_009, 200_009)),
            (r#"{"user": {"uid": 20, "gid": 10}}"#, (0, 0)),
            (r#"{"user": {"uid": 4294967295}}"#, (0, 200_000)),
        ] {
            assert_eq!(of_process(user.as_bytes(), &maps).unwrap().owner, owner, "{user}");
        }
    }
}
