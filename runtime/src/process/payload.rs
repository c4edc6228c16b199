//! What a container's process becomes at its end, be it the init or one of `exec`: the user, behind the filter, with the
//! program. Both children share this last part of their way.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Uid, fchown};

use crate::log;
use crate::process::channel::{Channel, Message};
use crate::process::identity::Identity;
use crate::process::program::Program;
use crate::process::terminal::{Terminal, TerminalRequest};
use crate::seccomp::Filter;
use crate::sys::{self, Errno, Named, fd, process};

/// Prepared by the parent.
#[derive(Debug)]
pub struct Payload {
    /// Who it becomes.
    pub identity: Identity,
    /// What it executes.
    pub program: Program,
    /// Its seccomp filter.
    pub filter: Option<Filter>,
    /// Name of its session keyring; `None`: it keeps the caller's.
    pub keyring: Option<CString>,
    /// The terminal it asks for.
    pub terminal: Option<TerminalRequest>,
    /// Descriptors from 3 on that it keeps.
    pub preserve_fds: u32,
    /// Whether an ordinary user may look at the process that waits in a user namespace of its making: to join its
    /// namespaces, or to connect its network. Nobody else could: there are only processes of that user inside.
    pub open_to_user: bool,
}

impl Payload {
    /// The container's session keyring; a `new` one is made searchable by its user. A kernel without keyrings needs none.
    ///
    /// # Errors
    ///
    /// As keyctl(2).
    pub fn join_keyring(&self, new: bool) -> Result<()> {
        /// All for the possessor, and view, read and search for the user (keyrings(7)).
        const PERMISSIONS: u32 = 0x3f0b_0000;
        let Some(name) = &self.keyring else { return Ok(()) };
        match process::join_session_keyring(name) {
            Ok(serial) if new => {
                process::set_keyring_permissions(serial, PERMISSIONS).context("session keyring")
            }
            Ok(_) => Ok(()),
            Err(error) if error.errno == Errno::ENOSYS => Ok(()),
            Err(error) => Err(error).context("make a session keyring (--no-new-keyring keeps the caller's)"),
        }
    }

    /// Makes the terminal, where it has one, in the container's devpts; the parent gets its master.
    ///
    /// # Errors
    ///
    /// No devpts.
    pub fn open_terminal(&self, channel: &Channel) -> Result<Option<OwnedFd>> {
        let Some(request) = self.terminal else {
            return Ok(None);
        };
        let Terminal { master, slave } =
            Terminal::open(self.identity.uid, request).context("process.terminal")?;
        channel
            .send(&Message::Terminal(master))
            .context("hand over the terminal")?;
        Ok(Some(slave))
    }

    /// From root of the container to the process' user. Returns the file to execute. No descriptor is left open but those
    /// the caller gave, and `kept`.
    ///
    /// # Errors
    ///
    /// Any step of the list.
    pub fn become_the_user(&mut self, channel: &Channel, kept: &[RawFd]) -> Result<CString> {
        self.identity.apply_limits()?;
        give_pipes(self.identity.uid)?;
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, which the change of user may give up.
        if !self.identity.no_new_privileges {
            self.load_filter(channel)?;
        }
        // A directory may be open to root of the container only, or (on NFS) to the user only.
        let entered = self.program.enter_cwd();
        for warning in self.identity.assume()? {
            channel.send(&Message::Warning(warning))?;
        }
        if self.open_to_user {
            // The change of the user has closed it.
            process::set_dumpable(true)?;
        }
        if entered.is_err() {
            self.program.enter_cwd()?;
        }
        Program::check_cwd()?;
        self.program.find_home(self.identity.uid)?;
        self.close_the_rest(kept)?;
        let file = self.program.find()?;
        // With no_new_privs the filter comes last, so that it has to allow the fewest calls.
        if self.identity.no_new_privileges {
            self.load_filter(channel)?;
        }
        Ok(file)
    }

    /// Loads the filter, and waits until its listener was handed over: the next call may be one that the agent decides.
    fn load_filter(&self, channel: &Channel) -> Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        if let Some(listener) = sys::seccomp::load(filter).context("linux.seccomp")? {
            channel
                .send(&Message::SeccompListener(listener))
                .context("hand over the seccomp listener")?;
            channel.wait_for_go()?;
        }
        Ok(())
    }

    /// Only stdio and what the caller gave is left, and what this process itself needs (`kept`, close-on-exec): a container
    /// may look at the descriptors of a process that waits for `start`. Closes them under the feet of their owners, so the
    /// process must end without destructors.
    fn close_the_rest(&self, kept: &[RawFd]) -> Result<()> {
        log::disable();
        Ok(fd::close_all_but(3 + self.preserve_fds.cast_signed(), kept)?)
    }
}

/// Gives the pipes and FIFOs among stdin, stdout and stderr to the process' user, who could not open them again by
/// `/dev/stdout` otherwise. As runc does; but it also gives away files and sockets of the caller.
///
/// # Errors
///
/// As fchown(2), but not where a user namespace has no such owner.
fn give_pipes(uid: u32) -> Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for (number, end) in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .enumerate()
    {
        let found = fstat(end).call(|| format!("fstat({number})"))?;
        if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits() || found.st_uid == uid {
            continue;
        }
        match fchown(end, Some(Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EOVERFLOW | Errno::EROFS) => {}
            Err(errno) => return Err(errno).call(|| format!("fchown({number}, {uid})"))?,
        }
    }
    Ok(())
}
