//! What a shim is told of its runtime: `containerd.runc.v1.Options`.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;

use crate::config::{CgroupDriver, Handler};

/// The name that containerd gives them.
const TYPE: &str = "containerd.runc.v1.Options";

/// For the start of a shim (which reads `shim_cgroup`), and for each container (all but that).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Let systemd make the cgroups of containers.
    pub(crate) systemd_cgroup: bool,
    /// A foreign OCI runtime; `None`: ours, inside the shim.
    pub(crate) binary: Option<PathBuf>,
    /// State of the containers' runtime.
    pub(crate) root: Option<PathBuf>,
    /// The cgroup that the shim shall join, below the mount point of each hierarchy.
    pub(crate) shim_cgroup: Option<PathBuf>,
}

impl Options {
    /// Those of a handler. `root`: where runtimes keep their state.
    pub(crate) fn new(handler: &Handler, driver: CgroupDriver, root: &Path) -> Self {
        Self {
            systemd_cgroup: driver == CgroupDriver::Systemd,
            binary: handler.binary.clone(),
            root: Some(root.to_owned()),
            shim_cgroup: None,
        }
    }

    /// As containerd sends them.
    pub(crate) fn to_any(&self) -> Any {
        let text = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let options = oci::Options {
            systemd_cgroup: self.systemd_cgroup,
            binary_name: text(&self.binary),
            root: text(&self.root),
            shim_cgroup: text(&self.shim_cgroup),
            ..oci::Options::default()
        };
        Any {
            type_url: TYPE.into(),
            // Never fails: there are no required fields.
            value: options.write_to_bytes().unwrap_or_default(),
            ..Any::default()
        }
    }
}
