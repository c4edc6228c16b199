//! Random profiles and random calls, the same at every run.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};

/// xorshift64*, seeded.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize) % limit
    }

    pub(crate) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const DEFAULTS: [Action; 7] = [
    Action::ScmpActErrno,
    Action::ScmpActErrno,
    Action::ScmpActAllow,
    Action::ScmpActKillProcess,
    Action::ScmpActKill,
    Action::ScmpActTrap,
    Action::ScmpActLog,
];
const ACTIONS: [Action; 9] = [
    Action::ScmpActAllow,
    Action::ScmpActErrno,
    Action::ScmpActKill,
    Action::ScmpActKillThread,
    Action::ScmpActKillProcess,
    Action::ScmpActTrap,
    Action::ScmpActTrace,
    Action::ScmpActLog,
    Action::ScmpActNotify,
];
const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpNe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpMaskedEq,
];
/// Few, so that rules of one call meet; some exist on one ABI only, some are multiplexed on x86.
const FEW_NAMES: [&str; 4] = ["read", "socket", "semop", "clone3"];
const VALUES: [u64; 14] = [
    0,
    1,
    2,
    5,
    7,
    40,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0005,
    0xffff_ffff_0000_0001,
    u64::MAX,
];
const MASKS: [u64; 6] = [0, 1, 0xff, 0x7e02_0000, 0xffff_ffff_0000_0000, u64::MAX];

/// Calls that fail with EBADF where no descriptor is open: read, lseek, ioctl, fsync, fdatasync.
pub(crate) const HARMLESS: [u32; 5] = [0, 8, 16, 74, 75];
const HARMLESS_NAMES: [&str; 5] = ["read", "lseek", "ioctl", "fsync", "fdatasync"];

/// A profile that says something of the harmless calls only, and lets a process exit.
pub(crate) fn harmless(random: &mut Random) -> LinuxSeccomp {
    let syscalls: Vec<LinuxSyscall> = (0..1 + random.below(6))
        .map(|_| {
            let name = random.of(&HARMLESS_NAMES).to_owned();
            rule(random, Shape::Any, &[]).set_names(vec![name]).to_owned()
        })
        .collect();
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActAllow)
        .syscalls(syscalls)
        .build()
        .expect("a profile")
}

/// How rules of one call may differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// Rules without conditions, of all calls: the search.
    Plain,
    /// Conditional rules, each call with one action only.
    OneAction,
    /// Conditional rules with any action, on one argument each.
    OneArgument,
    /// Anything.
    Any,
}

pub(crate) fn profile(random: &mut Random, shape: Shape, names: &[String]) -> LinuxSeccomp {
    let default = random.of(&DEFAULTS);
    let rules = match shape {
        Shape::Plain => random.below(60),
        _ => 1 + random.below(8),
    };
    let syscalls: Vec<LinuxSyscall> = (0..rules).map(|_| rule(random, shape, names)).collect();
    let mut architectures = vec![Arch::ScmpArchX86_64];
    for arch in [Arch::ScmpArchX86, Arch::ScmpArchX32] {
        if random.chance(60) {
            architectures.push(arch);
        }
    }
    let mut builder = LinuxSeccompBuilder::default()
        .default_action(default)
        .architectures(architectures)
        .syscalls(syscalls);
    if random.chance(50) {
        builder = builder.default_errno_ret(random.of(&[1u32, 38, 4094]));
    }
    builder.build().expect("a profile")
}

fn rule(random: &mut Random, shape: Shape, names: &[String]) -> LinuxSyscall {
    let name = match shape {
        Shape::Plain => names[random.below(names.len())].clone(),
        _ => random.of(&FEW_NAMES).to_owned(),
    };
    let mut action = random.of(&ACTIONS);
    if shape == Shape::OneAction {
        action = ACTIONS[name.len() % ACTIONS.len()];
    }
    if name == "write" && action == Action::ScmpActNotify {
        action = Action::ScmpActLog;
    }
    let conditions = match shape {
        Shape::Plain => 0,
        Shape::OneArgument => 1,
        _ => random.of(&[0, 1, 1, 1, 1, 2, 2, 3]),
    };
    let mut args: Vec<LinuxSeccompArg> = (0..conditions).map(|_| condition(random)).collect();
    // The same argument twice makes two rules: sometimes.
    if random.chance(90) {
        args.sort_by_key(LinuxSeccompArg::index);
        args.dedup_by_key(|arg| arg.index());
    }
    let mut builder = LinuxSyscallBuilder::default().names([name]).action(action);
    if shape != Shape::OneAction && random.chance(50) {
        builder = builder.errno_ret(random.of(&[1u32, 22, 38, 4094]));
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    builder.build().expect("a rule")
}

fn condition(random: &mut Random) -> LinuxSeccompArg {
    let op = random.of(&OPERATORS);
    let value = if op == Operator::ScmpCmpMaskedEq {
        random.of(&MASKS)
    } else {
        random.of(&VALUES)
    };
    LinuxSeccompArgBuilder::default()
        .index(random.below(3))
        .op(op)
        .value(value)
        .value_two(random.of(&VALUES))
        .build()
        .expect("a condition")
}

/// Arguments near what conditions compare with.
pub(crate) fn arguments(random: &mut Random) -> [u64; 6] {
    std::array::from_fn(|_| {
        let near = random.of(&VALUES);
        match random.below(8) {
            0 => near.wrapping_add(1),
            1 => near.wrapping_sub(1),
            2 => near ^ 0x1_0000_0000,
            3 => random.next(),
            _ => near,
        }
    })
}
