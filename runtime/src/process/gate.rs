//! The gate: where the init of a created container waits for `start`.
//!
//! Two FIFOs in the container's state directory. Init is born with both open, read and write, close-on-exec:
//!
//! ```text
//! start                                         init
//!   open gate for writing ENXIO: nobody waits     read gate (blocks: it holds a writer itself)
//!   open result for reading
//!   write a byte to gate  ----------------------> goes on: startContainer hooks, the program
//!   read result until its end <------------------ X, then execve closes both; or an error text first
//! ```
//!
//! Whether somebody waits is what the kernel says, not what a file says: `created` is a gate with a reader. So a `start`
//! killed at any point leaves a container that is either created or started, and two of them can't start it twice.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use crate::sys::Named;

/// Its name while the container is being created, so that it is not yet "created".
const MAKING: &str = "gate.making";
const GATE: &str = "gate";
const RESULT: &str = "result";
/// What init writes to it before the program.
const EXECUTING: &str = "X";

/// Init's side.
#[derive(Debug)]
pub struct Gate {
    gate: File,
    result: File,
}

impl Gate {
    /// Makes both FIFOs in the state directory.
    pub fn create(directory: impl AsFd) -> Result<Self> {
        let open = |name: &str| -> Result<File> {
            nix::unistd::mkfifoat(directory.as_fd(), name, Mode::S_IRUSR | Mode::S_IWUSR)
                .call(|| format!("mkfifoat({name:?})"))?;
            Ok(openat(
                directory.as_fd(),
                name,
                OFlag::O_RDWR | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .call(|| format!("openat({name:?})"))?
            .into())
        };
        Ok(Self {
            gate: open(MAKING)?,
            result: open(RESULT)?,
        })
    }

    /// What init must keep open to wait.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.gate.as_raw_fd(), self.result.as_raw_fd()]
    }

    /// The container is created from now on: `start` finds its gate.
    pub fn publish(directory: impl AsFd) -> Result<()> {
        Ok(renameat(directory.as_fd(), MAKING, directory.as_fd(), GATE)
            .call(|| format!("renameat({GATE:?})"))?)
    }

    /// Waits for `start`.
    ///
    /// # Errors
    ///
    /// As read(2).
    pub fn wait(&mut self) -> Result<()> {
        let mut byte = [0];
        self.gate.read_exact(&mut byte).context("wait for start")
    }

    /// Tells `start` that nothing is left but the program: an end without this is that of init.
    ///
    /// # Errors
    ///
    /// As write(2).
    pub fn executing(&mut self) -> Result<()> {
        self.result
            .write_all(EXECUTING.as_bytes())
            .context("tell start of the program")
    }

    /// Tells `start` why there will be no program. It may have gone; then nobody is told.
    pub fn fail(&mut self, text: &str) {
        // A FIFO takes one page at once without blocking.
        let end = text.floor_char_boundary(4000);
        let _ = self.result.write_all(&text.as_bytes()[..end]);
    }
}

/// What the gate says about a container whose init is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// `create` has not finished.
    NotYet,
    /// Init waits for `start`.
    Yes,
    /// Init went through.
    NoMore,
}

/// Looks, and changes nothing.
pub fn waiting(directory: impl AsFd) -> Result<Waiting> {
    match open_gate(directory) {
        Ok(_) => Ok(Waiting::Yes),
        Err(Errno::ENOENT) => Ok(Waiting::NotYet),
        Err(Errno::ENXIO) => Ok(Waiting::NoMore),
        Err(errno) => Err(errno)
            .call(|| format!("openat({GATE:?})"))
            .map_err(Into::into),
    }
}

fn open_gate(directory: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(directory.as_fd(), GATE, flags, Mode::empty())
}

/// A gate that was opened: init is on its way to the program, and says when it is there.
#[derive(Debug)]
pub struct Opening {
    result: File,
    said: Vec<u8>,
}

impl AsFd for Opening {
    /// Readable when there is something to [`Opening::look`] at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }
}

impl Opening {
    /// Lets init go on. Waits for nothing.
    ///
    /// # Errors
    ///
    /// Nobody waits at the gate.
    pub fn begin(directory: impl AsFd) -> Result<Self> {
        let gate = open_gate(directory.as_fd())
            .map_err(|errno| anyhow!("nobody waits at the gate: {}", errno.desc()))?;
        // Opened before init goes on, so that its end can't be missed.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let result =
            openat(directory.as_fd(), RESULT, flags, Mode::empty()).call(|| format!("openat({RESULT:?})"))?;
        match File::from(gate).write_all(b"G") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                bail!("the container's init has ended")
            }
            written => written.context("open the gate")?,
        }
        Ok(Self {
            result: result.into(),
            said: Vec::new(),
        })
    }

    /// Whether init runs the program by now.
    ///
    /// # Errors
    ///
    /// It never will: why, in init's words.
    pub fn look(&mut self) -> Result<bool> {
        match self.result.read_to_end(&mut self.said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            read => read.context("wait for the container's program")?,
        };
        let text = String::from_utf8_lossy(&self.said);
        match text.strip_prefix(EXECUTING) {
            Some("") => Ok(true),
            Some(failure) => Err(anyhow!(failure.to_owned())),
            None if text.is_empty() => {
                bail!("the container's init was ended before it could run the program")
            }
            None => Err(anyhow!(text.into_owned())),
        }
    }
}

/// Lets init go on, and waits until it runs the program.
///
/// # Errors
///
/// As [`Opening::begin`] and [`Opening::look`].
pub fn open(directory: impl AsFd) -> Result<()> {
    let mut opening = Opening::begin(directory)?;
    // Non-blocking only for the open: reads shall wait for init.
    nix::fcntl::fcntl(&opening.result, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()))
        .call(|| "fcntl(F_SETFL)".into())?;
    opening.look().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (std::path::PathBuf, OwnedFd) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rtc-gate-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let fd = File::open(&path).unwrap().into();
        (path, fd)
    }

    #[test]
    fn a_gate_tells_whether_somebody_waits() {
        let (path, fd) = directory();
        let gate = Gate::create(&fd).unwrap();
        assert_eq!(waiting(&fd).unwrap(), Waiting::NotYet);
        Gate::publish(&fd).unwrap();
        assert_eq!(waiting(&fd).unwrap(), Waiting::Yes);
        assert_eq!(waiting(&fd).unwrap(), Waiting::Yes, "looking must not open it");
        drop(gate);
        assert_eq!(waiting(&fd).unwrap(), Waiting::NoMore);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn start_hears_why_there_is_no_program() {
        let (path, fd) = directory();
        let mut gate = Gate::create(&fd).unwrap();
        Gate::publish(&fd).unwrap();
        let init = std::thread::spawn(move || {
            gate.wait().unwrap();
            gate.fail("exec /x: no such file or directory");
        });
        let error = open(&fd).unwrap_err();
        assert_eq!(error.to_string(), "exec /x: no such file or directory");
        init.join().unwrap();
        assert!(open(&fd).unwrap_err().to_string().contains("nobody waits"));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_start_that_does_not_wait_sees_the_end() {
        let (path, fd) = directory();
        let mut gate = Gate::create(&fd).unwrap();
        Gate::publish(&fd).unwrap();
        let mut opening = Opening::begin(&fd).unwrap();
        assert!(!opening.look().unwrap());
        gate.wait().unwrap();
        gate.executing().unwrap();
        assert!(!opening.look().unwrap(), "it has not executed anything");
        drop(gate);
        assert!(opening.look().unwrap());
        std::fs::remove_dir_all(path).unwrap();
    }
}
