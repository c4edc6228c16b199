//! Memory that libc keeps, and where the kernel takes a process' memory from.
#![expect(unsafe_code, reason = "malloc_trim and set_mempolicy have no safe wrappers")]

use super::{Result, checked};

/// Gives the kernel back what a burst of work left free in the heap, also between what is in use. Some microseconds.
pub fn trim() {
    // What else allocates knows itself best.
    #[cfg(target_env = "gnu")]
    // SAFETY: it looks at what is free only, under malloc's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The memory policy of this process (set_mempolicy(2)): mode and flags of linux/mempolicy.h, and bit n of word n / 64 for
/// node n.
///
/// # Errors
///
/// `ENOSYS` without NUMA in the kernel; `EINVAL` for a mode it does not know, nodes that are not there or not allowed.
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() {
        std::ptr::null()
    } else {
        nodes.as_ptr()
    };
    // SAFETY: the mask has the number of bits told, or is null with none.
    let returned = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    checked(returned, || format!("set_mempolicy({mode:#x}, {nodes:x?})")).map(drop)
}
