//! A profile of the runtime spec, checked and resolved: which rule each system call number of an ABI has.
//!
//! Behaviour is runc's (libcontainer/seccomp): names that this target does not know are ignored; rules that ask for
//! the default action are too; conditions of one rule must all hold, unless two of them are on the same argument:
//! then each condition is a rule of its own.

use anyhow::{Result, bail};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::arch::{ABIS, Abi, Multiplexed};
use super::table;
use super::tree::{Condition, Decision};

/// The greatest errno that the kernel returns to a caller (linux/err.h `MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
/// The data of an action has 16 bits.
const MAX_DATA: u32 = u16::MAX as u32;
const ARGUMENTS: usize = 6;

/// A profile's rules, each name looked up once for all ABIs.
pub(super) struct Profile<'a> {
    /// The default action, as the filter returns it.
    pub(super) default: u32,
    /// Whether some rule asks a supervisor.
    pub(super) notify: bool,
    rules: Vec<Rule>,
    calls: Vec<Call<'a>>,
}

struct Rule {
    action: u32,
    /// Any of these, all conditions of which hold.
    alternatives: Vec<Vec<Condition>>,
}

struct Call<'a> {
    rule: usize,
    name: &'a str,
    row: Option<usize>,
}

/// A number by which a call of the profile can be made.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Use {
    number: u32,
    /// Index of the call.
    call: usize,
    /// Where the number is `socketcall(2)` or `ipc(2)`: the first argument that stands for the call.
    first: Option<u32>,
}

/// What a profile says of one ABI.
pub(super) struct Decisions {
    /// Sorted by number.
    pub(super) calls: Vec<(u32, Decision)>,
    /// The greatest number that a rule names, also where the rule asks for the default action.
    pub(super) greatest: Option<u32>,
}

impl<'a> Profile<'a> {
    /// Checks a profile and looks its names up; also returns the names that no ABI of this target has.
    pub(super) fn new(profile: &'a LinuxSeccomp) -> Result<(Profile<'a>, Vec<String>)> {
        let default = action_value(
            profile.default_action(),
            profile.default_errno_ret(),
            "linux.seccomp.defaultErrnoRet",
        )?;
        if profile.default_action() == Action::ScmpActNotify {
            bail!("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action");
        }
        let mut resolved = Profile {
            default,
            notify: false,
            rules: Vec::new(),
            calls: Vec::new(),
        };
        let mut unknown = Vec::new();
        let mut last = 0;
        for (rule, syscall) in profile.syscalls().iter().flatten().enumerate() {
            resolved.rules.push(check_rule(rule, syscall)?);
            resolved.notify |= syscall.action() == Action::ScmpActNotify;
            for name in syscall.names() {
                let row = table::find(name, last);
                last = row.unwrap_or(last);
                if row.is_none() && !ABIS.iter().any(|abi| multiplexed(abi, name).is_some()) {
                    unknown.push(name.clone());
                    continue;
                }
                resolved.calls.push(Call { rule, name, row });
            }
        }
        Ok((resolved, unknown))
    }

    /// The decisions for the ABI of a column of the table.
    pub(super) fn decisions(&self, column: usize) -> Result<Decisions> {
        let abi = &ABIS[column];
        let mut uses = Vec::with_capacity(self.calls.len());
        let mut greatest = 0;
        for (call, Call { rule, name, row }) in self.calls.iter().enumerate() {
            let mut add = |number: u32, first| {
                greatest = number.max(greatest);
                if self.rules[*rule].action != self.default {
                    uses.push(Use { number, call, first });
                }
            };
            if let Some(number) = row.and_then(|row| table::number(row, column)) {
                add(number | abi.bit, None);
            }
            if let Some((number, first)) = multiplexed(abi, name) {
                add(number, Some(first));
            }
        }
        // By number, then in the profile's order.
        uses.sort_unstable();
        let mut calls: Vec<(u32, Decision)> = Vec::with_capacity(uses.len());
        for Use { number, call, first } in uses {
            let call = &self.calls[call];
            let rule = &self.rules[call.rule];
            for conditions in &rule.alternatives {
                let decision = Decision::new(&with_first(conditions, first), rule.action, abi.wide);
                match calls.last_mut() {
                    Some((last, known)) if *last == number => {
                        known.add(decision).map_err(|_| contradiction(call, abi))?;
                    }
                    _ => calls.push((number, decision)),
                }
            }
        }
        // runc takes 0 for "none", too.
        let greatest = (greatest != 0).then_some(greatest);
        Ok(Decisions { calls, greatest })
    }
}

fn multiplexed(abi: &Abi, name: &str) -> Option<(u32, u32)> {
    abi.multiplexed
        .as_ref()
        .and_then(|family: &Multiplexed| family.call(name))
}

/// The conditions of a rule where the call is made through `socketcall(2)` or `ipc(2)`: the first argument says which
/// call is meant, the others are compared as the rule says. (So does libseccomp, although what they hold is another
/// thing: a profile that restricts arguments of these calls should restrict the two multiplexers too.)
fn with_first(conditions: &[Condition], first: Option<u32>) -> std::borrow::Cow<'_, [Condition]> {
    let Some(first) = first else {
        return conditions.into();
    };
    let which = Condition {
        argument: 0,
        operator: LinuxSeccompOperator::ScmpCmpEq,
        mask: u64::MAX,
        datum: u64::from(first),
    };
    let others = conditions
        .iter()
        .filter(|condition| condition.argument != 0)
        .copied();
    std::iter::once(which).chain(others).collect::<Vec<_>>().into()
}

fn contradiction(call: &Call<'_>, abi: &Abi) -> anyhow::Error {
    let Call { rule, name, .. } = call;
    anyhow::anyhow!(
        "linux.seccomp.syscalls[{rule}]: {name} ({}): an earlier rule has another action under the same conditions: \
         remove one of the two",
        abi.arch
    )
}

fn check_rule(index: usize, syscall: &LinuxSyscall) -> Result<Rule> {
    let field = |name: &str| format!("linux.seccomp.syscalls[{index}].{name}");
    if syscall.names().iter().any(String::is_empty) {
        bail!(
            "{}: an empty string is not the name of a system call",
            field("names")
        );
    }
    let notify = syscall.action() == Action::ScmpActNotify;
    if notify && syscall.names().iter().any(|name| name == "write") {
        bail!(
            "{}: SCMP_ACT_NOTIFY cannot be used for the write syscall",
            field("action")
        );
    }
    let action = action_value(syscall.action(), syscall.errno_ret(), &field("errnoRet"))?;
    let mut conditions = Vec::new();
    for (at, arg) in syscall.args().iter().flatten().enumerate() {
        if arg.index() >= ARGUMENTS {
            bail!(
                "{}: {}: must be 0 to 5",
                field(&format!("args[{at}].index")),
                arg.index()
            );
        }
        conditions.push(condition(arg));
    }
    conditions.sort_by_key(|condition| condition.argument);
    let twice = conditions
        .windows(2)
        .any(|pair| pair[0].argument == pair[1].argument);
    let alternatives = if twice {
        in_given_order(syscall)
    } else {
        vec![conditions]
    };
    Ok(Rule { action, alternatives })
}

fn in_given_order(syscall: &LinuxSyscall) -> Vec<Vec<Condition>> {
    syscall
        .args()
        .iter()
        .flatten()
        .map(|arg| vec![condition(arg)])
        .collect()
}

fn condition(arg: &LinuxSeccompArg) -> Condition {
    let operator = arg.op();
    // For a masked comparison `value` is the mask and `valueTwo` what is compared with.
    let (mask, datum) = match operator {
        LinuxSeccompOperator::ScmpCmpMaskedEq => (arg.value(), arg.value_two().unwrap_or(0)),
        _ => (u64::MAX, arg.value()),
    };
    Condition {
        argument: arg.index() as u8,
        operator,
        mask,
        datum,
    }
}

/// The value a filter returns for an action; `data` is the errno, or what a tracer is told.
fn action_value(action: Action, data: Option<u32>, field: &str) -> Result<u32> {
    let limit = match action {
        Action::ScmpActErrno => MAX_ERRNO,
        Action::ScmpActTrace => MAX_DATA,
        _ => return Ok(action.into()),
    };
    match data {
        Some(data) if data > limit => bail!("{field}: {data}: must be at most {limit} for {action}"),
        data => Ok(action.as_u32(data)),
    }
}
