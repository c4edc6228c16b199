//! The default seccomp profile: what ordinary programs call. Everything else fails with EPERM, or with ENOSYS where it is
//! newer than all that is named here, so that programs fall back to something older (the runtime's way).
//!
//! Left out are calls that made holes before or that nobody needs: `io_uring_*` (most kernel exploits of the last years, and
//! it does what other calls do past this filter), `keyctl` and its kin (keys are not of a namespace), `userfaultfd` (makes
//! races of kernel memory easy to win), `kexec_*`, `swapon`, `nfsservctl` and other relics. Some come back with the
//! capability that the kernel asks for anyway: who has it may as well call.

use nix::libc;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// What every program may call, by subject.
const ALLOWED: [&str; 11] = [
    // Files.
    "_llseek access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 \
     dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown \
     fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock \
     fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 \
     futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 lgetxattr link linkat \
     listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat \
     mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 \
     pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename \
     renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 \
     statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink \
     unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev",
    // Waiting for files and events.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
     io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
     mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages",
    // Processes. Since Linux 4.8 a tracer can't get past this filter.
    "execve execveat exit exit_group fork getcpu getpgid getpgrp getpid getppid getsid gettid pidfd_open \
     pidfd_send_signal prctl process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall \
     set_tid_address setpgid setsid uname uretprobe vfork wait4 waitid waitpid",
    // Threads.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area \
     rseq set_robust_list set_thread_area",
    // Who it is.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
     getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid \
     setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
     setreuid setreuid32 setuid setuid32",
    // Signals.
    "kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill \
     tkill",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer \
     time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
     timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
     times",
    // Scheduling and limits.
    "getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield setpriority setrlimit sysinfo ugetrlimit",
    // Sockets but for making one, and the other ways to talk: System V, POSIX message queues.
    "accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify \
     mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl \
     msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop \
     semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown \
     socketcall socketpair",
    // Random numbers, and what makes a program's own sandbox.
    "getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
];

#[cfg(target_arch = "x86_64")]
const OF_MACHINE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const OF_MACHINE: &str = "breakpoint cacheflush set_tls sync_file_range2";
#[cfg(target_arch = "riscv64")]
const OF_MACHINE: &str = "riscv_flush_icache riscv_hwprobe";
#[cfg(target_arch = "powerpc64")]
const OF_MACHINE: &str = "swapcontext sync_file_range2";
#[cfg(target_arch = "s390x")]
const OF_MACHINE: &str = "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr";
#[cfg(target_arch = "loongarch64")]
const OF_MACHINE: &str = "";

/// ABIs of this machine: the kernel runs programs of the 32-bit ones, too.
#[cfg(target_arch = "x86_64")]
const ABIS: &[Arch] = &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
#[cfg(target_arch = "aarch64")]
const ABIS: &[Arch] = &[Arch::ScmpArchAarch64, Arch::ScmpArchArm];
#[cfg(target_arch = "riscv64")]
const ABIS: &[Arch] = &[Arch::ScmpArchRiscv64];
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
const ABIS: &[Arch] = &[Arch::ScmpArchPpc64le];
#[cfg(all(target_arch = "powerpc64", target_endian = "big"))]
const ABIS: &[Arch] = &[Arch::ScmpArchPpc64];
#[cfg(target_arch = "s390x")]
const ABIS: &[Arch] = &[Arch::ScmpArchS390x, Arch::ScmpArchS390];
#[cfg(target_arch = "loongarch64")]
const ABIS: &[Arch] = &[Arch::ScmpArchLoongarch64];

/// What a capability brings.
const WITH_CAPABILITY: [(Capability, &str); 14] = [
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listns lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree \
         open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns \
         syslog umount umount2 unshare",
    ),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Personalities (personality(2)): Linux, of 32 bits, both without the release's major number; and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEW*`: namespaces, among them that of users, with which anyone is root.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Which argument of `clone` are the flags.
const CLONE_FLAGS: usize = if cfg!(target_arch = "s390x") { 1 } else { 0 };

/// Of address families all below this one, `AF_ALG`: the kernel's cryptography has had holes, and programs have their own.
const AF_ALG: u64 = 38;
/// Those above it but `AF_VSOCK` (40), which leads to the hypervisor and to other virtual machines: `AF_NFC`, `AF_KCM`,
/// `AF_QIPCRTR`, `AF_SMC`, `AF_XDP`, `AF_MCTP`. One by one: a comparison would let through what the kernel cuts to 32 bits.
const FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// For a container that has these capabilities.
pub(super) fn profile(held: impl Fn(Capability) -> bool) -> LinuxSeccomp {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno};
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpLt, ScmpCmpMaskedEq};
    let allow = |names: &str, arg| rule(names, ScmpActAllow, None, arg);
    let mut rules: Vec<LinuxSyscall> = ALLOWED.iter().map(|names| allow(names, None)).collect();
    rules.push(allow(OF_MACHINE, None));
    rules.push(allow("socket", argument(0, ScmpCmpLt, AF_ALG, None)));
    for family in FAMILIES {
        rules.push(allow("socket", argument(0, ScmpCmpEq, family, None)));
    }
    for personality in PERSONALITIES {
        rules.push(allow("personality", argument(0, ScmpCmpEq, personality, None)));
    }
    let mut added: Vec<&str> = Vec::new();
    for (capability, names) in WITH_CAPABILITY {
        if held(capability) {
            added.extend(names.split(' '));
        }
    }
    // Two capabilities bring the same.
    added.sort_unstable();
    added.dedup();
    if !added.contains(&"clone") {
        rules.push(allow(
            "clone",
            argument(CLONE_FLAGS, ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0)),
        ));
        // Its flags are in memory, where no filter sees them: C libraries fall back to clone.
        rules.push(rule(
            "clone3",
            ScmpActErrno,
            Some(libc::ENOSYS.cast_unsigned()),
            None,
        ));
    }
    rules.push(allow(&added.join(" "), None));
    rules.retain(|rule| !rule.names().is_empty());
    LinuxSeccompBuilder::default()
        .default_action(ScmpActErrno)
        .default_errno_ret(libc::EPERM.cast_unsigned())
        .architectures(ABIS)
        .syscalls(rules)
        .build()
        .unwrap_or_default()
}

fn argument(
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    second: Option<u64>,
) -> Option<LinuxSeccompArg> {
    let builder = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value);
    let builder = match second {
        Some(second) => builder.value_two(second),
        None => builder,
    };
    builder.build().ok()
}

fn rule(
    names: &str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    argument: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let names: Vec<String> = names.split_ascii_whitespace().map(str::to_owned).collect();
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if let Some(argument) = argument {
        builder = builder.args([argument]);
    }
    builder.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the profile does with a call, as the field's evaluation is: any rule that matches.
    fn allowed(profile: &LinuxSeccomp, name: &str, args: [u64; 6]) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            let holds = |arg: &LinuxSeccompArg| match arg.op() {
                LinuxSeccompOperator::ScmpCmpEq => args[arg.index()] == arg.value(),
                LinuxSeccompOperator::ScmpCmpLt => args[arg.index()] < arg.value(),
                LinuxSeccompOperator::ScmpCmpMaskedEq => {
                    args[arg.index()] & arg.value() == arg.value_two().unwrap_or(0)
                }
                other => panic!("{other:?}"),
            };
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.names().iter().any(|known| known == name)
                && rule.args().iter().flatten().all(holds)
        })
    }

    fn with(capabilities: &[Capability]) -> LinuxSeccomp {
        profile(|capability| capabilities.contains(&capability))
    }

    fn first(value: u64) -> [u64; 6] {
        [value, 0, 0, 0, 0, 0]
    }

    #[test]
    fn the_runtime_knows_every_name_and_compiles_the_profile_with_any_capabilities() {
        let all: Vec<Capability> = WITH_CAPABILITY
            .iter()
            .map(|(capability, _)| *capability)
            .collect();
        for held in [vec![], all.clone(), all[1..].to_vec(), vec![Capability::SysAdmin]] {
            let filter = rtc_runtime::seccomp::compile(&with(&held)).unwrap();
            // `recv` and `send` are of socketcall(2), or of other machines.
            assert!(
                filter.unknown.iter().all(|name| name == "recv" || name == "send"),
                "{:?}",
                filter.unknown
            );
            assert!(filter.program.len() < 1000, "{}", filter.program.len());
        }
    }

    #[test]
    fn no_name_is_there_twice_and_all_are_sorted() {
        for names in ALLOWED {
            assert!(names.split(' ').is_sorted(), "{names:?}");
        }
        let mut all: Vec<&str> = ALLOWED.iter().flat_map(|names| names.split(' ')).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_escapes_are_made_of_is_denied() {
        let usual = with(&[]);
        let denied = "bpf mount umount2 unshare setns keyctl add_key request_key io_uring_setup io_uring_enter \
                      io_uring_register userfaultfd kexec_load kexec_file_load init_module finit_module \
                      open_by_handle_at perf_event_open reboot swapon clone3 pivot_root move_mount open_tree \
                      settimeofday iopl acct nfsservctl uselib vm86 chroot";
        for name in denied.split(' ') {
            assert!(!allowed(&usual, name, [0; 6]), "{name}");
        }
        for name in [
            "read",
            "openat2",
            "execve",
            "futex_waitv",
            "landlock_restrict_self",
            "ptrace",
            "statx",
        ] {
            assert!(allowed(&usual, name, [0; 6]), "{name}");
        }
    }

    #[test]
    fn threads_and_processes_are_cloned_but_no_namespaces() {
        let usual = with(&[]);
        let flags = |index: usize, value| {
            let mut args = [0; 6];
            args[index] = value;
            args
        };
        // CLONE_VM|CLONE_FS|..., CLONE_VFORK|SIGCHLD.
        for plain in [0x003d_0f00, 0x4111, 17] {
            assert!(allowed(&usual, "clone", flags(CLONE_FLAGS, plain)), "{plain:#x}");
        }
        // NEWUSER, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET.
        for new in [
            0x1000_0000,
            0x2_0000,
            0x200_0000,
            0x400_0000,
            0x800_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            assert!(
                !allowed(&usual, "clone", flags(CLONE_FLAGS, new | 17)),
                "{new:#x}"
            );
            assert!(
                allowed(&with(&[Capability::SysAdmin]), "clone", flags(CLONE_FLAGS, new)),
                "{new:#x}"
            );
        }
        let clone3 = usual
            .syscalls()
            .iter()
            .flatten()
            .find(|rule| rule.names().iter().any(|name| name == "clone3"));
        assert_eq!(clone3.unwrap().errno_ret(), Some(libc::ENOSYS.cast_unsigned()));
    }

    #[test]
    fn each_capability_brings_its_calls_and_no_others() {
        for (capability, names) in WITH_CAPABILITY {
            for name in names.split(' ') {
                assert!(
                    allowed(&with(&[capability]), name, [u64::MAX; 6]),
                    "{capability}: {name}"
                );
            }
        }
        assert!(!allowed(&with(&[Capability::SysPtrace]), "mount", [0; 6]));
        assert!(!allowed(&with(&[Capability::SysAdmin]), "io_uring_setup", [0; 6]));
        assert!(!allowed(&with(&[Capability::SysAdmin]), "keyctl", [0; 6]));
    }

    #[test]
    fn sockets_of_the_hypervisor_and_of_kernel_cryptography_are_denied_whatever_the_upper_bits_are() {
        let usual = with(&[]);
        for family in [1, 2, 10, 16, 17, 39, 41, 44] {
            assert!(allowed(&usual, "socket", first(family)), "{family}");
        }
        for family in [38, 40, 1 << 32 | 38, 1 << 32 | 40, u64::MAX] {
            assert!(!allowed(&usual, "socket", first(family)), "{family}");
        }
        assert!(allowed(&usual, "personality", first(0xffff_ffff)));
        // ADDR_NO_RANDOMIZE.
        assert!(!allowed(&usual, "personality", first(0x004_0000)));
    }
}
