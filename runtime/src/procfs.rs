//! Writes to a procfs that is known to be one.
//!
//! A write to `/proc/self/attr/exec` or to `/proc/sys` that lands in another file does nothing, or harm (CVE-2019-16884,
//! CVE-2025-52881). Both are done while the process still sees the runtime's own `/proc`, and no step of the path may
//! leave that file system or follow a magic link.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::Named;

/// The root of a procfs.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Opens `/proc` as the caller sees it.
    ///
    /// # Errors
    ///
    /// It is missing, or no procfs.
    pub fn open() -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = open("/proc", flags, Mode::empty()).call(|| "open(\"/proc\")".into())?;
        if fstatfs(root.as_fd())
            .call(|| "fstatfs(\"/proc\")".into())?
            .filesystem_type()
            != PROC_SUPER_MAGIC
        {
            bail!("/proc is no procfs");
        }
        Ok(Self(root))
    }

    /// A directory in the place of a procfs, for what this machine's kernel does not have.
    #[cfg(test)]
    pub(crate) fn fake(directory: &std::path::Path) -> Self {
        Self(File::open(directory).unwrap().into())
    }

    /// Writes to a file below, in one write(2).
    ///
    /// # Errors
    ///
    /// The path leaves the procfs (`EXDEV`: something is mounted over it), or the kernel refuses the value.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = openat2(self.0.as_fd(), path, how).call(|| format!("openat2(\"/proc/{path}\")"))?;
        File::from(file)
            .write_all(value.as_bytes())
            .with_context(|| format!("write {value:?} to /proc/{path}"))
    }
}

/// The path below `/proc` of a sysctl in either of its forms: `net.ipv4.ip_forward`, `net/ipv4/conf/eth0.1/mtu`.
/// As sysctl(8): the first separator found decides which one it is, and the other stands for itself.
#[must_use]
pub fn sysctl_path(name: &str) -> String {
    let slashed = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes()[at] == b'/');
    if slashed {
        return format!("sys/{name}");
    }
    let swapped = name.chars().map(|character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    format!("sys/{}", swapped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_is_named_with_dots_or_slashes() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "sys/net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/mtu"),
            "sys/net/ipv4/conf/eth0.1/mtu"
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.mtu"),
            "sys/net/ipv4/conf/eth0.1/mtu"
        );
    }

    #[test]
    fn a_path_does_not_leave_the_procfs() {
        let procfs = Procfs::open().unwrap();
        let file = std::env::temp_dir().join(format!("rtc-procfs-{}", std::process::id()));
        std::fs::write(&file, "kept").unwrap();
        let name = file.display();
        for path in [format!("self/root{name}"), format!("..{name}")] {
            assert!(procfs.write(&path, "x").is_err(), "{path}");
        }
        let kept = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(kept, b"kept");
    }
}
