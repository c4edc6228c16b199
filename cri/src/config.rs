//! `config.toml`: every key has a default, an unknown one is refused.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Where it is looked for; a file that is not there is an empty one.
pub(crate) const PATH: &str = "/etc/rtc-cri/config.toml";

/// What the administrator decides.
#[derive(Debug, Clone, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    Systemd,
    Cgroupfs,
}

/// A way to run containers, as a RuntimeClass names it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Handler {
    /// A foreign OCI runtime, as `/usr/bin/crun`; left out: ours, inside the shim.
    pub(crate) binary: Option<PathBuf>,
}

/// Networks.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CniConfig {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Results of ADD, as libcni keeps them.
    pub(crate) cache_dir: PathBuf,
}

/// Images.
#[derive(Debug, Clone, Deserialize)]
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
