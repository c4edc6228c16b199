//! The program CRIU: found, started for one request, and talked to over a socket.
//!
//! ```text
//! us                                                 criu swrk 3
//!   | clone3 -> child: cgroup, mount namespace, descriptors -> execve
//!   | ---- request -------------------------------------> |
//!   | <------------------------- notification (+ a fd) -- |   any number of them; it waits for each answer
//!   | ---- go on, or not -------------------------------> |
//!   | <------------------------------------- response --- |   and then it exits
//! ```
//!
//! Descriptors in a request are numbers of whoever made the socket: CRIU opens them below `/proc/<pid>/fd`. For a dump that is us. For
//! a restore it is CRIU's own process: it mounts in its working directory, so that must be of its own mount namespace, where
//! [`Start::directories`] are opened again. What a restored process is to get are CRIU's descriptors 0 to 2 and [`Start::given`].

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::sys::stat::Mode;

use super::image::Directory;
use super::message::{self, Kind, Response};
use crate::cgroup::JoinTarget;
use crate::log;
use crate::process::channel::{Channel, Message};
use crate::process::spawn::live;
use crate::process::worker::Reporter;
use crate::rootfs::bind_root;
use crate::sys::clone::{CLONE_NEWNS, CLONE_PARENT, Child, Cloned, clone3};
use crate::sys::process::{self, Exit};
use crate::sys::{Errno, Named, fd};

/// Where it is looked for after `PATH`, which a service may have without `sbin`.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The oldest that all of this works with (Debian 12 has 3.17): it notifies of `status-ready`, joins PID namespaces and takes an
/// LSM profile.
const OLDEST: (u64, u64) = (3, 16);
/// Its end of the socket.
const SOCKET: RawFd = 3;
/// Where descriptors are out of the way of those numbers.
const OUT_OF_THE_WAY: RawFd = 64;
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 64 * 1024;
/// How long it may take to exit after its last word.
const EXIT_PATIENCE: Duration = Duration::from_secs(30);

/// The program.
#[derive(Debug)]
pub(super) struct Program(PathBuf);

impl Program {
    /// Finds it, and checks that it is new enough.
    ///
    /// # Errors
    ///
    /// It is not installed, or too old.
    pub(super) fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = USUAL.into();
        let program = [path, usual]
            .iter()
            .flat_map(std::env::split_paths)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join("criu"))
            .find(|program| is_executable(program))
            .context("criu is not installed (looked for in $PATH and the usual directories): it writes and restores processes; install it (https://criu.org)")?;
        let program = Self(program);
        let (major, minor, sublevel) = program.ask(&message::version_request())?.version;
        if (major, minor) < OLDEST {
            bail!(
                "{} is CRIU {major}.{minor}.{sublevel}: must be {}.{} or newer",
                program.0.display(),
                OLDEST.0,
                OLDEST.1
            );
        }
        log::debug(|| format!("{} is CRIU {major}.{minor}.{sublevel}", program.0.display()));
        Ok(program)
    }

    /// Checks that memory can be tracked (for `pre-dump`) or restored lazily, as wanted.
    ///
    /// # Errors
    ///
    /// This kernel, or this CRIU, can't.
    pub(super) fn check_features(&self, tracks_memory: bool, lazy_pages: bool) -> Result<()> {
        if !tracks_memory && !lazy_pages {
            return Ok(());
        }
        let features = self.ask(&message::feature_request())?;
        if tracks_memory && !features.tracks_memory {
            bail!(
                "--pre-dump: this kernel does not track written memory: it needs CONFIG_MEM_SOFT_DIRTY (Linux 3.11)"
            );
        }
        if lazy_pages && !features.lazy_pages {
            bail!("--lazy-pages: this kernel or CRIU has no userfaultfd(2) for it (Linux 4.11, CRIU 3.3)");
        }
        Ok(())
    }

    /// A question that has nothing to do with a container.
    fn ask(&self, question: &[u8]) -> Result<Response> {
        let mut criu = self.start(&Start::default())?;
        let answered = criu.converse(question, |_, _| bail!("an unexpected notification"));
        let ended = criu.end(None);
        let response = answered.with_context(|| self.0.display().to_string())?;
        ended?;
        Ok(response)
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// As clone3(2). What happens up to its execution is told by [`Criu::await_execution`].
    pub(super) fn start(&self, start: &Start<'_>) -> Result<Criu> {
        let (ours, theirs) = pair()?;
        let (hear, tell) = Channel::pair()?;
        let flags = start.reporter.map_or(0, |_| CLONE_PARENT);
        let born_in = match start.cgroup {
            Some(JoinTarget::V2(directory)) => Some(directory.as_fd()),
            _ => None,
        };
        match clone3(flags, born_in).context("make the process for CRIU")? {
            Cloned::Child => {
                drop((ours, hear));
                let Ok(tell) = tell.above(OUT_OF_THE_WAY) else {
                    process::exit(1)
                };
                live(&tell, || start.become_criu(&self.0, theirs, &tell))
            }
            Cloned::Parent(child) => {
                let criu = Criu {
                    child,
                    channel: hear,
                    socket: ours,
                    makes_socket: start.root.is_some(),
                };
                if let Some(reporter) = start.reporter {
                    reporter.helper(&criu.child.pidfd).context("report CRIU")?;
                }
                if start.waits {
                    criu.await_cgroup()?;
                }
                Ok(criu)
            }
        }
    }
}

/// The ends of a socket; CRIU knows who has made it.
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let ends = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    Ok(ends.call(|| "socketpair".into())?)
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// How it is started. The default is for questions, and for what is done to a running container.
#[derive(Default)]
pub(super) struct Start<'a> {
    /// Whether it has our standard input, output and error, for a restored process to inherit.
    pub(super) keeps_stdio: bool,
    /// What else a restored process is to get: CRIU's descriptors from 4 on.
    pub(super) given: &'a [BorrowedFd<'a>],
    /// The directories it works in, where it has a mount namespace of its own: its descriptors behind those.
    pub(super) directories: &'a [&'a Directory],
    /// Where it is born: what it restores is, too.
    pub(super) cgroup: Option<&'a JoinTarget>,
    /// A directory, and where it is to be mounted in a mount namespace of CRIU's own, which takes the mount with it.
    pub(super) root: Option<(&'a Path, &'a Path)>,
    /// Whether it waits for [`Criu::go`], in its cgroup.
    pub(super) waits: bool,
    /// Whether it ends with us. (Not in the middle of a dump: it has to let the processes go.)
    pub(super) ends_with_us: bool,
    /// In a worker of the shim: where CRIU is reported, since it and what it restores are the shim's children.
    pub(super) reporter: Option<&'a Reporter>,
}

impl Start<'_> {
    /// The first of its descriptors that are given.
    pub(super) const FIRST_GIVEN: u64 = SOCKET as u64 + 1;

    /// The first of the directories.
    pub(super) fn first_directory(&self) -> u64 {
        Self::FIRST_GIVEN + self.given.len() as u64
    }

    /// In the new process.
    fn become_criu(&self, program: &Path, mut socket: OwnedFd, tell: &Channel) -> Result<Infallible> {
        if self.ends_with_us {
            process::set_parent_death_signal(libc::SIGKILL)?;
        } else {
            // A Ctrl-C is for us; it hears of our end by the socket, and then puts the container to rights.
            nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))
                .call(|| "setpgid".into())?;
        }
        process::unblock_signals()?;
        process::default_sigpipe();
        if let Some(JoinTarget::V1(procs)) = self.cgroup {
            for procs in procs {
                nix::unistd::write(procs, b"0").call(|| "write(cgroup.procs, 0)".into())?;
            }
        }
        if self.waits {
            tell.send(&Message::Ready)?;
            tell.wait_for_go()?;
        }
        let mut directories = Vec::new();
        if let Some((directory, point)) = self.root {
            process::unshare(CLONE_NEWNS)?;
            bind_root(directory, point)?;
            let again = self.directories.iter().map(|directory| directory.again());
            directories = again.collect::<Result<Vec<_>>>()?;
            let (theirs, own) = pair()?;
            tell.send(&Message::Terminal(theirs))?;
            socket = own;
        }
        if !self.keeps_stdio {
            let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .call(|| "open(\"/dev/null\")".into())?;
            for number in 0..SOCKET {
                fd::duplicate_onto(null.as_raw_fd(), number)?;
            }
        }
        let moved = std::iter::once(socket.as_fd())
            .chain(self.given.iter().copied())
            .chain(directories.iter().map(AsFd::as_fd))
            .map(|given| fd::duplicate_above(given, OUT_OF_THE_WAY))
            .collect::<crate::sys::Result<Vec<OwnedFd>>>()?;
        let mut next = SOCKET;
        for descriptor in &moved {
            fd::duplicate_onto(descriptor.as_raw_fd(), next)?;
            next += 1;
        }
        // Also what our caller left open: none of it is for what is restored.
        fd::close_all_but(next, &[tell.as_fd().as_raw_fd()])?;
        // It obeys files that $HOME and $CRIU_CONFIG_FILE lead to, with programs to run.
        let error = Command::new(program)
            .args(["swrk", "3"])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .exec();
        Err(error).with_context(|| format!("execute {}", program.display()))
    }
}

/// CRIU did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failed(pub(super) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CRIU failed{}", self.0)
    }
}

impl std::error::Error for Failed {}

/// CRIU, running.
#[derive(Debug)]
pub(super) struct Criu {
    /// Its process.
    pub(super) child: Child,
    channel: Channel,
    socket: OwnedFd,
    /// Whether the socket is still to come from it.
    makes_socket: bool,
}

impl Criu {
    /// Waits until it is in its cgroup, where it moves itself.
    fn await_cgroup(&self) -> Result<()> {
        match self.channel.receive()? {
            Some(Message::Ready) => Ok(()),
            Some(Message::Failed(text)) => Err(anyhow!(text)).context("start CRIU"),
            other => bail!("an unexpected message from the process for CRIU: {other:?}"),
        }
    }

    /// Lets it execute its program, where it waits for that.
    ///
    /// # Errors
    ///
    /// It has died.
    pub(super) fn go(&self) -> Result<()> {
        self.channel.go()
    }

    /// Waits until its program is executed.
    ///
    /// # Errors
    ///
    /// Why it is not.
    fn await_execution(&mut self) -> Result<()> {
        loop {
            match self.channel.receive()? {
                Some(Message::Terminal(socket)) if self.makes_socket => {
                    self.socket = socket;
                    self.makes_socket = false;
                }
                None if !self.makes_socket => return Ok(()),
                None => bail!("the process for CRIU died"),
                Some(Message::Failed(text)) => return Err(anyhow!(text)).context("start CRIU"),
                Some(other) => bail!("an unexpected message from the process for CRIU: {other:?}"),
            }
        }
    }

    /// Sends a request, serves the notifications, and waits for the response. A notification that fails is refused: CRIU then
    /// gives up and undoes what it did.
    ///
    /// # Errors
    ///
    /// That of the notification, or [`Failed`].
    pub(super) fn converse(
        &mut self,
        request: &[u8],
        mut notified: impl FnMut(&Response, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Response> {
        self.await_execution()?;
        self.send(request)?;
        let mut refused: Option<anyhow::Error> = None;
        loop {
            let Some((response, descriptor)) = self.receive()? else {
                return Err(refused.unwrap_or_else(|| Failed(": it ended without an answer".into()).into()));
            };
            if response.is(Kind::Notify) {
                log::debug(|| format!("CRIU: {} {}", response.notification, response.pid));
                if refused.is_none() {
                    refused = notified(&response, descriptor).err();
                }
                self.send(&message::notified(refused.is_none()))?;
                continue;
            }
            return match refused {
                Some(error) => Err(error),
                None if response.success => Ok(response),
                None => Err(Failed(why(&response)).into()),
            };
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        match fd::send(&self.socket, bytes, &[]) {
            // It has ended: that is heard next, with its last word.
            Err(error) if error.errno == Errno::EPIPE => Ok(()),
            sent => sent.context("talk to CRIU"),
        }
    }

    /// `None`: it has closed its end.
    fn receive(&self) -> Result<Option<(Response, Option<OwnedFd>)>> {
        let mut buffer = vec![0; ANSWER_MAX];
        let (length, descriptor) = match fd::receive(&self.socket, &mut buffer) {
            Err(error) if error.errno == Errno::ECONNRESET => return Ok(None),
            received => received.context("hear CRIU")?,
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((Response::parse(&buffer[..length])?, descriptor)))
    }

    /// Waits for its end, after its last word.
    ///
    /// # Errors
    ///
    /// It did not end well.
    pub(super) fn end(self, reporter: Option<&Reporter>) -> Result<()> {
        // It may be gone already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        if !process::has_ended(&self.child.pidfd, EXIT_PATIENCE)? {
            bail!("CRIU, process {}, does not exit after its work", self.child.pid);
        }
        if reporter.is_some() {
            // The shim's to collect.
            return Ok(());
        }
        match process::wait(&self.child.pidfd)? {
            Exit::Code(0) => Ok(()),
            exit => Err(Failed(format!(": {exit}")).into()),
        }
    }

    /// Ends it, whatever it does.
    pub(super) fn kill(&self, reporter: Option<&Reporter>) {
        let _ = process::pidfd_send_signal(&self.child.pidfd, libc::SIGKILL);
        let ended = process::has_ended(&self.child.pidfd, EXIT_PATIENCE).unwrap_or(true);
        if ended && reporter.is_none() {
            let _ = process::wait(&self.child.pidfd);
        }
    }
}

/// What a response says of its failure.
fn why(response: &Response) -> String {
    let mut text = String::new();
    if !response.message.trim().is_empty() {
        text = format!(": {}", super::failure::printable(&response.message));
    }
    if response.errno != 0 {
        text += &format!(" ({})", Errno::from_raw(response.errno).desc());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_criu_says() {
        let response = Response {
            errno: libc::ESRCH,
            message: "no\nsuch".into(),
            ..Response::default()
        };
        assert_eq!(why(&response), ": no\\nsuch (No such process)");
        assert_eq!(why(&Response::default()), "");
    }
}
