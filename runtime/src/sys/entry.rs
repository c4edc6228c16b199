#![expect(unsafe_code, reason = "a C entry point")]
//! Where the program begins: C's `main` instead of std's.
//!
//! std's entry reads `/proc/self/maps` to find the stack's guard page (with `sscanf`, which brings 100 KB of C library),
//! and sets up an alternate stack and handlers to say "stack overflow" before the SIGSEGV: 15 system calls and 0.1 ms
//! of CPU, a fifth of what `state` or `kill` take in all. Nothing here recurses over its input.
//!
//! What std does and we rely on is done by [`prepare`]: descriptors 0 to 2 are open, so that no file of ours ends up under
//! their numbers, and SIGPIPE is ignored, so that writing to a reader that went away is an error, not death.

/// Defines the C `main` of a program, which calls a `fn() -> u8` and exits with what it returns. The program has
/// `#![no_main]`; std finds the arguments without its own entry (glibc gives them to `.init_array`).
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn main(
            _count: std::ffi::c_int,
            _arguments: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            $crate::sys::entry::prepare();
            std::ffi::c_int::from($run())
        }
    };
}

/// Called by [`entry!`](crate::entry) before anything else.
pub fn prepare() {
    open_standard_descriptors();
    // SAFETY: SIG_IGN is no function that could be called, and this program has one thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Opens `/dev/null` under those of 0, 1 and 2 that are closed.
fn open_standard_descriptors() {
    let mut descriptors = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the three elements are there; the call does not wait.
    let found = unsafe { libc::poll(descriptors.as_mut_ptr(), 3, 0) };
    if found <= 0 {
        return;
    }
    for descriptor in descriptors.iter().filter(|d| d.revents & libc::POLLNVAL != 0) {
        // SAFETY: a constant string with its NUL. The lowest free number is the one that was found closed, as lower
        // ones are open by now.
        let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        if opened != descriptor.fd {
            // No /dev/null: better no program than one that writes its messages into a container's file.
            std::process::abort();
        }
    }
}
