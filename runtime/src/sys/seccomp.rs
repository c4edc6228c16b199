//! `seccomp(2)`: loading a filter, and what this kernel supports.

#![expect(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::{Errno, Error, Result};
use crate::seccomp::{
    FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV, Filter, Insn, MAX_INSTRUCTIONS,
};

// linux/seccomp.h
const SET_MODE_FILTER: libc::c_uint = 1;
const GET_ACTION_AVAIL: libc::c_uint = 2;

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct Fprog {
    len: u16,
    filter: *const Insn,
}

/// Puts a filter on the calling thread. Needs `CAP_SYS_ADMIN` or no_new_privs (seccomp(2)). Where the filter notifies
/// a supervisor, returns the descriptor to be handed to it (close-on-exec).
///
/// Allocates nothing unless it fails: it is called between clone and exec.
///
/// # Errors
/// `EACCES` without the privilege; `EINVAL` where the kernel lacks a flag or notification, with the Linux version that
/// has it in the message; `EBUSY` where another filter of the process has a listener already.
pub fn load(filter: &Filter) -> Result<Option<OwnedFd>> {
    let flags = filter.flags | if filter.notify { FLAG_NEW_LISTENER } else { 0 };
    let len = match u16::try_from(filter.program.len()) {
        Ok(len) if usize::from(len) <= MAX_INSTRUCTIONS => len,
        _ => {
            return Err(Error {
                call: call(filter, flags),
                errno: Errno::EINVAL,
            });
        }
    };
    let fprog = Fprog {
        len,
        filter: filter.program.as_ptr(),
    };
    // SAFETY: `fprog` and the `len` instructions it points to live until the call returns; the kernel only reads them.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const fprog) };
    if returned == -1 {
        // Before the message is made: that asks the kernel, too.
        let errno = Errno::last();
        return Err(Error {
            call: call(filter, flags),
            errno,
        });
    }
    if !filter.notify {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the kernel returns a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(returned as RawFd) }))
}

/// The failed call as an error names it, with the flags this kernel lacks and the version that has them.
fn call(filter: &Filter, flags: u32) -> String {
    let mut text = format!(
        "seccomp(SET_MODE_FILTER, {flags:#x}, {} instructions)",
        filter.program.len()
    );
    for (name, flag, version) in FLAGS {
        if flags & flag != 0 && !flag_supported(flag) {
            text.push_str(&format!(
                " (this kernel lacks {name}, which needs Linux {version})"
            ));
        }
    }
    text
}

/// The flags a filter can have, with the Linux version each came with.
const FLAGS: [(&str, u32, &str); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", FLAG_LOG, "4.14"),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", FLAG_SPEC_ALLOW, "4.17"),
    ("SECCOMP_FILTER_FLAG_NEW_LISTENER", FLAG_NEW_LISTENER, "5.0"),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        FLAG_WAIT_KILLABLE_RECV,
        "5.19",
    ),
];

/// Whether this kernel knows a `SECCOMP_FILTER_FLAG_*` bit.
pub fn flag_supported(flag: u32) -> bool {
    // WAIT_KILLABLE_RECV is refused on its own.
    let flags = if flag == FLAG_WAIT_KILLABLE_RECV {
        flag | FLAG_NEW_LISTENER
    } else {
        flag
    };
    // SAFETY: the null program makes the call fail before it does anything: with EFAULT where the flags are known,
    // with EINVAL where they are not.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            flags,
            std::ptr::null::<Fprog>(),
        )
    };
    returned == -1 && Errno::last() == Errno::EFAULT
}

/// Whether this kernel knows an action, given as a filter returns it (`SECCOMP_RET_*` without data); Linux 4.14.
pub fn action_supported(action: u32) -> bool {
    // SAFETY: the kernel reads the one word it is pointed to.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    returned == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::compile;

    /// A filter is on one thread: one that ends with the test.
    fn in_a_thread(test: fn()) {
        std::thread::spawn(test).join().expect("the test's thread");
    }

    fn filter(profile: serde_json::Value) -> Filter {
        compile(&serde_json::from_value(profile).expect("a profile")).expect("compile")
    }

    #[test]
    fn a_loaded_filter_decides() {
        in_a_thread(|| {
            nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
            let rules =
                serde_json::json!([{"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 27}]);
            let filter = filter(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
            assert!(load(&filter).expect("load").is_none());
            assert_eq!(nix::unistd::getsid(None).err(), Some(Errno::EFBIG));
        });
    }

    #[test]
    fn a_filter_that_notifies_gives_a_listener_once() {
        in_a_thread(|| {
            nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
            let rules = serde_json::json!([{"names": ["getsid"], "action": "SCMP_ACT_NOTIFY"}]);
            let filter = filter(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
            let listener = load(&filter).expect("load").expect("a listener");
            assert_eq!(load(&filter).expect_err("a second listener").errno, Errno::EBUSY);
            drop(listener);
            assert_eq!(
                nix::unistd::getsid(None).err(),
                Some(Errno::ENOSYS),
                "nobody listens"
            );
        });
    }

    #[test]
    fn this_kernel_knows_what_linux_5_19_knows_and_no_invented_flag() {
        for (name, flag, _) in FLAGS {
            assert!(flag_supported(flag), "{name}");
        }
        assert!(!flag_supported(1 << 30));
        assert!(action_supported(0x7fff_0000) && !action_supported(0x1234_0000));
    }

    #[test]
    fn a_refused_filter_is_named_with_its_flags_and_length() {
        let filter = Filter {
            flags: 1 << 30,
            ..filter(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"}))
        };
        let error = load(&filter).expect_err("an invented flag");
        let length = filter.program.len();
        assert_eq!(
            error.to_string(),
            format!("seccomp(SET_MODE_FILTER, 0x40000000, {length} instructions): Invalid argument")
        );
    }
}
