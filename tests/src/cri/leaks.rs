//! What a server may not leave when its pods are gone: looked at before and after the test's body.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::server::Cri;
use crate::host::{mounts, process};
use crate::registry::Result;
use crate::wait::{DEADLINE, within};

/// Names of what was there, each with how many of its kind.
pub(crate) struct Seen(BTreeMap<String, usize>);

impl Seen {
    /// What is there now.
    pub(crate) fn now(cri: &Cri<'_>) -> Result<Self> {
        let mut seen = Self(BTreeMap::new());
        let own = cri.directory.to_string_lossy();
        for mount in mounts::of("self")? {
            seen.add(format!("mount {}", mount.target.display()));
        }
        for place in ["/run/netns", "/run/containerd/s", "/run/containerd/rtc"] {
            seen.add_entries(Path::new(place));
        }
        for place in ["state", "root/containers", "cni/results", "addresses"] {
            seen.add_below(&cri.directory.join(place));
        }
        seen.0.retain(|name, _| !is_record(name, &own));
        let interfaces = fs::read_to_string("/proc/self/net/dev").context("/proc/self/net/dev")?;
        let names = interfaces
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim()));
        names
            .filter(|&name| name != "cni0")
            .for_each(|name| seen.add(format!("link {name}")));
        seen.add_descriptors(cri)?;
        seen.add_processes(cri.pid()?);
        Ok(seen)
    }

    fn add(&mut self, name: String) {
        *self.0.entry(name).or_default() += 1;
    }

    fn add_entries(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // A namespace's directory may stay, empty.
            if entry.path().is_dir() {
                self.add_entries(&entry.path());
            } else {
                self.add(format!("file {}", entry.path().display()));
            }
        }
    }

    fn add_below(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            self.add(format!("file {}", entry.path().display()));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_below(&entry.path());
            }
        }
    }

    fn add_descriptors(&mut self, cri: &Cri<'_>) -> Result {
        let directory = format!("/proc/{}/fd", cri.pid()?);
        for entry in fs::read_dir(&directory).context(directory)?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            // A database of a peer's, opened with its first use.
            if !cri.is_ours() && target.starts_with(cri.root()) {
                continue;
            }
            let target = target.to_string_lossy().into_owned();
            // Numbers differ; connections come and go with clients.
            let kind = target.split(":[").next().unwrap_or_default();
            // A peer keeps its connection to the registry for half a minute.
            if !cri.is_ours() && kind == "socket" {
                continue;
            }
            self.add(format!("descriptor {kind}"));
        }
        Ok(())
    }

    /// Of the test, but for the server's own.
    fn add_processes(&mut self, server: i32) {
        let supervisor = std::os::unix::process::parent_id().cast_signed();
        let own = std::process::id().cast_signed();
        for pid in process::descendants(supervisor) {
            if pid != server && pid != own {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                self.add(format!("process {}", name.trim()));
            }
        }
    }

    /// Nothing is there that was not, given time to go.
    pub(crate) fn nothing_more(&self, cri: &Cri<'_>) -> Result {
        let gone = within(DEADLINE / 2, "nothing left", || {
            Ok(self.more_in(&Self::now(cri)?).is_empty().then_some(()))
        });
        if gone.is_err() {
            bail!("left behind: {}", self.more_in(&Self::now(cri)?).join("; "));
        }
        Ok(())
    }

    fn more_in(&self, now: &Self) -> Vec<String> {
        let more = now.0.iter().filter(|(name, count)| {
            let before = self.0.get(*name).copied().unwrap_or_default();
            **count > before + allowed(name)
        });
        more.map(|(name, count)| format!("{name} ({count})")).collect()
    }
}

/// So many more than before are no leak: clients that are still connected; the registry, started with the first pull; what
/// random numbers come from, opened with the first TLS or name of a static program.
fn allowed(name: &str) -> usize {
    match name {
        "descriptor socket" => 3,
        "process docker-registry" | "descriptor /dev/urandom" => 1,
        _ => 0,
    }
}

/// Files that a server keeps for itself, whatever pods there are: journals and locks; host-local's notes.
fn is_record(name: &str, directory: &str) -> bool {
    let Some(file) = name
        .strip_prefix("file ")
        .and_then(|path| path.strip_prefix(directory))
    else {
        return false;
    };
    let file = file.trim_start_matches('/');
    let last = file.rsplit('/').next().unwrap_or_default();
    // Directories of kinds; files at the top.
    let depth = file.split('/').count();
    let of_server = file == "state/runtime/k8s.io"
        || depth == 2 && (file.starts_with("state/") || file.starts_with("root/"));
    // The runtime's directory for containers of CRI's namespace: it may stay, empty.
    of_server
        || file == "state/runtime/k8s.io"
        || (file.starts_with("addresses/")
            && (last == "pods" || last == "lock" || last.starts_with("last_reserved_ip")))
}
