//! Random seccomp profiles, and what they mean, read rule by rule.

use crate::bpf::{Call, I386, X86_64};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Names with their number on x86_64, where they have one.
pub const NAMES: &[(&str, Option<u32>)] = &[
    ("read", Some(0)),
    ("write", Some(1)),
    ("open", Some(2)),
    ("mmap", Some(9)),
    ("mprotect", Some(10)),
    ("ioctl", Some(16)),
    ("socket", Some(41)),
    ("connect", Some(42)),
    ("clone", Some(56)),
    ("kill", Some(62)),
    ("semop", Some(65)),
    ("personality", Some(135)),
    ("sync", Some(162)),
    ("mount", Some(165)),
    ("gettid", Some(186)),
    ("openat", Some(257)),
    ("unshare", Some(272)),
    ("prlimit64", Some(302)),
    ("seccomp", Some(317)),
    ("statx", Some(332)),
    ("clone3", Some(435)),
    ("openat2", Some(437)),
    ("process_mrelease", Some(448)),
    ("_llseek", None),
    ("socketcall", None),
    ("waitpid", None),
    ("no_such_call", None),
];

const ACTIONS: &[Action] = &[
    Action::ScmpActAllow,
    Action::ScmpActErrno,
    Action::ScmpActErrno,
    Action::ScmpActKill,
    Action::ScmpActKillProcess,
    Action::ScmpActKillThread,
    Action::ScmpActLog,
    Action::ScmpActNotify,
    Action::ScmpActTrace,
    Action::ScmpActTrap,
];

const OPERATORS: &[Operator] = &[
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpMaskedEq,
    Operator::ScmpCmpNe,
];

const VALUES: &[u64] = &[
    0,
    1,
    2,
    0x7e02_0000,
    0xffff_ffff,
    1 << 32,
    (1 << 32) + 1,
    u64::MAX - 1,
    u64::MAX,
];

/// What `SECCOMP_RET_ERRNO | ENOSYS` is.
const ENOSYS: u32 = 0x0005_0000 | 38;

/// A profile of up to 24 rules.
pub fn random(input: &mut Unstructured<'_>) -> Result<LinuxSeccomp> {
    let mut architectures = Vec::new();
    for arch in [
        Arch::ScmpArchX86_64,
        Arch::ScmpArchX86,
        Arch::ScmpArchX32,
        Arch::ScmpArchAarch64,
    ] {
        if input.ratio(1, 2)? {
            architectures.push(arch);
        }
    }
    let mut builder = LinuxSeccompBuilder::default().default_action(*input.choose(ACTIONS)?);
    if input.ratio(1, 2)? {
        builder = builder.default_errno_ret(errno(input)?);
    }
    if !architectures.is_empty() {
        builder = builder.architectures(architectures);
    }
    let mut rules = Vec::new();
    for _ in 0..input.int_in_range(0..=24)? {
        rules.push(rule(input)?);
    }
    Ok(builder.syscalls(rules).build().expect("all fields are there"))
}

fn rule(input: &mut Unstructured<'_>) -> Result<LinuxSyscall> {
    let mut names = Vec::new();
    for _ in 0..=input.int_in_range(0..=3)? {
        names.push(input.choose(NAMES)?.0.to_owned());
    }
    let mut builder = LinuxSyscallBuilder::default()
        .names(names)
        .action(*input.choose(ACTIONS)?);
    if input.ratio(1, 2)? {
        builder = builder.errno_ret(errno(input)?);
    }
    let mut args = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        args.push(argument(input)?);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    Ok(builder.build().expect("all fields are there"))
}

fn argument(input: &mut Unstructured<'_>) -> Result<LinuxSeccompArg> {
    let index: usize = if input.ratio(1, 64)? {
        6
    } else {
        input.int_in_range(0..=5)?
    };
    let argument = LinuxSeccompArgBuilder::default()
        .index(index)
        .value(value(input)?)
        .value_two(value(input)?)
        .op(*input.choose(OPERATORS)?);
    Ok(argument.build().expect("all fields are there"))
}

fn errno(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok(if input.ratio(1, 64)? {
        65_536
    } else {
        input.int_in_range(0..=40)?
    })
}

fn value(input: &mut Unstructured<'_>) -> Result<u64> {
    if input.ratio(1, 8)? {
        input.arbitrary()
    } else {
        input.choose(VALUES).copied()
    }
}

/// A value near one that the profile compares with, or any.
pub fn interesting(input: &mut Unstructured<'_>, profile: &LinuxSeccomp) -> Result<u64> {
    let args: Vec<&LinuxSeccompArg> = profile
        .syscalls()
        .iter()
        .flatten()
        .filter_map(|rule| rule.args().as_ref())
        .flatten()
        .collect();
    if args.is_empty() || input.ratio(1, 4)? {
        return value(input);
    }
    let arg = input.choose(&args)?;
    let base = if input.arbitrary()? {
        arg.value()
    } else {
        arg.value_two().unwrap_or(0)
    };
    Ok(base.wrapping_add(input.int_in_range(0..=2)?).wrapping_sub(1))
}

/// What the filter may return for a call: one of these; nothing where this does not say (x86 and x32 as listed ABIs).
/// Where rules with different actions overlap, any of theirs will do here: which one is a question of libseccomp's
/// order, and the unit tests compare with libseccomp itself.
pub fn decisions(profile: &LinuxSeccomp, call: &Call) -> Vec<u32> {
    const X32_BIT: u32 = 1 << 30;
    let listed = |arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    match call.arch {
        X86_64 if call.number < X32_BIT => {}
        X86_64 => return vec![],
        I386 if listed(Arch::ScmpArchX86) => return vec![],
        _ => return vec![0], // an ABI the profile does not know of: kill
    }
    let default = profile
        .default_action()
        .as_u32(data(profile.default_action(), profile.default_errno_ret()));
    let (mut allowed, mut greatest) = (Vec::new(), None);
    for rule in profile.syscalls().iter().flatten() {
        let numbers = rule
            .names()
            .iter()
            .filter_map(|name| NAMES.iter().find(|(n, _)| n == name)?.1);
        greatest = greatest.max(numbers.clone().max());
        let action = rule.action().as_u32(data(rule.action(), rule.errno_ret()));
        if action != default && numbers.clone().any(|n| n == call.number) && matches(rule, call) {
            allowed.push(action);
        }
    }
    if allowed.is_empty() {
        let passes = [Action::ScmpActAllow, Action::ScmpActLog, Action::ScmpActTrace];
        // As in runc, a profile that names nothing but call 0 names nothing.
        let newer = greatest.is_some_and(|g| g != 0 && call.number > g);
        let newer = newer && !passes.contains(&profile.default_action());
        allowed.push(if newer { ENOSYS } else { default });
    }
    allowed
}

fn data(action: Action, errno: Option<u32>) -> Option<u32> {
    errno.filter(|_| matches!(action, Action::ScmpActErrno | Action::ScmpActTrace))
}

/// All conditions of a rule, or any where two are on one argument (as in runc).
fn matches(rule: &LinuxSyscall, call: &Call) -> bool {
    let args: Vec<_> = rule.args().iter().flatten().collect();
    let twice = args
        .iter()
        .enumerate()
        .any(|(i, a)| args[..i].iter().any(|b| a.index() == b.index()));
    let holds = |arg: &&LinuxSeccompArg| {
        let (is, value) = (call.arguments[arg.index()], arg.value());
        match arg.op() {
            Operator::ScmpCmpEq => is == value,
            Operator::ScmpCmpGe => is >= value,
            Operator::ScmpCmpGt => is > value,
            Operator::ScmpCmpLe => is <= value,
            Operator::ScmpCmpLt => is < value,
            Operator::ScmpCmpMaskedEq => is & value == arg.value_two().unwrap_or(0) & value,
            Operator::ScmpCmpNe => is != value,
        }
    };
    if twice {
        args.iter().any(holds)
    } else {
        args.iter().all(holds)
    }
}
