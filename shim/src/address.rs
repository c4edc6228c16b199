//! The socket of a shim: its name, made and replaced so that there is one shim for each group of containers.
//!
//! ```text
//! /run/containerd/s/<SHA-256 of containerd's address/namespace/group>     as containerd's own shim, and `ctr shim`
//!
//! bind ── EADDRINUSE ──> connect ── answers ──> the group's shim lives: it is used
//!                                `─ refused ──> a dead shim's: removed, bind again
//! ```
//!
//! All under a lock on the directory, so that no other `start` takes a socket that is just being made for a dead one.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, umask};
use rtc_runtime::sys::Named;
use sha2::{Digest, Sha256};

/// Where containerd has the sockets of shims (its `defaults.DefaultStateDir`), where it names no other directory.
pub(crate) const DIRECTORY: &str = "/run/containerd/s";

/// What a path of a Unix socket may be long at most, in bytes (unix(7), without the NUL).
const PATH_MAX: usize = 107;

/// How long another `start` may take for its own socket.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

/// What is found at an address.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nobody was there: it is ours, and listens.
    Nobody(UnixListener),
    /// A shim that answers.
    Shim,
}

/// The socket's path for a group, in a directory.
pub(crate) fn path(directory: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    // As filepath.Join: cleaned, and without what is empty.
    let name: PathBuf = Path::new(containerd)
        .join(namespace)
        .join(group)
        .components()
        .collect();
    directory.join(sha256(name.as_os_str().as_encoded_bytes()))
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// How containerd is told of it.
pub(crate) fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Listens at the path, or finds who does. The socket is for root alone (0600).
///
/// # Errors
///
/// The path is too long, or the directory can't be written.
pub(crate) fn bind(socket: &Path) -> Result<Found> {
    let length = socket.as_os_str().len();
    if length > PATH_MAX {
        bail!("socket {socket:?}: {length} bytes: must be at most {PATH_MAX}: choose a shorter directory");
    }
    let Some(directory) = socket.parent() else {
        bail!("socket {socket:?}: must be in a directory");
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .call(|| format!("mkdir({directory:?})"))?;
    let _lock = lock(directory)?;
    match listen(socket) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        listener => return Ok(Found::Nobody(listener.call(|| format!("bind({socket:?})"))?)),
    }
    if answers(socket)? {
        return Ok(Found::Shim);
    }
    // A living shim may have removed its own at its end meanwhile.
    if let Ok(file) = std::fs::symlink_metadata(socket) {
        if !file.file_type().is_socket() {
            bail!("socket {socket:?}: something else is there: remove it");
        }
        std::fs::remove_file(socket).call(|| format!("unlink({socket:?})"))?;
    }
    Ok(Found::Nobody(
        listen(socket).call(|| format!("bind({socket:?})"))?,
    ))
}

fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let old = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    umask(old);
    listener
}

/// Whether somebody listens. Never waits: a listener that accepts nothing, with a full backlog, is one too.
pub(crate) fn answers(socket: &Path) -> Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .call(|| "socket".into())?;
    let address = UnixAddr::new(socket).call(|| format!("address {socket:?}"))?;
    match nix::sys::socket::connect(client.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(error) => Err(error)
            .call(|| format!("connect({socket:?})"))
            .map_err(Into::into),
    }
}

fn lock(directory: &Path) -> Result<Flock<File>> {
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(directory)
        .call(|| format!("open({directory:?})"))?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, error)) => {
                return Err(error)
                    .call(|| format!("flock({directory:?})"))
                    .context("lock the directory of the sockets");
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("rtc-shim-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        directory
    }

    #[test]
    fn the_name_is_the_one_containerd_computes() {
        // printf %s /run/containerd/containerd.sock/k8s.io/web | sha256sum
        let socket = path(
            Path::new(DIRECTORY),
            "/run//containerd/containerd.sock",
            "k8s.io",
            "web",
        );
        let name = sha256(b"/run/containerd/containerd.sock/k8s.io/web");
        assert_eq!(url(&socket), format!("unix:///run/containerd/s/{name}"));
        // Without an address of containerd.
        let socket = path(Path::new("/s"), "", "n", "g");
        assert_eq!(socket, Path::new("/s").join(sha256(b"n/g")));
    }

    #[test]
    fn a_living_shim_is_found_and_a_dead_ones_socket_replaced() {
        let directory = directory("socket");
        let socket = directory.join("s");
        let Found::Nobody(listener) = bind(&socket).unwrap() else {
            panic!("nobody can be there");
        };
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&directory), mode(&socket)), (0o700, 0o600));
        assert!(matches!(bind(&socket).unwrap(), Found::Shim));
        drop(listener);
        assert!(matches!(bind(&socket).unwrap(), Found::Nobody(_)));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = directory("file");
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("s");
        std::fs::write(&socket, "precious").unwrap();
        assert!(bind(&socket).is_err());
        assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_by_name() {
        let socket = Path::new("/tmp").join("x".repeat(PATH_MAX));
        let error = bind(&socket).unwrap_err().to_string();
        assert!(error.contains("must be at most 107"), "{error}");
    }
}
