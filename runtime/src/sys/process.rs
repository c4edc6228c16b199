//! What a process is and may do: signals by pidfd, credentials, capabilities, limits, scheduling, keyring.
#![expect(unsafe_code, reason = "these calls have no safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{Errno, Error, Named, Result, checked};

/// A descriptor for a process by its id (pidfd_open(2), Linux 5.3).
///
/// # Errors
///
/// `ESRCH` where no process has the id.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = checked(returned, || format!("pidfd_open({pid})"))?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to exactly this process (pidfd_send_signal(2), Linux 5.1). Signal 0 only asks whether it is there.
///
/// # Errors
///
/// `ESRCH` where it has ended and was collected.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means what kill(2) does.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    checked(returned, || format!("pidfd_send_signal({signal})")).map(drop)
}

/// Ends this copy of a process without running what the original registered to run at its end.
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// What a shell would report: the code, or 128 and the signal.
    #[must_use]
    pub fn status(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "it exited with status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal} ended it"),
        }
    }
}

/// Waits for a child, collects it and tells how it ended (waitid(2), `P_PIDFD`, Linux 5.4). Realtime signals too, which
/// nix has no name for.
///
/// # Errors
///
/// `ECHILD` where it is no child or was collected already.
pub fn wait(pidfd: impl AsFd) -> Result<Exit> {
    loop {
        // SAFETY: siginfo_t is plain data, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let fd = pidfd.as_fd().as_raw_fd() as libc::id_t;
        // SAFETY: the kernel fills `info`, which outlives the call.
        let returned = unsafe { libc::waitid(libc::P_PIDFD, fd, &raw mut info, libc::WEXITED) };
        match checked(returned.into(), || "waitid(P_PIDFD)".into()) {
            Err(Error {
                errno: Errno::EINTR, ..
            }) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                // SAFETY: for a child that ended, waitid fills the fields of SIGCHLD.
                let status = unsafe { info.si_status() };
                let exited = info.si_code == libc::CLD_EXITED;
                return Ok(if exited {
                    Exit::Code(status)
                } else {
                    Exit::Signal(status)
                });
            }
        }
    }
}

/// Whether a process ends within `patience`, be it a child or not. It is not collected.
///
/// # Errors
///
/// As poll(2).
pub fn has_ended(pidfd: impl AsFd, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            polled => return Ok(polled.call(|| "poll".into())? > 0),
        }
    }
}

/// Collects every child that has ended, but the one with this pid: orphans that a subreaper got.
pub fn reap_orphans(but: Pid) {
    loop {
        // SAFETY: siginfo_t is plain data, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let peek = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the kernel fills `info`, which outlives the call.
        let returned = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, peek) };
        // SAFETY: waitid fills this field; it stays 0 where no child has ended.
        let pid = unsafe { info.si_pid() };
        if returned == -1 || pid == 0 || pid == but.as_raw() {
            return;
        }
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
    }
}

/// Joins several namespaces of the process behind a pidfd at once (setns(2), Linux 5.8); `CLONE_NEWPID` is for children.
pub fn setns(target: impl AsFd, namespaces: libc::c_int) -> Result<()> {
    // SAFETY: takes no pointers; this process has a single thread, so no other one is left behind.
    let returned = unsafe { libc::setns(target.as_fd().as_raw_fd(), namespaces) };
    checked(returned.into(), || format!("setns({namespaces:#x})")).map(drop)
}

/// Leaves for new namespaces (unshare(2)).
pub fn unshare(namespaces: libc::c_int) -> Result<()> {
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::unshare(namespaces) };
    checked(returned.into(), || format!("unshare({namespaces:#x})")).map(drop)
}

/// The user namespace that owns a namespace (`NS_GET_USERNS`, Linux 4.9).
///
/// # Errors
///
/// `EPERM` where it is none of the caller's user namespace or below; `ENOTTY` where the descriptor is no namespace.
pub fn owner_of_namespace(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: this request takes no argument.
    let returned = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    let owner = checked(returned.into(), || "ioctl(NS_GET_USERNS)".into())?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(owner as i32) })
}

/// The kind of a namespace descriptor as its `CLONE_NEW*` flag (`NS_GET_NSTYPE`, Linux 4.11).
///
/// # Errors
///
/// `ENOTTY` where the descriptor is no namespace.
pub fn namespace_kind(namespace: impl AsFd) -> Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument.
    let returned = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    checked(returned.into(), || "ioctl(NS_GET_NSTYPE)".into()).map(|kind| kind as libc::c_int)
}

/// Sets the groups, then the ids of the group and the user, for good (real, effective, saved).
/// No groups call where `groups` is `None`: a user namespace may deny it.
pub fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    if let Some(groups) = groups {
        // SAFETY: the pointer is valid for the length given. The bare system call acts on this thread, the only one.
        let returned = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        checked(returned, || format!("setgroups({groups:?})"))?;
    }
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    checked(returned, || format!("setresgid({gid})"))?;
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    checked(returned, || format!("setresuid({uid})")).map(drop)
}

/// The sets of capset(2): a bit per capability number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What is checked.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What an executed file may inherit.
    pub inheritable: u64,
}

/// Sets the three sets of this process in one call.
///
/// # Errors
///
/// `EPERM` where a set would hold what the process does not have.
pub fn capset(sets: CapabilitySets) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    }; // _LINUX_CAPABILITY_VERSION_3
    let data = [half(0), half(32)];
    // SAFETY: header and data are laid out as capset(2) says for version 3 and outlive the call.
    let returned = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    checked(returned, || format!("capset({sets:x?})")).map(drop)
}

/// A prctl(2) that takes up to two numbers.
fn prctl(
    name: &'static str,
    option: libc::c_int,
    argument: libc::c_ulong,
    second: libc::c_ulong,
) -> Result<libc::c_int> {
    // SAFETY: the options used in this module take numbers only.
    let returned = unsafe { libc::prctl(option, argument, second, 0, 0) };
    checked(returned.into(), || format!("prctl({name}, {argument})")).map(|value| value as libc::c_int)
}

/// Drops a capability from the bounding set. `EINVAL` (a capability the kernel does not know) is told as `false`.
pub fn drop_bounding(capability: u8) -> Result<bool> {
    match prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, capability.into(), 0) {
        Ok(_) => Ok(true),
        Err(Error {
            errno: Errno::EINVAL, ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adds a capability to the ambient set; it must be permitted and inheritable already.
pub fn raise_ambient(capability: u8) -> Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    prctl(
        "PR_CAP_AMBIENT, RAISE",
        libc::PR_CAP_AMBIENT,
        raise,
        capability.into(),
    )
    .map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    prctl("PR_CAP_AMBIENT, CLEAR_ALL", libc::PR_CAP_AMBIENT, clear, 0).map(drop)
}

/// Keeps the permitted capabilities over the next change of the user id.
pub fn keep_capabilities() -> Result<()> {
    prctl("PR_SET_KEEPCAPS", libc::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

/// No program executed from here on gains privileges (Linux 3.5). Can't be undone.
pub fn set_no_new_privileges() -> Result<()> {
    prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Hides this process from ptrace and `/proc/<pid>` by others without privilege, until it executes a program.
pub fn set_non_dumpable() -> Result<()> {
    set_dumpable(false)
}

/// The effective user that this program was started by (getauxval(3)), as its user namespace numbers it. No system call.
#[must_use]
pub fn caller() -> nix::unistd::Uid {
    // SAFETY: takes and returns numbers.
    let user = unsafe { libc::getauxval(libc::AT_EUID) };
    nix::unistd::Uid::from_raw(user as u32)
}

/// Whether its user may trace this process and owns its files in `/proc/<pid>`.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    let value = libc::c_ulong::from(dumpable);
    prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, value, 0).map(drop)
}

/// Gives this process a core scheduling cookie of its own, which its children inherit: nobody else runs on another thread
/// of a processor core beside them (prctl(2) `PR_SCHED_CORE`, Linux 5.14).
///
/// # Errors
///
/// `EINVAL` on a kernel without it, `ENODEV` on a machine without such threads.
pub fn isolate_core() -> Result<()> {
    const PR_SCHED_CORE: libc::c_int = 62;
    const PR_SCHED_CORE_CREATE: libc::c_ulong = 1;
    // Pid 0 and type 0: this thread.
    prctl("PR_SCHED_CORE, CREATE", PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0).map(drop)
}

/// Orphans among the descendants become children of this process.
pub fn set_child_subreaper() -> Result<()> {
    prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// This process gets the signal when its parent ends.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    prctl(
        "PR_SET_PDEATHSIG",
        libc::PR_SET_PDEATHSIG,
        signal as libc::c_ulong,
        0,
    )
    .map(drop)
}

/// No signal is blocked, as a program expects at its start. SIGPIPE stays ignored until [`default_sigpipe`].
pub fn unblock_signals() -> Result<()> {
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .call(|| "sigprocmask".into())
}

/// For a process that has nothing to do but wait: the kernel reaps its children at once, and every signal stays pending.
pub fn ignore_children_and_block_signals() -> Result<()> {
    // SAFETY: SIG_IGN is no function that could be called.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    nix::sys::signal::SigSet::all()
        .thread_set_mask()
        .call(|| "sigprocmask".into())
}

/// No signal is ignored but SIGPIPE, whatever this process was started with: what it makes would inherit that.
pub fn default_signals() {
    for signal in 1..32 {
        if ![libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE].contains(&signal) {
            // SAFETY: SIG_DFL is a valid disposition, no handler is installed.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// A program expects SIGPIPE not to be ignored; while this process is ours, it would die of a hook that does not read.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition, no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// From here to the next `execve` this process exits when it is asked to: the first process of a PID namespace ignores
/// every signal that it has no handler for (pid_namespaces(7)).
pub fn exit_when_asked() {
    extern "C" fn exit_with(signal: libc::c_int) {
        exit(128 + signal)
    }
    let handler: extern "C" fn(libc::c_int) = exit_with;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the handler only calls _exit(2), which is safe in a signal handler.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// A limit of a process, 0 for this one (prlimit(2)); `resource` is one of `RLIMIT_*`.
pub fn set_rlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` outlives the call, the old value is not asked for.
    let returned = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, old) };
    checked(returned, || {
        format!("prlimit({resource}, soft {soft}, hard {hard})")
    })
    .map(drop)
}

/// Joins a new session keyring of this name, so that the caller's keys are out of reach (keyctl(2)).
///
/// # Errors
///
/// `ENOSYS` on a kernel without keyrings, `EDQUOT` at the user's quota.
pub fn join_session_keyring(name: &CStr) -> Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let returned = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    checked(returned, || format!("keyctl(JOIN_SESSION_KEYRING, {name:?})")).map(|serial| serial as i32)
}

/// Lets the process that executes next, of whatever user, search the session keyring (keyctl(2), `KEYCTL_SETPERM`).
pub fn set_keyring_permissions(serial: i32, permissions: u32) -> Result<()> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions) };
    checked(returned, || {
        format!("keyctl(SETPERM, {serial}, {permissions:#x})")
    })
    .map(drop)
}

/// `struct sched_attr` of sched_setattr(2), its first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedAttr {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`: -20 to 19.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`: 1 to 99.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub period: u64,
}

/// Sets the scheduling policy of this process.
pub fn set_scheduler(attributes: &SchedAttr) -> Result<()> {
    // SAFETY: the struct names its own size and outlives the call.
    let returned = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) };
    checked(returned, || format!("sched_setattr({attributes:?})")).map(drop)
}

/// Sets the I/O priority of this process' group: class in the top three bits of 16, level below (ioprio_set(2)).
pub fn set_io_priority(value: u16) -> Result<()> {
    const IOPRIO_WHO_PGRP: libc::c_int = 2;
    // SAFETY: takes no pointers.
    let returned =
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, libc::c_int::from(value)) };
    checked(returned, || format!("ioprio_set(PGRP, {value:#x})")).map(drop)
}

/// The CPUs this process may run on: bit n of word n / 64 for CPU n. No fixed number of CPUs (sched_setaffinity(2)).
pub fn set_affinity(pid: i32, mask: &[u64]) -> Result<()> {
    // SAFETY: the pointer is valid for the number of bytes given.
    let returned =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of_val(mask), mask.as_ptr()) };
    checked(returned, || format!("sched_setaffinity({mask:x?})")).map(drop)
}

/// Sets the execution domain (personality(2)).
pub fn set_personality(persona: libc::c_ulong) -> Result<()> {
    // SAFETY: takes no pointers.
    let returned = unsafe { libc::personality(persona) };
    checked(returned.into(), || format!("personality({persona:#x})")).map(drop)
}

/// Sets the NIS domain name of the UTS namespace.
pub fn set_domainname(name: &str) -> Result<()> {
    // SAFETY: the pointer is valid for the length given.
    let returned = unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) };
    checked(returned, || format!("setdomainname({name:?})")).map(drop)
}

/// Brings up the loopback interface of this network namespace (netdevice(7)).
pub fn bring_up_loopback() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .call(|| "socket(AF_INET)".into())?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::IFF_UP as libc::c_short,
        },
    };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    // SAFETY: the request holds a NUL-terminated name and the flags SIOCSIFFLAGS reads.
    let returned = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    checked(returned.into(), || "ioctl(SIOCSIFFLAGS, \"lo\", UP)".into()).map(drop)
}
