//! `delete`: containerd calls it in a bundle when the connection to its shim has broken, and takes its answer for the exit
//! of the container.
//!
//! ```text
//! record of the container, record of the shim (in the bundle of its first container only)
//!   the shim has died, and this was its first ──> every container of it, found by the records beside this bundle; its socket
//!   else ───────────────────────────────────────> this container; a living shim serves the others
//! each container in a process of its own, all at once: kill, remove, unmount
//!   done, or time is over: those that wait for a process in the kernel go on without us
//! ```
//!
//! containerd before 2.0 calls it after each orderly Delete of a container in a group too: then there is nothing to do.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtc_runtime::bundle::{CONFIG, MAX_CONFIG_SIZE, read_config};
use rtc_runtime::cgroup::{Cgroup, Driver, Layout};
use rtc_runtime::container::{self, ContainerId, StateRoot};
use rtc_runtime::process::worker::{self, Report, Worker};
use rtc_runtime::sys::Errno;

use crate::address;
use crate::arguments::Flags;
use crate::bootstrap::{check_name, group};
use crate::record::{self, Identified};
use crate::{info, pod, rootfs};

/// All of it: containerd gives five seconds.
const DEADLINE: Duration = Duration::from_secs(4);

/// How long a living shim without containers may take to end by itself.
const SHIM_DEADLINE: Duration = Duration::from_secs(1);

/// How long a worker that was just made, when its shim died, may hold a copy of the socket: it closes it first of all, but
/// may have to wait for a processor.
const COPY_DEADLINE: Duration = Duration::from_millis(500);

/// How long a foreign runtime may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(3);

/// The exit status of what SIGKILL ended.
const KILLED: u32 = 128 + 9;

/// What is removed.
struct Left {
    bundle: PathBuf,
    record: record::Container,
}

/// Removes what a dead shim left, and prints a `DeleteResponse`.
///
/// # Errors
///
/// No id. What can't be removed is a warning: containerd then goes on.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let id = flags.id.as_deref().unwrap_or_default();
    check_name("id", id)?;
    check_name("namespace", flags.namespace.as_deref().unwrap_or_default())?;
    let bundle = bundle(flags, id)?;
    let own = warned(record::Container::load(&bundle)).flatten();
    let shim = warned(record::Shim::load(&bundle)).flatten();
    let pid = own.as_ref().map_or(0, init_of);

    let dead = shim.as_ref().is_some_and(|shim| !shim.process.is_alive());
    let mut left: Vec<Left> = own
        .map(|record| Left {
            bundle: bundle.clone(),
            record,
        })
        .into_iter()
        .collect();
    if let Some(shim) = shim.as_ref().filter(|_| dead) {
        left.extend(others(&bundle, shim.process));
    }
    remove_all(&left, deadline);
    // Mounted before the record was written, or by somebody else.
    warned(rootfs::unmount(&bundle));
    warned(pod::files::unmount(&bundle));
    if let Some(shim) = &shim {
        if !dead && others(&bundle, shim.process).is_empty() {
            end(&bundle, shim.process);
        }
        if !shim.process.is_alive() {
            warned(remove_socket(&shim.socket));
        }
    } else {
        // Of a start that was killed before it could leave its record.
        warned(remove_socket(&usual_socket(flags, id, &bundle)));
    }
    answer(pid)
}

/// Where `start` listens, unless it is told another directory.
fn usual_socket(flags: &Flags, id: &str, bundle: &Path) -> PathBuf {
    let group = group(bundle).ok().flatten().unwrap_or_else(|| id.to_owned());
    let containerd = flags.address.as_deref().unwrap_or_default();
    let namespace = flags.namespace.as_deref().unwrap_or_default();
    address::path(Path::new(address::DIRECTORY), containerd, namespace, &group)
}

/// The bundle: as it is told, or beside the working directory (as containerd's own shim has it), or that.
fn bundle(flags: &Flags, id: &str) -> Result<PathBuf> {
    if let Some(bundle) = &flags.bundle {
        return std::path::absolute(bundle).context("-bundle");
    }
    let here = std::env::current_dir().context("the working directory must be the bundle")?;
    let beside = here.parent().map(|parent| parent.join(id));
    Ok(beside.filter(|bundle| bundle.is_dir()).unwrap_or(here))
}

/// The other containers of a shim.
fn others(bundle: &Path, shim: Identified) -> Vec<Left> {
    let Some(entries) = bundle.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|other| other != bundle)
        .filter_map(|bundle| {
            let record = record::Container::load(&bundle).ok().flatten()?;
            (record.shim == Some(shim)).then_some(Left { bundle, record })
        })
        .collect()
}

/// Removes them, all at once, until the deadline.
fn remove_all(left: &[Left], deadline: Instant) {
    let mut workers = Vec::new();
    for left in left {
        let removing = || -> Result<Worker> {
            let null = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            // Not containerd's pipes: it waits for their end.
            let stdio = [null.as_fd(), null.as_fd(), null.as_fd()];
            worker::fork(Some(stdio), &[], |_| remove(left).map(|()| Vec::new()))
        };
        workers.extend(warned(removing()).map(|worker| (worker, left)));
    }
    while !workers.is_empty() {
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            for (_, left) in &workers {
                warn(format_args!("container {:?}: not removed yet", left.record.id));
            }
            return;
        }
        let mut fds: Vec<PollFd<'_>> = workers
            .iter()
            .map(|(worker, _)| PollFd::new(worker.as_fd(), PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
        workers.retain(|(worker, left)| listen(worker, left));
    }
}

/// Hears what a worker has to say. Returns if there is more to come.
fn listen(worker: &Worker, left: &Left) -> bool {
    loop {
        match worker.receive() {
            Ok(Some(Report::Warning(text) | Report::Failed(text))) => {
                warn(format_args!("container {:?}: {text}", left.record.id));
            }
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(error) if error.errno == Errno::EAGAIN => return true,
            Err(error) => {
                warn(error);
                return false;
            }
        }
    }
}

/// In a worker: may wait.
fn remove(left: &Left) -> Result<()> {
    let Left { bundle, record } = left;
    if let Some(made) = &record.made {
        made.init.kill();
    }
    // One that was at work when the shim died; only then has it left no word of what it made.
    let maker = record::Maker::load(bundle)?;
    if let Some(maker) = &maker {
        maker.kill();
    }
    let deleted = match &record.binary {
        None => delete_own(left),
        Some(binary) => delete_by_command(binary, record),
    };
    // Also where the container is not gone: its own mount namespace keeps what it uses.
    rootfs::unmount(bundle)?;
    if let Some(made) = record.made.as_ref().filter(|made| made.cgroup.exists()) {
        made.cgroup.kill()?;
        made.cgroup.remove(Instant::now() + COMMAND_DEADLINE)?;
    }
    if maker.is_some()
        && record.made.is_none()
        && let Some(cgroup) = planned_cgroup(bundle, &record.id)?
    {
        cgroup.kill()?;
        cgroup.remove(Instant::now() + COMMAND_DEADLINE)?;
    }
    deleted
}

/// The cgroup that a foreign runtime was about to make, of which it has left no word. One of systemd's is not meant: systemd
/// removes it when it is empty.
fn planned_cgroup(bundle: &Path, id: &str) -> Result<Option<Cgroup>> {
    let config = read_config(&bundle.join(CONFIG), MAX_CONFIG_SIZE)?;
    let config: serde_json::Value = serde_json::from_slice(&config)?;
    let path = config
        .pointer("/linux/cgroupsPath")
        .and_then(|path| path.as_str());
    let Some(path) = path.filter(|path| path.starts_with('/')) else {
        return Ok(None);
    };
    let cgroup = Cgroup::place(Some(Path::new(path)), id, &Layout::detect()?, Driver::Cgroupfs)?;
    Ok(cgroup.exists().then_some(cgroup))
}

/// The container of this bundle. One of another bundle that has the id is why this one was not created.
fn delete_own(left: &Left) -> Result<()> {
    let id: ContainerId = left.record.id.parse()?;
    let root = StateRoot::new(left.record.root.clone());
    let known = root.open(&id).and_then(|directory| directory.record());
    if let Ok(Some(known)) = known
        && !is_same(&known.bundle, &left.bundle)
    {
        return Ok(());
    }
    container::delete(&root, &id, true)
}

/// Whether both are one directory, whatever links lead to it.
fn is_same(one: &Path, other: &Path) -> bool {
    let find = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((find(one), find(other)), (Ok(one), Ok(other)) if one == other)
}

fn delete_by_command(binary: &Path, record: &record::Container) -> Result<()> {
    let mut child = Command::new(binary)
        .arg("--root")
        .arg(&record.root)
        .args(["delete", "--force", &record.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("run {binary:?}"))?;
    let deadline = Instant::now() + COMMAND_DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("{binary:?} delete --force: {status}");
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            bail!("{binary:?} delete --force takes longer than {COMMAND_DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pid of its first process.
fn init_of(record: &record::Container) -> u32 {
    let of_runtime = || {
        let id: ContainerId = record.id.parse().ok()?;
        let known = StateRoot::new(record.root.clone())
            .open(&id)
            .ok()?
            .record()
            .ok()??;
        Some(known.pid)
    };
    let pid = match (&record.made, &record.binary) {
        (Some(made), _) => Some(made.init.pid),
        (None, None) => of_runtime(),
        (None, Some(_)) => None,
    };
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}

/// A shim that lives, and that nobody can reach any more: it has no containers. Unless the group gets one meanwhile: its
/// record is there before anything is made.
fn end(bundle: &Path, shim: Identified) {
    let deadline = Instant::now() + SHIM_DEADLINE;
    while shim.is_alive() {
        if Instant::now() > deadline {
            if !others(bundle, shim).is_empty() {
                return;
            }
            warn(format_args!(
                "the shim (pid {}) had no containers and did not end: killed",
                shim.pid
            ));
            shim.kill();
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let deadline = Instant::now() + SHIM_DEADLINE;
    while shim.is_alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Unless another shim of the group has it by now.
fn remove_socket(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + COPY_DEADLINE;
    while address::answers(socket)? {
        if Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("unlink {socket:?}"))
        }
        _ => Ok(()),
    }
}

fn answer(pid: u32) -> Result<()> {
    let response = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp::from(SystemTime::now())),
        ..DeleteResponse::default()
    };
    info::print(&response.write_to_bytes()?)
}

/// containerd logs what is on standard error.
fn warn(text: impl std::fmt::Display) {
    eprintln!("containerd-shim-rtc-v2: {text}");
}

fn warned<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error| warn(format_args!("{error:#}"))).ok()
}
