//! sd_notify(3) through a container: a service manager that runs rtc with `NOTIFY_SOCKET` hears of the program's READY=1.
//!
//! The program gets a socket of its own at `/run/notify/notify.sock`, bound by whoever starts it. Only READY=1 is passed
//! on, with the pid that is the service's main process: everything else that a manager understands (FDSTORE, MAINPID,
//! WATCHDOG_USEC) would let the container speak about the host.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use oci_spec::runtime::{MountBuilder, Spec};

use crate::container::state::Directory;
use crate::log;
use crate::sys::Named;

/// Where the service manager listens.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// In the state directory.
pub const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
/// In the container.
pub const MOUNTED_AT: &str = "/run/notify";

/// Gives the container a place for its socket, where the caller is run with `NOTIFY_SOCKET`.
///
/// # Errors
///
/// The state directory can't be written.
pub fn prepare(directory: &Directory, spec: &mut Spec) -> Result<()> {
    if std::env::var_os(VARIABLE).is_none_or(|path| path.is_empty()) {
        return Ok(());
    }
    let path = directory.path().join(DIRECTORY);
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&path)
        .call(|| format!("mkdir({path:?})"))?;
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"]
        .map(String::from)
        .to_vec();
    let mount = MountBuilder::default()
        .destination(MOUNTED_AT)
        .typ("bind")
        .source(path)
        .options(options)
        .build();
    spec.mounts_mut()
        .get_or_insert_default()
        .push(mount.context("the mount of the notify socket")?);
    if let Some(process) = spec.process_mut() {
        process
            .env_mut()
            .get_or_insert_default()
            .push(format!("{VARIABLE}={MOUNTED_AT}/{SOCKET}"));
    }
    Ok(())
}

/// The container's socket, and the manager's.
#[derive(Debug)]
pub struct Notify {
    container: UnixDatagram,
    manager: OsString,
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }
}

impl Notify {
    /// Binds the container's socket, where it has a place for one and the caller is run with `NOTIFY_SOCKET`.
    ///
    /// # Errors
    ///
    /// The socket can't be made.
    pub fn bind(directory: &Directory) -> Result<Option<Self>> {
        let Some(manager) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let path = directory.path().join(DIRECTORY);
        if !path.is_dir() {
            return Ok(None);
        }
        // By descriptor: a state root may be longer than a socket's name can be.
        let place: OwnedFd = open(
            &path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .call(|| format!("open({path:?})"))?;
        let short = Path::new("/proc/self/fd")
            .join(place.as_raw_fd().to_string())
            .join(SOCKET);
        // That of a start which was killed; we hold the lock.
        let _ = std::fs::remove_file(&short);
        let container = UnixDatagram::bind(&short).call(|| format!("bind({:?})", path.join(SOCKET)))?;
        // Any user of the container may report.
        std::fs::set_permissions(&short, PermissionsExt::from_mode(0o777))
            .call(|| format!("chmod({path:?})"))?;
        container
            .set_nonblocking(true)
            .call(|| "fcntl(O_NONBLOCK)".into())?;
        Ok(Some(Self { container, manager }))
    }

    /// Passes READY=1 on, if it is among what has arrived. `true`: it was, there is nothing more to do.
    pub fn turn(&self, main_pid: i32) -> bool {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.container.recv(&mut buffer) {
            if buffer[..length]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1")
            {
                if let Err(error) = self.tell_manager(format!("READY=1\nMAINPID={main_pid}\n").as_bytes()) {
                    log::warn(format_args!("{VARIABLE} {}: {error:#}", self.manager.display()));
                }
                return true;
            }
        }
        false
    }

    fn tell_manager(&self, message: &[u8]) -> Result<()> {
        let socket = UnixDatagram::unbound().call(|| "socket".into())?;
        // `@name` is the abstract one.
        let sent = match self.manager.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(message, &address)),
            path => socket.send_to(message, OsString::from_vec(path.to_vec())),
        };
        sent.call(|| "sendto".into())?;
        Ok(())
    }

    /// Waits until the program of a detached container has reported, or ended.
    ///
    /// # Errors
    ///
    /// As poll(2).
    pub fn wait(&self, init: impl AsFd, main_pid: i32) -> Result<()> {
        loop {
            let mut waiting = [
                PollFd::new(self.as_fd(), PollFlags::POLLIN),
                PollFd::new(init.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                polled => polled.context("poll")?,
            };
            let ended = waiting[1].any().unwrap_or(false);
            if self.turn(main_pid) || ended {
                return Ok(());
            }
        }
    }
}
