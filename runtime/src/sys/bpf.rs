//! bpf(2), as far as the device controller of cgroup v2 needs it: loading a `BPF_PROG_TYPE_CGROUP_DEVICE` program, pinning
//! it, and attaching it to a cgroup, alone or in exchange for another.
//!
//! Since Linux 5.11 loading counts against the memory cgroup, not `RLIMIT_MEMLOCK`, so no limit is raised. Where it
//! fails with `EPERM` on an older kernel, that limit is what to raise.
#![expect(unsafe_code, reason = "bpf has no wrapper, and descriptors come as integers")]

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Errno, Error, Result, checked};

const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_PIN: i32 = 6;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// The programs of the cgroups above and of others on this one are run too, and all must allow.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Takes the place of a program that is attached (Linux 5.6).
const BPF_F_REPLACE: u32 = 4;
/// More programs than the kernel attaches to one cgroup.
const MOST_PROGRAMS: usize = 64;
/// What the kernel is asked to tell of a program it refuses.
const LOG_SIZE: usize = 16 * 1024;

/// An instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation, its class and the kind of its operand.
    pub code: u8,
    /// Destination in the lower half, source in the upper.
    pub registers: u8,
    /// Of a jump or a memory access.
    pub offset: i16,
    /// The operand that is a number.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads here (Linux 4.15).
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part that `BPF_OBJ_PIN` reads.
#[repr(C)]
struct Pin {
    path: u64,
    program: u32,
    flags: u32,
}

/// The part that `BPF_PROG_ATTACH` and `BPF_PROG_DETACH` read.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// The part that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// The part that `BPF_PROG_GET_FD_BY_ID` reads.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Calls bpf(2) with one of the structures above.
fn bpf<T>(command: i32, attributes: &mut T, call: impl FnOnce() -> String) -> Result<libc::c_long> {
    // SAFETY: `attributes` is a prefix of `union bpf_attr` of the size given, initialised, and lives over the call; the
    // addresses in it are of buffers that the callers keep alive; the kernel takes what is missing for zero.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    checked(returned, call)
}

fn owned(fd: libc::c_long, call: &str) -> Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| Error {
        call: call.to_owned(),
        errno: Errno::EBADF,
    })?;
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec), and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Loads a device program.
///
/// # Errors
///
/// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN` (or `CAP_SYS_ADMIN`), `EINVAL` or `EACCES` for a program the kernel
/// refuses: then the error has the last line of what it says.
pub fn load_device_program(instructions: &[Instruction]) -> Result<OwnedFd> {
    let call = "bpf(PROG_LOAD, CGROUP_DEVICE)";
    let loaded = load(instructions, &mut []);
    let loaded = match loaded {
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::EACCES) => {
            let mut log = vec![0; LOG_SIZE];
            load(instructions, &mut log).map_err(|error| {
                let text = CStr::from_bytes_until_nul(&log)
                    .unwrap_or_default()
                    .to_string_lossy();
                let last = text
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty())
                    .unwrap_or_default();
                Error {
                    call: format!("{} ({} instructions): {last}", error.call, instructions.len()),
                    ..error
                }
            })
        }
        loaded => loaded,
    };
    owned(loaded?, call)
}

fn load(instructions: &[Instruction], log: &mut [u8]) -> Result<libc::c_long> {
    let mut name = [0; 16];
    name[..10].copy_from_slice(b"rtc_device");
    let mut attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).unwrap_or(0),
        log: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr().addr() as u64
        },
        kernel_version: 0,
        flags: 0,
        name,
    };
    bpf(BPF_PROG_LOAD, &mut attributes, || {
        "bpf(PROG_LOAD, CGROUP_DEVICE)".to_owned()
    })
}

/// Pins a program: it stays loaded as long as the path in a bpf file system is there.
///
/// # Errors
///
/// `EEXIST` where something is at the path, `EPERM` for a name with a dot or without the privilege.
pub fn pin(program: impl AsFd, path: &Path) -> Result<()> {
    let call = || format!("bpf(OBJ_PIN, {path:?})");
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error {
        call: call(),
        errno: Errno::EINVAL,
    })?;
    let mut attributes = Pin {
        path: name.as_ptr().addr() as u64,
        program: raw(program),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attributes, call).map(drop)
}

/// Attaches a device program to a cgroup directory; a process in the cgroup is bound by it from then on.
/// In exchange for one that is attached to it, there is no moment without either.
///
/// # Errors
///
/// `EPERM` where a cgroup above forbids it, `ENOENT` where `replaced` is no longer attached.
pub fn attach_device_program(
    cgroup: impl AsFd,
    program: impl AsFd,
    replaced: Option<&OwnedFd>,
) -> Result<()> {
    let mut attributes = Attach {
        target: raw(cgroup),
        program: raw(program),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, raw),
    };
    bpf(BPF_PROG_ATTACH, &mut attributes, || {
        "bpf(PROG_ATTACH, CGROUP_DEVICE)".to_owned()
    })
    .map(drop)
}

/// Detaches a device program from a cgroup directory.
///
/// # Errors
///
/// `ENOENT` where it is not attached.
pub fn detach_device_program(cgroup: impl AsFd, program: impl AsFd) -> Result<()> {
    let mut attributes = Attach {
        target: raw(cgroup),
        program: raw(program),
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attributes, || {
        "bpf(PROG_DETACH, CGROUP_DEVICE)".to_owned()
    })
    .map(drop)
}

/// The device programs attached to a cgroup directory itself, not those above it.
///
/// # Errors
///
/// `EPERM` without the privilege; one that went away meanwhile is left out.
pub fn device_programs(cgroup: impl AsFd) -> Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target: raw(cgroup),
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().addr() as u64,
        count: u32::try_from(ids.len()).unwrap_or(0),
    };
    bpf(BPF_PROG_QUERY, &mut query, || {
        "bpf(PROG_QUERY, CGROUP_DEVICE)".to_owned()
    })?;
    let count = usize::try_from(query.count).unwrap_or(0).min(ids.len());
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        let call = "bpf(PROG_GET_FD_BY_ID)";
        let mut attributes = ById {
            id: *id,
            next: 0,
            flags: 0,
        };
        match bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes, || call.to_owned()) {
            Ok(fd) => programs.push(owned(fd, call)?),
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}
