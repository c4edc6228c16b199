//! Memory that libc keeps.
#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Gives the kernel back what a burst of work left free in the heap, also between what is in use. Some microseconds.
pub fn trim() {
    // What else allocates knows itself best.
    #[cfg(target_env = "gnu")]
    // SAFETY: it looks at what is free only, under malloc's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
