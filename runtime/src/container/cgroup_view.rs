//! What a mount of type `cgroup` in the container shows: the machine's trees, with the container's own cgroup in each.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::cgroup::{Cgroup, Layout};
use crate::rootfs::{Cgroups, Hierarchy};

/// Where the machine mounts its trees.
const ROOT: &str = "/sys/fs/cgroup";

/// From the layout and the container's cgroup.
#[must_use]
pub fn cgroup_view(layout: &Layout, cgroup: &Cgroup) -> Cgroups {
    let Layout::V1(trees) = layout else {
        // A container without one is in its creator's, which others are in.
        let foreign = cgroup.is_absent();
        let own = match cgroup.path() {
            Some(own) => own.to_owned(),
            None => Path::new(ROOT).join(Layout::own_unified().unwrap_or_default()),
        };
        return Cgroups::Unified { own, foreign };
    };
    let mut hierarchies = Vec::new();
    for (controllers, own) in cgroup.paths().filter(|(controllers, _)| !controllers.is_empty()) {
        let Some(tree) = trees.iter().find(|tree| tree.controllers == controllers) else {
            continue;
        };
        let Some(name) = tree.mount.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let options = if controllers.starts_with("name=") {
            format!("none,{controllers}")
        } else {
            controllers.to_owned()
        };
        hierarchies.push(Hierarchy {
            name: name.to_owned(),
            options,
            own: own.to_owned(),
        });
    }
    let shared = hierarchies.iter().any(|hierarchy| hierarchy.name.contains(','));
    Cgroups::Legacy {
        links: if shared {
            links(Path::new(ROOT))
        } else {
            Vec::new()
        },
        hierarchies,
    }
}

/// The links beside the trees: `cpu` to `cpu,cpuacct`.
fn links(root: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().into_string().ok()?, target.to_str()?.to_owned()))
    });
    links.collect()
}

/// Whether the container is given its cgroup to write to: by a mount of type `cgroup`, by a bind of the machine's trees or
/// what they are below, or because it sees the machine's mounts anyway. (One with CAP_SYS_ADMIN could get it all the same.)
#[must_use]
pub fn writes_cgroup(spec: &Spec) -> bool {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let own_mounts = namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    !own_mounts || spec.mounts().iter().flatten().any(shows_writable_cgroup)
}

/// The user of the host that a container's own root, or whoever its program runs as, is, where the cgroup is to be given to
/// it (as runc does): with a user namespace and a cgroup namespace of its own, and /sys/fs/cgroup mounted writable.
#[must_use]
pub fn delegated_to(spec: &Spec) -> Option<u32> {
    let linux = spec.linux().as_ref()?;
    let makes = |kind| {
        let mut namespaces = linux.namespaces().iter().flatten();
        namespaces.any(|namespace| namespace.typ() == kind && namespace.path().is_none())
    };
    if !makes(LinuxNamespaceType::User) || !makes(LinuxNamespaceType::Cgroup) {
        return None;
    }
    let mut mounts = spec.mounts().iter().flatten();
    let usual = |mount: &Mount| {
        mount.destination().components().eq(Path::new(ROOT).components())
            && mount
                .typ()
                .as_deref()
                .is_some_and(|typ| typ.starts_with("cgroup"))
    };
    if !mounts.any(|mount| usual(mount) && shows_writable_cgroup(mount)) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    linux.uid_mappings().iter().flatten().find_map(|map| {
        let offset = uid.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    })
}

fn shows_writable_cgroup(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    let last = options
        .iter()
        .rev()
        .find(|option| ["ro", "rw", "rro"].contains(&option.as_str()));
    if last.is_some_and(|option| option != "rw") {
        return false;
    }
    let of_cgroups = mount
        .typ()
        .as_deref()
        .is_some_and(|typ| typ.starts_with("cgroup"));
    let shows_root = mount.source().as_deref().is_some_and(|source| {
        source.is_absolute() && (source.starts_with(ROOT) || Path::new(ROOT).starts_with(source))
    });
    of_cgroups || shows_root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(mounts: &str) -> bool {
        let config = format!(
            r#"{{"ociVersion": "1.2.0", "mounts": [{mounts}], "linux": {{"namespaces": [{{"type": "mount"}}]}}}}"#
        );
        writes_cgroup(&serde_json::from_str(&config).unwrap())
    }

    #[test]
    fn a_cgroup_is_delegated_with_both_namespaces_and_a_writable_mount_alone() {
        let to = |namespaces: &str, options: &str| {
            let config = format!(
                r#"{{"ociVersion": "1.2.0", "process": {{"user": {{"uid": 5, "gid": 0}}, "cwd": "/"}},
                    "mounts": [{{"destination": "/sys/fs/cgroup/", "type": "cgroup", "source": "cgroup", "options": [{options}]}}],
                    "linux": {{"namespaces": [{namespaces}], "uidMappings":
                        [{{"containerID": 0, "hostID": 1000, "size": 1}}, {{"containerID": 1, "hostID": 2000, "size": 9}}]}}}}"#
            );
            delegated_to(&serde_json::from_str(&config).unwrap())
        };
        let both = r#"{"type": "user"}, {"type": "cgroup"}"#;
        assert_eq!(to(both, ""), Some(2004));
        assert_eq!(to(both, "\"ro\""), None);
        assert_eq!(to(r#"{"type": "user"}"#, ""), None);
        assert_eq!(
            to(r#"{"type": "user"}, {"type": "cgroup", "path": "/x"}"#, ""),
            None
        );
    }

    #[test]
    fn a_container_writes_its_cgroup_where_it_is_mounted_so() {
        assert!(!writes(""));
        assert!(!writes(
            r#"{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]}"#
        ));
        assert!(writes(
            r#"{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "rw"]}"#
        ));
        assert!(writes(
            r#"{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]}"#
        ));
        assert!(writes(
            r#"{"destination": "/c", "type": "bind", "source": "/sys/fs/cgroup/x", "options": ["bind"]}"#
        ));
        assert!(!writes(
            r#"{"destination": "/data", "type": "bind", "source": "/sys/fs/bpf", "options": ["bind"]}"#
        ));
        let of_the_host = r#"{"ociVersion": "1.2.0", "linux": {"namespaces": []}}"#;
        assert!(writes_cgroup(&serde_json::from_str(of_the_host).unwrap()));
    }
}
