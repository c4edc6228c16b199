//! What a configuration depends on, of the node: looked at once.

use crate::config::{CgroupDriver, Config};

/// What the node is.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Who makes cgroups.
    pub(crate) driver: CgroupDriver,
    /// Whether all controllers are of cgroup v2.
    pub(crate) cgroup2: bool,
}

impl Facts {
    /// Looks.
    ///
    /// # Errors
    ///
    /// `/proc` or `/sys` can't be read.
    pub(crate) fn detect(config: &Config) -> crate::error::Result<Self> {
        let systemd = std::path::Path::new("/run/systemd/system").is_dir();
        let default = if systemd {
            CgroupDriver::Systemd
        } else {
            CgroupDriver::Cgroupfs
        };
        Ok(Self {
            driver: config.cgroup_driver.unwrap_or(default),
            cgroup2: std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        })
    }
}
