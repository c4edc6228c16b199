//! Detached mounts: copies of the host's, and new filesystems, with their attributes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::fchdir;

use super::options::{self, Change};
use super::path::c_string;
use crate::rootless;
use crate::sys::mount::{self as sys, AT_RECURSIVE, MountAttr};
use crate::sys::{Error, Named};

/// What a bind mount shows.
#[derive(Debug)]
pub(crate) struct Source {
    /// The absolute path on the host.
    path: CString,
    recursive: bool,
    nofollow: bool,
    /// The mount as the parent opened it: for owners that the child can't map (used always), or for a child that may
    /// be unable to reach the path in its user namespace (used then).
    opened: Option<OwnedFd>,
    always_opened: bool,
}

impl Source {
    /// A source that the child opens itself, with all mounts below it.
    pub(crate) fn host(path: CString) -> Source {
        Source::new(path, true, false)
    }

    /// A source that the child opens itself.
    pub(crate) fn new(path: CString, recursive: bool, nofollow: bool) -> Source {
        Source {
            path,
            recursive,
            nofollow,
            opened: None,
            always_opened: false,
        }
    }

    /// Opens it in the parent too, for a child that may be unable to. Before Linux 5.12 it stays unopened, since the
    /// copy would share its mounts with the host. Where the parent fails, the child reports the error.
    pub(crate) fn opened(mut self) -> Source {
        self.opened = self.open().ok().filter(|tree| make_slave(tree).is_ok());
        self
    }

    /// Opens it in the parent for good: the mapping of its owners is not the child's to make.
    pub(crate) fn open_mapped(&mut self, map: impl FnOnce(&OwnedFd) -> Result<()>) -> Result<()> {
        let tree = self.open().call(|| self.describe())?;
        map(&tree)?;
        make_slave(&tree).call(|| "mount_setattr(RECURSIVE, SLAVE)".into())?;
        self.opened = Some(tree);
        self.always_opened = true;
        Ok(())
    }

    /// Opens it in the parent for good: the child is in another mount namespace.
    pub(crate) fn open_for_good(&mut self) -> Result<()> {
        if self.opened.is_none() {
            return self.open_mapped(|_| Ok(()));
        }
        self.always_opened = true;
        Ok(())
    }

    fn open(&self) -> nix::Result<OwnedFd> {
        let recursive = if self.recursive { AT_RECURSIVE } else { 0 };
        let nofollow = if self.nofollow {
            libc::AT_SYMLINK_NOFOLLOW
        } else {
            0
        };
        sys::open_tree(sys::cwd(), &self.path, recursive | nofollow)
    }

    fn describe(&self) -> String {
        let recursive = if self.recursive { "|RECURSIVE" } else { "" };
        format!("open_tree({:?}, CLONE{recursive})", self.path)
    }

    /// The path on the host.
    pub(crate) fn path(&self) -> &CStr {
        &self.path
    }

    /// In the child: the detached mount. Its own copy if it can, since that keeps the locks of the host's flags.
    pub(crate) fn take(&mut self) -> Result<OwnedFd> {
        if self.always_opened
            && let Some(tree) = self.opened.take()
        {
            return Ok(tree);
        }
        match (self.open(), self.opened.take()) {
            (Ok(tree), _) | (Err(_), Some(tree)) => Ok(tree),
            (Err(errno), None) => Ok(Err(errno).call(|| self.describe())?),
        }
    }
}

/// What the mount is then given.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    change: Change,
    recursive_change: Change,
    propagation: Vec<libc::c_ulong>,
}

/// Makes what the parent copied what a child's copy is: nothing that is mounted in it shows on the host.
fn make_slave(tree: &OwnedFd) -> nix::Result<()> {
    sys::mount_setattr(tree, AT_RECURSIVE, &propagation(sys::MS_SLAVE))
}

impl Attributes {
    /// What is left for a new filesystem: its own attributes it has from the start.
    pub(crate) fn after(recursive_change: Change, propagation: Vec<libc::c_ulong>) -> Attributes {
        Attributes {
            change: Change::default(),
            recursive_change,
            propagation,
        }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.change.is_empty() && self.recursive_change.is_empty() && self.propagation.is_empty()
    }

    /// All there are, for a copy of a mount.
    pub(crate) fn of(
        change: Change,
        recursive_change: Change,
        propagation: Vec<libc::c_ulong>,
    ) -> Attributes {
        Attributes {
            change,
            recursive_change,
            propagation,
        }
    }

    /// A change of one mount alone.
    pub(crate) fn now(change: Change) -> Attributes {
        Attributes {
            change,
            ..Attributes::default()
        }
    }

    /// Changes a detached mount. Says whether the rest has to wait until it is attached: before Linux 5.12.
    pub(crate) fn apply(&self, tree: &OwnedFd) -> Result<bool> {
        for (change, flags) in [(self.change, 0), (self.recursive_change, AT_RECURSIVE)] {
            if change.is_empty() {
                continue;
            }
            match sys::mount_setattr(tree, flags, &change.as_attr()) {
                Ok(()) => {}
                Err(Errno::ENOSYS) if flags == 0 => return Ok(true),
                Err(errno) => return Err(setattr_error(change, flags, errno).into()),
            }
        }
        for kind in &self.propagation {
            match sys::mount_setattr(tree, recursion(*kind), &propagation(*kind)) {
                Ok(()) => {}
                Err(Errno::ENOSYS) => return Ok(true),
                Err(errno) => return Err(errno).call(|| format!("mount_setattr({kind:#x})"))?,
            }
        }
        Ok(false)
    }

    /// The rest of [`Attributes::apply`] by mount(2), when the mount is attached.
    pub(crate) fn apply_classic(&self, tree: &OwnedFd) -> Result<()> {
        if !self.change.is_empty() {
            remount(tree, self.change)?;
        }
        for kind in &self.propagation {
            at(tree, |target| sys::mount(None, target, None, *kind, None))
                .call(|| format!("mount({kind:#x})"))?;
        }
        Ok(())
    }
}

fn recursion(kind: libc::c_ulong) -> libc::c_int {
    if kind & sys::MS_REC != 0 { AT_RECURSIVE } else { 0 }
}

fn propagation(kind: libc::c_ulong) -> MountAttr {
    MountAttr {
        propagation: kind & !sys::MS_REC,
        ..MountAttr::default()
    }
}

fn setattr_error(change: Change, flags: libc::c_int, errno: Errno) -> Error {
    let recursive = if flags == 0 { "" } else { "RECURSIVE, " };
    let needs = match errno {
        Errno::ENOSYS => " (needs Linux 5.12)",
        Errno::EINVAL if (change.set | change.clear) & sys::attr::NOSYMFOLLOW != 0 => " (needs Linux 5.14)",
        Errno::EPERM => " (the host's mount has flags that a user namespace can't clear)",
        _ => "",
    };
    Error {
        call: format!(
            "mount_setattr({recursive}set {}, clear {}){needs}",
            options::describe(change.set),
            options::describe(change.clear)
        ),
        errno,
    }
}

fn own_fd(fd: impl AsFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}

/// Changes an attached mount and keeps its other flags: by mount_setattr(2), before Linux 5.12 by a bind remount.
pub(crate) fn change_attached(mount: impl AsFd, change: Change) -> Result<()> {
    match sys::mount_setattr(&mount, 0, &change.as_attr()) {
        Ok(()) => Ok(()),
        Err(Errno::ENOSYS) => remount(mount, change),
        Err(errno) => Err(setattr_error(change, 0, errno).into()),
    }
}

fn remount(mount: impl AsFd, change: Change) -> Result<()> {
    let current = fstatvfs(&mount).call(|| "fstatvfs".into())?.flags().bits();
    let flags = change.remount_flags(current) | sys::MS_REMOUNT | sys::MS_BIND;
    at(&mount, |target| sys::mount(None, target, None, flags, None))
        .call(|| format!("mount(REMOUNT|BIND, {flags:#x})"))?;
    Ok(())
}

/// Gives mount(2) a path to a descriptor: a directory as the working directory, which needs no /proc; else through
/// /proc, which is the host's or a new one, never the image's.
pub(crate) fn at(mount: impl AsFd, call: impl FnOnce(&CStr) -> nix::Result<()>) -> nix::Result<()> {
    match fchdir(&mount) {
        Ok(()) => call(c"."),
        Err(Errno::ENOTDIR) => call(&own_fd(&mount)),
        Err(errno) => Err(errno),
    }
}

/// A filesystem to mount.
#[derive(Debug)]
pub(crate) struct Filesystem {
    pub(crate) fs_type: CString,
    pub(crate) source: Option<CString>,
    pub(crate) parameters: Vec<(CString, Option<CString>)>,
    /// The same as the one string of mount(2), where that call may be used.
    pub(crate) data: Option<CString>,
    /// Bits of [`sys::attr`].
    pub(crate) attributes: u64,
    /// A mount of the host that does instead where a user namespace may not have the filesystem.
    pub(crate) fallback: Option<CString>,
}

impl Filesystem {
    /// A filesystem with no fallback.
    pub(crate) fn new(
        fs_type: &CStr,
        source: Option<CString>,
        parameters: Vec<(CString, Option<CString>)>,
        attributes: u64,
    ) -> Filesystem {
        Filesystem {
            fs_type: fs_type.to_owned(),
            source,
            data: one_string(&parameters),
            parameters,
            attributes,
            fallback: None,
        }
    }

    /// With a mount of the host that does instead.
    pub(crate) fn or(self, fallback: Option<CString>) -> Filesystem {
        Filesystem { fallback, ..self }
    }

    /// In the child: mounts it on a directory by the one call mount(2), which is less work than a context. Says false
    /// where that failed: [`Filesystem::create`] then finds a fallback, or the words for the error. A read-only mount
    /// is never made so, since mount(2) would make the superblock read-only too.
    pub(crate) fn mount_on(&self, directory: &OwnedFd) -> bool {
        let Some(data) = &self.data else { return false };
        if self.attributes & sys::attr::RDONLY != 0 || fchdir(directory).is_err() {
            return false;
        }
        let flags = options::mount_flags(self.attributes);
        let source = self.source.as_deref().unwrap_or(c"none");
        sys::mount(Some(source), c".", Some(&self.fs_type), flags, Some(data)).is_ok()
    }

    /// In the child: the detached mount, or where a user namespace may not have one the host's.
    pub(crate) fn create(&self, extra: Option<(&CStr, &CStr)>) -> Result<OwnedFd> {
        match self.try_create(extra, false) {
            Err((Errno::EPERM | Errno::EBUSY, error))
                if self.fallback.is_some() && rootless::in_user_namespace() =>
            {
                self.host_mount().map_err(|_| error.into())
            }
            // A terminal group that the user namespace doesn't have.
            Err((Errno::EINVAL, _)) if self.fs_type.as_c_str() == c"devpts" && self.has(c"gid") => {
                self.try_create(extra, true).map_err(|(_, error)| error.into())
            }
            result => result.map_err(|(_, error)| error.into()),
        }
    }

    fn has(&self, key: &CStr) -> bool {
        self.parameters.iter().any(|(known, _)| known.as_c_str() == key)
    }

    fn try_create(
        &self,
        extra: Option<(&CStr, &CStr)>,
        without_gid: bool,
    ) -> Result<OwnedFd, (Errno, Error)> {
        let name = &self.fs_type;
        let failed = |errno: Errno, call: String| (errno, Error { call, errno });
        let context = sys::fsopen(name).map_err(|errno| failed(errno, format!("fsopen({name:?})")))?;
        let message = || sys::fs_message(&context).map_or(String::new(), |text| format!(": {text}"));
        let source = self.source.as_deref().map(|source| (c"source", Some(source)));
        let parameters = self
            .parameters
            .iter()
            .map(|(key, value)| (key.as_c_str(), value.as_deref()));
        let extra = extra.map(|(key, value)| (key, Some(value)));
        for (key, value) in source.into_iter().chain(extra).chain(parameters) {
            if without_gid && key == c"gid" {
                continue;
            }
            sys::fsconfig(&context, key, value).map_err(|errno| {
                let value = value.map_or(String::new(), |value| format!(", {value:?}"));
                let label = if key.to_bytes().ends_with(b"context") {
                    " (linux.mountLabel: is SELinux enabled?)"
                } else {
                    ""
                };
                failed(
                    errno,
                    format!("fsconfig({name:?}, {key:?}{value}){label}{}", message()),
                )
            })?;
        }
        sys::fsconfig_create(&context)
            .map_err(|errno| failed(errno, format!("fsconfig({name:?}, CREATE){}", message())))?;
        sys::fsmount(&context, self.attributes).map_err(|errno| {
            let attributes = options::describe(self.attributes);
            failed(errno, format!("fsmount({name:?}, {attributes}){}", message()))
        })
    }

    /// The host's mount with the attributes asked for, e.g. /sys without a network namespace of one's own.
    fn host_mount(&self) -> Result<OwnedFd> {
        let path = self.fallback.clone().unwrap_or_default();
        let tree = Source::host(path).take()?;
        let change = Change {
            set: self.attributes,
            clear: 0,
        };
        if !change.is_empty() {
            sys::mount_setattr(&tree, AT_RECURSIVE, &change.as_attr())
                .map_err(|errno| setattr_error(change, AT_RECURSIVE, errno))?;
        }
        Ok(tree)
    }
}

/// Parameters as the one string of mount(2); none where a comma in a value would need the quoting of its filesystem.
fn one_string(parameters: &[(CString, Option<CString>)]) -> Option<CString> {
    let mut text = Vec::new();
    for (key, value) in parameters {
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(key.to_bytes());
        if let Some(value) = value {
            if value.to_bytes().contains(&b',') {
                return None;
            }
            text.push(b'=');
            text.extend_from_slice(value.to_bytes());
        }
    }
    CString::new(text).ok()
}

/// `key=value` or `key` for fsconfig(2). Overlayfs unescapes commas itself only in the one string of mount(2).
pub(crate) fn parameter(word: &str) -> Result<(CString, Option<CString>)> {
    Ok(match word.split_once('=') {
        Some((key, value)) => (
            c_string(key)?,
            Some(c_string(value.trim_matches('"').replace("\\,", ","))?),
        ),
        None => (c_string(word)?, None),
    })
}

/// Whether a descriptor refers to a directory.
pub(crate) fn is_directory(fd: &OwnedFd) -> Result<bool> {
    let mode = fstat(fd).call(|| "fstat".into())?.st_mode;
    Ok(mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}
