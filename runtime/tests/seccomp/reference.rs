//! What rules ask for, read off the profile: no filter at all.
//!
//! It says which actions a call may get, not which of several rules wins: that is libseccomp's to say.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Operator};

use crate::bpf::Data;
use crate::oracle::{self, Answer, Call};

/// The actions of all rules that match a call of one ABI; none where the default action is due.
pub(crate) fn actions(profile: &LinuxSeccomp, answer: &Answer, abi: u32, data: &Data) -> Vec<u32> {
    let default = oracle::action(profile.default_action(), profile.default_errno_ret());
    let rules: Vec<_> = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.names().iter().map(move |_| rule))
        .collect();
    let mut actions = Vec::new();
    for call in answer
        .calls
        .iter()
        .filter(|call| call.abi == abi && call.number == data.number)
    {
        let rule = rules[call.rule as usize];
        let action = oracle::action(rule.action(), rule.errno_ret());
        let args = rule.args().as_deref().unwrap_or(&[]);
        if action != default && matches(args, call, data) {
            actions.push(action);
        }
    }
    actions
}

fn matches(args: &[LinuxSeccompArg], call: &Call, data: &Data) -> bool {
    let wide = call.abi == 0;
    let holds = |arg: &LinuxSeccompArg| {
        // `socketcall(2)` and `ipc(2)` have their own first argument.
        if call.first != 0 && arg.index() == 0 {
            return data.arguments[0] as u32 == call.first;
        }
        condition(arg, data.arguments[arg.index()], wide)
    };
    if call.first != 0 && data.arguments[0] as u32 != call.first {
        return false;
    }
    let twice = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|earlier| earlier.index() == arg.index()));
    if twice {
        args.iter().any(holds)
    } else {
        args.iter().all(holds)
    }
}

fn condition(arg: &LinuxSeccompArg, value: u64, wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { u64::from(value as u32) };
    let (value, wanted, second) = (cut(value), cut(arg.value()), cut(arg.value_two().unwrap_or(0)));
    match arg.op() {
        Operator::ScmpCmpNe => value != wanted,
        Operator::ScmpCmpLt => value < wanted,
        Operator::ScmpCmpLe => value <= wanted,
        Operator::ScmpCmpEq => value == wanted,
        Operator::ScmpCmpGe => value >= wanted,
        Operator::ScmpCmpGt => value > wanted,
        Operator::ScmpCmpMaskedEq => value & wanted == second & wanted,
    }
}
