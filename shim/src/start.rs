//! `start`: finds the shim of the bundle's group, or makes one, and tells containerd where it listens.
//!
//! ```text
//! seal ──> read request ──> bind ──> a shim answers there ─────────────────> answer
//!                             `───> ours ──> daemon ready ──> records ──> answer ──> told
//! ```

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rtc_runtime::sealed_exe;
use rtc_runtime::sys::Named;

use crate::address::{self, Found};
use crate::arguments::Flags;
use crate::bootstrap::{Answer, Request};
use crate::daemon::{self, Placement};
use crate::info;
use crate::record::{self, Identified};

/// What standard input may be long at most, in bytes, as for containerd's own shim.
const INPUT_MAX: usize = 10 << 20;

/// How long containerd may take to write it.
const INPUT_DEADLINE: Duration = Duration::from_secs(10);

/// Starts a shim for the bundle in the working directory.
///
/// # Errors
///
/// It can't be as asked; then there is no shim of ours, and no socket.
pub(crate) fn start(mut flags: Flags) -> Result<()> {
    sealed_exe::ensure()?;
    if let Some(bundle) = flags.bundle.take() {
        std::env::set_current_dir(&bundle).call(|| format!("chdir({bundle:?})"))?;
    }
    let bundle = std::env::current_dir().context("the working directory must be the bundle")?;
    let input = read_input()?;
    let request = Request::new(flags, |name| std::env::var_os(name), &input, bundle)?;
    let socket = request.identity.socket.clone();
    match address::bind(&socket)? {
        Found::Shim => answer(&request),
        Found::Nobody(listener) => {
            // While this listens no other `start` takes the socket for a dead shim's, and binds one that we would remove.
            let held = listener.try_clone().call(|| "dup".into())?;
            let started = start_daemon(listener, &request);
            if started.is_err() {
                let _ = std::fs::remove_file(&socket);
                drop(held);
            }
            started
        }
    }
}

fn start_daemon(listener: std::os::unix::net::UnixListener, request: &Request) -> Result<()> {
    let placement = Placement {
        cgroup: request.options.shim_cgroup.clone(),
        core_scheduling: request.core_scheduling,
    };
    let daemon = daemon::spawn(listener, request.identity.clone(), &placement)?;
    let answered = record(request, daemon.child.pid).and_then(|()| answer(request));
    if answered.is_err() {
        daemon.kill();
        return answered;
    }
    daemon.told()
}

/// For `delete`, should the shim die.
fn record(request: &Request, pid: Pid) -> Result<()> {
    let shim = record::Shim {
        process: Identified::of(pid).context("the shim has ended")?,
        socket: request.identity.socket.clone(),
    };
    shim.save(&request.identity.bundle)
}

fn answer(request: &Request) -> Result<()> {
    let Request { identity, answer, .. } = request;
    // containerd before 2.0 looks for it when it starts anew; later ones keep what we answer.
    if *answer != Answer::Protobuf {
        replace(
            &identity.bundle.join("address"),
            address::url(&identity.socket).as_bytes(),
        )?;
    }
    info::print(&answer.write(&identity.socket)?)
}

/// Writes a file for root alone, whole or not at all.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&new)?;
        file.write_all(content)?;
        std::fs::rename(&new, path)
    };
    write().call(|| format!("write({path:?})")).map_err(Into::into)
}

/// Reads standard input to its end. A terminal, or nothing, is no input.
pub(crate) fn read_input() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    let mut file = std::fs::File::from(stdin.as_fd().try_clone_to_owned().context("standard input")?);
    let kind = file.metadata().context("standard input")?.file_type();
    if kind.is_char_device() {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + INPUT_DEADLINE;
    let mut input = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while input.len() <= INPUT_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).call(|| "poll(0)".into())? == 0 {
            bail!(
                "standard input does not end: it must be BootstrapParams or options, or closed (it was waited for {} s)",
                INPUT_DEADLINE.as_secs()
            );
        }
        match file.read(&mut buffer).call(|| "read(0)".into())? {
            0 => return Ok(input),
            length => input.extend_from_slice(&buffer[..length]),
        }
    }
    bail!("standard input is longer than {INPUT_MAX} bytes")
}
