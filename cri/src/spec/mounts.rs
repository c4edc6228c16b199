//! Mounts: those every container has, and over them those that are asked for.
//!
//! `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` and the pod's `/dev/shm` are its shim's to add: it has them.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::namespaces::mappings;
use super::{Asked, propagation};
use crate::error::{Error, Kind, Result};
use crate::proto::{self, LinuxContainerSecurityContext, MountPropagation};

/// What was found at the host path of one of `config.mounts`.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    /// How its mount propagates; looked at where it matters.
    pub(super) propagation: propagation::Kind,
}

impl Source {
    /// Looks at all of them, and makes the directories that are not there.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a path that can't be looked at or made.
    pub(super) fn look(asked: &Asked<'_>) -> Result<Vec<Self>> {
        let mut mounts = None;
        let mut found = Vec::with_capacity(asked.config.mounts.len());
        for (i, mount) in asked.config.mounts.iter().enumerate() {
            let path = match asked.image_mounts.get(i) {
                Some(Some(volume)) if has_image(mount) => volume.clone(),
                _ if has_image(mount) => PathBuf::new(),
                _ => resolve(i, &mount.host_path)?,
            };
            let mut source = Self {
                path,
                ..Self::default()
            };
            if mount.propagation != MountPropagation::PropagationPrivate as i32 {
                let mounts = match &mounts {
                    Some(mounts) => mounts,
                    None => mounts.insert(propagation::Mounts::read()?),
                };
                source.propagation = mounts.of(&source.path);
            }
            found.push(source);
        }
        Ok(found)
    }
}

/// Whether it is an image that is mounted, not a path of the host.
pub(super) fn has_image(mount: &proto::Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| !image.image.is_empty())
}

fn resolve(i: usize, host: &str) -> Result<PathBuf> {
    let invalid = |error: &dyn std::fmt::Display| {
        Error::invalid(format_args!("config.mounts[{i}].host_path: {host:?}: {error}"))
    };
    let path = Path::new(host);
    if !path.is_absolute() {
        return Err(invalid(&"must be absolute"));
    }
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // With its parents, 0755 under the usual umask, as the field does; that a link leads nowhere is an error.
            std::fs::create_dir_all(path).map_err(|error| invalid(&error))?;
            path.canonicalize().map_err(|error| invalid(&error))
        }
        Err(error) => Err(invalid(&error)),
    }
}

/// All mounts, and the propagation of the root.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) list: Vec<Mount>,
    pub(super) root_propagation: Option<&'static str>,
}

/// What of the container matters here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Container {
    pub(super) privileged: bool,
    /// Whether it may change its own cgroup.
    pub(super) cgroup_writable: bool,
    pub(super) host_network: bool,
    pub(super) host_ipc: bool,
    pub(super) users: bool,
}

impl Mounts {
    /// Of a container. `found` is of each of `config.mounts`; the id maps are those of its user namespace, for what its
    /// image's volumes have.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a mount that can't be.
    pub(super) fn of(
        asked: &Asked<'_>,
        container: Container,
        found: &[Source],
        (uids, gids): (&[LinuxIdMapping], &[LinuxIdMapping]),
    ) -> Result<Self> {
        let mut own = Self::default();
        let mut given: Vec<Mount> = Vec::with_capacity(asked.config.mounts.len());
        for (i, mount) in asked.config.mounts.iter().enumerate() {
            let source = found.get(i).cloned().unwrap_or_default();
            given.push(own.bind(i, mount, source)?);
        }
        given.extend(asked.volumes.iter().map(|(destination, source)| {
            let ids = (uids.to_vec(), gids.to_vec());
            new(destination, "bind", source, &["rbind", "rprivate", "rw"], ids)
        }));
        let replaced = |destination: &Path| {
            given.iter().any(|mount| {
                let over = mount.destination();
                over == destination || (over == Path::new("/dev") && destination.starts_with(over))
            })
        };
        own.list = defaults(container);
        own.list.retain(|mount| !replaced(mount.destination()));
        // Those above come first, else they would hide those below; the order of others is kept.
        given.sort_by_key(|mount| mount.destination().components().count());
        own.list.extend(given);
        Ok(own)
    }

    fn bind(&mut self, i: usize, mount: &proto::Mount, source: Source) -> Result<Mount> {
        let refuse = |field: &str, what: &str| {
            Err(Error::invalid(format_args!(
                "config.mounts[{i}].{field}: {what} (container_path {:?}, host_path {:?})",
                mount.container_path, mount.host_path
            )))
        };
        let Some(destination) = destination(&mount.container_path) else {
            return refuse("container_path", "must be a path below \"/\"");
        };
        let propagation = match MountPropagation::try_from(mount.propagation) {
            Ok(propagation) => propagation,
            Err(_) => {
                return refuse(
                    "propagation",
                    &format!("{}: is no mode of propagation", mount.propagation),
                );
            }
        };
        let mut options = vec!["rbind"];
        if has_image(mount) {
            if !mount.host_path.is_empty() {
                return refuse("host_path", "must be empty where there is an image");
            }
            if !mount.readonly {
                return refuse("readonly", "must be true where there is an image");
            }
            if source.path.as_os_str().is_empty() {
                return refuse("image", "is not mounted");
            }
        }
        options.push(match propagation {
            MountPropagation::PropagationPrivate => "rprivate",
            MountPropagation::PropagationHostToContainer => {
                self.propagate("rslave", i, &source)?;
                "rslave"
            }
            MountPropagation::PropagationBidirectional => {
                self.propagate("rshared", i, &source)?;
                "rshared"
            }
        });
        options.push(match (mount.readonly, mount.recursive_read_only) {
            (false, false) => "rw",
            (true, false) => "ro",
            (false, true) => return refuse("recursive_read_only", "needs readonly"),
            (true, true) if propagation != MountPropagation::PropagationPrivate => {
                return refuse("recursive_read_only", "needs private propagation");
            }
            (true, true) => "rro",
        });
        let uids = mappings(&format!("config.mounts[{i}].uidMappings"), &mount.uid_mappings)?;
        let gids = mappings(&format!("config.mounts[{i}].gidMappings"), &mount.gid_mappings)?;
        if uids.is_empty() != gids.is_empty() {
            return refuse("uidMappings", "uidMappings and gidMappings: both or none");
        }
        // Those of an image are mapped already.
        let ids = if has_image(mount) {
            Default::default()
        } else {
            (uids, gids)
        };
        Ok(new(&destination, "bind", &source.path, &options, ids))
    }

    /// The root passes on what its mounts pass on.
    fn propagate(&mut self, mode: &'static str, i: usize, source: &Source) -> Result<()> {
        let (enough, needed) = match mode {
            "rshared" => (source.propagation == propagation::Kind::Shared, "shared"),
            _ => (
                source.propagation != propagation::Kind::Private,
                "shared or a slave",
            ),
        };
        if !enough {
            return Err(Error::text(
                Kind::FailedPrecondition,
                format_args!(
                    "config.mounts[{i}].propagation: the mount that {} is on is not {needed}: mount --make-rshared it",
                    source.path.display()
                ),
            ));
        }
        if self.root_propagation != Some("rshared") {
            self.root_propagation = Some(mode);
        }
        Ok(())
    }
}

/// Absolute, without `.` and `..`; a relative one is below the root. `None`: the root, or no path.
pub(super) fn destination(path: &str) -> Option<PathBuf> {
    if path.contains('\0') {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    (clean != Path::new("/")).then_some(clean)
}

fn new(
    destination: &Path,
    kind: &str,
    source: &Path,
    options: &[&str],
    (uids, gids): (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>),
) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    if !uids.is_empty() {
        mount.set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
    }
    mount
}

/// As every runtime of the field mounts them.
fn defaults(container: Container) -> Vec<Mount> {
    let access = |writable: bool| if writable { "rw" } else { "ro" };
    let plain = |destination: &str, kind: &str, options: &[&str]| {
        let source = if destination == "/dev/shm" { "shm" } else { kind };
        new(
            Path::new(destination),
            kind,
            Path::new(source),
            options,
            Default::default(),
        )
    };
    let bind = |path: &str, options: &[&str]| {
        new(
            Path::new(path),
            "bind",
            Path::new(path),
            options,
            Default::default(),
        )
    };
    let sys = access(container.privileged);
    vec![
        plain("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        plain(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        plain(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        if container.host_ipc {
            bind(
                "/dev/shm",
                &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
            )
        } else {
            // The shim puts the pod's in its place.
            plain(
                "/dev/shm",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            )
        },
        plain("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        if container.users && container.host_network {
            // A sysfs shows a network namespace, and only that one's user namespace may mount one.
            bind("/sys", &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"])
        } else {
            plain("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys])
        },
        plain(
            "/sys/fs/cgroup",
            "cgroup",
            &[
                "nosuid",
                "noexec",
                "nodev",
                "relatime",
                access(container.privileged || container.cgroup_writable),
            ],
        ),
    ]
}

/// Paths that are hidden and that are read-only: the request's, none for a privileged container.
pub(super) fn protected(context: &LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    if context.privileged {
        return Default::default();
    }
    (context.masked_paths.clone(), context.readonly_paths.clone())
}
