//! State of containers on disk: one directory each below a root (`/run/rtc`), that dies with the node's boot.
//!
//! ```text
//! <root>/<id>/            0711 root; its flock(2) serialises the verbs that change it
//!   state.json            [`Record`]: what create learned
//!   config.json           the configuration as it was at create: later edits of the bundle mean nothing
//!   gate, result          FIFOs, see process::gate
//! ```
//!
//! The record never says how the container *is*: [`Status`] is asked of the kernel every time, so that it can't be
//! stale: is init (this pid with this start time) alive, does somebody wait at the gate, is the cgroup frozen.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, Uid, UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::cgroup::Cgroup;
use crate::container::id::ContainerId;
use crate::container::notify;
use crate::hooks;
use crate::process::gate::{self, Waiting};
use crate::resctrl::Group;
use crate::rootless;
use crate::sys::{Named, file};

const RECORD: &str = "state.json";
const RECORD_NEW: &str = "state.json.new";
const CONFIG: &str = "config.json";

/// What is known about a container from its creation on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the specification that the bundle names.
    pub oci_version: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root filesystem.
    pub rootfs: PathBuf,
    /// Pid of init in the runtime's PID namespace; 0 until there is one.
    pub pid: i32,
    /// When init started, in clock ticks since boot (proc_pid_stat(5), field 22): tells it from a later process that
    /// got its pid.
    pub start_time: u64,
    /// When it was created, RFC 3339 in UTC.
    pub created: String,
    /// User id of who created it.
    pub owner: u32,
    /// Annotations of the bundle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Whether init waits for `start` at its beginning; a container of `run` does not.
    pub gated: bool,
    /// Whether init is set up. A gated one says so by its gate.
    pub set_up: bool,
    /// Whether it keeps the caller's session keyring, and so do processes of `exec`.
    pub no_new_keyring: bool,
    /// Whether the kept configuration must be read for hooks at `start` and `delete`, which is most of their time.
    pub has_hooks: bool,
    /// Whether init is pid 1 of a namespace of its own, so that all its processes end with it.
    pub owns_pids: bool,
    /// Whether it has a time namespace that its configuration does not ask for: CRIU's, for a restored container's clocks
    /// to go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub time_namespace: bool,
    /// Its resctrl group, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<Group>,
}

impl Record {
    /// Whether another record is of the same container, not of a later one of the same id.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.pid, self.start_time) == (other.pid, other.start_time)
    }

    /// What hooks and seccomp agents are told.
    #[must_use]
    pub fn hook_state(&self, id: &ContainerId) -> hooks::State {
        hooks::State::new(
            id.as_str(),
            &self.oci_version,
            &self.bundle,
            self.annotations.iter(),
        )
    }
}

/// Life of a container, as runtime-spec names it, and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its `create` has not finished, or died.
    Creating,
    /// Init waits for `start`.
    Created,
    /// Init runs the program.
    Running,
    /// All of it is frozen.
    Paused,
    /// Init has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What can be asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `start`.
    Start,
    /// `kill`.
    Kill,
    /// `delete` without `--force`.
    Delete,
    /// `exec`.
    Exec,
    /// `exec --ignore-paused`.
    ExecPaused,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `update`.
    Update,
    /// `checkpoint`.
    Checkpoint,
    /// `mounts`.
    Mounts,
}

impl Status {
    /// The rules: why the operation is not possible now, in runc's words where its callers look for them.
    ///
    /// # Errors
    ///
    /// The operation is not possible.
    pub fn allows(self, operation: Operation, id: &ContainerId) -> Result<()> {
        use Operation as O;
        use Status as S;
        let refused = match (operation, self) {
            (O::Start, S::Created)
            | (O::Kill, S::Created | S::Running | S::Paused | S::Creating)
            // As runc; the specification would only have it stopped.
            | (O::Delete, S::Stopped | S::Created)
            | (O::Exec, S::Created | S::Running)
            | (O::ExecPaused, S::Created | S::Running | S::Paused)
            | (O::Pause, S::Created | S::Running)
            | (O::Resume, S::Paused)
            | (O::Update | O::Mounts, S::Created | S::Running | S::Paused)
            | (O::Checkpoint, S::Running | S::Paused) => return Ok(()),
            (O::Start, S::Running) => anyhow!("cannot start an already running container"),
            (O::Start, S::Stopped) => anyhow!("cannot start a container that has stopped"),
            (O::Start, _) => anyhow!("cannot start a container that is {self}"),
            (O::Kill | O::Pause | O::Update | O::Mounts, S::Stopped) => anyhow!("container not running"),
            (O::Delete, _) => anyhow!("cannot delete container {id} that is not stopped: {self}"),
            (O::Exec, S::Paused) => {
                anyhow!("cannot exec in a paused container (use --ignore-paused to override)")
            }
            (O::Exec | O::ExecPaused, S::Stopped) => anyhow!("cannot exec in a stopped container"),
            (O::Exec | O::ExecPaused, _) => anyhow!("cannot exec in a container that is {self}"),
            (O::Pause, _) => anyhow!("container not running or created: {self}"),
            (O::Resume, _) => anyhow!("container not paused: {self}"),
            (O::Mounts, _) => anyhow!("cannot mount in a container that is {self}"),
            (O::Update, _) => anyhow!("cannot update a container that is {self}"),
            (O::Checkpoint, _) => anyhow!("container cannot be checkpointed in {self} state"),
        };
        Err(refused)
    }
}

/// No container of that id.
#[derive(Debug)]
pub struct NotFound(pub ContainerId);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {:?} does not exist", self.0.as_str())
    }
}

impl std::error::Error for NotFound {}

/// The directory that holds the state of all containers.
#[derive(Debug)]
pub struct StateRoot(PathBuf);

impl StateRoot {
    /// Names the root; it is made by the first container.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Claims the id for a new container, whose directory is locked until it is dropped.
    ///
    /// # Errors
    ///
    /// The id is taken.
    pub fn claim(&self, id: &ContainerId) -> Result<Locked> {
        use std::os::unix::fs::DirBuilderExt;
        let user = rootless::ordinary_user();
        if let Some(user) = user {
            self.check_owner(user)?;
        }
        let make_root = || {
            let mut root = fs::DirBuilder::new();
            // Sticky: what cleans up a user's runtime directory leaves it alone (XDG Base Directory Specification).
            let mode = if user.is_some() { 0o1700 } else { 0o700 };
            root.mode(mode).recursive(true).create(&self.0)
        };
        let path = self.0.join(id.as_str());
        let make = || fs::DirBuilder::new().mode(0o711).create(&path);
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_root().and_then(|()| make()),
            made => made,
        };
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(anyhow!("container with given ID already exists: {id}"));
            }
            Err(error) => {
                let hint = match user {
                    Some(_) => ": set XDG_RUNTIME_DIR to a directory of the user's, or give --root",
                    None => "",
                };
                return Err(error).with_context(|| format!("mkdir {}{hint}", path.display()));
            }
        }
        // Whoever deletes it in between, or has made it again, has the name: we were too late.
        let directory = self.open(id)?;
        match directory.lock(FlockArg::LockExclusiveNonblock)? {
            Some(locked) if locked.record()?.is_none() => Ok(locked),
            _ => Err(anyhow!("container with given ID already exists: {id}")),
        }
    }

    /// Who could change the state of containers could have hooks run by the next verb. For root that is root.
    fn check_owner(&self, user: Uid) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        const OTHERS_WRITE: u32 = 0o022;
        let Ok(found) = fs::metadata(&self.0) else {
            return Ok(());
        };
        if found.uid() != user.as_raw() || found.mode() & OTHERS_WRITE != 0 {
            return Err(anyhow!(
                "{}: is of user {}, with mode {:04o}: the state of containers of user {user} needs a directory of its \
                 own that nobody else can write to: set XDG_RUNTIME_DIR to such a one, or give --root",
                self.0.display(),
                found.uid(),
                found.mode() & 0o7777
            ));
        }
        Ok(())
    }

    /// Opens a container to look at it.
    ///
    /// # Errors
    ///
    /// [`NotFound`]; to an ordinary user, that it is another's.
    pub fn open(&self, id: &ContainerId) -> Result<Directory> {
        let path = self.0.join(id.as_str());
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match nix::fcntl::open(&path, flags, Mode::empty()) {
            Ok(fd) => {
                if let Some(user) = rootless::ordinary_user() {
                    let owner = fstat(&fd).call(|| format!("fstat({path:?})"))?.st_uid;
                    if owner != user.as_raw() {
                        return Err(anyhow!(
                            "container {:?}: its state is of user {owner}, not of user {user}, who runs rtc",
                            id.as_str()
                        ));
                    }
                }
                Ok(Directory {
                    id: id.clone(),
                    path,
                    fd,
                })
            }
            Err(Errno::ENOENT) => Err(NotFound(id.clone()).into()),
            Err(errno) => Err(errno).call(|| format!("open({path:?})")).map_err(Into::into),
        }
    }

    /// Opens a container to change it, waiting for whoever does so now.
    ///
    /// # Errors
    ///
    /// [`NotFound`], also where it was deleted while we waited.
    pub fn lock(&self, id: &ContainerId) -> Result<Locked> {
        let locked = self.open(id)?.lock(FlockArg::LockExclusive)?;
        locked.ok_or_else(|| NotFound(id.clone()).into())
    }

    /// As [`StateRoot::lock`], but `None` where somebody changes it now.
    ///
    /// # Errors
    ///
    /// [`NotFound`].
    pub fn try_lock(&self, id: &ContainerId) -> Result<Option<Locked>> {
        self.open(id)?.lock(FlockArg::LockExclusiveNonblock)
    }

    /// The ids of all containers, sorted. A missing root has none.
    ///
    /// # Errors
    ///
    /// The root can't be read.
    pub fn ids(&self) -> Result<Vec<ContainerId>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("read the state root {}", self.0.display()))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("read the state root {}", self.0.display()))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(Ok(id)) = entry.file_name().to_str().map(str::parse)
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// A container's state directory, open.
#[derive(Debug)]
pub struct Directory {
    id: ContainerId,
    path: PathBuf,
    fd: OwnedFd,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks it. `None` where it was deleted meanwhile, or (non-blocking) somebody else has the lock.
    fn lock(self, how: FlockArg) -> Result<Option<Locked>> {
        let mut duplicate = self.fd.try_clone().context("dup")?;
        let lock = loop {
            match Flock::lock(duplicate, how) {
                Ok(lock) => break lock,
                Err((fd, Errno::EINTR)) => duplicate = fd,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno).call(|| "flock".into()).context("lock the container"),
            }
        };
        let deleted = fstat(&self.fd).call(|| "fstat".into())?.st_nlink == 0;
        Ok((!deleted).then_some(Locked {
            directory: self,
            lock,
        }))
    }

    /// What create recorded; `None` where create died before it could.
    ///
    /// # Errors
    ///
    /// The record is broken.
    pub fn record(&self) -> Result<Option<Record>> {
        let Some(text) = self.read(RECORD)? else {
            return Ok(None);
        };
        bundle::parse_json(&text).map(Some).with_context(|| {
            format!(
                "{}: broken state; delete --force removes it",
                self.path.join(RECORD).display()
            )
        })
    }

    /// What create recorded.
    ///
    /// # Errors
    ///
    /// There is none, or it is broken.
    pub fn complete_record(&self) -> Result<Record> {
        self.record()?.ok_or_else(|| {
            anyhow!(
                "container {:?} was never completely created; delete --force removes it",
                self.id.as_str()
            )
        })
    }

    /// The configuration at create, as bytes.
    pub fn config(&self) -> Result<Vec<u8>> {
        self.read(CONFIG)?
            .ok_or_else(|| anyhow!("{}: missing", self.path.join(CONFIG).display()))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(self, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(file::read_all(&fd).with_context(|| format!("read {name}"))?)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno)
                .call(|| format!("openat({name:?})"))
                .map_err(Into::into),
        }
    }

    /// How the container is now.
    ///
    /// # Errors
    ///
    /// The kernel can't be asked.
    pub fn status(&self, record: &Record) -> Result<Status> {
        if record.pid == 0 {
            return Ok(Status::Creating);
        }
        if !is_alive(record) {
            return Ok(Status::Stopped);
        }
        if !record.set_up {
            return Ok(Status::Creating);
        }
        if record.gated {
            match gate::waiting(self)? {
                Waiting::NotYet => return Ok(Status::Creating),
                Waiting::Yes if !record.cgroup.is_frozen().unwrap_or(false) => return Ok(Status::Created),
                Waiting::Yes | Waiting::NoMore => {}
            }
        }
        // A cgroup that is gone is not frozen.
        Ok(if record.cgroup.is_frozen().unwrap_or(false) {
            Status::Paused
        } else {
            Status::Running
        })
    }
}

/// Whether init is alive: a process of its pid and start time that is no zombie.
fn is_alive(record: &Record) -> bool {
    process_stat(Pid::from_raw(record.pid))
        .is_some_and(|(state, start)| start == record.start_time && state != 'Z' && state != 'X')
}

/// State and start time of a process (proc_pid_stat(5), fields 3 and 22); `None` where there is none. No error is made
/// of that: it is what most looks at a container that has just ended find.
#[must_use]
pub fn process_stat(pid: Pid) -> Option<(char, u64)> {
    let path = format!("/proc/{pid}/stat");
    let fd = nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    // The kernel gives all of it at once: 52 fields, of which only the name is longer than a number.
    let mut buffer = [0; 2048];
    let length = nix::unistd::read(&fd, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    // The name, field 2, may hold anything, closing parentheses as well.
    let after_name = text.rfind(')').map(|at| &text[at + 1..])?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// A container's state directory, open and locked.
#[derive(Debug)]
pub struct Locked {
    directory: Directory,
    lock: Flock<OwnedFd>,
}

impl std::ops::Deref for Locked {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.directory
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Locked {
    /// What no child may share: it would hold the lock for us.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.directory.fd.as_raw_fd(), self.lock.as_raw_fd()]
    }

    /// Writes the record, whole or not at all.
    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).context("state.json")?;
        self.write(RECORD_NEW, &text)?;
        renameat(self, RECORD_NEW, self, RECORD)
            .call(|| format!("renameat({RECORD:?})"))
            .map_err(Into::into)
    }

    /// Keeps the configuration as it is now.
    pub fn save_config(&self, raw: &[u8]) -> Result<()> {
        self.write(CONFIG, raw)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            openat(self, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).call(|| format!("openat({name:?})"))?;
        File::from(fd)
            .write_all(bytes)
            .with_context(|| format!("write {}", self.path.join(name).display()))
    }

    /// Forgets the container.
    ///
    /// # Errors
    ///
    /// A file can't be removed.
    pub fn remove(self) -> Result<()> {
        match fs::remove_dir_all(self.path.join(notify::DIRECTORY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("remove {}", self.path.join(notify::DIRECTORY).display()));
            }
            _ => {}
        }
        let mut listing =
            nix::dir::Dir::openat(&self, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .call(|| format!("opendir({:?})", self.path))?;
        for entry in listing.iter() {
            let entry = entry.call(|| format!("readdir({:?})", self.path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match unlinkat(&self, name, UnlinkatFlags::NoRemoveDir) {
                // A mount point of a restore that was killed.
                Err(Errno::EISDIR) => unlinkat(&self, name, UnlinkatFlags::RemoveDir),
                removed => removed,
            }
            .call(|| format!("unlinkat({name:?})"))?;
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("rmdir {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_allows_what_the_specification_says() {
        let id: ContainerId = "web".parse().unwrap();
        let allowed = |status: Status| {
            use Operation as O;
            [
                O::Start,
                O::Kill,
                O::Delete,
                O::Exec,
                O::Pause,
                O::Resume,
                O::Update,
                O::Checkpoint,
            ]
            .map(|operation| status.allows(operation, &id).is_ok())
        };
        assert_eq!(
            allowed(Status::Created),
            [true, true, true, true, true, false, true, false]
        );
        assert_eq!(
            allowed(Status::Running),
            [false, true, false, true, true, false, true, true]
        );
        assert_eq!(
            allowed(Status::Paused),
            [false, true, false, false, false, true, true, true]
        );
        assert_eq!(
            allowed(Status::Stopped),
            [false, false, true, false, false, false, false, false]
        );
        assert_eq!(
            allowed(Status::Creating),
            [false, true, false, false, false, false, false, false]
        );
    }

    #[test]
    fn an_own_stat_has_a_state_and_a_start_time() {
        let (state, start) = process_stat(nix::unistd::getpid()).unwrap();
        assert!("RSD".contains(state) && start > 0);
    }

    #[test]
    fn an_id_can_be_claimed_once_and_is_gone_after_its_removal() {
        let root = StateRoot::new(std::env::temp_dir().join(format!("rtc-state-{}", std::process::id())));
        let id: ContainerId = "a".parse().unwrap();
        let first = root.claim(&id).unwrap();
        assert!(format!("{:#}", root.claim(&id).unwrap_err()).contains("already exists"));
        assert_eq!(root.ids().unwrap(), std::slice::from_ref(&id));
        first.save_config(b"{}").unwrap();
        first.remove().unwrap();
        assert!(root.open(&id).unwrap_err().is::<NotFound>());
        fs::remove_dir(root.path()).unwrap();
    }
}
