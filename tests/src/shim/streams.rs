//! Standard streams of a process as containerd's clients make them: FIFOs, read by threads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::test::Test;
use crate::wait::until;

/// Makes a FIFO in the test's directory.
pub(crate) fn fifo(t: &Test, name: &str) -> Result<PathBuf> {
    let path = t.path(name);
    mkfifo(&path, Mode::from_bits_truncate(0o700)).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Reads a FIFO from now on, to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader(Arc<Mutex<Read_>>);

#[derive(Debug, Default)]
struct Read_ {
    bytes: Vec<u8>,
    ended: bool,
}

impl Reader {
    /// Opens it at once, so that a writer need not wait, and reads in a thread.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .with_context(|| path.display().to_string())?;
        let reader = Self::default();
        let shared = reader.clone();
        thread::spawn(move || {
            // Nothing to read, and no end, before the first writer (pipe(7)).
            let _ = poll(
                &mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            );
            let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()));
            shared.read_all(file);
        });
        Ok(reader)
    }

    fn read_all(&self, mut file: File) {
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = file.read(&mut buffer) {
            self.lock().bytes.extend(&buffer[..length]);
        }
        self.lock().ended = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Read_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been read so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// [`Reader::bytes`] as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Whether all writers have closed it.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits until the text has been read.
    pub(crate) fn wait_for(&self, text: &str) -> Result<String> {
        let waited = until(&format!("output {text:?}"), || {
            Ok(Some(self.text()).filter(|output| output.contains(text)))
        });
        waited.with_context(|| format!("read: {:?}", self.text()))
    }

    /// Waits for the end; returns all of it.
    pub(crate) fn to_end(&self) -> Result<Vec<u8>> {
        until("the end of the output", || Ok(self.has_ended().then_some(())))
            .with_context(|| format!("read: {} bytes", self.bytes().len()))?;
        Ok(self.bytes())
    }

    /// [`Reader::to_end`] as text.
    pub(crate) fn text_to_end(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.to_end()?).into_owned())
    }
}

/// The FIFOs of one process.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// Path for the request; empty where there is none.
    pub(crate) stdin: String,
    /// Path or URI for the request.
    pub(crate) stdout: String,
    /// Path or URI for the request; empty with a terminal.
    pub(crate) stderr: String,
    /// Whether the process gets a terminal.
    pub(crate) terminal: bool,
    /// Reads standard output.
    pub(crate) out: Reader,
    /// Reads standard error.
    pub(crate) err: Reader,
}

impl Streams {
    /// FIFOs for standard output and error, both read.
    pub(crate) fn output(t: &Test) -> Result<Self> {
        let (stdout, stderr) = (fifo(t, "stdout")?, fifo(t, "stderr")?);
        Ok(Self {
            out: Reader::new(&stdout)?,
            err: Reader::new(&stderr)?,
            stdout: stdout.to_string_lossy().into_owned(),
            stderr: stderr.to_string_lossy().into_owned(),
            ..Self::default()
        })
    }

    /// All three FIFOs.
    pub(crate) fn all(t: &Test) -> Result<Self> {
        let mut streams = Self::output(t)?;
        streams.stdin = fifo(t, "stdin")?.to_string_lossy().into_owned();
        Ok(streams)
    }

    /// A terminal's: standard input and output.
    pub(crate) fn terminal(t: &Test) -> Result<Self> {
        let stdout = fifo(t, "stdout")?;
        Ok(Self {
            stdin: fifo(t, "stdin")?.to_string_lossy().into_owned(),
            out: Reader::new(&stdout)?,
            stdout: stdout.to_string_lossy().into_owned(),
            terminal: true,
            ..Self::default()
        })
    }

    /// One URI for both outputs, as containerd's clients give loggers and files.
    pub(crate) fn uri(uri: &str) -> Self {
        Self {
            stdout: uri.to_owned(),
            stderr: uri.to_owned(),
            ..Self::default()
        }
    }

    /// Opens standard input for writing. Waits for the shim to have it open for reading.
    pub(crate) fn open_stdin(&self) -> Result<File> {
        let path = self.stdin.clone();
        until("the shim to read standard input", move || {
            let opened = File::options()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&path);
            match opened {
                Ok(file) => {
                    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
                    Ok(Some(file))
                }
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                Err(error) => Err(error).with_context(|| path.clone()),
            }
        })
    }

    /// Writes to standard input, and leaves it open for others.
    pub(crate) fn type_in(&self, text: &str) -> Result<File> {
        let mut stdin = self.open_stdin()?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin)
    }
}

/// Lines of a log of the shim's own go to the test's output, which is shown where it fails.
pub(crate) fn show_log(bundle: &Path) -> Result<()> {
    let path = bundle.join("log");
    if fs::symlink_metadata(&path).is_err() {
        mkfifo(&path, Mode::from_bits_truncate(0o700)).with_context(|| path.display().to_string())?;
    }
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)?;
    thread::spawn(move || {
        let _ = poll(
            &mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        );
        let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()));
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = file.read(&mut buffer) {
            eprint!("shim: {}", String::from_utf8_lossy(&buffer[..length]));
        }
    });
    Ok(())
}
