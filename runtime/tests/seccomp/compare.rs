//! Our decisions beside libseccomp's.
//!
//! libseccomp 2.5.4 is not always right, and what it gets wrong is told apart, not imitated: a filter that compares the
//! wrong half of an argument (its code generator forgets to load it again), rules it drops or applies where they do not
//! match (it shares or prunes branches that differ), profiles it never finishes. The reference says what rules ask for.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action};
use rtc_runtime::seccomp;

use crate::generate::{self, Random};
use crate::oracle::{self, Answer, Oracle};
use crate::{bpf, reference};

pub(crate) const X86_64: u32 = 0xc000_003e;
pub(crate) const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 0x0005_0026;

fn listed(profile: &LinuxSeccomp, arch: Arch) -> bool {
    profile
        .architectures()
        .iter()
        .flatten()
        .any(|listed| *listed == arch)
}

/// The ABI of a call: 0 x86_64, 1 x32, 2 x86; `None` where the profile does not list it or there is none.
fn abi_of(profile: &LinuxSeccomp, data: &bpf::Data) -> Option<u32> {
    match data.arch {
        X86_64 if data.number < X32_BIT => Some(0),
        X86_64 if data.number < 2 * X32_BIT => listed(profile, Arch::ScmpArchX32).then_some(1),
        I386 => listed(profile, Arch::ScmpArchX86).then_some(2),
        _ => None,
    }
}

/// Whether runc's stub answers the call before the filter, because it is newer than the profile. (runc does not count
/// calls that `socketcall(2)` and `ipc(2)` stand for; we do.)
fn is_newer(profile: &LinuxSeccomp, answer: &Answer, data: &bpf::Data) -> bool {
    let lets_pass = matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let abi = match data.arch {
        X86_64 if data.number & X32_BIT == 0 => 0,
        X86_64 if listed(profile, Arch::ScmpArchX32) => 1,
        I386 if listed(profile, Arch::ScmpArchX86) => 2,
        _ => return false,
    };
    !lets_pass && answer.greatest[abi] != 0 && data.number > answer.greatest[abi]
}

#[derive(Default, Debug)]
pub(crate) struct Tally {
    pub(crate) profiles: usize,
    pub(crate) calls: usize,
    /// Profiles that both refuse.
    pub(crate) refused: usize,
    /// Profiles that only libseccomp refuses: the rules contradict each other for an ABI that has no such call.
    pub(crate) refused_by_it: usize,
    /// Profiles whose filter by libseccomp compares the wrong half of an argument on some way.
    pub(crate) confused: usize,
    /// Calls for which libseccomp decides what no matching rule says.
    pub(crate) wrong: usize,
    /// Profiles to which libseccomp gives no answer.
    pub(crate) hung: usize,
    /// Calls for which libseccomp decides what another matching rule says.
    pub(crate) other: usize,
}

/// Compares one profile, call by call. Panics where we decide what no matching rule says; and, if `strict`, where we
/// decide otherwise than libseccomp although it decides what some matching rule says.
pub(crate) fn compare(
    oracle: &mut Oracle,
    random: &mut Random,
    profile: &LinuxSeccomp,
    strict: bool,
    tally: &mut Tally,
) {
    tally.profiles += 1;
    let Some(answer) = oracle.ask(profile) else {
        tally.hung += 1;
        *oracle = Oracle::start();
        return;
    };
    let filter = match (seccomp::compile(profile), answer.refused) {
        (Ok(filter), None) => filter,
        (Err(_), Some(_)) => {
            tally.refused += 1;
            return;
        }
        (Ok(filter), Some(rule)) => {
            assert!(
                is_missing_somewhere(profile, &answer, rule),
                "only libseccomp refuses rule {rule}: {}",
                json(profile)
            );
            check(&filter.program, profile);
            tally.refused_by_it += 1;
            return;
        }
        (Err(error), None) => panic!("{error} (libseccomp takes it): {}", json(profile)),
    };
    check(&filter.program, profile);
    if bpf::check_accumulator(&answer.program).is_err() {
        tally.confused += 1;
        return;
    }
    let default = oracle::action(profile.default_action(), profile.default_errno_ret());
    for data in calls(random, &answer) {
        tally.calls += 1;
        let (ours, _) = bpf::run(&filter.program, &data);
        if is_newer(profile, &answer, &data) {
            assert_eq!(ours, ENOSYS, "{data:x?}: {}", json(profile));
            continue;
        }
        let (theirs, _) = bpf::run(&answer.program, &data);
        let asked = abi_of(profile, &data).map(|abi| reference::actions(profile, &answer, abi, &data));
        let is_asked = |action: u32| match &asked {
            Some(actions) if actions.is_empty() => action == default,
            Some(actions) => actions.contains(&action),
            None => true,
        };
        assert!(
            is_asked(ours),
            "{ours:#x}, but rules say {asked:x?}, for {data:x?}: {}",
            json(profile)
        );
        if is_asked(theirs) {
            if ours != theirs {
                tally.other += 1;
                if strict {
                    panic!(
                        "{ours:#x}, but libseccomp {theirs:#x}, for {data:x?}: {}",
                        json(profile)
                    );
                }
            }
        } else {
            tally.wrong += 1;
        }
    }
}

pub(crate) fn check(program: &[seccomp::Insn], profile: &LinuxSeccomp) {
    bpf::check(program)
        .and_then(|()| bpf::check_accumulator(program))
        .unwrap_or_else(|error| panic!("{error}: {}", json(profile)));
}

/// Whether some listed ABI lacks the call of a rule.
fn is_missing_somewhere(profile: &LinuxSeccomp, answer: &Answer, rule: u32) -> bool {
    [Arch::ScmpArchX86_64, Arch::ScmpArchX32, Arch::ScmpArchX86]
        .into_iter()
        .zip(0..)
        .filter(|(arch, _)| listed(profile, *arch))
        .any(|(_, abi)| {
            !answer
                .calls
                .iter()
                .any(|call| call.rule == rule && call.abi == abi && call.first == 0)
        })
}

pub(crate) fn json(profile: &LinuxSeccomp) -> String {
    serde_json::to_string(profile).expect("a profile is JSON")
}

fn calls(random: &mut Random, answer: &Answer) -> Vec<bpf::Data> {
    let mut numbers = vec![
        0,
        1,
        0x3fff_ffff,
        X32_BIT,
        0x7fff_ffff,
        0x8000_0000,
        0xc000_0000,
        u32::MAX - 1,
        u32::MAX,
    ];
    for number in answer
        .calls
        .iter()
        .map(|call| &call.number)
        .chain(&answer.greatest)
    {
        numbers.extend([number.wrapping_sub(1), *number, number + 1]);
    }
    numbers.extend((0..10).map(|_| random.below(500) as u32));
    numbers.extend((0..5).map(|_| random.below(600) as u32 | X32_BIT));
    numbers.sort_unstable();
    numbers.dedup();
    let mut calls = Vec::new();
    for number in numbers {
        let named = answer.calls.iter().any(|call| call.number == number);
        for arch in [X86_64, I386, AARCH64] {
            for _ in 0..if named { 10 } else { 1 } {
                calls.push(bpf::Data {
                    number,
                    arch,
                    arguments: generate::arguments(random),
                });
            }
        }
    }
    calls
}
