//! What the unpacker is before it reads the first byte of a layer: shut into one directory, with six capabilities.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::chdir;
use rtc_runtime::sys;

/// Files of any owner and mode, with capabilities; devices.
const CAPABILITIES: u64 = 1 << 0 // CAP_CHOWN
    | 1 << 1 // CAP_DAC_OVERRIDE
    | 1 << 3 // CAP_FOWNER
    | 1 << 4 // CAP_FSETID
    | 1 << 27 // CAP_MKNOD
    | 1 << 31; // CAP_SETFCAP

/// The last capability that there can be.
const CAPABILITY_MAX: u8 = 63;

/// Address space: a window of zstd (128 MiB), what is remembered of a tar, and this program.
const MEMORY: u64 = 512 << 20;
const DESCRIPTORS: u64 = 64;

/// Shuts this process into the directory, and gives it as a descriptor.
pub(super) fn confine(directory: &Path) -> Result<OwnedFd> {
    sys::fd::close_all_but(3, &[])?;
    sys::process::set_non_dumpable()?;
    umask(Mode::empty());
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("unshare")?;
    pivot(directory)?;
    limit(Resource::RLIMIT_AS, MEMORY)?;
    limit(Resource::RLIMIT_NOFILE, DESCRIPTORS)?;
    limit(Resource::RLIMIT_CORE, 0)?;
    // Nothing is started from here on.
    limit(Resource::RLIMIT_NPROC, 0)?;
    limit_capabilities()?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty()).context("open /")
}

/// Makes the directory the root, and the only mount.
fn pivot(directory: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some(directory), directory, none, MsFlags::MS_BIND, none).context("bind the directory")?;
    // A bind mount takes its own flags only when it is remounted.
    let flags =
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, directory, none, flags, none).context("remount the directory")?;
    chdir(directory).context("chdir")?;
    let path = CString::new(directory.as_os_str().as_bytes())?;
    sys::mount::pivot_to_working_directory().with_context(|| format!("pivot_root({path:?})"))?;
    sys::mount::detach(c".").context("umount the old root")?;
    chdir("/").context("chdir /")
}

/// Lowers a limit; one that is lower stays.
fn limit(resource: Resource, most: u64) -> Result<()> {
    let (_, hard) = getrlimit(resource).with_context(|| format!("getrlimit {resource:?}"))?;
    let most = most.min(hard);
    setrlimit(resource, most, most).with_context(|| format!("setrlimit {resource:?}"))
}

fn limit_capabilities() -> Result<()> {
    for capability in 0..=CAPABILITY_MAX {
        if !sys::process::drop_bounding(capability)? {
            break;
        }
    }
    sys::process::clear_ambient()?;
    let permitted = caps::read(None, caps::CapSet::Permitted).context("capget")?;
    let held = permitted.iter().fold(0, |bits, held| bits | held.bitmask()) & CAPABILITIES;
    sys::process::capset(sys::process::CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: 0,
    })?;
    sys::process::set_no_new_privileges()?;
    Ok(())
}
