//! The pseudo-terminal of a container's process: made in the container's own devpts by the child, its master sent to
//! whoever owns the session: the console socket of a detached container, or the runtime of a foreground one.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, fstat};
use nix::sys::termios::{self, OutputFlags, SetArg};
use nix::unistd::Uid;

use crate::rootfs::path::{InsidePath, Links, Root};
use crate::sys::tty::{self, Size};
use crate::sys::{Named, fd};

/// Device number of ptmx(4).
const PTMX: (u64, u64) = (5, 2);

/// The terminal that a process asks for.
#[derive(Debug, Clone, Copy)]
pub struct TerminalRequest {
    /// Its size; `None`: as the kernel makes it.
    pub size: Option<Size>,
    /// Whether a line that the process prints ends with \n alone: our own terminal adds the \r.
    pub bare_newlines: bool,
}

/// Both ends of a container's terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The end that whoever drives the terminal holds.
    pub master: OwnedFd,
    /// The end of the container's process.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Makes one in the devpts at `/dev/pts`. The caller is inside of the container.
    ///
    /// # Errors
    ///
    /// No devpts is mounted there.
    pub fn open(owner: u32, request: TerminalRequest) -> Result<Self> {
        let path = InsidePath::new(Path::new("/dev/pts/ptmx"))?;
        let master = Root::own()?
            .open_file(&path, libc::O_RDWR | libc::O_NOCTTY, Links::NotLast)
            .map(OwnedFd::from)
            .call(|| "open(\"/dev/pts/ptmx\")".into())
            .context("a terminal needs a devpts mounted at /dev/pts")?;
        let device = fstat(&master).call(|| "fstat".into())?.st_rdev;
        if (nix::sys::stat::major(device), nix::sys::stat::minor(device)) != PTMX {
            bail!("/dev/pts/ptmx in the container is not the terminal multiplexer");
        }
        let slave = tty::open_peer(&master)?;
        if let Some(size) = request.size {
            tty::set_size(&slave, size).context("process.consoleSize")?;
        }
        if request.bare_newlines {
            let mut settings = termios::tcgetattr(&slave).call(|| "tcgetattr".into())?;
            settings.output_flags.remove(OutputFlags::ONLCR);
            termios::tcsetattr(&slave, SetArg::TCSANOW, &settings).call(|| "tcsetattr".into())?;
        }
        nix::unistd::fchown(&slave, Some(Uid::from_raw(owner)), None)
            .call(|| format!("fchown(terminal, {owner})"))?;
        Ok(Self { master, slave })
    }

    /// Makes the slave stdin, stdout and stderr, and the controlling terminal of this session.
    pub fn attach(slave: impl AsFd) -> Result<()> {
        tty::set_controlling(&slave)?;
        nix::unistd::dup2_stdin(&slave).call(|| "dup2(0)".into())?;
        nix::unistd::dup2_stdout(&slave).call(|| "dup2(1)".into())?;
        nix::unistd::dup2_stderr(&slave).call(|| "dup2(2)".into())?;
        Ok(())
    }
}

/// A connected Unix socket that takes one descriptor: `--console-socket`, `--pidfd-socket`, a seccomp listener.
#[derive(Debug)]
pub struct DescriptorSocket(OwnedFd);

impl DescriptorSocket {
    /// Connects. The path may be longer than the 108 bytes of `sockaddr_un`: its directory is opened first.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    #[expect(clippy::disallowed_methods, reason = "the caller's socket, on the host")]
    pub fn connect(path: &Path) -> Result<Self> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .call(|| "socket".into())?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path
            .file_name()
            .with_context(|| format!("{}: no socket", path.display()))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(directory, flags, Mode::empty()).call(|| format!("open({directory:?})"))?;
        let short = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        let address = UnixAddr::new(&short).call(|| format!("the name of {path:?}"))?;
        connect(socket.as_raw_fd(), &address).call(|| format!("connect({path:?})"))?;
        Ok(Self(socket))
    }

    /// Sends the descriptor, with a text (at least one byte).
    pub fn send(&self, text: &[u8], descriptor: impl AsFd) -> Result<()> {
        fd::send(&self.0, text, &[descriptor.as_fd()]).map_err(Into::into)
    }
}
