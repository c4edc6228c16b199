//! `config.toml`: every key has a default, an unknown one is refused.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where it is looked for; a file that is not there is an empty one.
pub(crate) const PATH: &str = "/etc/rtc-cri/config.toml";

/// There is one where the machine has nothing but cgroup v2.
const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What the administrator decides.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The socket of the server.
    pub(crate) socket: PathBuf,
    /// What outlives a boot: images, upper layers, network attachments.
    pub(crate) root: PathBuf,
    /// What dies with the boot: records of pods, bundles, sockets.
    pub(crate) state: PathBuf,
    /// `systemd` or `cgroupfs`; left out: systemd where it is the machine's init.
    pub(crate) cgroup_driver: Option<CgroupDriver>,
    /// The containerd shim that runs pods: a path, or a name in PATH or beside this program.
    pub(crate) shim: PathBuf,
    /// The cgroup of all shims, below the mount point of each hierarchy; left out: `/system.slice/rtc-shims.scope` with
    /// systemd, else `/rtc-shims`.
    pub(crate) shim_cgroup: Option<PathBuf>,
    /// The handler that pods with none get.
    pub(crate) default_handler: String,
    /// Handlers by name; the default one is there without being said.
    pub(crate) handlers: BTreeMap<String, Handler>,
    pub(crate) cni: CniConfig,
    pub(crate) images: ImagesConfig,
    /// Messages of each call.
    pub(crate) debug: bool,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    Systemd,
    Cgroupfs,
}

/// A way to run containers, as a RuntimeClass names it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Handler {
    /// A foreign OCI runtime, as `/usr/bin/crun`; left out: ours, inside the shim.
    pub(crate) binary: Option<PathBuf>,
    /// Annotations of pods that the OCI runtime is shown: names, or beginnings that end in `*`. None but these: a runtime
    /// obeys annotations (CVE-2024-3154).
    pub(crate) pod_annotations: Vec<String>,
    /// The same, of containers.
    pub(crate) container_annotations: Vec<String>,
    /// Privileged containers have no more devices than others.
    pub(crate) privileged_without_host_devices: bool,
    /// Containers that are not privileged may change their own cgroup, too (cgroup v2 only).
    pub(crate) cgroup_writable: bool,
}

/// Networks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CniConfig {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Results of ADD, as libcni keeps them.
    pub(crate) cache_dir: PathBuf,
    /// How long the plugins of a network may take for one pod, in seconds; then they are killed.
    pub(crate) timeout_seconds: u64,
}

/// Images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImagesConfig {
    /// containerd's `certs.d`: `<host>/hosts.toml`, `_default/hosts.toml`.
    pub(crate) certs_dir: PathBuf,
    /// Images that are never removed to make room, as `registry.k8s.io/pause:*`.
    pub(crate) pinned: Vec<String>,
    /// Layers of one pull that are downloaded and unpacked at once.
    pub(crate) max_parallel_downloads: NonZeroUsize,
    /// Seconds without a byte from a registry until it is asked anew; not a limit of the whole pull.
    pub(crate) stall_timeout: NonZeroU64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/rtc-cri/rtc-cri.sock".into(),
            root: "/var/lib/rtc-cri".into(),
            state: "/run/rtc-cri".into(),
            cgroup_driver: None,
            shim: "containerd-shim-rtc-v2".into(),
            shim_cgroup: None,
            default_handler: "rtc".into(),
            handlers: BTreeMap::new(),
            cni: CniConfig::default(),
            images: ImagesConfig::default(),
            debug: false,
        }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            timeout_seconds: 60,
        }
    }
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            certs_dir: "/etc/containerd/certs.d".into(),
            pinned: Vec::new(),
            max_parallel_downloads: const { NonZeroUsize::new(3).expect("not 0") },
            stall_timeout: const { NonZeroU64::new(60).expect("not 0") },
        }
    }
}

impl Config {
    /// A handler by its name; an empty one is the default.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with those that there are.
    pub(crate) fn handler(&self, name: &str) -> Result<&Handler> {
        static OURS: LazyLock<Handler> = LazyLock::new(Handler::default);
        let name = if name.is_empty() {
            &self.default_handler
        } else {
            name
        };
        match self.handlers.get(name) {
            Some(handler) => Ok(handler),
            None if *name == self.default_handler => Ok(&OURS),
            None => {
                let known: Vec<&str> = self.handler_names().collect();
                Err(Error::invalid(format_args!(
                    "runtime_handler: {name:?}: must be one of {known:?}, or be added to config.toml (`[handlers.{name}]`)"
                )))
            }
        }
    }

    /// The names of all handlers, the default one first.
    pub(crate) fn handler_names(&self) -> impl Iterator<Item = &str> {
        let others = self.handlers.keys().filter(|name| **name != self.default_handler);
        std::iter::once(&self.default_handler)
            .chain(others)
            .map(String::as_str)
    }

    /// Who makes cgroups.
    pub(crate) fn driver(&self) -> CgroupDriver {
        // sd_booted(3)
        let found = || match Path::new("/run/systemd/system").is_dir() && Path::new(UNIFIED).exists() {
            true => CgroupDriver::Systemd,
            false => CgroupDriver::Cgroupfs,
        };
        self.cgroup_driver.unwrap_or_else(found)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// The file, the line and the key, where it can't be read or has what is not known.
    pub(crate) fn read(path: &Path, required: bool) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::invalid(format_args!("{}: {error}", path.display()))),
        };
        toml::from_str(&text).map_err(|error| Error::invalid(format_args!("{}: {error}", path.display())))
    }
}
