//! What of a container's mounts comes from outside of it: CRIU, which writes a mount namespace to an image and makes it
//! again, has to be told of those, by where they are, and gets their sources anew from the configuration.
//!
//! | mount | name in the image | source at a restore |
//! |---|---|---|
//! | bind mounts | their destination in config.json | their source there |
//! | v1 hierarchies without a cgroup namespace | below their mount's destination | the container's cgroup |
//! | device nodes, where the kernel makes none | their path | the host's node |
//! | masked files | `/dev/null` | the host's |

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::cgroup_mounts::Cgroups;
use super::options::Options;
use super::path::{InsidePath, Links, Root, c_string, open_error};
use super::tree::is_directory;
use super::{devices, has_namespace};
use crate::sys::Named;
use crate::sys::mount as sys;

/// What covers a masked file.
pub const NULL: &str = "/dev/null";

/// A mount from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Where config.json has it, cleaned: its name in an image.
    pub destination: String,
    /// Where it comes from, on the host.
    pub source: PathBuf,
}

/// All that may be mounted from outside, by config.json. There need not be a mount for each.
///
/// # Errors
///
/// A mount's options are wrong, or a destination can't be the name of one in an image.
pub fn outside(spec: &Spec, bundle: &Path, cgroups: &Cgroups) -> Result<Vec<Outside>> {
    let mut found = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let mut add = |destination: &InsidePath, source: PathBuf| -> Result<()> {
            let destination = destination.to_string();
            check_name(&destination)?;
            found.push(Outside { destination, source });
            Ok(())
        };
        let named = || format!("mounts[{index}]");
        let kind = mount.typ().as_deref().unwrap_or("none");
        let options =
            Options::parse(kind, mount.options().as_deref().unwrap_or_default()).with_context(named)?;
        let destination = InsidePath::new(mount.destination()).with_context(named)?;
        if (kind == "bind" || options.bind) && !options.remount {
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            add(&destination, bundle.join(source)).with_context(named)?;
        } else if kind == "cgroup"
            && let Cgroups::Legacy { hierarchies, .. } = cgroups
            && !has_namespace(spec, LinuxNamespaceType::Cgroup)
        {
            for hierarchy in hierarchies {
                let path = mount.destination().join(&hierarchy.name);
                add(&InsidePath::new(&path)?, hierarchy.own.clone()).with_context(named)?;
            }
        }
    }
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_deref());
    for path in devices::paths(devices.unwrap_or_default()) {
        let destination = InsidePath::new(&path)?.to_string();
        check_name(&destination).context("linux.devices")?;
        found.push(Outside {
            source: Path::new("/").join(path),
            destination,
        });
    }
    Ok(found)
}

/// CRIU keeps what it is told as the text `mnt[NAME]:SOURCE`, and takes an empty name for a wish to find all by itself: a name
/// with `]:` would be another mount's source.
fn check_name(destination: &str) -> Result<()> {
    if destination == "/" || destination.contains("]:") {
        bail!(
            "destination: {destination:?}: invalid external mount destination for a checkpoint: must not be the root, nor contain \"]:\""
        );
    }
    Ok(())
}

/// A running container's mounts, seen through its root.
#[derive(Debug)]
pub struct Mounted(Root);

impl Mounted {
    /// `root` is the container's root directory.
    #[must_use]
    pub fn new(root: OwnedFd) -> Self {
        Self(Root::new(root))
    }

    /// Where in the container a destination is now, links on the way followed as they are there. `None`: it leads to nothing.
    ///
    /// # Errors
    ///
    /// It is no place CRIU can be told of: the container has changed what leads there.
    pub fn point(&self, destination: &str) -> Result<Option<String>> {
        let Some((_, point)) = self.find(destination)? else {
            return Ok(None);
        };
        check_name(&point).with_context(|| destination.to_owned())?;
        Ok(Some(point))
    }

    /// Where a masked file is; `None` also for a directory, which is covered by a file system of the container's own.
    ///
    /// # Errors
    ///
    /// As [`Mounted::point`].
    pub fn masked_file(&self, path: &str) -> Result<Option<String>> {
        match self.find(path)? {
            Some((found, point)) if !is_directory(&found)? => {
                check_name(&point).with_context(|| path.to_owned())?;
                Ok(Some(point))
            }
            _ => Ok(None),
        }
    }

    fn find(&self, path: &str) -> Result<Option<(OwnedFd, String)>> {
        let path = InsidePath::new(Path::new(path))?;
        let found = match self.0.open(&path, 0, Links::Follow) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            found => found.map_err(|errno| open_error(&path, errno))?,
        };
        // As the container has it: the kernel gives the path up to the root of the mount namespace.
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        let point = readlinkat(sys::cwd(), link.as_str()).call(|| format!("readlink({link:?})"))?;
        let point = point.into_string().ok().context("its path is not UTF-8")?;
        Ok(Some((found, point)))
    }
}

/// In a mount namespace of this process' own: mounts a root directory, with all below it, at `point`. CRIU wants the root of what it
/// restores to be a mount, and in a place that nothing else is mounted on.
///
/// # Errors
///
/// As mount(2).
pub fn bind_root(directory: &Path, point: &Path) -> Result<()> {
    let slave = sys::MS_SLAVE | sys::MS_REC;
    sys::mount(None, c"/", None, slave, None).call(|| "mount(\"/\", SLAVE|REC)".into())?;
    let bind = sys::MS_BIND | sys::MS_REC;
    sys::mount(Some(&c_string(directory)?), &c_string(point)?, None, bind, None)
        .call(|| format!("mount({directory:?}, {point:?}, BIND|REC)"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(mounts: &str) -> Spec {
        serde_json::from_str(&format!(
            r#"{{"ociVersion": "1.2.0", "mounts": [{mounts}], "linux": {{"namespaces": [{{"type": "mount"}}]}}}}"#
        ))
        .unwrap()
    }

    fn of(mounts: &str) -> Result<Vec<(String, PathBuf)>> {
        let found = outside(&spec(mounts), Path::new("/b"), &Cgroups::Absent)?;
        Ok(found
            .into_iter()
            .filter(|outside| !outside.destination.starts_with("/dev/"))
            .map(|outside| (outside.destination, outside.source))
            .collect())
    }

    #[test]
    fn bind_mounts_come_from_outside_and_others_do_not() {
        let found = of(r#"{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data/../conf/", "type": "bind", "source": "here"},
            {"destination": "/x", "source": "/y", "options": ["rbind", "ro"]},
            {"destination": "/x", "source": "/y", "options": ["remount", "bind"]}"#)
        .unwrap();
        assert_eq!(
            found,
            [("/conf".into(), "/b/here".into()), ("/x".into(), "/y".into())]
        );
    }

    #[test]
    fn a_destination_that_would_be_another_mounts_source_is_refused() {
        for destination in ["/data]:/etc", "/"] {
            let mount = format!(r#"{{"destination": "{destination}", "type": "bind", "source": "/x"}}"#);
            let error = format!("{:#}", of(&mount).unwrap_err());
            assert!(
                error.starts_with("mounts[0]: ") && error.contains("invalid external mount destination"),
                "{error}"
            );
        }
    }

    #[test]
    fn links_are_followed_as_the_container_has_them() {
        let top = std::env::temp_dir().join(format!("rtc-outside-{}", std::process::id()));
        std::fs::create_dir_all(top.join("real/conf")).unwrap();
        std::os::unix::fs::symlink("/real/conf", top.join("conf")).unwrap();
        let root = Mounted::new(std::fs::File::open(&top).unwrap().into());
        // Here the root is no mount's: the host's path is what comes before.
        let point = root.point("/conf").unwrap().unwrap();
        assert!(point.ends_with("/real/conf"), "{point}");
        assert_eq!(root.point("/missing").unwrap(), None);
        assert_eq!(root.masked_file("/conf").unwrap(), None);
        std::fs::remove_dir_all(top).unwrap();
    }
}
