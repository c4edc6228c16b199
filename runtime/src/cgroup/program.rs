//! Device rules as an eBPF program (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15), for cgroup v2.
//!
//! The program goes through the rules from the last to the first. `r3` holds the kinds of access asked for that no
//! rule has allowed yet:
//!
//! ```text
//!     r2 = kind of device; r3 = access asked for; r4 = major; r5 = minor
//! for each rule, the last first:
//!     if the device is not the rule's: next rule
//!     allow: r3 &= ~access of the rule;  if r3 == 0: return 1
//!     deny:  if r3 & access of the rule: return 0
//! return 0
//! ```
//!
//! So each kind of access is decided by the last rule that speaks of it, and all that are asked for must be allowed.

use super::devices::{Access, Devices, Kind, Rule};
use crate::sys::bpf::Instruction;

/// Load a word from memory (`BPF_LDX | BPF_MEM | BPF_W`).
const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`, on the lower 32 bits, as the next two.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE_REGISTER: u8 = 0xbc;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
/// `BPF_JMP | BPF_JNE | BPF_K`.
const JUMP_NOT_EQUAL: u8 = 0x55;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const JUMP_ANY_BIT: u8 = 0x45;
/// `BPF_JMP | BPF_JA`.
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// The program for rules in their order.
pub(super) fn emit(rules: &[Rule]) -> Vec<Instruction> {
    let rules = effective(rules);
    let mut program = Vec::with_capacity(8 + 7 * rules.len());
    let ends = rules.last().is_some_and(is_last_word);
    if !(rules.len() == 1 && ends) {
        // struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | kind), major, minor }
        program.extend([
            instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
            instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
            instruction(AND, KIND, 0, 0, 0xffff),
            instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
            instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
            instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        ]);
    }
    for rule in &rules {
        emit_rule(rule, &mut program);
    }
    // The kernel refuses what can't be reached.
    if !ends {
        finish(false, &mut program);
    }
    program
}

/// Whether a program is only "yes".
pub(super) fn allows_everything(program: &[Instruction]) -> bool {
    let mut yes = Vec::new();
    finish(true, &mut yes);
    program == yes
}

/// The rules that can decide anything, the last first.
fn effective(rules: &[Rule]) -> Vec<Rule> {
    let mut effective: Vec<Rule> = Vec::with_capacity(rules.len());
    for rule in rules.iter().rev() {
        let decided = effective
            .iter()
            .any(|later| later.devices.contains(&rule.devices) && later.access.contains(rule.access));
        if !decided {
            effective.push(*rule);
        }
        if is_last_word(rule) {
            break;
        }
    }
    // What denies before anything was allowed says no more than the end of the program.
    while effective.last().is_some_and(|rule| !rule.allow) {
        effective.pop();
    }
    // What allows everything at first, with nothing denied after it, is all there is to say.
    if effective.last().is_some_and(is_last_word) && effective.iter().all(|rule| rule.allow) {
        effective.drain(..effective.len() - 1);
    }
    effective
}

/// Whether no rule before this one matters.
fn is_last_word(rule: &Rule) -> bool {
    rule.devices == Devices::ALL && rule.access == Access::ALL
}

fn emit_rule(rule: &Rule, program: &mut Vec<Instruction>) {
    let start = program.len();
    let kind = rule.devices.kind.map(|kind| match kind {
        Kind::Block => BLOCK,
        Kind::Char => CHAR,
    });
    // Numbers were checked to be positive in an i32.
    let number = |number: Option<u32>| number.map(u32::cast_signed);
    for (register, wanted) in [
        (KIND, kind),
        (MAJOR, number(rule.devices.major)),
        (MINOR, number(rule.devices.minor)),
    ] {
        if let Some(wanted) = wanted {
            program.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, wanted));
        }
    }
    let access = i32::from(rule.access.bits());
    if rule.access != Access::ALL {
        if rule.allow {
            program.push(instruction(
                AND,
                ACCESS,
                0,
                0,
                i32::from(!rule.access.bits() & Access::ALL.bits()),
            ));
            program.push(instruction(JUMP_NOT_EQUAL, ACCESS, 0, 0, 0));
        } else {
            program.push(instruction(JUMP_ANY_BIT, ACCESS, 0, 1, access));
            program.push(instruction(JUMP, 0, 0, 0, 0));
        }
    }
    finish(rule.allow, program);
    let end = program.len();
    for (at, jump) in program.iter_mut().enumerate().skip(start) {
        if matches!(jump.code, JUMP_NOT_EQUAL | JUMP) {
            // A rule is at most eight instructions.
            jump.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        }
    }
}

fn finish(allow: bool, program: &mut Vec<Instruction>) {
    program.push(instruction(MOVE, RESULT, 0, 0, i32::from(allow)));
    program.push(instruction(EXIT, 0, 0, 0, 0));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process asks for.
    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: Kind,
        major: u32,
        minor: u32,
        access: u8,
    }

    /// Runs a program as the kernel does; panics where the kernel would have refused it.
    fn run(program: &[Instruction], request: Request) -> bool {
        let kind = match request.kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        let context = [
            u32::from(request.access) << 16 | kind,
            request.major,
            request.minor,
        ];
        let mut registers: [Option<u64>; 10] = [None; 10];
        let mut at = 0_usize;
        loop {
            let Instruction {
                code,
                registers: names,
                offset,
                immediate,
            } = program[at];
            let (destination, source) = (usize::from(names & 15), usize::from(names >> 4));
            let wide = i64::from(immediate).cast_unsigned();
            let value = || registers[destination].expect("read before it is set");
            let mut jump = false;
            match code {
                LOAD_WORD => {
                    assert_eq!(source, usize::from(CONTEXT));
                    registers[destination] = Some(context[usize::try_from(offset).unwrap() / 4].into());
                }
                AND => registers[destination] = Some(value() & u64::from(immediate.cast_unsigned())),
                SHIFT_RIGHT => registers[destination] = Some(value() >> immediate),
                MOVE_REGISTER => registers[destination] = registers[source],
                MOVE => registers[destination] = Some(wide),
                JUMP_NOT_EQUAL => jump = value() != wide,
                JUMP_ANY_BIT => jump = value() & wide != 0,
                JUMP => jump = true,
                EXIT => return registers[usize::from(RESULT)].expect("no result") == 1,
                other => panic!("instruction {other:#x}"),
            }
            at += 1;
            if jump {
                at += usize::try_from(offset).expect("a loop");
            }
        }
    }

    /// The rules read as they are meant: for each kind of access, the last that speaks of it.
    fn allowed(rules: &[Rule], request: Request) -> bool {
        [Access::MKNOD, Access::READ, Access::WRITE]
            .into_iter()
            .filter(|access| request.access & access.bits() != 0)
            .all(|access| {
                let speaks = |rule: &&Rule| {
                    let devices = &rule.devices;
                    rule.access.contains(access)
                        && devices.kind.is_none_or(|kind| kind == request.kind)
                        && devices.major.is_none_or(|major| major == request.major)
                        && devices.minor.is_none_or(|minor| minor == request.minor)
                };
                rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
            })
    }

    /// xorshift: the same numbers at each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }

        fn number(&mut self) -> Option<u32> {
            [None, Some(0), Some(1), Some(2), Some(0x7fff_ffff)][usize::try_from(self.below(5)).unwrap()]
        }

        fn rule(&mut self) -> Rule {
            let allow = self.below(2) == 0;
            if self.below(12) == 0 {
                return Rule {
                    devices: Devices::ALL,
                    access: Access::ALL,
                    allow,
                };
            }
            let kind = Some(if self.below(2) == 0 {
                Kind::Block
            } else {
                Kind::Char
            });
            let devices = Devices {
                kind,
                major: self.number(),
                minor: self.number(),
            };
            let bits = 1 + self.below(7);
            let kinds = [Access::MKNOD, Access::READ, Access::WRITE];
            let access = kinds
                .into_iter()
                .filter(|kind| u64::from(kind.bits()) & bits != 0);
            Rule {
                devices,
                access: access.fold(Access::default(), Access::with),
                allow,
            }
        }
    }

    #[test]
    fn a_program_decides_like_its_rules() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..4000 {
            let rules: Vec<Rule> = (0..numbers.below(12)).map(|_| numbers.rule()).collect();
            let program = emit(&rules);
            for kind in [Kind::Block, Kind::Char] {
                for (major, minor) in [
                    (0, 0),
                    (0, 1),
                    (1, 0),
                    (1, 1),
                    (1, 7),
                    (2, 2),
                    (0x7fff_ffff, 2),
                    (9, 9),
                ] {
                    for access in 1..8 {
                        let request = Request {
                            kind,
                            major,
                            minor,
                            access,
                        };
                        assert_eq!(
                            run(&program, request),
                            allowed(&rules, request),
                            "{rules:?} {request:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_of_a_program_can_be_reached() {
        let mut numbers = Numbers(42);
        for _ in 0..4000 {
            let rules: Vec<Rule> = (0..numbers.below(12)).map(|_| numbers.rule()).collect();
            let program = emit(&rules);
            let mut reached = vec![false; program.len()];
            reached[0] = true;
            for at in 0..program.len() {
                assert!(reached[at], "{at} of {program:?}");
                let next = at + 1;
                match program[at].code {
                    EXIT => continue,
                    JUMP | JUMP_NOT_EQUAL | JUMP_ANY_BIT => {
                        reached[next + usize::try_from(program[at].offset).unwrap()] = true;
                    }
                    _ => {}
                }
                if program[at].code != JUMP {
                    reached[next] = true;
                }
            }
        }
    }

    #[test]
    fn allowing_everything_is_recognised() {
        let all = |allow| Rule {
            devices: Devices::ALL,
            access: Access::ALL,
            allow,
        };
        assert!(allows_everything(&emit(&[all(false), all(true)])));
        assert!(!allows_everything(&emit(&[all(true), all(false)])));
        assert_eq!(emit(&[all(false)]).len(), 8);
    }
}
