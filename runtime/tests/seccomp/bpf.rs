//! Classic BPF as the kernel takes it for seccomp: its checks, and an interpreter.
//!
//! The checks are those of `bpf_check_classic` (net/core/filter.c) and `seccomp_check_filter` (kernel/seccomp.c).

use rtc_runtime::seccomp::Insn;

/// What a filter looks at: `struct seccomp_data` without the instruction pointer, which filters here do not use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    pub(crate) number: u32,
    pub(crate) arch: u32,
    pub(crate) arguments: [u64; 6],
}

const SIZE_OF_DATA: u32 = 64;

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => 0,
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let second = offset % 8 == 4;
                if second != cfg!(target_endian = "big") {
                    (argument >> 32) as u32
                } else {
                    argument as u32
                }
            }
        }
    }
}

/// Refuses what the kernel would refuse, and code that nothing reaches.
pub(crate) fn check(program: &[Insn]) -> Result<(), String> {
    if program.is_empty() || program.len() > 4096 {
        return Err(format!("{} instructions", program.len()));
    }
    let mut reached = vec![false; program.len()];
    reached[0] = true;
    for (at, insn) in program.iter().enumerate() {
        let skips = match insn.code {
            0x20 if insn.k % 4 == 0 && insn.k < SIZE_OF_DATA => vec![0],
            0x54 => vec![0],
            0x06 => vec![],
            0x05 => vec![insn.k as usize],
            0x15 | 0x25 | 0x35 | 0x45 => vec![insn.jt.into(), insn.jf.into()],
            _ => return Err(format!("{at}: {insn:?} is no instruction of a seccomp filter")),
        };
        for skip in skips {
            let target = at.checked_add(1 + skip).filter(|target| *target < program.len());
            let Some(target) = target else {
                return Err(format!("{at}: {insn:?} jumps out of the program"));
            };
            if reached[at] {
                reached[target] = true;
            }
        }
    }
    match reached.iter().position(|reached| !reached) {
        Some(at) => Err(format!("{at}: {:?} is never reached", program[at])),
        None => Ok(()),
    }
}

/// Refuses a program that compares something else depending on how it got there: a comparison must see one and the
/// same word, under the same mask, on all ways to it.
pub(crate) fn check_accumulator(program: &[Insn]) -> Result<(), String> {
    let mut seen: Vec<Option<(u32, u32)>> = vec![None; program.len()];
    let mut ways = vec![(0, (u32::MAX, u32::MAX))];
    while let Some((at, (offset, mask))) = ways.pop() {
        let insn = &program[at];
        let state = match insn.code {
            0x20 => (insn.k, u32::MAX),
            0x54 => (offset, mask & insn.k),
            _ => (offset, mask),
        };
        let compares = matches!(insn.code, 0x15 | 0x25 | 0x35 | 0x45);
        match seen[at] {
            Some(other) if compares && other != state => {
                return Err(format!(
                    "{at}: {insn:?} compares offset {} on one way and {} on another",
                    other.0, state.0
                ));
            }
            // A load makes all ways equal; a jump or a mask may be reached in several states, all to be followed.
            Some(other) if other == state => continue,
            _ => seen[at] = Some(state),
        }
        match insn.code {
            0x06 => {}
            0x05 => ways.push((at + 1 + insn.k as usize, state)),
            _ if compares => {
                ways.push((at + 1 + usize::from(insn.jt), state));
                ways.push((at + 1 + usize::from(insn.jf), state));
            }
            _ => ways.push((at + 1, state)),
        }
    }
    Ok(())
}

/// Runs a filter; returns its verdict and how many instructions it took.
pub(crate) fn run(program: &[Insn], data: &Data) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let insn = program[at];
        steps += 1;
        at += 1;
        let holds = match insn.code {
            0x20 => {
                accumulator = data.word(insn.k);
                continue;
            }
            0x54 => {
                accumulator &= insn.k;
                continue;
            }
            0x05 => {
                at += insn.k as usize;
                continue;
            }
            0x06 => return (insn.k, steps),
            0x15 => accumulator == insn.k,
            0x25 => accumulator > insn.k,
            0x35 => accumulator >= insn.k,
            0x45 => accumulator & insn.k != 0,
            _ => panic!("{insn:?} is no instruction of a seccomp filter"),
        };
        at += usize::from(if holds { insn.jt } else { insn.jf });
    }
}
