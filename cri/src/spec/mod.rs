//! What CRI asks for as an OCI configuration.
//!
//! ```text
//! Facts (of the node, once) --.
//! Asked (of the call) ---------+-- Found::look: host paths --> Found -- translate: pure --> Made
//! ```
//!
//! What an image says is a default at most ([`crate::image::Untrusted`]).

mod annotations;
pub(crate) mod apparmor;
mod capabilities;
mod cdi;
mod cdi_apply;
mod cgroup;
mod devices;
pub(crate) mod facts;
mod mounts;
mod namespaces;
pub(crate) mod process;
mod propagation;
mod relabel;
mod resources;
mod seccomp;
mod seccomp_default;
mod security_profile;
pub(crate) mod selinux;
mod stop_signal;
pub(crate) mod update;
mod user;
pub(crate) mod volumes;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Process, Root, Spec};

pub(crate) use facts::Facts;

use crate::config::Handler;
use crate::error::{Error, Result};
use crate::image::{Image, Images, Untrusted};
use crate::proto::{
    ContainerConfig, ContainerUser, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, PodSandboxConfig,
};
use cgroup::Place;
use devices::{Allowed, Devices};
use mounts::{Mounts, Source};
use namespaces::Namespaces;
use user::User;

/// The version of the runtime specification that all fields are of.
const OCI_VERSION: &str = "1.2.0";
/// Of the bundle.
const ROOTFS: &str = "rootfs";

/// The most bytes of an image's `/etc/passwd` and `/etc/group`.
const USERS_MOST: u64 = 1 << 20;

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
    /// The sandbox's.
    pub(crate) handler: &'a Handler,
    pub(crate) image: &'a Untrusted,
    pub(crate) files: &'a Files,
    /// For each of `config.mounts`: what to bind where it has an `image` (`Images::mount_volume`). May be shorter.
    pub(crate) image_mounts: &'a [Option<PathBuf>],
    /// For each path of [`volumes::paths`], the directory that is to be there.
    pub(crate) volumes: &'a [(PathBuf, PathBuf)],
    /// The pod's SELinux level, as `s0:c1,c2`; empty without SELinux.
    pub(crate) selinux_level: &'a str,
}

/// Files that a configuration depends on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// The image's `/etc/passwd`.
    pub(crate) passwd: Option<Vec<u8>>,
    /// The image's `/etc/group`.
    pub(crate) group: Option<Vec<u8>>,
    /// The profile that the user keeps on the node.
    pub(crate) seccomp: Option<Vec<u8>>,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// One of the image has more than 1 MiB (CVE-2026-47262); `InvalidArgument`: a profile that can't be read.
    pub(crate) async fn read(images: &Images, image: &Image, config: &ContainerConfig) -> Result<Self> {
        let seccomp = match seccomp::file(config)? {
            None => None,
            Some(path) => Some(seccomp::read(&path).await?),
        };
        Ok(Self {
            passwd: images
                .read_file(image, Path::new("/etc/passwd"), USERS_MOST)
                .await?,
            group: images
                .read_file(image, Path::new("/etc/group"), USERS_MOST)
                .await?,
            seccomp,
        })
    }
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
}

/// Translates. Blocks: it looks at host paths of mounts and devices, and makes directories for those of mounts that are not
/// there (0755), as the field does.
///
/// # Errors
///
/// `InvalidArgument` with the field, its value and what to do; `FailedPrecondition` where the node lacks what is asked for.
pub(crate) fn make(facts: &Facts, asked: &Asked<'_>) -> Result<Made> {
    let found = Found::look(facts, asked)?;
    let made = translate(facts, asked, &found)?;
    let label = made
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.mount_label().as_deref());
    if let Some(label) = label {
        for (mount, source) in asked.config.mounts.iter().zip(&found.sources) {
            // An image is read-only, and others' too.
            if mount.selinux_relabel && !mounts::has_image(mount) {
                relabel::relabel(&source.path, relabel::SELINUX, label)?;
            }
        }
        for (_, source) in asked.volumes {
            relabel::relabel(source, relabel::SELINUX, label)?;
        }
    }
    Ok(made)
}

/// What was found on the host.
#[derive(Debug, Default)]
pub(crate) struct Found {
    sources: Vec<Source>,
    devices: Devices,
    /// What CDI devices add.
    edits: Vec<cdi::Edits>,
    /// Names of loaded AppArmor profiles.
    profiles: Vec<String>,
}

impl Found {
    fn look(facts: &Facts, asked: &Asked<'_>) -> Result<Self> {
        let host_devices = asked.privileged() && !asked.handler.privileged_without_host_devices;
        Ok(Self {
            sources: Source::look(asked)?,
            devices: Devices::look(asked, host_devices)?,
            edits: edits(asked.config)?,
            profiles: apparmor::ready(facts, &asked.context())?,
        })
    }
}

fn edits(config: &ContainerConfig) -> Result<Vec<cdi::Edits>> {
    let names = cdi::names(config)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut edits = cdi::Registry::read(&cdi::DIRECTORIES).edits(&names)?;
    for node in edits.iter_mut().flat_map(|edits| &mut edits.device_nodes) {
        node.fill()?;
    }
    Ok(edits)
}

impl Asked<'_> {
    fn context(&self) -> LinuxContainerSecurityContext {
        let linux = self.config.linux.as_ref();
        linux
            .and_then(|linux| linux.security_context.clone())
            .unwrap_or_default()
    }

    fn pod_context(&self) -> LinuxSandboxSecurityContext {
        let linux = self.pod.linux.as_ref();
        linux
            .and_then(|linux| linux.security_context.clone())
            .unwrap_or_default()
    }

    fn privileged(&self) -> bool {
        let linux = self.config.linux.as_ref();
        linux
            .and_then(|linux| linux.security_context.as_ref())
            .is_some_and(|context| context.privileged)
    }

    fn hostname<'h>(&'h self, facts: &'h Facts) -> &'h str {
        if self.pod.hostname.is_empty() {
            &facts.hostname
        } else {
            &self.pod.hostname
        }
    }
}

/// The pure part: whatever the request is, an error or a configuration.
///
/// # Errors
///
/// As [`make`].
pub(crate) fn translate(facts: &Facts, asked: &Asked<'_>, found: &Found) -> Result<Made> {
    let context = asked.context();
    if context.privileged && !asked.pod_context().privileged {
        return Err(Error::invalid(
            "config.linux.security_context.privileged: the sandbox is not: make both privileged",
        ));
    }
    let user = User::of(&context, &asked.image.user, asked.files)?;
    let place = Place::of(facts, asked)?;
    let mut root = Root::default();
    root.set_path(ROOTFS.into())
        .set_readonly(Some(context.readonly_rootfs));
    let namespaces = Namespaces::of(asked, &context, facts.cgroup2)?;
    let container = mounts_of(asked, &context, &namespaces);
    let mounts = Mounts::of(
        asked,
        container,
        &found.sources,
        (&namespaces.uids, &namespaces.gids),
    )?;
    let process = process(facts, asked, &context, &user, found)?;
    let held = |capability| {
        let sets = process.capabilities().as_ref();
        sets.and_then(|sets| sets.bounding().as_ref())
            .is_some_and(|set| set.contains(&capability))
    };
    let profile = seccomp::profile(facts, &context, held, asked.files.seccomp.as_deref())?;
    let labels = selinux::labels(facts.selinux.as_ref(), asked, &context)?;
    let mut process = process;
    let mut linux = linux(facts, asked, &context, found)?;
    linux
        .set_namespaces(Some(namespaces.list))
        .set_cgroups_path(Some(place.oci.into()))
        .set_rootfs_propagation(mounts.root_propagation.map(str::to_owned))
        .set_seccomp(profile);
    process.set_selinux_label(Some(labels.process).filter(|label| !label.is_empty()));
    linux.set_mount_label(Some(labels.mount).filter(|label| !label.is_empty()));
    if !namespaces.uids.is_empty() {
        linux
            .set_uid_mappings(Some(namespaces.uids))
            .set_gid_mappings(Some(namespaces.gids));
    }
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.into())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(None)
        .set_mounts(Some(mounts.list))
        .set_annotations(Some(annotations::of(asked)))
        .set_linux(Some(linux));
    cdi_apply::apply(&found.edits, &mut spec)?;
    Ok(Made {
        spec,
        user: user.cri(),
        cgroup: place.path,
        stop_signal: stop_signal::of(asked.config, asked.image)?,
    })
}

fn process(
    facts: &Facts,
    asked: &Asked<'_>,
    context: &LinuxContainerSecurityContext,
    user: &User,
    found: &Found,
) -> Result<Process> {
    let mut oci_user = oci_spec::runtime::User::default();
    oci_user
        .set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids(Some(user.groups.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(asked.config.tty))
        .set_user(oci_user)
        .set_args(Some(process::args(asked.config, asked.image)?))
        .set_env(Some(process::env(
            asked.config,
            asked.image,
            asked.hostname(facts),
        )?))
        .set_cwd(process::cwd(asked.config, asked.image)?)
        .set_capabilities(Some(capabilities::of(facts, context)?))
        .set_no_new_privileges(Some(context.no_new_privs))
        .set_rlimits(None)
        .set_apparmor_profile(apparmor::profile(facts, context, |name| {
            found.profiles.iter().any(|loaded| loaded == name)
        })?);
    if let Some(resources) = asked
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref())
    {
        process.set_oom_score_adj(Some(resources::oom_score_adj(facts, resources)?));
    }
    Ok(process)
}

fn mounts_of(
    asked: &Asked<'_>,
    context: &LinuxContainerSecurityContext,
    namespaces: &Namespaces,
) -> mounts::Container {
    let pod = asked.pod_context().namespace_options.unwrap_or_default();
    mounts::Container {
        privileged: context.privileged,
        cgroup_writable: asked.handler.cgroup_writable,
        host_network: pod.network == NamespaceMode::Node as i32,
        host_ipc: pod.ipc == NamespaceMode::Node as i32,
        users: namespaces.users(),
    }
}

/// All of `linux` that is not a namespace, a mount or a filter.
fn linux(
    facts: &Facts,
    asked: &Asked<'_>,
    context: &LinuxContainerSecurityContext,
    found: &Found,
) -> Result<Linux> {
    let (masked, readonly) = mounts::protected(context);
    let all_devices = context.privileged && !asked.handler.privileged_without_host_devices;
    let allowed = Allowed::of(asked, &found.devices, all_devices)?;
    let asked_resources = asked
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.clone());
    let mut resources = resources::of(facts, &asked_resources.unwrap_or_default())?;
    resources.set_devices(Some(allowed.rules));
    let mut linux = Linux::default();
    linux
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly))
        .set_devices(Some(allowed.nodes))
        .set_resources(Some(resources));
    Ok(linux)
}
