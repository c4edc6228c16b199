//! Devices: those that are asked for, by path or by directory; all of the host for a privileged container.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::Asked;
use crate::error::{Error, Result};

/// Directories of `/dev` that are not devices of the host: of a terminal, of shared memory, of whoever looks; and those of
/// other container managers.
const NOT_OF_HOST: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// How deep directories of devices are.
const DEPTH: usize = 8;

/// A device node that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Where it is in the container.
    pub(super) path: PathBuf,
    pub(super) block: bool,
    pub(super) major: u64,
    pub(super) minor: u64,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What was found on the host.
#[derive(Debug, Clone, Default)]
pub(super) struct Devices {
    /// For each of `config.devices`: its nodes.
    pub(super) asked: Vec<Vec<Node>>,
    /// Of `/dev`, for a privileged container.
    pub(super) host: Vec<Node>,
}

impl Devices {
    /// Looks.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: a path that is no device, and has none below it.
    pub(super) fn look(asked: &Asked<'_>, host: bool) -> Result<Self> {
        let mut found = Self::default();
        for (i, device) in asked.config.devices.iter().enumerate() {
            let invalid = |error: &dyn std::fmt::Display| {
                Error::invalid(format_args!(
                    "config.devices[{i}].host_path: {:?}: {error}",
                    device.host_path
                ))
            };
            if !device.host_path.starts_with('/') {
                return Err(invalid(&"must be absolute"));
            }
            let path = Path::new(&device.host_path)
                .canonicalize()
                .map_err(|error| invalid(&error))?;
            let target = match &*device.container_path {
                "" => Path::new(&device.host_path),
                path => Path::new(path),
            };
            let mut nodes = Vec::new();
            match node(&path, target).map_err(|error| invalid(&error))? {
                Some(node) => nodes.push(node),
                None if path.is_dir() => {
                    below(&path, target, DEPTH, &mut nodes).map_err(|error| invalid(&error))?;
                }
                None => return Err(invalid(&"is no device and no directory")),
            }
            found.asked.push(nodes);
        }
        if host {
            let dev = Path::new("/dev");
            below(dev, dev, DEPTH, &mut found.host)
                .map_err(|error| anyhow::Error::new(error).context("list /dev"))?;
        }
        Ok(found)
    }
}

/// What is at a path; `None`: no device.
///
/// # Errors
///
/// As lstat(2).
pub(super) fn node(path: &Path, target: &Path) -> std::io::Result<Option<Node>> {
    let data = fs::symlink_metadata(path)?;
    let kind = data.file_type();
    Ok((kind.is_block_device() || kind.is_char_device()).then(|| Node {
        path: target.to_owned(),
        block: kind.is_block_device(),
        major: major(data.rdev()),
        minor: minor(data.rdev()),
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
    }))
}

/// Links are left out: what they lead to is found by its own name, or is elsewhere.
fn below(directory: &Path, target: &Path, depth: usize, found: &mut Vec<Node>) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    entries.sort();
    for name in entries {
        let (path, target) = (directory.join(&name), target.join(&name));
        match fs::symlink_metadata(&path) {
            Ok(data) if data.is_dir() => {
                if depth > 0 && !NOT_OF_HOST.iter().any(|other| name == *other) {
                    below(&path, &target, depth - 1, found)?;
                }
            }
            Ok(_) if name == "console" => {}
            Ok(_) => found.extend(node(&path, &target).ok().flatten()),
            // It went away.
            Err(_) => {}
        }
    }
    Ok(())
}

/// The nodes, and what the cgroup lets through: nothing but the runtime's defaults and these, in this order.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

impl Allowed {
    /// Of a container; all devices are allowed if `all`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: permissions that are none.
    pub(super) fn of(asked: &Asked<'_>, found: &Devices, all: bool) -> Result<Self> {
        let mut allowed = Self::default();
        allowed.rules.push(rule(false, None, "rwm"));
        for (i, (device, nodes)) in asked.config.devices.iter().zip(&found.asked).enumerate() {
            let access = permissions(i, &device.permissions)?;
            for node in nodes {
                allowed.nodes.push(device_of(node));
                allowed.rules.push(rule(true, Some(node), access));
            }
        }
        for node in &found.host {
            if !allowed.nodes.iter().any(|known| *known.path() == node.path) {
                allowed.nodes.push(device_of(node));
            }
        }
        if all {
            allowed.rules = vec![rule(true, None, "rwm")];
        }
        Ok(allowed)
    }
}

fn permissions(i: usize, permissions: &str) -> Result<&str> {
    let known = |one: char| "rwm".contains(one) && permissions.matches(one).count() == 1;
    match permissions {
        "" => Ok("rwm"),
        some if some.chars().all(known) => Ok(some),
        other => Err(Error::invalid(format_args!(
            "config.devices[{i}].permissions: {other:?}: must be of the letters r, w and m"
        ))),
    }
}

fn kind(node: &Node) -> LinuxDeviceType {
    if node.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

pub(super) fn device_of(node: &Node) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind(node))
        .set_major(node.major.cast_signed())
        .set_minor(node.minor.cast_signed())
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

pub(super) fn rule(allow: bool, node: Option<&Node>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_access(Some(access.to_owned()));
    // `set_typ` of none is all types.
    rule.set_typ(node.map(kind))
        .set_major(node.map(|node| node.major.cast_signed()))
        .set_minor(node.map(|node| node.minor.cast_signed()));
    rule
}
