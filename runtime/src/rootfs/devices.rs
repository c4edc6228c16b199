//! /dev: device nodes, the links that programs expect, the console.
//!
//! Nodes are made relative to the descriptor of their directory, which below /dev must not be reached through a
//! symbolic link: an image can ship /dev as a link to a volume of the host (CVE-2026-41579, CVE-2026-47766). In a user
//! namespace, where the kernel makes no device nodes, the host's are bound instead.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstatat, major, makedev, minor, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::path::{InsidePath, Links, Root, c_string};
use super::tree::Source;
use crate::sys::mount as sys;
use crate::sys::{Error, Named};

/// Those that every container has (runtime specification, "Default Devices").
const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links that every container has: name in /dev and target ("/dev symbolic links").
const LINKS: [(&CStr, &CStr); 6] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
    (c"core", c"/proc/kcore"),
];

/// A node to make.
#[derive(Debug)]
struct Node {
    path: InsidePath,
    kind: SFlag,
    number: u64,
    mode: Mode,
    /// Owner and group where they are not 0.
    owner: Option<(u32, u32)>,
    /// The host's node, bound where the kernel makes none.
    host: Source,
}

/// What is to be made in /dev.
#[derive(Debug)]
pub(crate) struct Devices {
    nodes: Vec<Node>,
    /// How many of [`LINKS`].
    links: usize,
    /// The kernel makes no device nodes for us.
    bind: bool,
}

/// Where the nodes of `linux.devices` and the default ones are.
pub(crate) fn paths(devices: &[LinuxDevice]) -> impl Iterator<Item = PathBuf> {
    let default = DEFAULT.iter().map(|(path, ..)| PathBuf::from(path));
    devices.iter().map(|device| device.path().clone()).chain(default)
}

impl Devices {
    /// Plans the default devices and those of `linux.devices`, which win.
    pub(crate) fn plan(devices: &[LinuxDevice], user_namespace: bool) -> Result<Devices> {
        let mut nodes: Vec<Node> = Vec::with_capacity(DEFAULT.len() + devices.len());
        for (index, device) in devices.iter().enumerate() {
            let node =
                Node::from_spec(device, user_namespace).with_context(|| format!("linux.devices[{index}]"))?;
            // The pseudo-terminals' multiplexer is the one of the container's own devpts, by a link.
            if !node.path.is("/dev/ptmx") {
                nodes.push(node);
            }
        }
        for (path, major, minor) in DEFAULT {
            if !nodes.iter().any(|node| node.path.is(path)) {
                nodes.push(Node {
                    path: InsidePath::new(Path::new(path))?,
                    kind: SFlag::S_IFCHR,
                    number: makedev(major, minor),
                    mode: Mode::from_bits_truncate(0o666),
                    owner: None,
                    host: Source::host(c_string(path)?),
                });
            }
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the host's /proc, before there is a container"
        )]
        let has_core = Path::new("/proc/kcore").exists();
        Ok(Devices {
            nodes,
            links: LINKS.len() - usize::from(!has_core),
            bind: user_namespace,
        })
    }

    /// Makes the nodes and the links. The umask is 0.
    pub(crate) fn execute(&mut self, root: &Root) -> Result<()> {
        let mut directory: Option<(Vec<u8>, OwnedFd)> = None;
        for node in &mut self.nodes {
            let path = node.path.to_string();
            let (parent, name) = node.path.split();
            let name = CString::new(name)?;
            if directory.as_ref().is_none_or(|(known, _)| known != parent) {
                directory = Some((parent.to_vec(), open_parent(root, &node.path)?));
            }
            let Some((_, parent)) = &directory else { continue };
            node.make(parent, &name, self.bind)
                .with_context(|| format!("device {path}"))?;
        }
        let dev = match directory {
            Some((known, dev)) if known == b"dev" => dev,
            _ => open_dev(root)?,
        };
        for (name, target) in &LINKS[..self.links] {
            make_link(&dev, name, target)?;
        }
        Ok(())
    }
}

/// Opens the directory of a node, made where missing.
fn open_parent(root: &Root, path: &InsidePath) -> Result<OwnedFd> {
    let links = if path.is_below(b"dev") {
        Links::Refuse
    } else {
        Links::Follow
    };
    let (directory, _) = root
        .parent_of(path, links)
        .map_err(|error| explain(error, path))?;
    Ok(directory)
}

fn open_dev(root: &Root) -> Result<OwnedFd> {
    open_parent(root, &InsidePath::new(Path::new("/dev/console"))?)
}

fn explain(error: anyhow::Error, path: &InsidePath) -> anyhow::Error {
    let refused = error
        .downcast_ref::<Error>()
        .is_some_and(|error| matches!(error.errno, Errno::ELOOP | Errno::ENOTDIR));
    if refused {
        return error.context(format!("{path}: /dev must be an ordinary directory"));
    }
    error
}

impl Node {
    fn from_spec(device: &LinuxDevice, user_namespace: bool) -> Result<Node> {
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            LinuxDeviceType::A => bail!("type: \"a\": must be one of c, b, u, p"),
        };
        let path = InsidePath::new(device.path())?;
        if path.is_root() {
            bail!(
                "path: {:?}: must be the absolute path of the device",
                device.path()
            );
        }
        let number = |name: &str, value: i64| {
            u64::try_from(value)
                .ok()
                .filter(|value| *value <= u64::from(u32::MAX))
                .with_context(|| format!("{name}: {value}: must be a device number"))
        };
        let number = if kind == SFlag::S_IFIFO {
            0
        } else {
            makedev(number("major", device.major())?, number("minor", device.minor())?)
        };
        let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        let host = Source::host(c_string(Path::new("/").join(device.path()))?);
        Ok(Node {
            path,
            kind,
            number,
            mode: Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777),
            owner: (owner != (0, 0)).then_some(owner),
            host: if user_namespace && kind != SFlag::S_IFIFO {
                host.opened()
            } else {
                host
            },
        })
    }

    fn make(&mut self, directory: &OwnedFd, name: &CStr, bind: bool) -> Result<()> {
        if bind && self.kind != SFlag::S_IFIFO {
            return self.bind(directory, name);
        }
        match mknodat(directory, name, self.kind, self.mode, self.number) {
            Ok(()) => {}
            Err(Errno::EPERM) if self.kind != SFlag::S_IFIFO => return self.bind(directory, name),
            Err(Errno::EEXIST) => return self.check(directory, name),
            Err(errno) => return Err(errno).call(|| format!("mknodat({name:?}, {:?})", self.describe()))?,
        }
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchownat(
                directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .call(|| format!("fchownat({name:?}, {uid}, {gid})"))?;
        }
        Ok(())
    }

    /// What is there already must be the device.
    fn check(&self, directory: &OwnedFd, name: &CStr) -> Result<()> {
        let found =
            fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
        let kind = found.st_mode & SFlag::S_IFMT.bits();
        if kind != self.kind.bits() || (self.kind != SFlag::S_IFIFO && found.st_rdev != self.number) {
            bail!(
                "the image has something else there: must be {} or nothing",
                self.describe()
            );
        }
        Ok(())
    }

    fn bind(&mut self, directory: &OwnedFd, name: &CStr) -> Result<()> {
        let tree = self.host.take().context("bind the host's device")?;
        cover_file(directory, name, &tree)
    }

    fn describe(&self) -> String {
        let kind = match self.kind {
            SFlag::S_IFCHR => "c",
            SFlag::S_IFBLK => "b",
            _ => return "a FIFO".into(),
        };
        format!("{kind} {}:{}", major(self.number), minor(self.number))
    }
}

/// Attaches a mount at `name`, made as an empty file where missing. A symbolic link of that name is itself covered.
fn cover_file(directory: &OwnedFd, name: &CStr, tree: &OwnedFd) -> Result<()> {
    match mknodat(directory, name, SFlag::S_IFREG, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).call(|| format!("mknodat({name:?})"))?,
    }
    sys::move_mount_at(tree, directory, name).call(|| format!("move_mount({name:?})"))?;
    Ok(())
}

fn make_link(dev: &OwnedFd, name: &CStr, target: &CStr) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) => return Ok(()),
        // The image's own link is as good; but its multiplexer belongs to no devpts of the container.
        Err(Errno::EEXIST) if name != c"ptmx" => return Ok(()),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).call(|| format!("symlinkat({target:?}, \"/dev/ptmx\")"))?,
    }
    unlinkat(dev, name, UnlinkatFlags::NoRemoveDir).call(|| "unlinkat(\"/dev/ptmx\")".into())?;
    symlinkat(target, dev, name).call(|| "symlinkat(\"/dev/ptmx\")".into())?;
    Ok(())
}

/// Binds the container's terminal on /dev/console: the descriptor, not a path that leads to it (CVE-2025-52565).
pub(crate) fn bind_console(root: &Root, terminal: BorrowedFd<'_>) -> Result<()> {
    let tree = sys::open_tree(terminal, c"", 0).call(|| "open_tree(terminal, CLONE)".into())?;
    cover_file(&open_dev(root)?, c"console", &tree).context("bind the terminal on /dev/console")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceBuilder;

    fn device(path: &str, kind: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(major)
            .minor(minor)
            .build()
            .unwrap()
    }

    #[test]
    fn default_devices_are_always_there() {
        let devices = Devices::plan(&[], false).unwrap();
        let paths: Vec<String> = devices.nodes.iter().map(|node| node.path.to_string()).collect();
        assert_eq!(
            paths,
            [
                "/dev/null",
                "/dev/zero",
                "/dev/full",
                "/dev/random",
                "/dev/urandom",
                "/dev/tty"
            ]
        );
    }

    #[test]
    fn redundant_default_devices_are_taken_once_and_ptmx_never() {
        let given = [
            device("/dev/tty", LinuxDeviceType::C, 5, 0),
            device("/dev/ptmx", LinuxDeviceType::C, 5, 2),
        ];
        let devices = Devices::plan(&given, false).unwrap();
        assert_eq!(devices.nodes.len(), DEFAULT.len());
        assert!(!devices.nodes.iter().any(|node| node.path.is("/dev/ptmx")));
    }

    #[test]
    fn a_device_of_no_kind_or_number_is_refused_by_field() {
        let error = |device| format!("{:#}", Devices::plan(&[device], false).unwrap_err());
        let text = error(device("/dev/x", LinuxDeviceType::A, 1, 1));
        assert!(text.starts_with("linux.devices[0]: type: \"a\""), "{text}");
        let text = error(device("/dev/x", LinuxDeviceType::B, -1, 1));
        assert!(text.starts_with("linux.devices[0]: major: -1"), "{text}");
        let text = error(device("/", LinuxDeviceType::C, 1, 1));
        assert!(text.starts_with("linux.devices[0]: path"), "{text}");
    }
}
