//! What a command of a foreign runtime reads and writes beside its containers: nothing of it is on a disk.
//!
//! The log, the process of an exec and the resources of an update are memory files; pid files and console sockets are in a
//! tmpfs that is mounted nowhere. The runtime opens them as `/proc/<shim>/fd/N`, and they are gone with the shim, however
//! it ends.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::{Named as _, fd, mount, process};

/// So much of a log or of an output is looked at, from its end, in bytes.
const TAIL_MAX: u64 = 64 * 1024;

/// Where another process finds a descriptor of this one.
pub(super) fn path_of(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        descriptor.as_raw_fd()
    ))
}

pub(super) fn memory_file(content: &[u8]) -> Result<OwnedFd> {
    let file = memfd_create(c"rtc-shim", MFdFlags::MFD_CLOEXEC).call(|| "memfd_create".into())?;
    let mut file = File::from(file);
    file.write_all(content).context("write a memory file")?;
    Ok(file.into())
}

/// A tmpfs that only who has the descriptor finds.
pub(super) fn detached_tmpfs() -> Result<OwnedFd> {
    let context = mount::fsopen(c"tmpfs").call(|| "fsopen(tmpfs)".into())?;
    mount::fsconfig(&context, c"mode", Some(c"0700")).call(|| "fsconfig(mode)".into())?;
    mount::fsconfig_create(&context).call(|| "fsconfig(CREATE)".into())?;
    Ok(mount::fsmount(&context, 0).call(|| "fsmount(tmpfs)".into())?)
}

pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The runtime has connected and sent it before it ended.
pub(super) fn receive_master(listener: UnixListener) -> Result<OwnedFd> {
    let (connection, _) = listener.accept().context("the runtime did not connect")?;
    connection.set_nonblocking(true)?;
    let (_, master) = fd::receive(&connection, &mut [0; 4096])?;
    master.context("the runtime sent no descriptor")
}

/// The process that a runtime named, which must be a child of this one.
pub(super) fn child_of(pid_file: &Path) -> Result<Child> {
    let text = std::fs::read_to_string(pid_file).context("the pid file of the runtime")?;
    let pid = text.trim().parse().map(Pid::from_raw);
    let pid = pid.with_context(|| format!("the pid file of the runtime: {text:?}: is no number"))?;
    let pidfd = process::pidfd_open(pid)?;
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PIDFd(pidfd.as_fd()), peek)
        .call(|| format!("waitid({pid})"))
        .context("the process that the runtime made did not become a child of the shim")?;
    Ok(Child { pid, pidfd })
}

pub(super) fn tail_of(file: &OwnedFd) -> Vec<u8> {
    let read = || {
        let file = File::from(file.try_clone()?);
        let length = file.metadata()?.len();
        let from = length.saturating_sub(TAIL_MAX);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or_default()];
        let read = file.read_at(&mut bytes, from)?;
        bytes.truncate(read);
        std::io::Result::Ok(bytes)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_file_is_read_from_its_end() {
        let long = [b"start".as_slice(), &vec![b'x'; 2 * TAIL_MAX as usize], b"end"].concat();
        let tail = tail_of(&memory_file(&long).unwrap());
        assert_eq!(tail.len() as u64, TAIL_MAX);
        assert!(tail.ends_with(b"xend"));
        assert_eq!(tail_of(&memory_file(b"all").unwrap()), b"all");
    }
}
