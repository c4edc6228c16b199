//! The mounts of config.json: planned in the parent, made in the child in their order.
//!
//! A mount is made detached, changed, and then attached to a destination held by a descriptor:
//!
//! ```text
//! bind:            open_tree(source, CLONE) -> mount_setattr* ------------\
//! new filesystem:  fsopen -> fsconfig* -> fsmount(attributes) -------------+-> move_mount(-> openat2(destination))
//! ```
//!
//! A new filesystem is read-only as a mount, not as a superblock, where the kernel shares superblocks: those who share
//! a network namespace share one sysfs, and the first `ro` must not make it read-only for a privileged container.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::symlinkat;
use oci_spec::runtime::Mount;

use super::idmap::IdMapper;
use super::options::{self, Change, Options, Superblock};
use super::path::{InsidePath, Links, Make, Root, c_string, open_error};
use super::tree::{Attributes, Filesystem, Source, at, change_attached, is_directory, parameter};
use crate::rootless;
use crate::sys::mount as sys;
use crate::sys::open::openat2;
use crate::sys::xattr;
use crate::sys::{Error, Named};

/// Filesystems whose superblocks are made by the kernel, often shared, and never written for their own sake.
const KERNEL_FILESYSTEMS: [&str; 8] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "securityfs",
];

/// The files below /proc that may be covered, as in runc: lxcfs shows limits there.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Where a mount goes.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) path: InsidePath,
    pub(crate) links: Links,
}

/// A new filesystem and how it is mounted.
#[derive(Debug)]
pub(crate) struct NewFilesystem {
    pub(crate) filesystem: Filesystem,
    pub(crate) attributes: Attributes,
    /// tmpfs without a `mode`: that of the directory it covers.
    pub(crate) inherit_mode: bool,
    /// `tmpcopyup`.
    pub(crate) copy_up: bool,
    /// The SELinux context of its top directory, where a mount option can't set it.
    pub(crate) root_label: Option<CString>,
    /// Read-only, but only when nothing has to be made in it any more.
    pub(crate) read_only_later: bool,
}

/// One thing to do.
#[derive(Debug)]
pub(crate) enum Step {
    Bind {
        source: Source,
        attributes: Attributes,
        copy_symlink: bool,
    },
    Filesystem(NewFilesystem),
    Remount {
        bind: bool,
        change: Change,
        superblock: Superblock,
        data: CString,
    },
}

/// A mount of config.json, ready to be made.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) destination: Destination,
    pub(crate) step: Step,
}

/// The namespaces that a container shares with others, so that their filesystem may be not its own to mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedNamespaces {
    pub(crate) pid: bool,
    pub(crate) network: bool,
    pub(crate) ipc: bool,
}

/// What planning a mount depends on.
pub(crate) struct Planner<'a> {
    /// Relative sources are relative to the bundle.
    pub(crate) bundle: &'a Path,
    /// `linux.mountLabel`, the SELinux context of new filesystems, behind the mount option that takes it.
    pub(crate) label: Option<(&'static str, &'a str)>,
    /// The container has a user namespace that is not ours.
    pub(crate) user_namespace: bool,
    /// Namespaces that the container did not make.
    pub(crate) shared: SharedNamespaces,
    /// Its mappings and those of mounts.
    pub(crate) mapper: IdMapper<'a>,
}

impl Planner<'_> {
    /// Plans one entry of `mounts`; those of type `cgroup` only where they are plain mounts of cgroup2.
    pub(crate) fn plan(&mut self, mount: &Mount, options: Options) -> Result<Planned> {
        let fs_type = mount.typ().as_deref().unwrap_or("none");
        let path = InsidePath::new(mount.destination())?;
        if path.is_root() {
            bail!(
                "destination: {}: the root filesystem is set by root.path",
                mount.destination().display()
            );
        }
        if path.is("/proc") && !options.bind && !options.remount && fs_type != "proc" {
            bail!("destination: /proc: cannot be mounted because it is not of type proc");
        }
        let mapped =
            options.idmap.is_some() || mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        if mapped && !options.bind {
            bail!("uidMappings, gidMappings, idmap: only bind mounts can be ID-mapped");
        }
        let links = match fs_type {
            "proc" | "sysfs" if !options.bind => Links::Refuse,
            _ if options.destination_nofollow => Links::NotLast,
            _ => Links::Follow,
        };
        let step = if options.remount {
            Step::Remount {
                bind: options.bind,
                change: options.change,
                superblock: options.superblock,
                data: c_string(options.data.join(","))?,
            }
        } else if options.bind {
            self.plan_bind(mount, options, mapped)?
        } else {
            self.plan_filesystem(mount, fs_type, options)?
        };
        Ok(Planned {
            destination: Destination { path, links },
            step,
        })
    }

    fn plan_bind(&mut self, mount: &Mount, mut options: Options, mapped: bool) -> Result<Step> {
        let Some(path) = mount.source() else {
            bail!("source: missing: a bind mount needs the path to show");
        };
        let path = self.bundle.join(path);
        if shows_writable_cgroups(&path, &options) && rootless::is_unprivileged() {
            options.recursive_change.set(sys::attr::RDONLY);
        }
        let mut source = Source::new(c_string(path)?, options.recursive, options.source_nofollow);
        if mapped {
            if let Some(user) = rootless::ordinary_user() {
                bail!(
                    "uidMappings, gidMappings, idmap: id-mapped mounts are not supported for rootless containers: user \
                     {user} can't map the owners of a file system that is not of its user namespace"
                );
            }
            let recursive = options.idmap == Some(true);
            let custom = options.mapping.as_ref();
            source.open_mapped(|tree| self.mapper.apply(tree, mount, custom, recursive))?;
        } else if self.user_namespace {
            source = source.opened();
        }
        Ok(Step::Bind {
            source,
            attributes: Attributes::of(options.change, options.recursive_change, options.propagation),
            copy_symlink: options.copy_symlink,
        })
    }

    /// A file system can have no owner that a new user namespace does not have. (What devpts is given for its group is
    /// left out then: see [`Filesystem::create`].)
    fn check_owner(&self, fs_type: &str, parameters: &[(CString, Option<CString>)]) -> Result<()> {
        for (key, value) in parameters {
            let Some(id) = value.as_ref().and_then(|value| value.to_str().ok()?.parse().ok()) else {
                continue;
            };
            let missing = match key.to_bytes() {
                b"uid" => self.mapper.lacks_user(id),
                b"gid" if fs_type != "devpts" => self.mapper.lacks_group(id),
                _ => false,
            };
            if missing {
                bail!(
                    "options: \"{}={id}\": cannot specify {0}= mount option for rootless container: the user namespace \
                     has no such id (linux.{0}Mappings)",
                    key.to_string_lossy()
                );
            }
        }
        Ok(())
    }

    fn plan_filesystem(&self, mount: &Mount, fs_type: &str, options: Options) -> Result<Step> {
        let mut parameters = Vec::with_capacity(options.data.len() + 1);
        for word in &options.data {
            parameters.push(parameter(word)?);
        }
        let mut root_label = None;
        match self.label {
            // An IPC namespace has one, which the kernel has mounted before without it.
            Some((_, label)) if fs_type == "mqueue" => root_label = Some(c_string(label)?),
            Some((option, label)) if !matches!(fs_type, "proc" | "sysfs" | "cgroup" | "cgroup2") => {
                parameters.push((c_string(option)?, Some(c_string(label)?)));
            }
            _ => {}
        }
        parameters.extend(
            options
                .superblock
                .parameters()
                .map(|flag| (flag.to_owned(), None)),
        );
        let mut attributes = options.change.set;
        let read_only = attributes & sys::attr::RDONLY != 0;
        let read_only_later = read_only && fs_type == "tmpfs";
        if read_only_later {
            attributes &= !sys::attr::RDONLY;
        }
        if read_only && !KERNEL_FILESYSTEMS.contains(&fs_type) {
            parameters.push((c"ro".into(), None));
        }
        if self.user_namespace {
            self.check_owner(fs_type, &parameters)?;
        }
        let has_mode = parameters.iter().any(|(key, _)| key.as_c_str() == c"mode");
        // Only where the host's mount shows the namespace that the container is in.
        let fallback = match fs_type {
            "proc" if self.shared.pid => Some(c"/proc".into()),
            "sysfs" if self.shared.network => Some(c"/sys".into()),
            "mqueue" if self.shared.ipc => Some(c"/dev/mqueue".into()),
            _ => None,
        };
        let source = mount.source().as_ref().map(c_string).transpose()?;
        let mut filesystem =
            Filesystem::new(&c_string(fs_type)?, source, parameters, attributes).or(fallback);
        if !KERNEL_FILESYSTEMS.contains(&fs_type) {
            // Some filesystems read their one string in ways of their own.
            filesystem.data = None;
        }
        Ok(Step::Filesystem(NewFilesystem {
            filesystem,
            attributes: Attributes::after(options.recursive_change, options.propagation),
            inherit_mode: fs_type == "tmpfs" && !has_mode,
            copy_up: options.copy_up,
            root_label,
            read_only_later,
        }))
    }
}

/// Whether a read-only mount of the host's /sys has its cgroups in it, which are mounts of their own and stay writable. To
/// a rootless container its user's are (CVE-2023-25809).
fn shows_writable_cgroups(source: &Path, options: &Options) -> bool {
    options.recursive
        && options.change.set & sys::attr::RDONLY != 0
        && source.starts_with("/sys")
        && Path::new("/sys/fs/cgroup").starts_with(source)
}

/// A mount to be made read-only when nothing has to be made in it any more.
#[derive(Debug)]
pub(crate) struct Later {
    pub(crate) path: String,
    pub(crate) mount: OwnedFd,
}

impl Planned {
    /// Makes the mount. Gives what is to be made read-only later.
    pub(crate) fn execute(&mut self, root: &Root) -> Result<Option<Later>> {
        let destination = &self.destination;
        match &mut self.step {
            Step::Bind {
                source,
                attributes,
                copy_symlink,
            } => {
                if !*copy_symlink || !destination.copy_symlink(root, source.path())? {
                    let tree = source.take()?;
                    let pending = attributes.apply(&tree)?;
                    destination.attach_bind(root, &tree, source.path())?;
                    if pending {
                        attributes.apply_classic(&tree)?;
                    }
                }
                Ok(None)
            }
            Step::Filesystem(new) => new.execute(root, destination),
            Step::Remount {
                bind,
                change,
                superblock,
                data,
            } => {
                let mount = destination.open_existing(root)?;
                if *bind {
                    change_attached(&mount, *change)?;
                } else {
                    let flags = options::mount_flags(change.set) | superblock.flags() | sys::MS_REMOUNT;
                    at(&mount, |target| sys::mount(None, target, None, flags, Some(data)))
                        .call(|| format!("mount({:?}, REMOUNT, {flags:#x}, {data:?})", destination.path))?;
                }
                Ok(None)
            }
        }
    }
}

impl NewFilesystem {
    fn execute(&self, root: &Root, destination: &Destination) -> Result<Option<Later>> {
        let (covered, made) = destination.open(root, Make::Directory)?;
        if !made {
            destination.check_proc(&covered)?;
        }
        let mode = if self.inherit_mode && !made {
            Some(mode_of(&covered)?)
        } else {
            None
        };
        let plain = mode.is_none()
            && self.attributes.is_empty()
            && !self.copy_up
            && self.root_label.is_none()
            && !self.read_only_later;
        if plain && self.filesystem.mount_on(&covered) {
            return Ok(None);
        }
        let tree = self
            .filesystem
            .create(mode.as_deref().map(|mode| (c"mode", mode)))?;
        let pending = self.attributes.apply(&tree)?;
        if let Some(label) = &self.root_label {
            let top = openat2(&tree, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)
                .call(|| "openat2(\".\")".into())?;
            xattr::set(&top, c"security.selinux", label.as_bytes_with_nul())
                .call(|| format!("fsetxattr(\"security.selinux\", {label:?})"))
                .context("linux.mountLabel: is SELinux enabled?")?;
        }
        sys::move_mount(&tree, &covered).call(|| destination.describe(&self.filesystem.fs_type))?;
        if self.copy_up {
            super::copy_up::copy(&covered, &tree).context("copy what the tmpfs covers")?;
        }
        if pending {
            self.attributes.apply_classic(&tree)?;
        }
        Ok(self.read_only_later.then(|| Later {
            path: destination.path.to_string(),
            mount: tree,
        }))
    }
}

/// The mode of a directory as a parameter of tmpfs.
fn mode_of(directory: &OwnedFd) -> Result<CString> {
    let mode = fstat(directory).call(|| "fstat".into())?.st_mode & 0o7777;
    Ok(CString::new(format!("{mode:04o}"))?)
}

impl Destination {
    pub(crate) fn open(&self, root: &Root, make: Make) -> Result<(OwnedFd, bool)> {
        root.open_or_make(&self.path, make, self.links)
            .map_err(|error| self.explain(error))
    }

    fn open_existing(&self, root: &Root) -> Result<OwnedFd> {
        Ok(root
            .open(&self.path, 0, self.links)
            .map_err(|errno| open_error(&self.path, errno))?)
    }

    /// runc's words for /proc or /sys that is a symbolic link (CVE-2023-27561, CVE-2025-54867).
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let refused = error
            .downcast_ref::<Error>()
            .is_some_and(|error| matches!(error.errno, Errno::ELOOP | Errno::ENOTDIR));
        if self.links == Links::Refuse && refused {
            return error.context(format!("{} must be mounted on ordinary directory", self.path));
        }
        error
    }

    fn describe(&self, what: &CStr) -> String {
        format!("move_mount({what:?}, \"{}\")", self.path)
    }

    /// Attaches a bind mount: to a directory or a file, as its source is one.
    fn attach_bind(&self, root: &Root, tree: &OwnedFd, source: &CStr) -> Result<()> {
        let (covered, made) = match root.open(&self.path, 0, self.links) {
            Ok(fd) => (fd, false),
            Err(Errno::ENOENT) => {
                let directory = is_directory(tree)?;
                self.open(root, if directory { Make::Directory } else { Make::File })?
            }
            Err(errno) => return Err(self.explain(open_error(&self.path, errno).into())),
        };
        if self.path.is("/proc") {
            // The whole of /proc may come from the host, but from nowhere else.
            if filesystem_of(tree)? != PROC_SUPER_MAGIC {
                bail!("/proc cannot be mounted because it is not of type proc");
            }
        } else if !made {
            self.check_proc(&covered)?;
        }
        sys::move_mount(tree, &covered).call(|| self.describe(source))?;
        Ok(())
    }

    /// Nothing may cover the inside of /proc, where labels and sysctls are written (CVE-2019-16884), except what lxcfs
    /// covers.
    pub(crate) fn check_proc(&self, covered: &OwnedFd) -> Result<()> {
        if self.path.is("/proc") || PROC_FILES.iter().any(|file| self.path.is(file)) {
            return Ok(());
        }
        if filesystem_of(covered)? == PROC_SUPER_MAGIC {
            bail!("{} cannot be mounted because it is inside /proc", self.path);
        }
        Ok(())
    }

    /// Copies the symbolic link at `source`; says false where it is not one.
    fn copy_symlink(&self, root: &Root, source: &CStr) -> Result<bool> {
        let target = match readlinkat(sys::cwd(), source) {
            Ok(target) => target,
            Err(Errno::EINVAL) => return Ok(false),
            Err(errno) => return Err(errno).call(|| format!("readlinkat({source:?})"))?,
        };
        let (parent, name) = root.parent_of(&self.path, Links::Follow)?;
        match symlinkat(target.as_os_str(), &parent, name.as_c_str()) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) if readlinkat(&parent, name.as_c_str()) == Ok(target) => Ok(true),
            Err(errno) => Err(errno).call(|| format!("symlinkat(\"{}\")", self.path))?,
        }
    }
}

fn filesystem_of(fd: &OwnedFd) -> Result<FsType> {
    Ok(fstatfs(fd).call(|| "fstatfs".into())?.filesystem_type())
}
