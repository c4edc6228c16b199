//! Giving a container's cgroup to the user that its own root is on the host, so that it can make cgroups below: what
//! systemd in a container with a user namespace needs (cgroups(7), "Cgroups v2 delegation"). The limits of the
//! container stay out of its reach: they are files of the host's root.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::chown;

use anyhow::{Context as _, Result};

use super::Cgroup;

/// The kernel's list of what is given away with a cgroup (Linux 4.15).
const LIST: &str = "/sys/kernel/cgroup/delegate";

impl Cgroup {
    /// Gives it to a user of the host. Only on cgroup v2: v1 has no safe way.
    ///
    /// # Errors
    ///
    /// As chown(2).
    pub fn delegate(&self, owner: u32) -> Result<()> {
        if !self.is_v2() {
            return Ok(());
        }
        let directory = &self.main()?.path;
        let give = |path: &std::path::Path| chown(path, Some(owner), None);
        give(directory).with_context(|| format!("chown {}", directory.display()))?;
        let list = fs::read_to_string(LIST)
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".into());
        for name in list.lines().filter(|name| !name.contains('/')) {
            let path = directory.join(name);
            match give(&path) {
                // Of a controller that is not enabled here.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                given => given.with_context(|| format!("chown {}", path.display()))?,
            }
        }
        Ok(())
    }
}
