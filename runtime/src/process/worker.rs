//! A worker: a short-lived copy of the shim that makes the calls which may wait, and reports what it did.
//!
//! ```text
//! shim (one thread)                       worker: a copy of it, without its descriptors
//!   fork() ---------- clone3 -------------> body: create, start, exec, delete, ...
//!                                             | clone3(CLONE_PARENT) ----> the container's process: the shim's child
//!   <------------------------- Born + pidfd --|   before anything else can fail
//!   <---------- Helper, Terminal, Warning, Namespace --|   where there is one
//!   <---------------- Done + result, or Failed + text -- `- _exit
//!   <------------------------------- (end) -      the worker has ended: collect it, and what it reported as born
//! ```
//!
//! Rules for the shim:
//! * A process that was reported as born is collected only after the end of the channel: until then the worker names it by
//!   its pid (`/proc/<pid>/uid_map`, systemd), which must not become another's. A helper may be collected at its end.
//! * An end without a last word (the worker was killed): what it reported as born is killed. The rest ends by itself where
//!   it looks at its channel, and is found by [`strays`] where it was not reported yet.
//!
//! Rules for the body: it shares the shim's open file descriptions (an epoll instance!) until they are closed, and its
//! memory copy-on-write. It must not touch or own anything of an asynchronous runtime. What it captures by value is
//! dropped in the copy, after all descriptors were closed.

use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::log;
use crate::sys::clone::{Child, Cloned, clone3};
use crate::sys::fd::text_message;
use crate::sys::{self, Errno, Named, fd, file, process};

/// The longest result, in bytes. (A message of a Unix socket is limited by its buffer, 208 KiB by default.)
pub const RESULT_MAX: usize = 64 * 1024;

const BORN: u8 = b'B';
const HELPER: u8 = b'H';
const TERMINAL: u8 = b'T';
const NAMESPACE: u8 = b'N';
const WARNING: u8 = b'W';
const FAILED: u8 = b'F';
const DONE: u8 = b'D';

/// What a worker says.
#[derive(Debug)]
pub enum Report {
    /// A process of a container was made: a child of the shim, for it to wait for.
    Born(Child),
    /// A process that ends by itself at once, and that only the shim can collect (a pidfd).
    Helper(OwnedFd),
    /// The master of the terminal.
    Terminal(OwnedFd),
    /// A namespace that was made (`CLONE_NEW*`).
    Namespace(libc::c_int, OwnedFd),
    /// Something the user should know that stops nothing.
    Warning(String),
    /// The last word: why the body failed, with all causes.
    Failed(String),
    /// The last word: the body's result.
    Done(Vec<u8>),
}

/// The worker's end of the channel.
#[derive(Debug)]
pub struct Reporter(OwnedFd);

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Reporter {
    /// Reports a process of a container.
    ///
    /// # Errors
    ///
    /// `EPIPE`: the shim has gone.
    pub fn born(&self, child: &Child) -> sys::Result<()> {
        let mut message = vec![BORN];
        message.extend_from_slice(child.pid.to_string().as_bytes());
        fd::send(self, &message, &[child.pidfd.as_fd()])
    }

    /// Reports a process that ends by itself and is for the shim to collect.
    ///
    /// # Errors
    ///
    /// As [`Reporter::born`].
    pub fn helper(&self, pidfd: impl AsFd) -> sys::Result<()> {
        fd::send(self, &[HELPER], &[pidfd.as_fd()])
    }

    /// Hands over the master of a terminal.
    ///
    /// # Errors
    ///
    /// As [`Reporter::born`].
    pub fn terminal(&self, master: impl AsFd) -> sys::Result<()> {
        fd::send(self, &[TERMINAL], &[master.as_fd()])
    }

    /// Hands over a namespace, by its `CLONE_NEW*` flag.
    ///
    /// # Errors
    ///
    /// As [`Reporter::born`].
    pub fn namespace(&self, flag: libc::c_int, namespace: impl AsFd) -> sys::Result<()> {
        let mut message = vec![NAMESPACE];
        message.extend_from_slice(flag.to_string().as_bytes());
        fd::send(self, &message, &[namespace.as_fd()])
    }

    /// Tells the user something.
    pub fn warning(&self, text: impl Display) {
        // Whoever has gone needs no warning.
        let _ = fd::send(self, &text_message(WARNING, &text.to_string()), &[]);
    }

    fn failed(&self, text: &str) {
        let _ = fd::send(self, &text_message(FAILED, text), &[]);
    }

    /// The last word.
    fn finish(&self, result: Result<Vec<u8>>) -> ! {
        match result {
            Ok(bytes) if bytes.len() > RESULT_MAX => {
                self.failed(&format!(
                    "a result of {} bytes is too long to report",
                    bytes.len()
                ));
            }
            Ok(bytes) => {
                let mut message = Vec::with_capacity(bytes.len() + 1);
                message.push(DONE);
                message.extend_from_slice(&bytes);
                if fd::send(self, &message, &[]).is_ok() {
                    process::exit(0);
                }
            }
            Err(error) => self.failed(&format!("{error:#}")),
        }
        process::exit(1)
    }
}

/// A worker, as the shim sees it.
#[derive(Debug)]
pub struct Worker {
    /// Its process, to be collected.
    pub child: Child,
    channel: OwnedFd,
}

impl AsFd for Worker {
    /// Readable when there is something to [`Worker::receive`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Worker {
    /// The next report, without waiting for it: an error with `EAGAIN` where there is none yet. `None`: the worker has
    /// ended, be it with its last word or without.
    ///
    /// # Errors
    ///
    /// As recvmsg(2). A message that is none (from our own copy: never) is `EBADMSG`.
    pub fn receive(&self) -> sys::Result<Option<Report>> {
        let length = fd::next_length(self)?;
        if length == 0 {
            return Ok(None);
        }
        let mut message = vec![0; length];
        let (length, received) = fd::receive_with(self, &mut message, MsgFlags::MSG_DONTWAIT)?;
        message.truncate(length);
        parse(message, received).map(Some).ok_or_else(|| sys::Error {
            call: "recvmsg: not a report".into(),
            errno: Errno::EBADMSG,
        })
    }
}

fn parse(message: Vec<u8>, received: Option<OwnedFd>) -> Option<Report> {
    let (kind, rest) = message.split_first()?;
    let text = || String::from_utf8_lossy(rest).into_owned();
    let number = || text().parse::<i32>().ok();
    Some(match *kind {
        BORN => Report::Born(Child {
            pid: Pid::from_raw(number()?),
            pidfd: received?,
        }),
        HELPER => Report::Helper(received?),
        TERMINAL => Report::Terminal(received?),
        NAMESPACE => Report::Namespace(number()?, received?),
        WARNING => Report::Warning(text()),
        FAILED => Report::Failed(text()),
        DONE => {
            let mut bytes = message;
            bytes.remove(0);
            Report::Done(bytes)
        }
        _ => return None,
    })
}

/// Makes a copy of the calling process, which must have one thread, and runs `body` in it: with the given stdio, or the
/// caller's, no other descriptor but those of `keep`, no signal blocked or handled. What the library warns of becomes a
/// [`Report::Warning`]. The copy ends without running what was registered for the caller's end.
///
/// # Errors
///
/// As socketpair(2) and clone3(2). What fails in the copy arrives as [`Report::Failed`].
pub fn fork(
    stdio: Option<[BorrowedFd<'_>; 3]>,
    keep: &[RawFd],
    body: impl FnOnce(&Reporter) -> Result<Vec<u8>>,
) -> Result<Worker> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .call(|| "socketpair".into())?;
    match clone3(0, None).context("make a worker")? {
        Cloned::Parent(child) => Ok(Worker { child, channel: ours }),
        Cloned::Child => {
            let reporter = Reporter(theirs);
            report_panics(reporter.0.as_raw_fd());
            // An unwinding panic must not run into the caller's frames, which are not ours.
            let lived = catch_unwind(AssertUnwindSafe(|| {
                settle(&reporter, stdio, keep).and_then(|()| body(&reporter))
            }));
            match lived {
                Ok(result) => reporter.finish(result),
                Err(_) => process::exit(1),
            }
        }
    }
}

/// What makes the copy a process of its own. Descriptors are closed under the feet of their owners.
fn settle(reporter: &Reporter, stdio: Option<[BorrowedFd<'_>; 3]>, keep: &[RawFd]) -> Result<()> {
    log::divert(reporter.0.as_raw_fd());
    if let Some(stdio) = stdio {
        redirect(stdio)?;
    }
    let mut kept = keep.to_vec();
    kept.push(reporter.0.as_raw_fd());
    fd::close_all_but(3, &kept)?;
    process::unblock_signals()?;
    Ok(())
}

/// Makes them descriptors 0 to 2, which they may be already, in any order.
fn redirect(stdio: [BorrowedFd<'_>; 3]) -> Result<()> {
    let above = stdio.map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3)));
    for (number, duplicate) in (0..).zip(above) {
        let duplicate = duplicate.call(|| format!("fcntl(F_DUPFD), for descriptor {number}"))?;
        fd::duplicate_onto(duplicate, number)?;
    }
    Ok(())
}

/// A panic's text is the last word, not for the standard error of a container.
fn report_panics(channel: RawFd) {
    std::panic::set_hook(Box::new(move |info| {
        let _ = fd::write_raw(channel, &text_message(FAILED, &format!("the worker {info}")));
    }));
}

/// The children of this process that are none of `known`: born of a worker that was killed before it could report them.
/// They are for the caller to kill and collect. Only for a moment when no other worker is at work: that may have just
/// made one which it is about to report.
///
/// # Errors
///
/// The kernel has no list of children (`CONFIG_PROC_CHILDREN`).
pub fn strays(known: &[Pid]) -> Result<Vec<Child>> {
    let pid = std::process::id();
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = file::read(&path).context("the children of this process")?;
    let mut strays = Vec::new();
    for pid in String::from_utf8_lossy(&list)
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
        .filter(|pid| !known.contains(pid))
    {
        // A child of ours keeps its pid until we collect it.
        strays.push(Child {
            pid,
            pidfd: process::pidfd_open(pid)?,
        });
    }
    Ok(strays)
}
