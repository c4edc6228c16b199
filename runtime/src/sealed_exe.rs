//! Keeps a container from writing to our own program file (CVE-2019-5736).
//!
//! A container's first process runs our program until it executes the payload, and the payload may be that very
//! program (`/proc/self/exe`, `#!/proc/self/exe`, an ELF interpreter, binfmt_misc). A container that is root on
//! the host could then open `/proc/<pid>/exe` for writing as soon as no process runs it, and the next call of
//! `rtc` would run what was written. So run, create and exec work only from a file that can't be written:
//!
//! ```text
//!                 /proc/self/exe
//!                       |
//!   fs-verity, or read-only superblock, or memfd with all seals ------> carry on
//!                       | else
//!   detached read-only overlay of the program's directory --execveat--> ensure() again: it is the one we made
//!                       | not possible (not root, no overlayfs, file deleted or covered by a mount)
//!   memfd copy with all seals ------------------------------execveat--> ensure() again: it has all seals
//! ```
//!
//! The overlay shares the page cache with the original and costs no copy. It is attached nowhere, has no upper
//! layer, and so its *superblock* is read-only for ever; a mere read-only bind mount would not do, since its flag
//! can be cleared on a clone of the mount.
//!
//! How the second incarnation knows: the first leaves a variable in its environment that names its pid, the mount
//! and the file; the second removes the variable, so that hooks and payloads never see it, and compares. A mount
//! id is never used twice in one boot (Linux 6.8), so a variable inherited by accident or set to anything else
//! matches nothing, and then the program is sealed again.

use crate::sys::exe::{self, FileId, FileStatus, SELF_EXE};
use anyhow::{Context, Result, bail};
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Left by the first incarnation for the second; see the module's text.
const MARKER: &str = "_RTC_SEALED";

/// A directory for the overlay's second layer, without which it would have to have an upper one. Nothing is ever
/// looked up in it, as the first layer has the file; it must only lie outside the program's own directory and not
/// be on procfs, on which nothing may be stacked.
const SECOND_LAYER: &[&str] = &["/sys/fs", "/dev"];

/// Why our program file can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// It is protected where it is installed: read-only superblock or fs-verity.
    Installed,
    /// We run from a detached read-only overlay.
    Overlay,
    /// We run from a sealed memfd.
    Memfd,
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Installed => "/proc/self/exe can't be written where it is installed",
            Self::Overlay => "using overlayfs for sealed /proc/self/exe",
            Self::Memfd => "using a memfd for sealed /proc/self/exe",
        })
    }
}

/// Returns if this process runs from a file that nobody can write to; else executes this program again, from such
/// a file, with the same arguments and environment (so that nothing done before has an effect: call it first).
/// An error means that no way is open, which is no reason to go on unsealed.
///
/// The process must have one thread.
pub fn ensure() -> Result<Seal> {
    let marker = take_marker();
    let program = exe::status(None, SELF_EXE).context("seal /proc/self/exe")?;
    if let Some(seal) = sealed(&program, marker.as_deref())? {
        return Ok(seal);
    }
    if marker.is_some_and(|m| is_of_this_process(&m)) {
        bail!("seal /proc/self/exe: the copy that was made is not sealed");
    }
    let Err(overlay) = from_overlay(&program);
    let Err(memfd) = from_memfd(&program);
    Err(memfd.context(format!(
        "seal /proc/self/exe: in an overlay: {overlay:#}; in a memfd"
    )))
}

/// Takes the marker out of the environment.
fn take_marker() -> Option<Vec<u8>> {
    let marker = std::env::var_os(MARKER)?.into_vec();
    exe::remove_variable(OsStr::new(MARKER));
    Some(marker)
}

/// `NAME=pid:mount:major:minor:inode`.
fn make_marker(file: FileId) -> CString {
    CString::new(format!("{MARKER}={}", marker_value(std::process::id(), file))).unwrap_or_default()
}

fn marker_value(pid: u32, file: FileId) -> String {
    format!("{pid}:{file}")
}

/// Whether the marker was left by this process before it executed itself, rather than inherited from somebody.
fn is_of_this_process(marker: &[u8]) -> bool {
    marker
        .strip_prefix(format!("{}:", std::process::id()).as_bytes())
        .is_some()
}

/// What protects the file we run from, if anything does.
fn sealed(program: &FileStatus, marker: Option<&[u8]>) -> Result<Option<Seal>> {
    if program.verity {
        return Ok(Some(Seal::Installed));
    }
    let filesystem = exe::filesystem(SELF_EXE).context("seal /proc/self/exe")?;
    if filesystem.readonly {
        let ours = marker_value(std::process::id(), program.id);
        if filesystem.overlay && marker == Some(ours.as_bytes()) {
            return Ok(Some(Seal::Overlay));
        }
        // An error (before Linux 6.8, or a mount outside our namespace) means that we don't know: seal.
        let installed = exe::superblock_is_readonly(program.id.mount()).unwrap_or(false);
        return Ok(installed.then_some(Seal::Installed));
    }
    // A memfd is a file on a tmpfs; only then is it worth opening.
    if filesystem.tmpfs && File::open("/proc/self/exe").is_ok_and(exe::is_sealed) {
        // The kernel has called us by the descriptor's number (before Linux 6.14) or the memfd's name.
        let _ = nix::sys::prctl::set_name(&program_name());
        return Ok(Some(Seal::Memfd));
    }
    Ok(None)
}

/// Executes this program from a detached read-only overlay of its directory.
fn from_overlay(program: &FileStatus) -> Result<Infallible> {
    let path = std::fs::read_link("/proc/self/exe").context("readlink /proc/self/exe")?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{path:?} has no directory");
    };
    let name = CString::new(name.as_bytes())?;
    let layers = [open_path(directory)?, second_layer(directory)?];
    let mount = exe::detached_overlay(&[layers[0].as_fd(), layers[1].as_fd()])?;
    // The directory may have been changed, covered by a mount, or mean another one in our mount namespace.
    let inside = exe::status(Some(mount.as_fd()), &name)?;
    if inside.version != program.version {
        bail!("{path:?} is not the program that runs");
    }
    Err(exe::execute_again(&mount, &name, &make_marker(inside.id)).into())
}

/// Executes this program from a sealed copy in memory.
fn from_memfd(program: &FileStatus) -> Result<Infallible> {
    let mut original = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let mut copy = File::from(exe::executable_memfd(&program_name())?);
    // In the kernel, by sendfile or copy_file_range.
    io::copy(&mut original, &mut copy).context("copy /proc/self/exe to a memfd")?;
    exe::seal(&copy)?;
    Err(exe::execute_again(&copy, c"", &make_marker(program.id)).into())
}

/// The last component of what we were called by.
fn program_name() -> CString {
    let argument = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&argument).file_name().unwrap_or_default().as_bytes();
    CString::new(name).unwrap_or_default()
}

fn second_layer(program: &Path) -> Result<OwnedFd> {
    let apart = |d: &&&str| !program.starts_with(d) && !Path::new(d).starts_with(program);
    let directory = SECOND_LAYER
        .iter()
        .find(apart)
        .context("no directory for the second layer")?;
    open_path(Path::new(directory))
}

/// A descriptor that stands for a directory.
fn open_path(directory: &Path) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(directory, flags, nix::sys::stat::Mode::empty())
        .with_context(|| format!("open {directory:?}"))
}
