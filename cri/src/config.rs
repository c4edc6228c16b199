//! `config.toml`: every key has a default, an unknown one is refused. `cri/config.toml` documents them all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shim::start::STATE_MAX;

/// Where it is looked for; a file that is not there is an empty one.
pub(crate) const PATH: &str = "/etc/rtc-cri/config.toml";

/// The default one, with every key.
pub(crate) const DEFAULT: &str = include_str!("../config.toml");

/// There is one where the machine has nothing but cgroup v2.
const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What the administrator decides.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The socket of the server.
    pub(crate) socket: PathBuf,
    /// The group that may use the socket besides root; left out: root's.
    pub(crate) socket_gid: Option<u32>,
    /// Whom of those that may use the socket to serve besides root; both empty: all.
    pub(crate) allowed_uids: Vec<u32>,
    pub(crate) allowed_gids: Vec<u32>,
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
    pub(crate) streaming: StreamingConfig,
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

/// Where Exec, Attach and PortForward are served.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StreamingConfig {
    /// Port 0: any, another one at each start.
    pub(crate) address: SocketAddr,
    /// A connection without a byte in either direction is closed after so many seconds; 0: never.
    pub(crate) idle_timeout_seconds: u64,
    /// PEM: the certificate chain of the server; with `tls_key`.
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/rtc-cri/rtc-cri.sock".into(),
            socket_gid: None,
            allowed_uids: Vec::new(),
            allowed_gids: Vec::new(),
            root: "/var/lib/rtc-cri".into(),
            state: "/run/rtc-cri".into(),
            cgroup_driver: None,
            shim: "containerd-shim-rtc-v2".into(),
            shim_cgroup: None,
            default_handler: "rtc".into(),
            handlers: BTreeMap::new(),
            cni: CniConfig::default(),
            images: ImagesConfig::default(),
            streaming: StreamingConfig::default(),
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

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            // As the kubelet's `streamingConnectionIdleTimeout`.
            idle_timeout_seconds: 4 * 60 * 60,
            tls_cert: None,
            tls_key: None,
        }
    }
}

impl StreamingConfig {
    fn check(&self) -> Result<()> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error::invalid(
                "streaming: tls_cert and tls_key: give both, or neither",
            ));
        }
        let ip = self.address.ip();
        if ip.is_unspecified() {
            return Err(Error::invalid(format_args!(
                "streaming.address: {}: must be one address of this machine, which the URLs of streams can name",
                self.address
            )));
        }
        if !ip.is_loopback() && self.tls_cert.is_none() {
            return Err(Error::invalid(format_args!(
                "streaming.address: {}: others could read along: must be a loopback address, or have tls_cert and tls_key",
                self.address
            )));
        }
        Ok(())
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
        Self::parse(&text).map_err(|error| error.context(path.display().to_string()))
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error
                .span()
                .and_then(|span| text.get(..span.start))
                .unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Error::invalid(format_args!("line {line}: {}", error.message()))
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (key, path) in [
            ("socket", &self.socket),
            ("root", &self.root),
            ("state", &self.state),
            ("cni.conf_dir", &self.cni.conf_dir),
            ("cni.cache_dir", &self.cni.cache_dir),
            ("images.certs_dir", &self.images.certs_dir),
        ] {
            if !path.is_absolute() {
                return Err(Error::invalid(format_args!(
                    "{key}: {path:?}: must be an absolute path"
                )));
            }
        }
        let length = self.state.as_os_str().len();
        if length > STATE_MAX {
            return Err(Error::invalid(format_args!(
                "state: {:?}: {length} bytes: must be at most {STATE_MAX}: sockets are in it",
                self.state
            )));
        }
        self.streaming.check()?;
        let names = self.handlers.keys().chain([&self.default_handler]);
        for name in names {
            // As RuntimeClass.handler: a DNS label.
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
                return Err(Error::invalid(format_args!(
                    "handlers: {name:?}: must be 1 to 63 lower case letters, digits and '-'"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of all keys, as `cni.conf_dir`.
    fn keys(value: &serde_json::Value, above: &str, found: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let name = format!("{above}{name}");
            if value.is_object() {
                keys(value, &format!("{name}."), found);
            } else {
                found.push(name);
            }
        }
    }

    /// The file, with the keys in it that are left out by default.
    fn whole() -> String {
        let uncommented = DEFAULT.lines().map(|line| {
            // Prose begins with a blank.
            let key = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            key.unwrap_or(line)
        });
        uncommented.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_file_that_is_printed_is_the_default() {
        let read = Config::parse(DEFAULT).unwrap();
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            serde_json::to_value(Config::default()).unwrap()
        );
    }

    #[test]
    fn the_file_that_is_printed_has_every_key() {
        let config = Config::parse(&whole()).unwrap();
        let mut known = Vec::new();
        keys(&serde_json::to_value(&config).unwrap(), "", &mut known);
        let table: toml::Table = toml::from_str(&whole()).unwrap();
        let mut said = Vec::new();
        keys(&serde_json::to_value(table).unwrap(), "", &mut said);
        known.sort();
        said.sort();
        assert_eq!(known, said);
    }

    #[test]
    fn a_key_that_is_not_known_is_refused_by_its_line() {
        let error = Config::parse("debug = true\n\nsokket = \"/x\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("line 3: unknown field `sokket`"), "{error}");
        let error = Config::parse("[cni]\ntimeout_seconds = \"x\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("line 2: "), "{error}");
        let error = Config::parse("state = \"run\"").unwrap_err().to_string();
        assert_eq!(error, "state: \"run\": must be an absolute path");
        let error = Config::parse("[handlers.\"a/b\"]\n").unwrap_err().to_string();
        assert!(error.contains("\"a/b\""), "{error}");
    }

    #[test]
    fn streams_are_not_for_the_network_without_tls() {
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        let bare = error("[streaming]\naddress = \"192.0.2.1:10010\"\n");
        assert!(
            bare.contains("192.0.2.1:10010: others could read along"),
            "{bare}"
        );
        let half = error("[streaming]\ntls_cert = \"/c\"\n");
        assert!(half.contains("give both"), "{half}");
        let pair = "tls_cert = \"/c\"\ntls_key = \"/k\"\n";
        let all = error(&format!("[streaming]\naddress = \"0.0.0.0:1\"\n{pair}"));
        assert!(all.contains("must be one address"), "{all}");
        Config::parse(&format!("[streaming]\naddress = \"192.0.2.1:1\"\n{pair}")).unwrap();
        Config::parse("[streaming]\naddress = \"[::1]:0\"\n").unwrap();
    }

    #[test]
    fn an_empty_handler_is_the_default_one_and_an_unknown_one_is_refused() {
        let config = Config::parse("[handlers.crun]\nbinary = \"/usr/bin/crun\"\n").unwrap();
        assert!(config.handler("").unwrap().binary.is_none());
        assert!(config.handler("rtc").unwrap().binary.is_none());
        assert!(config.handler("crun").unwrap().binary.is_some());
        let error = config.handler("kata").unwrap_err().to_string();
        assert!(error.contains("[\"rtc\", \"crun\"]"), "{error}");
        let names: Vec<_> = config.handler_names().collect();
        assert_eq!(names, ["rtc", "crun"]);
    }
}
