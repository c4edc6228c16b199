//! Device rules as an eBPF program (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15; 32-bit jumps, 5.1), for cgroup v2.
//!
//! The program goes through the rules from the last to the first, those of one kind of device after those of the
//! other. `r3` holds the kinds of access asked for that no rule has allowed yet:
//!
//! ```text
//!     r2 = kind, r3 = access asked for, r5 = major, r1 = minor, r4 = major << 20 | minor
//!     if r2 != char: go to block
//! char: for each rule for character devices, the last first:
//!     all kinds of access:  if it is the device: return 1 (allow) or 0 (deny)
//!     else:                 if it is not the device: next rule
//!         allow: r3 &= ~access of the rule;  if r3 == 0: return 1
//!         deny:  if r3 & access of the rule: return 0
//!     return 0
//! block: likewise
//! ```
//!
//! So each kind of access is decided by the last rule that speaks of it, and all that are asked for must be allowed.
//!
//! What takes time is not running this but its verification by the kernel at each container's start, which follows
//! the fall-through of a jump first and the other way later. With "no match" falling through and the matches going to
//! one common end, the second way is two instructions long: the default rules (28 instructions) load in 57 us, where
//! rule after rule with its own end (57 instructions) took 185.

use anyhow::{Result, bail};

use super::devices::{Access, Kind, Rule};
use crate::sys::bpf::Instruction;

/// Load a word from memory (`BPF_LDX | BPF_MEM | BPF_W`).
const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`: on the lower 32 bits, as the next four.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SHIFT_LEFT: u8 = 0x64;
const OR_REGISTER: u8 = 0x4c;
const MOVE_REGISTER: u8 = 0xbc;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
/// `BPF_JMP32 | BPF_JEQ | BPF_K`: on the lower 32 bits, as the next two.
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_ANY_BIT: u8 = 0x46;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const NUMBER: u8 = 4;
const MAJOR: u8 = 5;
/// The context is no longer needed when the last word of it is loaded.
const MINOR: u8 = CONTEXT;

/// `BPF_DEVCG_DEV_CHAR`; the other kind is `BPF_DEVCG_DEV_BLOCK`.
const CHAR: i32 = 2;
/// The kernel's device numbers have 12 bits of major and 20 of minor.
const MINOR_BITS: u32 = 20;
const MAJOR_BITS: u32 = 12;

/// The most rules: their programs' jumps are still short enough, and telling which of them matter still takes no time.
const MOST_RULES: usize = 4096;

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Allow,
    Deny,
    Block,
    /// Behind the rule that is being written.
    Next,
}

/// A program that is being written: jumps get their distance when all is there.
#[derive(Debug, Default)]
struct Writer {
    program: Vec<Instruction>,
    jumps: Vec<(usize, Place)>,
}

impl Writer {
    fn put(&mut self, code: u8, destination: u8, source: u8, immediate: i32) {
        let registers = destination | source << 4;
        self.program.push(Instruction {
            code,
            registers,
            offset: 0,
            immediate,
        });
    }

    /// Loads a word of the context at an offset.
    fn load(&mut self, destination: u8, offset: i16) {
        self.put(LOAD_WORD, destination, CONTEXT, 0);
        if let Some(last) = self.program.last_mut() {
            last.offset = offset;
        }
    }

    fn jump(&mut self, code: u8, register: u8, immediate: i32, place: Place) {
        self.jumps.push((self.program.len(), place));
        self.put(code, register, 0, immediate);
    }

    fn finish(&mut self, allow: bool) {
        self.put(MOVE, RESULT, 0, i32::from(allow));
        self.put(EXIT, 0, 0, 0);
    }

    /// Says that a place is here.
    fn arrive(&mut self, place: Place) -> Result<()> {
        let here = self.program.len();
        for (at, _) in self.jumps.extract_if(.., |(_, to)| *to == place) {
            let Ok(distance) = i16::try_from(here - at - 1) else {
                bail!("device program: a jump of {} instructions", here - at);
            };
            self.program[at].offset = distance;
        }
        Ok(())
    }

    fn goes_to(&self, place: Place) -> bool {
        self.jumps.iter().any(|(_, to)| *to == place)
    }
}

/// The rules for one kind of device that can decide anything, the last first, and what holds where none speaks.
#[derive(Debug, PartialEq, Eq)]
struct Section {
    rules: Vec<Rule>,
    otherwise: bool,
}

impl Section {
    fn of(rules: &[Rule], kind: Kind) -> Self {
        let mut section = Self {
            rules: Vec::new(),
            otherwise: false,
        };
        for rule in rules
            .iter()
            .rev()
            .filter(|rule| rule.devices.kind.is_none_or(|of| of == kind))
        {
            let mut rule = *rule;
            rule.devices.kind = None;
            if rule.devices.major.is_none() && rule.devices.minor.is_none() && rule.access == Access::ALL {
                // No rule before this one matters.
                section.otherwise = rule.allow;
                break;
            }
            let decided =
                |later: &Rule| later.devices.contains(&rule.devices) && later.access.contains(rule.access);
            if exists(&rule) && !section.rules.iter().any(decided) {
                section.rules.push(rule);
            }
        }
        // The first rules say nothing where they say what holds without them.
        while section
            .rules
            .last()
            .is_some_and(|rule| rule.allow == section.otherwise)
        {
            section.rules.pop();
        }
        section
    }

    fn write(&self, writer: &mut Writer) -> Result<()> {
        for rule in &self.rules {
            write_rule(rule, writer)?;
        }
        writer.finish(self.otherwise);
        Ok(())
    }
}

/// Whether a device can have these numbers.
fn exists(rule: &Rule) -> bool {
    rule.devices.major.is_none_or(|major| major >> MAJOR_BITS == 0)
        && rule.devices.minor.is_none_or(|minor| minor >> MINOR_BITS == 0)
}

/// The program for rules in their order.
///
/// # Errors
///
/// Where there are more than 4096 rules.
pub(super) fn emit(rules: &[Rule]) -> Result<Vec<Instruction>> {
    if rules.len() > MOST_RULES {
        bail!(
            "linux.resources.devices: {} rules: must be at most {MOST_RULES}: join some with wildcards",
            rules.len()
        );
    }
    let (char, block) = (Section::of(rules, Kind::Char), Section::of(rules, Kind::Block));
    let mut writer = Writer::default();
    if char != block || !char.rules.is_empty() {
        // struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | kind), major, minor }
        writer.load(KIND, 0);
        writer.put(MOVE_REGISTER, ACCESS, KIND, 0);
        writer.put(AND, KIND, 0, 0xffff);
        writer.put(SHIFT_RIGHT, ACCESS, 0, 16);
        writer.load(MAJOR, 4);
        writer.load(MINOR, 8);
        writer.put(MOVE_REGISTER, NUMBER, MAJOR, 0);
        writer.put(SHIFT_LEFT, NUMBER, 0, MINOR_BITS.cast_signed());
        writer.put(OR_REGISTER, NUMBER, MINOR, 0);
    }
    if char != block {
        writer.jump(JUMP_NOT_EQUAL, KIND, CHAR, Place::Block);
        char.write(&mut writer)?;
        writer.arrive(Place::Block)?;
    }
    block.write(&mut writer)?;
    // The kernel refuses what can't be reached.
    for (place, allow) in [(Place::Allow, true), (Place::Deny, false)] {
        if writer.goes_to(place) {
            writer.arrive(place)?;
            writer.finish(allow);
        }
    }
    Ok(writer.program)
}

/// Whether a program is only "yes".
pub(super) fn allows_everything(program: &[Instruction]) -> bool {
    let mut yes = Writer::default();
    yes.finish(true);
    program == yes.program
}

fn write_rule(rule: &Rule, writer: &mut Writer) -> Result<()> {
    let device = match (rule.devices.major, rule.devices.minor) {
        (Some(major), Some(minor)) => Some((NUMBER, major << MINOR_BITS | minor)),
        (Some(major), None) => Some((MAJOR, major)),
        (None, Some(minor)) => Some((MINOR, minor)),
        (None, None) => None,
    };
    let device = device.map(|(register, number)| (register, number.cast_signed()));
    let end = if rule.allow { Place::Allow } else { Place::Deny };
    match device {
        Some((register, number)) if rule.access == Access::ALL => {
            writer.jump(JUMP_EQUAL, register, number, end);
            return Ok(());
        }
        Some((register, number)) => writer.jump(JUMP_NOT_EQUAL, register, number, Place::Next),
        None => {}
    }
    if rule.allow {
        let others = !rule.access.bits() & Access::ALL.bits();
        writer.put(AND, ACCESS, 0, i32::from(others));
        writer.jump(JUMP_EQUAL, ACCESS, 0, end);
    } else {
        writer.jump(JUMP_ANY_BIT, ACCESS, i32::from(rule.access.bits()), end);
    }
    writer.arrive(Place::Next)
}

#[cfg(test)]
mod tests {
    use super::super::devices::Devices;
    use super::*;

    /// What a process asks for.
    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: Kind,
        major: u32,
        minor: u32,
        access: u8,
    }

    /// Stands for the address of the context.
    const POINTER: u64 = u64::MAX;

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
        registers[usize::from(CONTEXT)] = Some(POINTER);
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
            let lower = |value: u64| value & 0xffff_ffff;
            let number = u64::from(immediate.cast_unsigned());
            match code {
                LOAD_WORD => {
                    assert_eq!(source, usize::from(CONTEXT));
                    assert_eq!(registers[source], Some(POINTER), "the context is gone");
                    registers[destination] = Some(context[usize::try_from(offset).unwrap() / 4].into());
                }
                AND => registers[destination] = Some(lower(value() & number)),
                SHIFT_RIGHT => registers[destination] = Some(lower(value()) >> number),
                SHIFT_LEFT => registers[destination] = Some(lower(value() << number)),
                OR_REGISTER => registers[destination] = Some(lower(value() | registers[source].unwrap())),
                MOVE_REGISTER => registers[destination] = registers[source].map(lower),
                MOVE => registers[destination] = Some(wide),
                JUMP_EQUAL => jump = lower(value()) == number,
                JUMP_NOT_EQUAL => jump = lower(value()) != number,
                JUMP_ANY_BIT => jump = lower(value()) & number != 0,
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
            [None, Some(0), Some(1), Some(2), Some(0xfff)][usize::try_from(self.below(5)).unwrap()]
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
            let program = emit(&rules).unwrap();
            for kind in [Kind::Block, Kind::Char] {
                for (major, minor) in [
                    (0, 0),
                    (0, 1),
                    (1, 0),
                    (1, 1),
                    (1, 7),
                    (2, 2),
                    (0xfff, 2),
                    (0xfff, 0xfff),
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
            let program = emit(&rules).unwrap();
            let mut reached = vec![false; program.len()];
            reached[0] = true;
            for at in 0..program.len() {
                assert!(reached[at], "{at} of {program:?}");
                let next = at + 1;
                match program[at].code {
                    EXIT => continue,
                    JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_ANY_BIT => {
                        reached[next + usize::try_from(program[at].offset).unwrap()] = true;
                    }
                    _ => {}
                }
                reached[next] = true;
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
        let program = |rules: &[Rule]| emit(rules).unwrap();
        assert!(allows_everything(&program(&[all(false), all(true)])));
        assert!(!allows_everything(&program(&[all(true), all(false)])));
        assert_eq!(program(&[all(false)]).len(), 2);
    }

    #[test]
    fn the_default_rules_make_a_short_program() {
        let rules = super::super::devices::rules(&[]).unwrap();
        assert_eq!(emit(&rules).unwrap().len(), 28);
    }

    #[test]
    fn the_most_rules_are_within_a_jump_and_more_are_refused() {
        let rule = |minor| Rule {
            devices: Devices {
                kind: Some(Kind::Char),
                major: Some(7),
                minor: Some(minor),
            },
            access: Access::READ,
            allow: true,
        };
        let rules: Vec<Rule> = (0..4097).map(rule).collect();
        emit(&rules[1..]).unwrap();
        let error = emit(&rules).unwrap_err().to_string();
        assert!(error.contains("4097 rules: must be at most 4096"), "{error}");
    }
}
