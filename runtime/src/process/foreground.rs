//! Waiting for a process in the foreground: its signals are forwarded, its terminal is relayed.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};

use crate::sys::clone::Child;
use crate::sys::process::{self, Exit};
use crate::sys::{Named, tty};

/// How much a direction of the relay holds before it stops reading, in bytes.
const HELD_MAX: usize = 64 * 1024;

/// All signals, as descriptor. Blocked from before the process exists, so that none is lost: a program that ends at
/// once can't be missed, and a Ctrl-C during the set-up reaches it.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks all signals of this process. Children made later unblock them (`reset_signals`).
    pub fn block() -> Result<Self> {
        let all = SigSet::all();
        all.thread_block().call(|| "sigprocmask".into())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(
            SignalFd::with_flags(&all, flags).call(|| "signalfd".into())?,
        ))
    }
}

/// A descriptor to watch beside, and what to do when it is readable: `true` once there is nothing more to watch for.
pub type Watched<'a, F> = Option<(BorrowedFd<'a>, F)>;

/// Waits until the process ends, forwarding every signal to it and relaying its terminal where it has one.
///
/// # Errors
///
/// As poll(2); never because of what the container or the terminal does.
pub fn wait<F: FnMut() -> bool>(
    child: &Child,
    signals: &Signals,
    master: Option<OwnedFd>,
    mut watched: Watched<'_, F>,
) -> Result<Exit> {
    let mut relay = master.map(Relay::new).transpose()?;
    loop {
        let mut waiting = vec![
            PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
        ];
        let beside = usize::from(watched.is_some());
        waiting.extend(
            watched
                .as_ref()
                .map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN)),
        );
        if let Some(relay) = &relay {
            relay.poll_for(&mut waiting);
        }
        match poll(&mut waiting, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            polled => polled.context("poll")?,
        };
        let ended = waiting[0].any().unwrap_or(false);
        let signalled = waiting[1].any().unwrap_or(false);
        let reported = beside == 1 && waiting[2].any().unwrap_or(false);
        let ready: Vec<PollFlags> = waiting[2 + beside..]
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        if let Some(relay) = &mut relay {
            relay.turn(&ready);
        }
        if reported && watched.as_mut().is_some_and(|(_, turn)| turn()) {
            watched = None;
        }
        if signalled {
            forward(signals, child, relay.as_ref());
        }
        if ended {
            if let Some(relay) = &mut relay {
                relay.drain();
            }
            process::reap_orphans(child.pid);
            return Ok(process::wait(&child.pidfd)?);
        }
    }
}

/// Hands over what arrived. SIGCHLD is about our own children, SIGURG about Go's scheduler, SIGWINCH about the terminal.
fn forward(signals: &Signals, child: &Child, relay: Option<&Relay>) {
    while let Ok(Some(info)) = signals.0.read_signal() {
        match info.ssi_signo.cast_signed() {
            libc::SIGCHLD => process::reap_orphans(child.pid),
            libc::SIGURG => {}
            libc::SIGWINCH if relay.is_some() => {
                if let Some(relay) = relay {
                    relay.resize();
                }
            }
            signal => {
                // It may have ended meanwhile.
                let _ = process::pidfd_send_signal(&child.pidfd, signal);
            }
        }
    }
}

/// Copies between our stdio and the master. Neither direction ever waits for the other one.
#[derive(Debug)]
struct Relay {
    master: OwnedFd,
    /// Our terminal as it was, put back at the end.
    original: Option<Termios>,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    stdin_open: bool,
    stdout_open: bool,
    master_open: bool,
}

impl Relay {
    fn new(master: OwnedFd) -> Result<Self> {
        nix::fcntl::fcntl(
            &master,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .call(|| "fcntl(F_SETFL)".into())?;
        let original = std::io::stdin().is_terminal().then(raw_mode).flatten();
        let relay = Self {
            master,
            original,
            input: VecDeque::new(),
            output: VecDeque::new(),
            stdin_open: true,
            stdout_open: true,
            master_open: true,
        };
        relay.resize();
        Ok(relay)
    }

    /// The size of our terminal is that of the container's, where we have one.
    fn resize(&self) {
        if self.original.is_some()
            && let Ok(size) = tty::size(std::io::stdin())
        {
            let _ = tty::set_size(&self.master, size);
        }
    }

    /// What [`Relay::turn`] gets the answers of, in this order: master, stdin, stdout.
    fn poll_for<'a>(&'a self, waiting: &mut Vec<PollFd<'a>>) {
        let mut events = PollFlags::empty();
        if self.output.len() < HELD_MAX {
            events |= PollFlags::POLLIN;
        }
        if !self.input.is_empty() {
            events |= PollFlags::POLLOUT;
        }
        if self.master_open {
            waiting.push(PollFd::new(self.master.as_fd(), events));
        }
        if self.stdin_open && self.input.len() < HELD_MAX {
            waiting.push(PollFd::new(STDIN, PollFlags::POLLIN));
        }
        if self.stdout_open && !self.output.is_empty() {
            waiting.push(PollFd::new(STDOUT, PollFlags::POLLOUT));
        }
    }

    fn turn(&mut self, ready: &[PollFlags]) {
        let mut ready = ready.iter().copied();
        let mut next = |asked: bool| {
            if asked {
                ready.next().unwrap_or(PollFlags::empty())
            } else {
                PollFlags::empty()
            }
        };
        let on_master = next(self.master_open);
        let on_stdin = next(self.stdin_open && self.input.len() < HELD_MAX);
        let on_stdout = next(self.stdout_open && !self.output.is_empty());
        if on_stdin
            .intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
        {
            self.stdin_open = read_into(STDIN, &mut self.input);
        }
        if on_master.contains(PollFlags::POLLOUT) {
            write_from(self.master.as_fd(), &mut self.input);
        }
        if on_master.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.master_open = read_into(self.master.as_fd(), &mut self.output);
        }
        if !on_stdout.is_empty() {
            self.stdout_open = write_from(STDOUT, &mut self.output);
        }
    }

    /// The process has ended: what it printed before is still in the terminal, which holds less than this. What is left
    /// behind may go on printing; nobody waits for that.
    fn drain(&mut self) {
        let mut before = usize::MAX;
        while self.master_open && self.output.len() != before && self.output.len() < 2 * HELD_MAX {
            before = self.output.len();
            self.master_open = read_into(self.master.as_fd(), &mut self.output);
        }
        while self.stdout_open && !self.output.is_empty() {
            // Ours may be non-blocking: it belongs to the caller.
            let mut waiting = [PollFd::new(STDOUT, PollFlags::POLLOUT)];
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => {}
                Err(_) => return,
                Ok(_) => self.stdout_open = write_from(STDOUT, &mut self.output),
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(original) = &self.original {
            let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, original);
        }
    }
}

/// Our terminal passes everything through, but still turns \n into \r\n. Returns how it was.
fn raw_mode() -> Option<Termios> {
    let original = termios::tcgetattr(std::io::stdin()).ok()?;
    let mut raw = original.clone();
    termios::cfmakeraw(&mut raw);
    raw.output_flags.insert(OutputFlags::OPOST);
    termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).ok()?;
    Some(original)
}

use crate::sys::fd::{STDIN, STDOUT};

/// Reads once. `false` at the end of the file.
fn read_into(from: BorrowedFd<'_>, held: &mut VecDeque<u8>) -> bool {
    let mut buffer = [0; 4096];
    match nix::unistd::read(from, &mut buffer) {
        Ok(0) => false,
        Ok(length) => {
            held.extend(&buffer[..length]);
            true
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => true,
        // EIO: the last holder of the other end of a terminal has closed it.
        Err(_) => false,
    }
}

/// Writes once, at most a page: a pipe that polled writable takes that without blocking. `false`: nobody reads any more.
fn write_from(to: BorrowedFd<'_>, held: &mut VecDeque<u8>) -> bool {
    let (first, _) = held.as_slices();
    match nix::unistd::write(to, &first[..first.len().min(4096)]) {
        Ok(written) => {
            held.drain(..written);
            true
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => true,
        Err(_) => {
            held.clear();
            false
        }
    }
}
