//! What a mount of type `cgroup` in the container shows: the machine's trees, with the container's own cgroup in each.

use std::fs;
use std::path::Path;

use crate::cgroup::{Cgroup, Layout};
use crate::rootfs::{Cgroups, Hierarchy};

/// Where the machine mounts its trees.
const ROOT: &str = "/sys/fs/cgroup";

/// From the layout and the container's cgroup.
#[must_use]
pub fn cgroup_view(layout: &Layout, cgroup: &Cgroup) -> Cgroups {
    let Layout::V1(trees) = layout else {
        return cgroup
            .path()
            .map_or(Cgroups::Absent, |own| Cgroups::Unified { own: own.to_owned() });
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
