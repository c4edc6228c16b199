//! Classic BPF, written from its end to its start.
//!
//! Jumps of classic BPF only go forward, and conditional ones by at most 255 instructions. Writing the last
//! instruction first, every target is known when its jump is written, and where it is out of reach a nearer copy
//! (of a return) or a long jump is put before it.

use anyhow::Result;

use super::tree::{Level, Next, Node, Test, Word};
use super::{Insn, MAX_INSTRUCTIONS};

const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const FARTHEST: usize = u8::MAX as usize;

/// A place in the program, counted from its end: 1 is the last instruction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Label(usize);

/// Where a conditional jump goes: to code, or to a return that is placed where it is in reach.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Target {
    Code(Label),
    Return(u32),
}

/// A program under construction.
#[derive(Default)]
pub(super) struct Program {
    /// Last instruction first.
    reversed: Vec<Insn>,
    /// The nearest copy of each return.
    returns: Vec<(u32, Label)>,
    /// Levels already written, with what follows them.
    levels: Vec<(Level, Target, Block)>,
}

/// A block of code that starts by loading a word of an argument.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: Target,
    /// The instruction after the load, for jumps from where the word is loaded already.
    loaded: Option<(Word, Label)>,
}

impl Program {
    /// The program in the kernel's order; an error where it is longer than the kernel takes.
    pub(super) fn finish(mut self) -> Result<Vec<Insn>> {
        self.reversed.reverse();
        self.reversed = without_unreached(self.reversed);
        self.check_length()?;
        Ok(self.reversed)
    }

    fn check_length(&self) -> Result<()> {
        if self.reversed.len() > MAX_INSTRUCTIONS {
            Err(too_long())
        } else {
            Ok(())
        }
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Insn { code, jt, jf, k });
        Label(self.reversed.len())
    }

    /// How many instructions a jump written `ahead` instructions from now must skip to get to `label`.
    fn distance(&self, label: Label, ahead: usize) -> usize {
        self.reversed.len() + ahead - label.0
    }

    fn write_return(&mut self, action: u32) -> Label {
        let label = self.push(RETURN, 0, 0, action);
        self.returns.retain(|(known, _)| *known != action);
        self.returns.push((action, label));
        label
    }

    /// A label within reach of a jump that is written at most `ahead` instructions from now.
    fn reach(&mut self, target: Target, ahead: usize) -> Label {
        match target {
            Target::Code(label) if self.distance(label, ahead) <= FARTHEST => label,
            Target::Code(label) => {
                let skip = self.distance(label, 0) as u32;
                self.push(JUMP, 0, 0, skip)
            }
            Target::Return(action) => {
                let known = self
                    .returns
                    .iter()
                    .find(|(known, _)| *known == action)
                    .map(|(_, label)| *label);
                match known {
                    Some(label) if self.distance(label, ahead) <= FARTHEST => label,
                    _ => self.write_return(action),
                }
            }
        }
    }

    /// Writes a conditional jump.
    pub(super) fn branch(&mut self, test: Test, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // One more instruction may come between the first target and the jump: the second target's stand-in.
        let yes = self.reach(yes, 1);
        let no = self.reach(no, 0);
        let code = match test {
            Test::Equal => JUMP_EQUAL,
            Test::Greater => JUMP_GREATER,
            Test::GreaterOrEqual => JUMP_GREATER_OR_EQUAL,
        };
        let (jt, jf) = (self.distance(yes, 0) as u8, self.distance(no, 0) as u8);
        Target::Code(self.push(code, jt, jf, k))
    }

    /// Writes the load of the call's number, before code that looks at it.
    pub(super) fn load_number(&mut self, then: Target) -> Target {
        self.load(OFFSET_NUMBER, then)
    }

    /// Writes the load of the ABI, before code that looks at it.
    pub(super) fn load_arch(&mut self, then: Target) -> Target {
        self.load(OFFSET_ARCH, then)
    }

    fn load(&mut self, offset: u32, then: Target) -> Target {
        match then {
            Target::Code(label) if self.distance(label, 0) == 0 => {}
            Target::Code(label) => {
                let skip = self.distance(label, 0) as u32;
                self.push(JUMP, 0, 0, skip);
            }
            Target::Return(action) => {
                self.write_return(action);
            }
        }
        Target::Code(self.push(LOAD_WORD, 0, 0, offset))
    }

    /// Writes a decision by arguments; `fall` is where calls go that no node of it decides. Equal decisions are
    /// written once.
    pub(super) fn level(&mut self, level: &Level, fall: Target) -> Result<Target> {
        Ok(self.level_block(level, fall)?.start)
    }

    fn level_block(&mut self, level: &Level, fall: Target) -> Result<Block> {
        // Unreached instructions still count here: a bound on the work, not the limit itself.
        if self.reversed.len() > 4 * MAX_INSTRUCTIONS {
            self.check_length()?;
        }
        if let Some((_, _, block)) = self
            .levels
            .iter()
            .find(|(known, to, _)| *to == fall && known == level)
        {
            return Ok(*block);
        }
        let mut block = Block {
            start: fall,
            loaded: None,
        };
        for node in level.iter().rev() {
            block = self.node(node, block)?;
        }
        self.levels.push((level.clone(), fall, block));
        Ok(block)
    }

    fn node(&mut self, node: &Node, fall: Block) -> Result<Block> {
        // Nothing to compare: it holds.
        if node.mask == 0 {
            return self.next(&node.yes, fall);
        }
        let no = self.next(&node.no, fall)?;
        let yes = self.next(&node.yes, fall)?;
        let whole = node.mask == u32::MAX;
        let entry = |block: Block| match block.loaded {
            Some((word, label)) if whole && word == node.word => Target::Code(label),
            _ => block.start,
        };
        if yes.start == no.start {
            return Ok(yes);
        }
        let mut first = self.branch(node.test, node.datum, entry(yes), entry(no));
        if !whole {
            first = Target::Code(self.push(AND, 0, 0, node.mask));
        }
        let start = self.push(LOAD_WORD, 0, 0, offset_of(node.word));
        let Target::Code(first) = first else {
            return Ok(yes);
        };
        Ok(Block {
            start: Target::Code(start),
            loaded: Some((node.word, first)),
        })
    }

    fn next(&mut self, next: &Next, fall: Block) -> Result<Block> {
        match next {
            Next::Fall => Ok(fall),
            Next::Act(action) => Ok(Block {
                start: Target::Return(*action),
                loaded: None,
            }),
            Next::Level(level) => self.level_block(level, fall.start),
        }
    }
}

/// The error for a filter that the kernel would not take.
pub(super) fn too_long() -> anyhow::Error {
    anyhow::anyhow!(
        "linux.seccomp.syscalls: the filter has more than the {MAX_INSTRUCTIONS} instructions that the kernel takes \
         (BPF_MAXINSNS): have fewer rules with arguments, or list fewer linux.seccomp.architectures"
    )
}

/// Where a word of an argument is in `struct seccomp_data`, whose arguments are `__u64` in native byte order.
fn offset_of(word: Word) -> u32 {
    let second = word.high != cfg!(target_endian = "big");
    OFFSET_ARGUMENTS + 8 * u32::from(word.argument) + if second { 4 } else { 0 }
}

/// Removes what nothing jumps to: loads of words that are loaded on every way there, and decisions that a later one
/// of the same number replaced. Jumps only get shorter.
fn without_unreached(mut program: Vec<Insn>) -> Vec<Insn> {
    let mut reached = vec![false; program.len()];
    reached[0] = true;
    for at in 0..program.len() {
        if reached[at] {
            for target in targets(&program[at], at).into_iter().flatten() {
                reached[target] = true;
            }
        }
    }
    // How many instructions stay before each one.
    let mut kept = Vec::with_capacity(program.len() + 1);
    kept.push(0_usize);
    for stays in &reached {
        kept.push(kept[kept.len() - 1] + usize::from(*stays));
    }
    for at in 0..program.len() {
        let insn = &mut program[at];
        let skip = |skip: usize| kept[at + 1 + skip] - kept[at + 1];
        match insn.code {
            JUMP => insn.k = skip(insn.k as usize) as u32,
            JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_OR_EQUAL => {
                insn.jt = skip(insn.jt.into()) as u8;
                insn.jf = skip(insn.jf.into()) as u8;
            }
            _ => {}
        }
    }
    let mut reached = reached.into_iter();
    program.retain(|_| reached.next() == Some(true));
    program
}

/// Where an instruction goes on.
fn targets(insn: &Insn, at: usize) -> [Option<usize>; 2] {
    match insn.code {
        RETURN => [None, None],
        JUMP => [Some(at + 1 + insn.k as usize), None],
        JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_OR_EQUAL => [
            Some(at + 1 + usize::from(insn.jt)),
            Some(at + 1 + usize::from(insn.jf)),
        ],
        _ => [Some(at + 1), None],
    }
}
