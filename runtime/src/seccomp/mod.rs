//! Seccomp profiles compiled to classic BPF, without a C library.
//!
//! ```text
//! LinuxSeccomp -> profile (checked, names resolved per ABI) -> tree (decisions by arguments)
//!              -> search (ranges of numbers)                -> program (instructions)
//!
//! load ABI
//! native?  load number, binary search over ranges -> return | decision by arguments -> return
//! other?   the same, for each ABI that the profile lists
//! else     kill the thread
//! ```
//!
//! The decisions are libseccomp's (which is the oracle of our tests) with runc's additions: a call that is newer than
//! every call the profile names fails with `ENOSYS` where the default action would not let it pass, so that programs
//! fall back to an older call. As in runc since 1.2 this includes the native ABI where the profile lists none.
//!
//! There is no cache of filters: the profile that Kubernetes gives every container compiles to 205 instructions in 0.11
//! to 0.14 ms. To find and read its filter in a file takes 0.05 to 0.07 ms, most of it for the profile's canonical form
//! that names the file; and it would be a file to guard, to expire and to keep from lying. libseccomp needs 18 ms.
//!
//! Where this differs from libseccomp and runc:
//! - Two rules that contradict each other are only refused where an ABI has the call; libseccomp also refuses them for
//!   one that has not.
//! - runc's `ENOSYS` starts after the greatest number that is not multiplexed on x86, ours after the greatest of all:
//!   a call that the profile names never fails so.
//! - `errnoRet` may be 4095; libseccomp takes 4094 at most.
//! - libseccomp 2.5.4 drops rules, or compares the wrong half of an argument, in some filters with several comparisons
//!   on one argument. That is not imitated (see `tests/seccomp/compare.rs`).

mod arch;
mod profile;
mod program;
mod search;
mod table;
#[cfg(test)]
mod tests;
mod tree;

use anyhow::Result;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag};

use arch::{ABIS, Abi, X32_BIT};
use profile::{Decisions, Profile};
use program::{Program, Target};
use search::Ranges;
use tree::{Decision, Test};

/// Instructions that the kernel takes in one filter (linux/bpf_common.h `BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// `SECCOMP_FILTER_FLAG_LOG` (Linux 4.14): log what the filter does not allow.
pub const FLAG_LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW` (Linux 4.17): no speculative store bypass mitigation.
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` (Linux 5.0): return a descriptor for the supervisor.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): only fatal signals interrupt a call that the supervisor has.
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

const RETURN_KILL_THREAD: u32 = 0;
const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// One instruction, `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where the test holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A filter ready to be loaded by [`crate::sys::seccomp::load`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    /// At most [`MAX_INSTRUCTIONS`] instructions.
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*` bits, all but [`FLAG_NEW_LISTENER`].
    pub flags: u32,
    /// Some rule has `SCMP_ACT_NOTIFY`: loading the filter yields a descriptor for the agent of
    /// `linux.seccomp.listenerPath`.
    pub notify: bool,
    /// Names that no ABI of this machine has. They are ignored, as runc does; a debug message may tell of them.
    pub unknown: Vec<String>,
}

/// Compiles a profile for this machine's architecture.
///
/// # Errors
/// Name the field and the value: an argument index over 5, an errno over 4095, `SCMP_ACT_NOTIFY` as default action or
/// for `write`, two rules that contradict each other, a filter longer than the kernel takes.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let (resolved, unknown) = Profile::new(profile)?;
    let stub = !matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
    );
    let listed = |abi: &Abi| {
        profile
            .architectures()
            .iter()
            .flatten()
            .any(|arch| *arch == abi.arch)
    };
    let mut program = Program::default();
    let mut otherwise = Target::Return(RETURN_KILL_THREAD);
    let mut x32 = None;
    // The program is written from its end: native last, to be first.
    for (column, abi) in ABIS.iter().enumerate().rev() {
        if column != 0 && !listed(abi) {
            continue;
        }
        let decisions = resolved.decisions(column)?;
        if abi.bit == X32_BIT {
            x32 = Some(decisions);
            continue;
        }
        let section = Section {
            default: resolved.default,
            stub,
            abi,
        };
        let numbers = section.write(&mut program, &decisions, x32.take().as_ref())?;
        otherwise = program.branch(Test::Equal, abi.audit, numbers, otherwise);
    }
    program.load_arch(otherwise);
    Ok(Filter {
        program: program.finish()?,
        flags: flags(profile, resolved.notify),
        notify: resolved.notify,
        unknown,
    })
}

/// The filter flags of a profile. Where it has no `flags` at all, runc's default is `SPEC_ALLOW`. `TSYNC` is about
/// other threads, of which a container's first process has none. The kernel refuses `WAIT_KILLABLE_RECV` without a
/// listener.
fn flags(profile: &LinuxSeccomp, notify: bool) -> u32 {
    let Some(flags) = profile.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |bits, flag| {
        bits | match flag {
            Flag::SeccompFilterFlagLog => FLAG_LOG,
            Flag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            Flag::SeccompFilterFlagWaitKillableRecv if notify => FLAG_WAIT_KILLABLE_RECV,
            Flag::SeccompFilterFlagWaitKillableRecv | Flag::SeccompFilterFlagTsync => 0,
        }
    })
}

/// The part of a program for one `AUDIT_ARCH_*` value.
struct Section<'a> {
    default: u32,
    /// Whether calls newer than the profile fail with `ENOSYS`.
    stub: bool,
    abi: &'a Abi,
}

impl Section<'_> {
    fn write(&self, program: &mut Program, own: &Decisions, x32: Option<&Decisions>) -> Result<Target> {
        let default = Target::Return(self.default);
        let mut ranges = Ranges::new(default);
        if self.stub && self.abi.zero_is_unknown && own.greatest.is_some() {
            ranges.from(0, Target::Return(RETURN_ENOSYS));
            ranges.from(1, default);
        }
        let newer = self.calls(program, &mut ranges, own)?;
        if cfg!(target_arch = "x86_64") && std::ptr::eq(self.abi, &raw const ABIS[0]) {
            self.x32(program, &mut ranges, newer, x32)?;
        }
        let search = ranges.write(program);
        Ok(program.load_number(search))
    }

    /// Adds an ABI's calls; returns where numbers beyond them go, if not to the default action.
    fn calls(&self, program: &mut Program, ranges: &mut Ranges, abi: &Decisions) -> Result<Option<Target>> {
        let default = Target::Return(self.default);
        let mut end = None;
        for (number, decision) in &abi.calls {
            let target = match decision {
                Decision::Act(action) => Target::Return(*action),
                Decision::Tree(level) => program.level(level, default)?,
            };
            if let Some(end) = end.filter(|end| end != number) {
                ranges.from(end, default);
            }
            ranges.from(*number, target);
            end = Some(number + 1);
        }
        if let Some(end) = end {
            ranges.from(end, default);
        }
        match abi.greatest {
            Some(greatest) if self.stub => {
                ranges.from(greatest + 1, Target::Return(RETURN_ENOSYS));
                Ok(Some(Target::Return(RETURN_ENOSYS)))
            }
            _ => Ok(None),
        }
    }

    /// Numbers with bit 30 are x32's: where the profile does not list it they belong to no ABI. Number -1 is what a
    /// tracer sets to skip a call (Linux 4.8): libseccomp leaves it to the default action.
    fn x32(
        &self,
        program: &mut Program,
        ranges: &mut Ranges,
        newer: Option<Target>,
        x32: Option<&Decisions>,
    ) -> Result<()> {
        const BIT_31: u32 = 1 << 31;
        let default = Target::Return(self.default);
        let kill = Target::Return(RETURN_KILL_THREAD);
        let otherwise = if x32.is_some() { default } else { kill };
        ranges.from(X32_BIT, otherwise);
        let beyond = match x32 {
            Some(x32) => self.calls(program, ranges, x32)?.unwrap_or(default),
            None => kill,
        };
        // Bit 31 without bit 30: libseccomp takes it for x32, as it only compares; runc's stub takes it for x86_64.
        ranges.from(BIT_31, newer.unwrap_or(otherwise));
        ranges.from(BIT_31 | X32_BIT, beyond);
        if x32.is_none() {
            ranges.from(u32::MAX, default);
        }
        Ok(())
    }
}
