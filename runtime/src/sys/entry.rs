#![expect(unsafe_code, reason = "a C entry point")]
//! Where the program begins: C's `main` instead of std's.
//!
//! std's entry reads `/proc/self/maps` to find the stack's guard page (with `sscanf`, which brings 100 KB of C library),
//! and sets up an alternate stack and handlers to say "stack overflow" before the SIGSEGV: 15 system calls and 0.1 ms
//! of CPU, a fifth of what `state` or `kill` take in all. Nothing here recurses over its input.
//!
//! What std does and we rely on is done by [`prepare`]: descriptors 0 to 2 are open, so that no file of ours ends up under
//! their numbers, and SIGPIPE is ignored, so that writing to a reader that went away is an error, not death.

use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

/// Defines the C `main` of a program, which calls a `fn() -> u8` and exits with what it returns. The program has
/// `#![no_main]`; std finds the arguments without its own entry (glibc gives them to `.init_array`).
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn main(
            _count: std::ffi::c_int,
            arguments: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            $crate::sys::entry::prepare(arguments);
            std::ffi::c_int::from($run())
        }
    };
}

/// What the kernel put on the stack: arguments and, behind them, the environment: first address, that of the last
/// argument's NUL, that of the last NUL of all.
static GIVEN: [AtomicPtr<u8>; 3] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 3];

/// Called by [`entry!`](crate::entry) before anything else, with what the kernel put on the stack.
pub fn prepare(arguments: *const *const libc::c_char) {
    remember(arguments);
    open_standard_descriptors();
    // SAFETY: SIG_IGN is no function that could be called, and this program has one thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fn remember(arguments: *const *const libc::c_char) {
    let at = |index: usize| {
        // SAFETY: the caller passes main's arguments: pointers, a null, then the environment's pointers and a null; no
        // index goes behind the second one.
        unsafe { arguments.wrapping_add(index).read() }
    };
    let count = (0..).take_while(|index| !at(*index).is_null()).count();
    let variables = (count + 1..).take_while(|index| !at(*index).is_null()).count();
    if count == 0 {
        return;
    }
    let end = |index: usize| {
        let last = at(index);
        // SAFETY: a NUL-terminated string of the kernel's making.
        let length = unsafe { libc::strlen(last) };
        last.cast_mut().cast::<u8>().wrapping_add(length)
    };
    GIVEN[0].store(at(0).cast_mut().cast(), Relaxed);
    GIVEN[1].store(end(count - 1), Relaxed);
    GIVEN[2].store(
        end(if variables == 0 {
            count - 1
        } else {
            count + variables
        }),
        Relaxed,
    );
}

/// Forgets the arguments and the environment that this process was started with: a container can read them in
/// `/proc/<pid>/cmdline` and `environ` while a process of ours becomes its own, and they are the caller's. In a program
/// without [`entry!`](crate::entry) this does nothing.
pub fn forget_caller() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    if GIVEN[0].load(Relaxed).is_null() {
        return;
    }
    // SAFETY: with a single thread nobody reads or changes the environment meanwhile; an empty one is a null pointer.
    unsafe { environ = std::ptr::null_mut() };
    overwrite(b"rtc init", &GIVEN[2]);
}

/// Shows these as the command line of this process in `/proc/<pid>/cmdline` (`ps`), cut to the room that the arguments
/// have; the environment stays. [`std::env::args_os`] must not be asked again. In a program without
/// [`entry!`](crate::entry) this does nothing.
pub fn rename(arguments: &[std::ffi::OsString]) {
    use std::os::unix::ffi::OsStrExt;
    let line: Vec<&[u8]> = arguments.iter().map(|argument| argument.as_bytes()).collect();
    overwrite(&line.join(&0), &GIVEN[1]);
}

/// Puts a text where the kernel laid out what this process was given, with zeroes behind it up to a NUL of it.
fn overwrite(text: &[u8], last: &AtomicPtr<u8>) {
    let (first, last) = (GIVEN[0].load(Relaxed), last.load(Relaxed));
    if first.is_null() {
        return;
    }
    let length = last as usize - first as usize;
    // SAFETY: the kernel lays all these strings out one behind the other, in the writable stack of this process, and
    // nobody looks at them any more, or as at bytes that may change.
    unsafe { std::ptr::write_bytes(first, 0, length) };
    let text = &text[..text.len().min(length)];
    // SAFETY: as above; the text is cut to what there is.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), first, text.len()) };
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
