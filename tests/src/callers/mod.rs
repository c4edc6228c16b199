//! Docker and Podman as Debian packages them, which call an OCI runtime by its command line: one for each test, with
//! the runtime under test, in mount and network namespaces of the test's.
//!
//! ```text
//! test -> docker CLI -> dockerd -> containerd -> containerd-shim-runc-v2 -> rtc
//! test -> podman ---------------> conmon ---------------------------------> rtc
//! ```
//!
//! Their programs are those that hack/peers has unpacked (`PEERS/callers`), or the machine's own packages. What users do
//! with both in the same words is in `everyday.rs`, `limits.rs` and `isolation.rs`.

pub(crate) mod docker;
mod engine;
pub(crate) mod everyday;
pub(crate) mod isolation;
pub(crate) mod limits;
pub(crate) mod podman;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub(crate) use engine::Engine;

use crate::host::process;
use crate::registry::Result;
use crate::test::Test;

/// Where the loader looks without being told.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Of `/run`, which is the test's own: what is the service manager's stays.
const SHARED_RUN: [&str; 2] = ["systemd", "dbus"];
/// dockerd raises it for the whole machine where it finds less.
const MAXIMUM_KEYS: (&str, &str) = ("/proc/sys/kernel/keys/root_maxkeys", "1000000\n");

/// Where the programs of a caller are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// `bin/` and `lib/` of what was unpacked; `None` where they are installed.
    unpacked: Option<PathBuf>,
}

impl Programs {
    /// The place of this program and what it works with; the test is skipped where it is in none.
    pub(crate) fn of(t: &Test, program: &str) -> Result<Self> {
        let unpacked = std::env::var_os("PEERS").map(|peers| PathBuf::from(peers).join("callers"));
        let unpacked = unpacked.filter(|directory| directory.join("bin").join(program).exists());
        let found = Self { unpacked };
        if let Err(missing) = found.path(program) {
            // With the other peers it has to be there.
            ensure!(std::env::var_os("PEERS").is_none(), "{missing}: hack/peers build");
            t.skip(format!("no {program} (hack/peers build)"))?;
        }
        Ok(found)
    }

    /// A program's path.
    pub(crate) fn path(&self, program: &str) -> Result<PathBuf> {
        let path = self.path_variable();
        let mut candidates = path
            .split(':')
            .map(|directory| Path::new(directory).join(program));
        candidates
            .find(|path| path.exists())
            .with_context(|| format!("{program} is not in {path}"))
    }

    /// `PATH` for them.
    pub(crate) fn path_variable(&self) -> String {
        match &self.unpacked {
            Some(directory) => format!("{}:{SYSTEM_PATH}", directory.join("bin").display()),
            None => SYSTEM_PATH.to_owned(),
        }
    }
}

/// Moves this process and what it starts into namespaces in which the callers find nothing of the machine's and leave
/// nothing: `/run`, `/dev/shm` and `/var/lib` are empty, the network has a loopback alone.
pub(crate) fn enter(t: &Test, programs: &Programs) -> Result {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare")?;
    propagate(MsFlags::MS_SLAVE)?;
    if let Some(unpacked) = &programs.unpacked {
        // Not LD_LIBRARY_PATH: conmon gives Podman, which it calls at a container's end, an environment of its own.
        let lower = format!("lowerdir={LIBRARIES}:{}", unpacked.join("lib").display());
        mount(
            Some("overlay"),
            LIBRARIES,
            Some("overlay"),
            MsFlags::MS_RDONLY,
            Some(lower.as_str()),
        )
        .context(lower.clone())?;
    }
    let run = t.path("run");
    fs::create_dir(&run)?;
    memory_at(&run)?;
    for name in SHARED_RUN {
        let from = Path::new("/run").join(name);
        if from.is_dir() {
            fs::create_dir(run.join(name))?;
            bind(&from, &run.join(name))?;
        }
    }
    mount(Some(&run), "/run", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move to /run")?;
    memory_at(Path::new("/dev/shm"))?;
    let disk = t.path("var-lib");
    fs::create_dir(&disk)?;
    bind(&disk, Path::new("/var/lib"))?;
    let (setting, value) = MAXIMUM_KEYS;
    if Path::new(setting).exists() {
        let own = t.path("root_maxkeys");
        fs::write(&own, value)?;
        bind(&own, Path::new(setting))?;
    }
    // As a service manager has it.
    propagate(MsFlags::MS_SHARED)?;
    let up = Command::new("/bin/busybox")
        .args(["ifconfig", "lo", "up"])
        .status()?;
    ensure!(up.success(), "ifconfig lo up: {up}");
    // Of this network alone; Docker warns each user where it is off.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

/// Whether this machine's root has every capability, as a privileged container is to have.
pub(crate) fn root_is_whole() -> Result<bool> {
    let have = process::status_field(std::process::id().cast_signed(), "CapEff")?;
    Ok(u64::from_str_radix(&have, 16)? == (1 << (last_capability()? + 1)) - 1)
}

/// The kernel's highest.
pub(crate) fn last_capability() -> Result<u32> {
    Ok(fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?)
}

fn propagate(kind: MsFlags) -> Result {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | kind,
        None::<&str>,
    )
    .with_context(|| format!("mount(/, {kind:?})"))
}

fn memory_at(place: &Path) -> Result {
    let mode = Some("mode=755");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), mode)
        .with_context(|| place.display().to_string())
}

fn bind(from: &Path, to: &Path) -> Result {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}
