//! A file system that hangs: a FUSE server (linux/fuse.h, protocol 7.31) whose root directory is looked at without
//! trouble, and whose file `hang` nobody ever gets an answer about. Whoever asks for it sleeps, uninterruptible even by
//! SIGKILL, until the file system is ended.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Size of `struct fuse_in_header`.
pub(crate) const REQUEST_HEADER: usize = 40;

/// A mounted file system that hangs.
pub(crate) struct Hanging {
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    asked: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Hanging {
    /// Mounts one at this path, which is made. `None` where the kernel has no FUSE.
    pub(crate) fn mount(path: PathBuf) -> Result<Option<Self>> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            return Ok(None);
        };
        std::fs::create_dir(&path)?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount(
            Some("rtc-tests"),
            &path,
            Some("fuse"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        )
        .with_context(|| format!("mount fuse at {}", path.display()))?;
        let (asked, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (is_asked, has_ended) = (Arc::clone(&asked), Arc::clone(&ended));
        let server = thread::spawn(move || serve(device, &has_ended, |request| answer(request, &is_asked)));
        Ok(Some(Self {
            path,
            asked,
            ended,
            server: Some(server),
        }))
    }

    /// Whether somebody hangs.
    pub(crate) fn holds_somebody(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Ends it: everybody who hangs gets an error.
    pub(crate) fn end(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers until it is to end; then the device is closed, which ends the file system.
pub(crate) fn serve(mut device: File, ended: &AtomicBool, mut answer: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 1 << 17];
    while !ended.load(Ordering::SeqCst) {
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(20_u16)).unwrap_or(0) == 0 {
            continue;
        }
        let Ok(length) = device.read(&mut buffer) else {
            return;
        };
        if length >= REQUEST_HEADER
            && let Some(answer) = answer(&buffer[..length])
        {
            let _ = device.write_all(&answer);
        }
    }
}

/// The answer to a request, if it gets one.
fn answer(request: &[u8], asked: &AtomicBool) -> Option<Vec<u8>> {
    let number =
        |at: usize| u32::from_le_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
    let body = match number(4) {
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        LOOKUP if request[REQUEST_HEADER..].starts_with(b"hang\0") => {
            asked.store(true, Ordering::SeqCst);
            return None;
        }
        LOOKUP => Err(libc::ENOENT),
        GETATTR => Ok(root_attributes()),
        INIT => Ok(init()),
        _ => Err(libc::ENOSYS),
    };
    reply(request, body)
}

/// `struct fuse_init_out`: the version, and pages at a time.
pub(crate) fn init() -> Vec<u8> {
    let mut body = vec![0; 64];
    for (at, value) in [(0, 7_u32), (4, 31), (20, 4096)] {
        body[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    body
}

/// The answer to a request: a body, or the number of an error.
pub(crate) fn reply(request: &[u8], body: Result<Vec<u8>, i32>) -> Option<Vec<u8>> {
    let (error, body) = match body {
        Ok(body) => (0, body),
        Err(error) => (-error, Vec::new()),
    };
    let mut all = Vec::new();
    all.extend(u32::try_from(16 + body.len()).ok()?.to_le_bytes());
    all.extend(error.to_le_bytes());
    all.extend(&request[8..16]);
    all.extend(body);
    Some(all)
}

/// `struct fuse_attr_out` of a directory: inode 1, mode 0755, two links.
fn root_attributes() -> Vec<u8> {
    let mut body = vec![0; 104];
    body[16] = 1;
    body[16 + 60..16 + 64].copy_from_slice(&(libc::S_IFDIR | 0o755).to_le_bytes());
    body[16 + 64] = 2;
    body
}

/// An ext4 file system of its own that can be frozen (fsfreeze(8)).
pub(crate) struct Freezable {
    /// Where it is mounted.
    pub(crate) path: PathBuf,
}

impl Freezable {
    /// Makes and mounts one at this path. `None` where the programs or loop devices for it are not there.
    pub(crate) fn mount(path: PathBuf) -> Result<Option<Self>> {
        let image = path.with_extension("img");
        File::create(&image)?.set_len(16 << 20)?;
        std::fs::create_dir(&path)?;
        let made = run("mkfs.ext4", &["-q".as_ref(), &*image]);
        let mounted = made && run("mount", &["-o".as_ref(), "loop".as_ref(), &*image, &*path]);
        Ok(mounted.then_some(Self { path }))
    }

    /// From now on whoever writes to it sleeps.
    pub(crate) fn freeze(&self) -> bool {
        run("fsfreeze", &["-f".as_ref(), &*self.path])
    }

    /// All goes on.
    pub(crate) fn thaw(&self) -> bool {
        thaw(&self.path)
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        self.thaw();
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// Ends the freezing of a file system, if it is frozen.
pub(crate) fn thaw(path: &Path) -> bool {
    run("fsfreeze", &["-u".as_ref(), path])
}

fn run(program: &str, args: &[&Path]) -> bool {
    let output = std::process::Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}
