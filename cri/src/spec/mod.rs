//! What CRI asks for as an OCI configuration.
//!
//! ```text
//! Facts (of the node, once) --.
//! Asked (of the call) ---------+--gather: reads files--> Gathered --translate: pure--> Made: Spec, ContainerUser, ...
//! ```
//!
//! What an image says is a default at most ([`crate::image::Untrusted`]).

pub(crate) mod facts;
pub(crate) mod process;
pub(crate) mod update;

use std::path::PathBuf;

use oci_spec::runtime::Spec;

pub(crate) use facts::Facts;

use crate::error::Result;
use crate::image::Image;
use crate::proto::{ContainerConfig, ContainerUser, PodSandboxConfig};

/// What is asked for: one CreateContainer, with what its caller found for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The container's id.
    pub(crate) id: &'a str,
    /// Its sandbox's id.
    pub(crate) sandbox: &'a str,
    /// Of StartSandboxResponse: the shim knows the pod's namespaces by it.
    pub(crate) sandbox_pid: u32,
    /// The first process of the container whose PID namespace is wanted (`namespace_options.pid` TARGET).
    pub(crate) target_pid: Option<u32>,
    pub(crate) pod: &'a PodSandboxConfig,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a Image,
    /// For each of `config.mounts`: the directory of its image, mounted read-only by the caller and its sub path resolved
    /// in it; `None` where it has none. May be shorter.
    pub(crate) image_mounts: &'a [Option<PathBuf>],
    /// The text of the file that [`seccomp_file`] names.
    pub(crate) seccomp: Option<&'a [u8]>,
    /// The pod's SELinux level, as `s0:c1,c2`; empty without SELinux.
    pub(crate) selinux_level: &'a str,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Made {
    /// `root.path` is `rootfs`: in the bundle.
    pub(crate) spec: Spec,
    /// For ContainerStatus.
    pub(crate) user: ContainerUser,
    /// Below the mount point of each hierarchy, as `/kubepods/pod1/<id>`.
    pub(crate) cgroup: String,
    /// Linux's number: the request's, or the image's, or SIGTERM.
    pub(crate) stop_signal: i32,
    /// Host directories of mounts that are not there: to be made (0755, with their parents) before the task is.
    pub(crate) missing: Vec<PathBuf>,
}

/// The file of a seccomp profile that the user keeps on the node (`Localhost`): to be read by the caller, for
/// [`Asked::seccomp`].
///
/// # Errors
///
/// `InvalidArgument`: no absolute path.
pub(crate) fn seccomp_file(config: &ContainerConfig) -> Result<Option<PathBuf>> {
    let _ = config;
    Ok(None)
}

/// Translates. Blocks: it reads `/etc/passwd` and `/etc/group` of the image, and looks at host paths of mounts and devices.
///
/// # Errors
///
/// `InvalidArgument` with the field, its value and what to do; `FailedPrecondition` where the node lacks what is asked for.
pub(crate) fn make(facts: &Facts, asked: &Asked<'_>) -> Result<Made> {
    let _ = (facts, asked);
    Err(crate::error::Error::text(
        crate::error::Kind::Unimplemented,
        "CreateContainer: not yet",
    ))
}
