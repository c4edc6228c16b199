//! The files of a pod that its containers find under `/etc`, and its `/dev/shm`: in the sandbox's bundle.
//!
//! containerd makes them for sandboxes of its own; of a shim's it expects them to be in the containers somehow. All of it is
//! for workers: the host's files are on its disk.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::config::{Dns, PodConfig};

/// The size of `/dev/shm`, as in any container.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Where a pod's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    directory: PathBuf,
    shm: bool,
}

impl Files {
    /// Those that the pod is to have.
    pub(crate) fn of(config: &PodConfig, bundle: &Path) -> Option<Self> {
        config.has_files.then(|| Self {
            directory: bundle.join("pod"),
            shm: !config.host_ipc,
        })
    }

    /// By their name in `/etc`.
    pub(crate) fn etc(&self) -> Vec<(&'static str, PathBuf)> {
        ["hostname", "hosts", "resolv.conf"]
            .map(|name| (name, self.directory.join(name)))
            .to_vec()
    }

    /// `/dev/shm`, where it is not the host's.
    pub(crate) fn shm(&self) -> Option<PathBuf> {
        self.shm.then(|| self.directory.join("shm"))
    }

    /// Makes them.
    ///
    /// # Errors
    ///
    /// Something can't be written or mounted; then nothing is left mounted.
    pub(crate) fn make(&self, config: &PodConfig) -> Result<()> {
        make_directory(&self.directory, 0o711)?;
        let hostname = match config.hostname.as_str() {
            "" => host_name()?,
            name => name.to_owned(),
        };
        self.write("hostname", format!("{hostname}\n").as_bytes())?;
        self.write("hosts", &host_file("/etc/hosts")?)?;
        let resolv_conf = match &config.dns {
            Some(dns) => resolv_conf(dns).into_bytes(),
            None => host_file("/etc/resolv.conf")?,
        };
        self.write("resolv.conf", &resolv_conf)?;
        match self.shm() {
            Some(shm) => mount_shm(&shm),
            None => Ok(()),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        // Whatever the umask is: the containers' users read them.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .with_context(|| format!("chmod {}", path.display()))
    }
}

/// Unmounts what [`Files::make`] mounted, of this process or of one that was killed. Nothing is fine.
///
/// # Errors
///
/// As umount2(2).
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    let shm = bundle.join("pod/shm");
    match umount2(&shm, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // No mount, or no directory.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("unmount {}", shm.display())),
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("mkdir {}", path.display()));
        }
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

fn mount_shm(shm: &Path) -> Result<()> {
    make_directory(shm, 0o700)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
        .with_context(|| format!("mount a tmpfs at {}", shm.display()))
}

/// One that the host has not is empty.
fn host_file(path: &str) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read.with_context(|| format!("read {path}")),
    }
}

fn host_name() -> Result<String> {
    let name = nix::sys::utsname::uname().context("uname")?;
    Ok(name.nodename().to_string_lossy().into_owned())
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_for_each_server() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let dns = Dns {
            servers: words(&["10.0.0.10", "fd00::a"]),
            searches: words(&["a.svc", "svc"]),
            options: words(&["ndots:5"]),
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&Dns::default()), "");
    }
}
