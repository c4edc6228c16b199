//! Classic BPF as the kernel takes it for seccomp (`bpf_check_classic` and `seccomp_check_filter`), and runs it.

use crate::profile;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use oci_spec::runtime::LinuxSeccomp;

/// One instruction: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// `AUDIT_ARCH_X86_64`.
pub const X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const I386: u32 = 0x4000_0003;

const LOAD_ABSOLUTE: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const IF_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone)]
pub struct Call {
    /// Number.
    pub number: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The six arguments.
    pub arguments: [u64; 6],
}

impl Call {
    /// A call that has much to do with the profile.
    pub fn random(input: &mut Unstructured<'_>, profile: &LinuxSeccomp) -> Result<Self> {
        let number = match input.int_in_range(0..=3)? {
            0 => input.arbitrary()?,
            1 => input.int_in_range(0..=500)?,
            _ => input.choose(profile::NAMES)?.1.unwrap_or(0),
        };
        let arch = match input.int_in_range(0..=15)? {
            0 => I386,
            1 => input.arbitrary()?,
            _ => X86_64,
        };
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = profile::interesting(input, profile)?;
        }
        Ok(Self {
            number,
            arch,
            arguments,
        })
    }

    /// The 32-bit word at a byte offset of the structure; little endian.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => 0, // instruction pointer
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    argument as u32
                } else {
                    (argument >> 32) as u32
                }
            }
        }
    }
}

/// Whether the kernel would take the program.
pub fn check(program: &[Instruction]) -> std::result::Result<(), String> {
    if program.is_empty() || program.len() > 4096 {
        return Err(format!("{} instructions", program.len()));
    }
    for (at, &(code, jt, jf, k)) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let good = match code {
            LOAD_ABSOLUTE => k < 64 && k.is_multiple_of(4),
            AND | RETURN => true,
            JUMP => (k as usize) < left,
            IF_EQUAL | IF_GREATER | IF_GREATER_OR_EQUAL | IF_BITS => {
                usize::from(jt) < left && usize::from(jf) < left
            }
            _ => false,
        };
        if !good {
            return Err(format!(
                "instruction {at} of {}: {code:#x} {jt} {jf} {k:#x}",
                program.len()
            ));
        }
    }
    match program.last() {
        Some(&(RETURN, ..)) => Ok(()),
        _ => Err("does not end in a return".into()),
    }
}

/// Runs a checked program, and returns what it returns.
pub fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let (code, jt, jf, k) = program[at];
        let holds = match code {
            RETURN => return k,
            LOAD_ABSOLUTE => {
                accumulator = call.word(k);
                None
            }
            AND => {
                accumulator &= k;
                None
            }
            JUMP => {
                at += k as usize;
                None
            }
            IF_EQUAL => Some(accumulator == k),
            IF_GREATER => Some(accumulator > k),
            IF_GREATER_OR_EQUAL => Some(accumulator >= k),
            _ => Some(accumulator & k != 0),
        };
        at += 1 + holds.map_or(0, |yes| usize::from(if yes { jt } else { jf }));
    }
}
