//! Who a container's process is and what it may do: read from `process` by the parent, taken on by the child.
//!
//! The order is forced by privileges, each step needing what a later one gives up: scheduling and limits, the seccomp
//! filter where it may not use no_new_privs, the bounding set, groups and user, the capability sets, no_new_privs.

use std::collections::HashSet;

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::Pid;
use oci_spec::runtime::{
    Capability, ExecCPUAffinity, IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimitType, Process, Scheduler, User,
};

use crate::process::memory_policy::MemoryPolicy;
use crate::rootless;
use crate::sys::Errno;
use crate::sys::process::{self, CapabilitySets, SchedAttr};

/// Numbers of the capabilities go up to this (linux/capability.h, `CAP_CHECKPOINT_RESTORE` is 40); the kernel says
/// where its own end.
const CAPABILITY_MAX: u8 = 63;

/// Numbers of CPUs are below this.
const CPUS_MAX: usize = 65_536;

/// The identity of a container's process.
#[derive(Debug)]
pub struct Identity {
    /// User, as the container's user namespace counts.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None` where they can't be set (a user namespace that denies it, user_namespaces(7)).
    groups: Option<Vec<u32>>,
    umask: Option<u32>,
    capabilities: Capabilities,
    rlimits: Vec<Rlimit>,
    /// Whether no program gains privileges from here on.
    pub no_new_privileges: bool,
    scheduler: Option<SchedAttr>,
    io_priority: Option<u16>,
    personality: Option<u64>,
    memory_policy: Option<MemoryPolicy>,
    /// CPUs to run on once in the cgroup; `None`: all that the cgroup has.
    affinity: Option<Vec<u64>>,
}

#[derive(Debug, Default)]
struct Capabilities {
    bounding: u64,
    sets: CapabilitySets,
    ambient: u64,
}

#[derive(Debug)]
struct Rlimit {
    resource: u32,
    name: String,
    soft: u64,
    hard: u64,
}

impl Identity {
    /// From a checked `process`, and `linux.personality`, `linux.memoryPolicy`.
    ///
    /// # Errors
    ///
    /// A list of CPUs or of memory nodes that is none.
    pub fn new(process: &Process, linux: &Linux) -> Result<Self> {
        let user = process.user();
        Ok(Self {
            uid: user.uid(),
            gid: user.gid(),
            groups: Some(groups(user)),
            umask: user.umask(),
            capabilities: capabilities(process),
            rlimits: rlimits(process),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            scheduler: process.scheduler().as_ref().map(scheduler),
            io_priority: process.io_priority().as_ref().map(|io| {
                let class: u16 = match io.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                class << 13 | u16::try_from(io.priority()).unwrap_or(0)
            }),
            personality: linux
                .personality()
                .as_ref()
                .map(|persona| match persona.domain() {
                    LinuxPersonalityDomain::PerLinux => 0,
                    LinuxPersonalityDomain::PerLinux32 => 8,
                }),
            memory_policy: linux
                .memory_policy()
                .as_ref()
                .map(MemoryPolicy::new)
                .transpose()?,
            affinity: final_affinity(process.exec_cpu_affinity().as_ref())?,
        })
    }

    /// Leaves the groups as they are: the user namespace denies setgroups(2) (user_namespaces(7)).
    ///
    /// # Errors
    ///
    /// There are groups to be set.
    pub fn keep_groups(&mut self) -> Result<()> {
        match self.groups.take() {
            Some(groups) if !groups.is_empty() => {
                bail!("process.user.additionalGids: {groups:?}: the user namespace denies setgroups")
            }
            _ => Ok(()),
        }
    }

    /// Leaves the groups as they are, whatever is configured (annotation `run.oci.keep_original_groups`).
    pub fn keep_original_groups(&mut self) {
        self.groups = None;
    }

    /// Becomes root of a user namespace that the process has just entered: files made from here on belong to it.
    ///
    /// # Errors
    ///
    /// The namespace maps no root, or denies the groups that are asked for.
    pub fn become_root(&mut self) -> Result<()> {
        if self.groups.is_none() {
            return process::set_ids(0, 0, None).context("become root of the user namespace");
        }
        match process::set_ids(0, 0, Some(&[])) {
            Err(error) if error.errno == Errno::EPERM && error.call.starts_with("setgroups") => {
                self.keep_groups()?;
                process::set_ids(0, 0, None)
            }
            done => done,
        }
        .context("become root of the user namespace")
    }

    /// The CPUs to run on, once in the cgroup: those that are named (for `exec`), or all that the cgroup has, whatever
    /// the caller was bound to (since Linux 6.2 a cgroup alone does not undo that).
    ///
    /// # Errors
    ///
    /// The cgroup has none of those that are named.
    pub fn apply_affinity(&self) -> Result<()> {
        match &self.affinity {
            Some(mask) => process::set_affinity(0, mask).context("process.execCPUAffinity.final"),
            None => {
                // A caller that is not allowed to is bound as before.
                let _ = process::set_affinity(0, &[u64::MAX; CPUS_MAX / 64 / 8]);
                Ok(())
            }
        }
    }

    /// What needs the privileges that [`Identity::assume`] gives up.
    ///
    /// # Errors
    ///
    /// As the calls, with the field.
    pub fn apply_limits(&self) -> Result<()> {
        if let Some(attributes) = &self.scheduler {
            process::set_scheduler(attributes).context("process.scheduler")?;
        }
        if let Some(priority) = self.io_priority {
            process::set_io_priority(priority).context("process.ioPriority")?;
        }
        if let Some(persona) = self.personality {
            process::set_personality(persona).context("linux.personality")?;
        }
        if let Some(policy) = &self.memory_policy {
            policy.apply()?;
        }
        for limit in &self.rlimits {
            limit.set(0)?;
        }
        Ok(())
    }

    /// Becomes the user, with the capabilities of the container. Returns what could not be had and stops nothing.
    ///
    /// # Errors
    ///
    /// As capabilities(7), setresuid(2), setgroups(2).
    pub fn assume(&self) -> Result<Vec<String>> {
        let Capabilities {
            bounding,
            sets,
            ambient,
        } = self.capabilities;
        for capability in 0..=CAPABILITY_MAX {
            if bounding >> capability & 1 == 0
                && !process::drop_bounding(capability).context("process.capabilities.bounding")?
            {
                break;
            }
        }
        if self.uid != 0 {
            process::keep_capabilities()?;
        }
        self.assume_ids().context("process.user")?;
        process::capset(sets).context("process.capabilities")?;
        process::clear_ambient()?;
        let mut warnings = Vec::new();
        for capability in (0..=CAPABILITY_MAX).filter(|capability| ambient >> capability & 1 == 1) {
            if let Err(error) = process::raise_ambient(capability) {
                let name = capability_name(capability);
                warnings.push(format!(
                    "can't raise ambient capability {name}: {}",
                    error.errno.desc()
                ));
            }
        }
        if let Some(umask) = self.umask {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        }
        if self.no_new_privileges {
            process::set_no_new_privileges()?;
        }
        Ok(warnings)
    }
}

impl Identity {
    /// Group and user. Root of a user namespace that denies setgroups(2) keeps the groups it has, as no others can be had;
    /// none may have been asked for.
    fn assume_ids(&self) -> Result<()> {
        match process::set_ids(self.uid, self.gid, self.groups.as_deref()) {
            Err(error)
                if error.errno == Errno::EPERM
                    && error.call.starts_with("setgroups")
                    && rootless::in_user_namespace() =>
            {
                if let Some(groups) = self.groups.as_ref().filter(|groups| !groups.is_empty()) {
                    bail!("additionalGids: {groups:?}: the user namespace denies setgroups");
                }
                Ok(process::set_ids(self.uid, self.gid, None)?)
            }
            done => Ok(done?),
        }
    }
}

/// Sets the limits of a process that is about to be in a user namespace, from which none could be raised.
///
/// # Errors
///
/// As prlimit(2).
pub fn set_rlimits(pid: Pid, process: &Process) -> Result<()> {
    rlimits(process)
        .iter()
        .try_for_each(|limit| limit.set(pid.as_raw()))
}

impl Rlimit {
    fn set(&self, pid: i32) -> Result<()> {
        process::set_rlimit(pid, self.resource, self.soft, self.hard)
            .with_context(|| format!("process.rlimits: set {}", self.name))
    }
}

fn groups(user: &User) -> Vec<u32> {
    user.additional_gids().clone().unwrap_or_default()
}

/// All capabilities that a process' configuration names, in any of its sets: a bit per number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed(pub u64);

impl Allowed {
    /// Those of `process.capabilities`.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let Capabilities {
            bounding,
            sets,
            ambient,
        } = capabilities(process);
        Self(bounding | sets.effective | sets.permitted | sets.inheritable | ambient)
    }
}

fn capabilities(process: &Process) -> Capabilities {
    let Some(capabilities) = process.capabilities() else {
        return Capabilities::default();
    };
    let sets = CapabilitySets {
        effective: bits(capabilities.effective().as_ref()),
        permitted: bits(capabilities.permitted().as_ref()),
        inheritable: bits(capabilities.inheritable().as_ref()),
    };
    Capabilities {
        bounding: bits(capabilities.bounding().as_ref()),
        sets,
        // The others were warned about when the configuration was checked.
        ambient: bits(capabilities.ambient().as_ref()) & sets.permitted & sets.inheritable,
    }
}

fn bits(set: Option<&HashSet<Capability>>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |bits, capability| bits | known(*capability).bitmask())
}

/// The number of a capability of the specification: the two crates spell the same names.
fn known(capability: Capability) -> caps::Capability {
    use Capability as Spec;
    use caps::Capability as Caps;
    match capability {
        Spec::AuditControl => Caps::CAP_AUDIT_CONTROL,
        Spec::AuditRead => Caps::CAP_AUDIT_READ,
        Spec::AuditWrite => Caps::CAP_AUDIT_WRITE,
        Spec::BlockSuspend => Caps::CAP_BLOCK_SUSPEND,
        Spec::Bpf => Caps::CAP_BPF,
        Spec::CheckpointRestore => Caps::CAP_CHECKPOINT_RESTORE,
        Spec::Chown => Caps::CAP_CHOWN,
        Spec::DacOverride => Caps::CAP_DAC_OVERRIDE,
        Spec::DacReadSearch => Caps::CAP_DAC_READ_SEARCH,
        Spec::Fowner => Caps::CAP_FOWNER,
        Spec::Fsetid => Caps::CAP_FSETID,
        Spec::IpcLock => Caps::CAP_IPC_LOCK,
        Spec::IpcOwner => Caps::CAP_IPC_OWNER,
        Spec::Kill => Caps::CAP_KILL,
        Spec::Lease => Caps::CAP_LEASE,
        Spec::LinuxImmutable => Caps::CAP_LINUX_IMMUTABLE,
        Spec::MacAdmin => Caps::CAP_MAC_ADMIN,
        Spec::MacOverride => Caps::CAP_MAC_OVERRIDE,
        Spec::Mknod => Caps::CAP_MKNOD,
        Spec::NetAdmin => Caps::CAP_NET_ADMIN,
        Spec::NetBindService => Caps::CAP_NET_BIND_SERVICE,
        Spec::NetBroadcast => Caps::CAP_NET_BROADCAST,
        Spec::NetRaw => Caps::CAP_NET_RAW,
        Spec::Perfmon => Caps::CAP_PERFMON,
        Spec::Setgid => Caps::CAP_SETGID,
        Spec::Setfcap => Caps::CAP_SETFCAP,
        Spec::Setpcap => Caps::CAP_SETPCAP,
        Spec::Setuid => Caps::CAP_SETUID,
        Spec::SysAdmin => Caps::CAP_SYS_ADMIN,
        Spec::SysBoot => Caps::CAP_SYS_BOOT,
        Spec::SysChroot => Caps::CAP_SYS_CHROOT,
        Spec::SysModule => Caps::CAP_SYS_MODULE,
        Spec::SysNice => Caps::CAP_SYS_NICE,
        Spec::SysPacct => Caps::CAP_SYS_PACCT,
        Spec::SysPtrace => Caps::CAP_SYS_PTRACE,
        Spec::SysRawio => Caps::CAP_SYS_RAWIO,
        Spec::SysResource => Caps::CAP_SYS_RESOURCE,
        Spec::SysTime => Caps::CAP_SYS_TIME,
        Spec::SysTtyConfig => Caps::CAP_SYS_TTY_CONFIG,
        Spec::Syslog => Caps::CAP_SYSLOG,
        Spec::WakeAlarm => Caps::CAP_WAKE_ALARM,
    }
}

fn capability_name(number: u8) -> String {
    let named = caps::all()
        .into_iter()
        .find(|capability| capability.index() == number);
    named.map_or_else(|| number.to_string(), |capability| capability.to_string())
}

fn rlimits(process: &Process) -> Vec<Rlimit> {
    let limits = process.rlimits().iter().flatten();
    limits
        .map(|limit| Rlimit {
            resource: rlimit_number(limit.typ()),
            name: limit.typ().to_string(),
            soft: limit.soft(),
            hard: limit.hard(),
        })
        .collect()
}

fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// As linux/sched.h and linux/sched/types.h number policies and flags.
fn scheduler(scheduler: &Scheduler) -> SchedAttr {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

fn final_affinity(affinity: Option<&ExecCPUAffinity>) -> Result<Option<Vec<u64>>> {
    let list = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref());
    list.filter(|list| !list.is_empty())
        .map(|list| cpu_mask(list).with_context(|| format!("process.execCPUAffinity.final: {list:?}")))
        .transpose()
}

/// A CPU list (`0-3,7`) as a mask for [`process::set_affinity`].
///
/// # Errors
///
/// What is no list of numbers and ranges below 65,536.
pub fn cpu_mask(list: &str) -> Result<Vec<u64>> {
    let mut mask = Vec::new();
    for range in list.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| -> Result<usize> {
            let cpu: usize = text
                .trim()
                .parse()
                .map_err(|_| anyhow!("{text:?} is no CPU number"))?;
            if cpu < CPUS_MAX {
                Ok(cpu)
            } else {
                Err(anyhow!("there is no CPU {cpu}"))
            }
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(anyhow!("the range {range:?} ends before it starts"));
        }
        for cpu in first..=last {
            if mask.len() <= cpu / 64 {
                mask.resize(cpu / 64 + 1, 0);
            }
            mask[cpu / 64] |= 1 << (cpu % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_list_becomes_a_mask() {
        assert_eq!(cpu_mask("0-2,5").unwrap(), [0b10_0111]);
        assert_eq!(cpu_mask("64, 66").unwrap(), [0, 0b101]);
    }

    #[test]
    fn what_is_no_cpu_list_is_refused() {
        for list in ["", "a", "3-1", "0-", "-1", "0,,1", "70000"] {
            assert!(cpu_mask(list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn no_capabilities_are_none_at_all() {
        let process: Process = serde_json::from_str(r#"{"user":{},"cwd":"/"}"#).unwrap();
        let Capabilities {
            bounding,
            sets,
            ambient,
        } = capabilities(&process);
        assert_eq!((bounding, sets, ambient), (0, CapabilitySets::default(), 0));
    }

    #[test]
    fn capabilities_have_the_numbers_of_the_kernel() {
        let process: Process = serde_json::from_str(
            r#"{"user":{},"cwd":"/","capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]}}"#,
        )
        .unwrap();
        assert_eq!(capabilities(&process).bounding, 1 | 1 << 21 | 1 << 40);
    }
}
