//! FIFOs between us and a process: in a directory of their own below the container's bundle, which goes with them.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Bytes;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio::sync::watch;

use super::remote::Wanted;
use super::stream::{Input, Output};
use crate::error::Result;
use crate::log;
use crate::shim::Stdio;

/// What is read at once, in bytes: what a pipe holds.
const READ: usize = 64 << 10;
/// How long output of processes is waited for that the ended one left in the background.
const DRAIN: Duration = Duration::from_millis(500);
/// A shim that opens its end some time after Start was answered (containerd's own does) has so many tries, so far apart.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The FIFOs. Dropped, they are removed: who has them open has them on.
#[derive(Debug)]
pub(super) struct Fifos {
    directory: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    terminal: bool,
}

/// Our ends of the output. Not to be read before the other end is open, or they look ended.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: Option<Receiver>,
    pub(super) stderr: Option<Receiver>,
}

impl Fifos {
    /// Makes those that are wanted, in a new directory.
    ///
    /// # Errors
    ///
    /// As mkdir(2), mkfifo(3).
    pub(super) fn make(directory: PathBuf, wanted: Wanted) -> Result<Self> {
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| directory.display().to_string())?;
        // From here on it goes with what is in it.
        let mut fifos = Self {
            directory,
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: wanted.terminal,
        };
        fifos.stdin = fifos.fifo("stdin", wanted.stdin)?;
        fifos.stdout = fifos.fifo("stdout", wanted.stdout)?;
        fifos.stderr = fifos.fifo("stderr", wanted.stderr)?;
        Ok(fifos)
    }

    fn fifo(&self, name: &str, wanted: bool) -> Result<Option<PathBuf>> {
        if !wanted {
            return Ok(None);
        }
        let path = self.directory.join(name);
        mkfifo(&path, Mode::from_bits_truncate(0o600)).with_context(|| path.display().to_string())?;
        Ok(Some(path))
    }

    /// For the shim.
    pub(super) fn stdio(&self) -> Stdio<'_> {
        Stdio {
            stdin: self.stdin.as_deref(),
            stdout: self.stdout.as_deref(),
            stderr: self.stderr.as_deref(),
            terminal: self.terminal,
        }
    }

    /// Where what a client sends is to go.
    pub(super) fn stdin(&self) -> Option<&Path> {
        self.stdin.as_deref()
    }

    /// Opens our ends of the output.
    ///
    /// # Errors
    ///
    /// As open(2).
    pub(super) fn outputs(&self) -> Result<Outputs> {
        let open = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| OpenOptions::new().open_receiver(path))
                .transpose()
                .with_context(|| self.directory.display().to_string())
        };
        Ok(Outputs {
            stdout: open(&self.stdout)?,
            stderr: open(&self.stderr)?,
        })
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                log::warn(format_args!("{}: {error}", self.directory.display()));
            }
            _ => {}
        }
    }
}

/// Passes on what a process writes: until all writers have closed; or until it has ended, and nothing came for a while. Where
/// the client takes no more it is dropped: a full pipe would stop the process.
pub(super) async fn relay(from: Option<Receiver>, mut to: Option<Output>, mut end: watch::Receiver<bool>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; READ];
    loop {
        let ended = *end.borrow_and_update();
        let read = match ended {
            true => match tokio::time::timeout(DRAIN, from.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => break,
            },
            false => tokio::select! {
                read = from.read(&mut buffer) => read,
                // Once more: it may have written just before its end.
                Ok(()) = end.changed() => continue,
            },
        };
        let Some(piece) = read.ok().and_then(|length| buffer.get(..length)) else {
            break;
        };
        if piece.is_empty() {
            break;
        }
        if let Some(open) = &to {
            // Bytes of their own: what waits for the client is as long as it is, and no longer.
            if open.send(Bytes::copy_from_slice(piece)).await.is_err() {
                to = None;
            }
        }
    }
    if let Some(to) = to {
        to.finish();
    }
}

/// Passes on what a client sends, until it ends, or nobody reads it.
pub(super) async fn feed(path: &Path, from: &mut Input) {
    let mut to = None;
    while let Some(piece) = from.next().await {
        let sender = match &mut to {
            Some(sender) => sender,
            none => match open(path).await {
                Some(sender) => none.insert(sender),
                None => return,
            },
        };
        if sender.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// Opens it for writing; `None`: nobody reads it.
async fn open(path: &Path) -> Option<Sender> {
    for _ in 0..TRIES {
        match OpenOptions::new().open_sender(path) {
            Ok(sender) => return Some(sender),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => tokio::time::sleep(PAUSE).await,
            Err(_) => return None,
        }
    }
    None
}
