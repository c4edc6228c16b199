//! FIFOs of a client: given to the process as they are.
//!
//! ```text
//!            shim: O_RDWR, never read          shim: O_WRONLY until CloseIO
//!                     |                                |
//! process --O_WRONLY-> FIFO --> containerd --> FIFO --O_RDONLY-> process
//! ```
//!
//! (Input: [`super::stdin`].) No byte passes through the shim. What it holds keeps either side from seeing an end while containerd restarts, as with
//! containerd's own shim: a reader of the output may come, go and come back; the input ends when CloseIO was called and
//! all other writers have closed. A reader that is not there stops the process once the pipe is full, and nobody else.
//!
//! Rules on paths (SELinux, AppArmor) hold for a named FIFO, and not for a pipe: [`needs_pipes`].

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, fchown};
use rtc_runtime::sys::{Errno, Named as _, fd};
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};

/// Profiles of AppArmor that let a process have any file: what the engines generate from their templates.
const PERMISSIVE_PROFILES: [&str; 5] = [
    "unconfined",
    "cri-containerd.apparmor.d",
    "docker-default",
    "nerdctl-default",
    "rtc-default",
];

/// Whether a process so confined may not get a FIFO of the host as its stdio: the kernel would put something else into its
/// place at `execve`. It then gets pipes, which the shim copies.
pub(crate) fn needs_pipes(selinux_label: Option<&str>, apparmor_profile: Option<&str>) -> bool {
    let given = |name: Option<&str>| name.is_some_and(|name| !name.is_empty());
    given(selinux_label)
        || given(apparmor_profile)
            && !apparmor_profile.is_some_and(|profile| PERMISSIVE_PROFILES.contains(&profile))
}

/// A FIFO, opened for reading and writing: opening either end alone never waits from here on.
#[derive(Debug)]
pub(crate) struct Fifo {
    both: OwnedFd,
    field: &'static str,
    path: PathBuf,
}

impl Fifo {
    /// Opens what a client has made.
    ///
    /// # Errors
    ///
    /// There is nothing, or something else than a FIFO, which is not touched.
    pub(crate) fn open(field: &'static str, path: &Path) -> Result<Self> {
        let found = Self::find(field, path)?;
        let both = found.reopen(OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        Ok(Self { both, ..found })
    }

    /// As [`Fifo::open`], but neither end is open: an end that is opened waits for the other, or wants `O_NONBLOCK`.
    ///
    /// # Errors
    ///
    /// As [`Fifo::open`].
    pub(crate) fn find(field: &'static str, path: &Path) -> Result<Self> {
        // Links are followed: the path is the client's from one end to the other.
        let found = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
            let why = match errno {
                Errno::ENOENT => "no such FIFO; the client makes it before it asks for the process",
                other => other.desc(),
            };
            Error::text(Kind::FailedPrecondition, format_args!("{field}: {path:?}: {why}"))
        })?;
        let mode = fstat(&found)
            .call(|| format!("fstat({path:?})"))
            .map_err(failed)?
            .st_mode;
        if SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) != SFlag::S_IFIFO {
            let text = format!("{field}: {path:?}: not a FIFO; a file is given as file://");
            return Err(Error::text(Kind::InvalidArgument, text));
        }
        Ok(Self {
            both: found,
            field,
            path: path.to_owned(),
        })
    }

    /// An end of its own, blocking, owned by whom the process' stdio belongs to: a process without privilege can open
    /// `/dev/stdout` again.
    pub(crate) fn end(&self, flag: OFlag, owner: (u32, u32)) -> Result<OwnedFd> {
        let end = self.reopen(flag)?;
        own(&end, owner)?;
        Ok(end)
    }

    /// Another open file description of the same FIFO.
    pub(crate) fn reopen(&self, flags: OFlag) -> Result<OwnedFd> {
        let name = format!("/proc/self/fd/{}", self.both.as_raw_fd());
        open(name.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("{}: open({:?})", self.field, self.path))
            .map_err(failed)
    }

    /// The descriptor that keeps both sides from seeing an end.
    pub(crate) fn into_hold(self) -> OwnedFd {
        self.both
    }
}

/// The first pause between two looks at a FIFO; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// A reader that takes nothing for so long is not there.
const SILENCE: Duration = Duration::from_millis(200);

/// Waits until everything in a FIFO was read, its reader takes nothing, or the deadline has passed. containerd's clients
/// close their end when they delete a process, whatever is still in it: so its exit is told only after this. The kernel
/// does not say when a pipe becomes empty.
pub(crate) async fn emptied(fifo: OwnedFd, deadline: Instant) {
    let (mut pause, mut last, mut progress) = (FIRST_PAUSE, usize::MAX, Instant::now());
    while let Ok(unread @ 1..) = fd::unread(&fifo) {
        let now = Instant::now();
        if unread != last {
            (last, progress) = (unread, now);
        }
        if now >= deadline || now - progress >= SILENCE {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SILENCE / 8);
    }
}

/// Gives a pipe or FIFO to the owner of the process' stdio.
pub(crate) fn own(end: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
    if (uid, gid) == (0, 0) {
        // Made by root, it is.
        return Ok(());
    }
    fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .call(|| format!("io_uid, io_gid: fchown({uid}, {gid})"))
        .map_err(failed)
}

/// A system call that failed.
pub(crate) fn failed(error: rtc_runtime::sys::Error) -> Error {
    Error::new(Kind::Unknown, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_on_paths_ask_for_pipes() {
        assert!(!needs_pipes(None, None));
        assert!(!needs_pipes(Some(""), Some("")));
        assert!(!needs_pipes(None, Some("cri-containerd.apparmor.d")));
        assert!(needs_pipes(None, Some("my-strict-profile")));
        assert!(needs_pipes(
            Some("system_u:system_r:container_t:s0:c1,c2"),
            Some("unconfined")
        ));
    }
}
