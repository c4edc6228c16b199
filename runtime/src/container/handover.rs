//! What is given to whoever asked for a container: its terminal, a pidfd, a seccomp listener, a pid file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use oci_spec::runtime::Spec;

use crate::process::terminal::DescriptorSocket;
use crate::sys::Named;
use crate::sys::clone::Child;

/// Sends the master of a terminal, named as runc names it.
pub fn send_master(path: &Path, master: &OwnedFd) -> Result<()> {
    DescriptorSocket::connect(path)
        .and_then(|socket| socket.send(b"/dev/ptmx", master))
        .with_context(|| format!("send the terminal to the console socket {}", path.display()))
}

/// Sends a pidfd of the container's process.
pub fn send_pidfd(path: &Path, child: &Child) -> Result<()> {
    DescriptorSocket::connect(path)
        .and_then(|socket| socket.send(b"pidfd", &child.pidfd))
        .with_context(|| format!("send the pidfd to the socket {}", path.display()))
}

/// Hands the listener of a seccomp filter to the agent (runtime-spec, "The Container Process State").
pub fn send_listener(spec: &Spec, listener: &OwnedFd, child: &Child, state: &str) -> Result<()> {
    let seccomp = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref())
        .context("linux.seccomp")?;
    let path = seccomp
        .listener_path()
        .as_deref()
        .context("linux.seccomp.listenerPath: missing")?;
    let message = serde_json::json!({
        "ociVersion": spec.version(),
        "fds": ["seccompFd"],
        "pid": child.pid.as_raw(),
        "metadata": seccomp.listener_metadata().as_deref().unwrap_or_default(),
        "state": serde_json::from_str::<serde_json::Value>(state).context("the container's state")?,
    });
    DescriptorSocket::connect(path)
        .and_then(|socket| socket.send(message.to_string().as_bytes(), listener))
        .with_context(|| {
            format!(
                "failed to connect with seccomp agent: linux.seccomp.listenerPath {}",
                path.display()
            )
        })
}

/// Writes the pid without a newline, whole or not at all; never through a link that somebody put at its place.
///
/// # Errors
///
/// The directory can't be written.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    replace_file(path, pid.to_string().as_bytes()).with_context(|| format!("--pid-file {}", path.display()))
}

fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| anyhow!("not a file name"))?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(parent, flags, Mode::empty()).call(|| format!("open({parent:?})"))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(
        &directory,
        temporary.as_os_str(),
        flags,
        Mode::from_bits_truncate(0o644),
    )
    .call(|| format!("openat({temporary:?})"))?;
    let written = File::from(file)
        .write_all(content)
        .context("write")
        .and_then(|()| {
            renameat(&directory, temporary.as_os_str(), &directory, name)
                .call(|| format!("renameat({name:?})"))?;
            Ok(())
        });
    if written.is_err() {
        // The first error is what counts.
        let _ = unlinkat(&directory, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
    written
}
