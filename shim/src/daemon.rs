//! The shim as a process of its own: a copy of `start`, which is sealed already, and no second execution.
//!
//! ```text
//! start                                     daemon: setsid, standard descriptors, OOM score, cgroup, name
//!   clone3 ------------------------------->   |
//!   <------------------------ ready, or why not
//!   answers containerd                        | serves, as soon as the socket is bound: clients wait in its backlog
//!   told --------------------------------->   |
//!   exits                                     | without "told" nobody knows of it: it ends
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd;
use rtc_runtime::cgroup::Layout;
use rtc_runtime::sys::clone::{Child, Cloned, clone3};
use rtc_runtime::sys::{Named, entry, exe, fd, process};

use crate::bootstrap::Identity;
use crate::{log, server};

/// How long the daemon may take to settle.
const DEADLINE: Duration = Duration::from_secs(10);

/// Highest `oom_score_adj`.
const OOM_SCORE_MAX: i32 = 1000;

/// What becomes of the process.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// A cgroup for it, relative to the root of the tree.
    pub(crate) cgroup: Option<PathBuf>,
    /// A core scheduling cookie of its own.
    pub(crate) core_scheduling: bool,
}

impl Placement {
    fn resolve(&self) -> Result<Resolved> {
        let mut resolved = Resolved {
            born_in: None,
            joins: Vec::new(),
            core_scheduling: self.core_scheduling,
        };
        if let Some(cgroup) = &self.cgroup {
            resolved
                .find(cgroup)
                .with_context(|| format!("options: shim_cgroup {cgroup:?}"))?;
        }
        Ok(resolved)
    }
}

/// A [`Placement`] as this machine can make it.
struct Resolved {
    /// Its cgroup, on v2. Moving a process that is there waits for readers of the kernel's lock: 7 ms on an idle machine.
    born_in: Option<File>,
    /// The files through which it joins its cgroup, on v1: in each tree that has it.
    joins: Vec<PathBuf>,
    core_scheduling: bool,
}

impl Resolved {
    fn find(&mut self, cgroup: &Path) -> Result<()> {
        let name = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let missing = "there is no such cgroup: make it";
        match Layout::detect()? {
            Layout::V2 => {
                let path = Path::new("/sys/fs/cgroup").join(name);
                self.born_in = Some(File::open(path).context(missing)?);
            }
            Layout::V1(hierarchies) => {
                let files = hierarchies
                    .into_iter()
                    .map(|hierarchy| hierarchy.mount.join(name).join("cgroup.procs"));
                self.joins = files.filter(|file| file.exists()).collect();
                ensure!(!self.joins.is_empty(), missing);
            }
        }
        Ok(())
    }
}

/// A daemon that has settled.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// Its process.
    pub(crate) child: Child,
    channel: UnixStream,
}

impl Daemon {
    /// Whoever asked for it knows its address by now.
    pub(crate) fn told(mut self) -> Result<()> {
        self.channel.write_all(b"t").context("the shim has ended")
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        // It may have ended by itself.
        let _ = process::pidfd_send_signal(&self.child.pidfd, nix::libc::SIGKILL);
        let _ = process::wait(&self.child.pidfd);
    }
}

/// Makes the daemon, and waits until it is ready.
///
/// # Errors
///
/// Why it can't be as asked; then there is none.
pub(crate) fn spawn(listener: UnixListener, identity: Identity, placement: &Placement) -> Result<Daemon> {
    // containerd's own may be protected; its shims are a little less so.
    let oom_score = oom_score_of_parent().map(|score| (score + 1).min(OOM_SCORE_MAX));
    let placement = placement.resolve()?;
    let (mut channel, theirs) = UnixStream::pair().context("socketpair")?;
    let born_in = placement.born_in.as_ref().map(AsFd::as_fd);
    let child = match clone3(0, born_in).context("make the shim's process")? {
        Cloned::Child => run(listener, identity, &placement, oom_score, theirs),
        Cloned::Parent(child) => child,
    };
    drop(theirs);
    channel.set_read_timeout(Some(DEADLINE))?;
    let mut answer = [0; 4096];
    let length = channel.read(&mut answer);
    let daemon = Daemon { child, channel };
    match length.as_ref().map(|length| &answer[..*length]) {
        Ok(b"r") => return Ok(daemon),
        _ => daemon.kill(),
    }
    match length {
        Ok(0) => bail!("the shim ended before it was ready"),
        Ok(length) => bail!("{}", String::from_utf8_lossy(&answer[..length])),
        Err(error) => Err(error).context("the shim does not get ready"),
    }
}

fn oom_score_of_parent() -> Option<i32> {
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", unistd::getppid())).ok()?;
    score.trim().parse().ok()
}

/// The daemon: never returns into the copy of `start`.
fn run(
    listener: UnixListener,
    identity: Identity,
    placement: &Resolved,
    oom_score: Option<i32>,
    mut channel: UnixStream,
) -> ! {
    log::init(&identity.namespace, &identity.id, identity.debug);
    let kept = [listener.as_raw_fd(), channel.as_raw_fd()];
    let socket = identity.socket.clone();
    let settled = settle(&identity, placement, oom_score, kept);
    let answer = settled.map_or_else(|error| format!("{error:#}"), |()| "r".to_owned());
    if channel.write_all(answer.as_bytes()).is_err() || answer != "r" {
        // `start`, which removes the socket otherwise, may be dead.
        let _ = std::fs::remove_file(socket);
        process::exit(1);
    }
    // Where panics unwind, they must not run into the frames of `start`; they were logged.
    let served = catch_unwind(AssertUnwindSafe(|| server::serve(listener, channel, identity)));
    if let Ok(Err(error)) = &served {
        log::error(format_args!("{error:#}"));
        let _ = std::fs::remove_file(socket);
    }
    process::exit(if matches!(served, Ok(Ok(()))) { 0 } else { 1 })
}

fn settle(identity: &Identity, placement: &Resolved, oom_score: Option<i32>, kept: [i32; 2]) -> Result<()> {
    unistd::setsid().call(|| "setsid".into())?;
    redirect(log::fifo(&identity.bundle))?;
    fd::close_all_but(3, &kept)?;
    process::unblock_signals()?;
    process::default_signals();
    process::set_non_dumpable()?;
    if let Some(score) = oom_score
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        log::warn(format_args!("oom_score_adj {score}: {error}"));
    }
    for file in &placement.joins {
        std::fs::write(file, "0")
            .call(|| format!("write({file:?})"))
            .context("options: shim_cgroup")?;
    }
    if placement.core_scheduling {
        process::isolate_core().context("SCHED_CORE")?;
    }
    // What the library says goes the same way.
    rtc_runtime::log::init(&rtc_runtime::log::Options {
        file: Some("/proc/self/fd/2".into()),
        debug: identity.debug,
        ..rtc_runtime::log::Options::default()
    })?;
    // Each error would carry a backtrace: the first costs milliseconds, and a stripped program's says nothing.
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        exe::remove_variable(OsStr::new(name));
    }
    // Where it was started is nothing to hold on to.
    unistd::chdir("/").call(|| r#"chdir("/")"#.into())?;
    entry::rename(&command_line(identity));
    Ok(())
}

/// Nothing to read, nowhere to write but the log.
fn redirect(log: Option<OwnedFd>) -> Result<()> {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| r#"open("/dev/null")"#.into())?;
    unistd::dup2_stdin(&null).call(|| "dup2".into())?;
    unistd::dup2_stdout(&null).call(|| "dup2".into())?;
    unistd::dup2_stderr(log.as_ref().unwrap_or(&null)).call(|| "dup2".into())?;
    Ok(())
}

/// What `ps` shows.
fn command_line(identity: &Identity) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec![
        std::env::args_os().next().unwrap_or_default(),
        "-namespace".into(),
        identity.namespace.clone().into(),
        "-id".into(),
        identity.id.clone().into(),
    ];
    if !identity.containerd.is_empty() {
        line.extend(["-address".into(), identity.containerd.clone().into()]);
    }
    if identity.debug {
        line.push("-debug".into());
    }
    line
}
