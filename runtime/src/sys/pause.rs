//! The end of a process that only has to be there: without a heap, behind a filter, waiting for SIGTERM.
#![expect(unsafe_code, reason = "memory is unmapped under the feet of the C library")]

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::os::fd::RawFd;

use anyhow::{Context, Result};

use super::seccomp;
use crate::seccomp::Filter;

/// The system calls of [`until_asked`], for its filter.
pub const CALLS: [&str; 4] = ["rt_sigtimedwait", "munmap", "close", "exit_group"];

/// How many ranges are remembered; a copy of the shim has three or four.
const MOST: usize = 32;

/// Parts of this process's memory, remembered without memory of their own.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    ranges: [(usize, usize); MOST],
    count: usize,
}

impl Ranges {
    const NONE: Self = Self {
        ranges: [(0, 0); MOST],
        count: 0,
    };

    /// All that was allocated: what is writable and of no file, but the stack and the program's own variables.
    ///
    /// # Errors
    ///
    /// `/proc/self/maps` can't be read.
    pub fn of_heap() -> Result<Self> {
        let maps = super::file::read("/proc/self/maps").context("the memory of this process")?;
        let on_the_stack = 0_u8;
        Ok(Self::parse(
            &String::from_utf8_lossy(&maps),
            &raw const on_the_stack as usize,
        ))
    }

    fn parse(maps: &str, stack: usize) -> Self {
        let mut found = Self::NONE;
        let mut end_of_file = 0;
        for line in maps.lines() {
            // proc_pid_maps(5): from-to permissions offset device inode path
            let mut fields = line.split_ascii_whitespace();
            let bounds = fields.next().and_then(|range| range.split_once('-'));
            let permissions = fields.next().unwrap_or_default();
            let path = fields.nth(3).unwrap_or_default();
            let Some((from, to)) = bounds.and_then(|(from, to)| {
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some((number(from)?, number(to)?))
            }) else {
                continue;
            };
            // What follows a file's own part is the rest of the program's variables (.bss).
            let of_program = path.is_empty() && from == end_of_file;
            if path.starts_with('/') {
                end_of_file = to;
            }
            let allocated = path == "[heap]" || (path.is_empty() && !of_program);
            let holds_stack = (from..to).contains(&stack);
            let private = permissions.starts_with("rw") && permissions.ends_with('p');
            if allocated && private && !holds_stack && found.count < MOST {
                found.ranges[found.count] = (from, to);
                found.count += 1;
            }
        }
        found
    }
}

/// Loads the filter, gives the memory back, closes the descriptor and waits for a SIGTERM from outside the PID namespace,
/// then exits. SIGTERM must be blocked. Returns only where the filter can't be loaded.
///
/// # Errors
///
/// As seccomp(2).
pub fn until_asked(last: RawFd, heap: Ranges, filter: &Filter) -> Result<std::convert::Infallible> {
    let heap = if leave_rseq() { heap } else { Ranges::NONE };
    seccomp::load(filter).context("the filter of a process that waits")?;
    // SAFETY: from here on only `call` is used, which needs nothing of the C library; `heap` is on the stack, and nothing
    // of the memory is used again, as this does not return.
    unsafe { wait(last, heap) }
}

/// Ends the restartable sequences of this thread (rseq(2)): the kernel would go on writing to their area, which glibc keeps
/// on the heap, and kill us where it is missing. `false`: they can't be ended.
#[cfg(target_arch = "x86_64")]
fn leave_rseq() -> bool {
    const UNREGISTER: libc::c_int = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    /// `struct rseq` as glibc registers it, whatever part of it is in use.
    const SIZE: u32 = 32;
    let (offset, size): (*const isize, *const u32);
    // SAFETY: loads the addresses of glibc's variables (2.35), null in a C library that has none.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
            offset = out(reg) offset,
            size = out(reg) size,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: glibc's variable: 0 where the kernel refused.
    if offset.is_null() || size.is_null() || unsafe { size.read() } == 0 {
        return true;
    }
    let thread: usize;
    // SAFETY: the thread's control block begins with its own address (System V ABI, thread-local storage).
    unsafe { asm!("mov {thread}, fs:0", thread = out(reg) thread, options(nostack, readonly)) };
    // SAFETY: glibc's variable, which it never writes again.
    let area = thread.wrapping_add_signed(unsafe { offset.read() });
    // SAFETY: the area is the C library's, who uses it for nothing but the number of the processor.
    let left = unsafe { libc::syscall(libc::SYS_rseq, area, SIZE, UNREGISTER, SIGNATURE) };
    left == 0
}

#[cfg(not(target_arch = "x86_64"))]
fn leave_rseq() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
unsafe fn wait(last: RawFd, heap: Ranges) -> ! {
    use super::early::call;
    let mut index = 0;
    while index < heap.count {
        let (from, to) = heap.ranges[index];
        call(libc::SYS_munmap, [from, to - from, 0, 0, 0]);
        index += 1;
    }
    call(libc::SYS_close, [last as usize, 0, 0, 0, 0]);
    loop {
        // `siginfo_t`: signal, errno, code, a hole, then the sender's pid, 0 for one of no number here.
        let mut info = [0_u32; 32];
        let set: u64 = 1 << (libc::SIGTERM - 1);
        let arguments = [
            &raw const set as usize,
            info.as_mut_ptr() as usize,
            0,
            size_of::<u64>(),
            0,
        ];
        let signal = call(libc::SYS_rt_sigtimedwait, arguments);
        // SAFETY: the array is there; the kernel has written it behind the compiler's back.
        let sender = unsafe { info.as_ptr().wrapping_add(4).read_volatile() };
        if signal == Some(libc::SIGTERM as usize) && sender == 0 {
            call(libc::SYS_exit_group, [0; 5]);
        }
    }
}

/// Elsewhere the memory stays: the C library makes the calls.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn wait(last: RawFd, _heap: Ranges) -> ! {
    // SAFETY: nobody uses the descriptor again.
    unsafe { libc::close(last) };
    loop {
        // SAFETY: zeroes are valid for plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let set: u64 = 1 << (libc::SIGTERM - 1);
        let no_timeout = std::ptr::null::<libc::timespec>();
        // SAFETY: all pointers are valid for the call.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const set,
                &raw mut info,
                no_timeout,
                size_of::<u64>(),
            )
        };
        // SAFETY: a SIGTERM has a sender.
        if signal == libc::SIGTERM.into() && unsafe { info.si_pid() } == 0 {
            super::process::exit(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heap_is_what_is_neither_of_a_file_nor_the_stack() {
        let maps = "00400000-00500000 r-xp 00000000 08:01 9 /bin/x\n\
            00500000-00502000 rw-p 00100000 08:01 9 /bin/x\n\
            00502000-00504000 rw-p 00000000 00:00 0 \n\
            01000000-01021000 rwxp 00000000 00:00 0 [heap]\n\
            7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n\
            7f0000001000-7f0000201000 rw-p 00000000 00:00 0 \n\
            7f1000000000-7f1000002000 rw-p 00000000 00:00 0 \n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n\
            7ffc00030000-7ffc00034000 r--p 00000000 00:00 0 [vvar]\n";
        // A test's thread has its stack in the middle of the rest.
        let found = Ranges::parse(maps, 0x7f10_0000_1800);
        assert_eq!(
            &found.ranges[..found.count],
            [(0x0100_0000, 0x0102_1000), (0x7f00_0000_1000, 0x7f00_0020_1000)]
        );
    }
}
