//! The way into `rtc` and the shim for the verbs that meet a container: seals our program before libc starts.
//!
//! [`crate::sealed_exe`] executes the program a second time, and all that the first incarnation did by then is lost.
//! A static glibc alone takes 0.3 ms to get to `main` in a virtual machine (it asks the processor for its features
//! and caches, and each question leaves the machine). So the entry of the executable is not libc's `_start` but
//! [`early`], which has only the kernel:
//!
//! ```text
//! rtc_entry: run, create or exec, and no marker in the environment?   (shim_entry: start?)
//!    yes --> overlay, execveat --> rtc_entry: there is a marker --> _start --> main --> sealed_exe::ensure checks it
//!     `-- any of it fails, or is not needed --> _start --> main --> sealed_exe::ensure decides, and seals itself
//! ```
//!
//! A program takes one of the entries by its build.rs. Descriptors and all else stay as they were: the shim reads its stdin
//! in its second incarnation.
//!
//! Nothing is decided here: [`crate::sealed_exe::ensure`] checks what it finds all the same.
//!
//! Before `_start` nothing of libc works, not even `memcpy` (chosen at start), so no slice is compared or copied here
//! as a whole; volatile reads keep the compiler from making a call of a loop.
#![expect(unsafe_code, reason = "there is no libc yet")]

use std::arch::{asm, global_asm};
use std::mem::MaybeUninit;

use super::exe::{
    FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC,
    MOUNT_ATTR_NODEV, MOUNT_ATTR_RDONLY, STATX_ATTR_VERITY, STATX_MNT_ID_UNIQUE,
};

// At the entry the stack is aligned and starts with the count of arguments; rdx is for _start.
global_asm!(
    ".globl rtc_entry",
    ".type rtc_entry, @function",
    "rtc_entry:",
    "xor esi, esi",
    "jmp 2f",
    ".globl shim_entry",
    ".type shim_entry, @function",
    "shim_entry:",
    "mov esi, 1",
    "2:",
    "mov rdi, rsp",
    "push rdx",
    "push rdx",
    "call {early}",
    "pop rdx",
    "pop rdx",
    "jmp _start",
    early = sym early,
);

/// Variables of the environment that there is room for; who has more is sealed later.
const MOST_VARIABLES: usize = 1000;
const PATH_MAX: usize = libc::PATH_MAX as usize;
const AT_FDCWD: usize = libc::AT_FDCWD as usize;
const SELF_EXE: *const u8 = c"/proc/self/exe".as_ptr().cast();

/// A NUL-terminated text of the kernel's making.
#[derive(Clone, Copy)]
struct Text(*const u8);

impl Text {
    fn at(self, index: usize) -> u8 {
        // SAFETY: nobody reads past the NUL, up to which the text is readable.
        unsafe { self.0.wrapping_add(index).read_volatile() }
    }

    fn starts_with(self, word: &[u8]) -> bool {
        let mut index = 0;
        while index < word.len() {
            if self.at(index) != word[index] {
                return false;
            }
            index += 1;
        }
        true
    }

    fn is(self, word: &[u8]) -> bool {
        self.starts_with(word) && self.at(word.len()) == 0
    }
}

/// A list of pointers that ends in null: arguments, environment.
#[derive(Clone, Copy)]
struct List(*const *const u8);

impl List {
    fn get(self, index: usize) -> Option<Text> {
        // SAFETY: nobody reads past the null, up to which the list is readable.
        let entry = unsafe { self.0.wrapping_add(index).read_volatile() };
        (!entry.is_null()).then_some(Text(entry))
    }

    fn len(self) -> usize {
        let mut index = 0;
        while self.get(index).is_some() {
            index += 1;
        }
        index
    }
}

/// A text in the making.
struct Buffer<const N: usize> {
    bytes: [MaybeUninit<u8>; N],
    length: usize,
}

impl<const N: usize> Buffer<N> {
    #[inline(always)]
    fn new() -> Self {
        Self {
            bytes: [const { MaybeUninit::uninit() }; N],
            length: 0,
        }
    }

    fn push(&mut self, byte: u8) {
        if self.length < N {
            self.bytes[self.length].write(byte);
            self.length += 1;
        }
    }

    fn text(&mut self, text: Text) {
        let mut index = 0;
        while text.at(index) != 0 {
            self.push(text.at(index));
            index += 1;
        }
    }

    fn number(&mut self, number: u64) {
        let mut unit = 1;
        while number / unit > 9 {
            unit *= 10;
        }
        while unit > 0 {
            self.push(b'0' + (number / unit % 10) as u8);
            unit /= 10;
        }
    }

    /// Ends the text; nothing where it was too long.
    fn finish(&mut self) -> Option<*const u8> {
        self.push(0);
        (self.length < N).then(|| self.bytes.as_ptr().cast())
    }
}

/// A descriptor, closed at the end.
struct Fd(usize);

impl Drop for Fd {
    fn drop(&mut self) {
        call(libc::SYS_close, [self.0, 0, 0, 0, 0]);
    }
}

/// A system call without libc; nothing where it failed.
#[inline(always)]
pub(super) fn call(number: libc::c_long, arguments: [usize; 5]) -> Option<usize> {
    let result: isize;
    // SAFETY: the pointers among the arguments are valid for the call, as the callers in this file see to; the
    // kernel changes rax, rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    usize::try_from(result).ok()
}

fn open_path(path: *const u8) -> Option<Fd> {
    let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    call(libc::SYS_openat, [AT_FDCWD, path as usize, flags, 0, 0]).map(Fd)
}

fn status(
    into: &mut MaybeUninit<libc::statx>,
    dir: usize,
    path: *const u8,
    flags: i32,
) -> Option<&libc::statx> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
    let arguments = [
        dir,
        path as usize,
        flags as usize,
        mask as usize,
        into.as_mut_ptr() as usize,
    ];
    call(libc::SYS_statx, arguments)?;
    // SAFETY: the kernel has filled it.
    Some(unsafe { into.assume_init_ref() })
}

/// Whether the program is where it could be written, as far as one call tells.
fn may_be_writable() -> bool {
    let mut filesystem = MaybeUninit::<libc::statfs64>::uninit();
    let arguments = [SELF_EXE as usize, filesystem.as_mut_ptr() as usize, 0, 0, 0];
    if call(libc::SYS_statfs, arguments).is_none() {
        return false;
    }
    // SAFETY: the kernel has filled it.
    let filesystem = unsafe { filesystem.assume_init_ref() };
    filesystem.f_flags as u64 & libc::ST_RDONLY == 0 && filesystem.f_type != libc::TMPFS_MAGIC
}

/// A detached overlay of two directories; see [`super::exe::detached_overlay`].
fn overlay(directory: &Fd) -> Option<Fd> {
    let second = open_path(c"/sys/fs".as_ptr().cast())?;
    let mut layers = Buffer::<80>::new();
    layers.text(Text(c"/proc/self/fd/".as_ptr().cast()));
    layers.number(directory.0 as u64);
    layers.text(Text(c":/proc/self/fd/".as_ptr().cast()));
    layers.number(second.0 as u64);
    let layers = layers.finish()? as usize;
    let name = c"overlay".as_ptr() as usize;
    let context = Fd(call(libc::SYS_fsopen, [name, FSOPEN_CLOEXEC as usize, 0, 0, 0])?);
    let config = |command: libc::c_uint, key: usize, value| {
        call(libc::SYS_fsconfig, [context.0, command as usize, key, value, 0])
    };
    config(FSCONFIG_SET_STRING, c"lowerdir".as_ptr() as usize, layers)?;
    config(FSCONFIG_SET_FLAG, c"ro".as_ptr() as usize, 0)?;
    config(FSCONFIG_CMD_CREATE, 0, 0)?;
    let attributes = (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV) as usize;
    call(
        libc::SYS_fsmount,
        [context.0, FSMOUNT_CLOEXEC as usize, attributes, 0, 0],
    )
    .map(Fd)
}

/// Returns where there is nothing to seal, or it can't be done here.
extern "C" fn early(stack: *const usize, is_shim: u32) {
    // SAFETY: the kernel puts the count of arguments there.
    let count = unsafe { stack.read_volatile() };
    let arguments = List(stack.wrapping_add(1).cast());
    let environment = List(stack.wrapping_add(count + 2).cast());
    if meets_container(arguments, is_shim != 0) && !is_marked(environment) && may_be_writable() {
        seal(arguments, environment);
    }
}

/// Whether an argument is one of the verbs. That a container may be called so costs one execution for nothing.
fn meets_container(arguments: List, is_shim: bool) -> bool {
    let mut index = 1;
    while let Some(argument) = arguments.get(index) {
        let meets = if is_shim {
            // The daemon is a fork of this one; `delete` runs hooks at most.
            argument.is(b"start")
        } else {
            argument.is(b"run") || argument.is(b"create") || argument.is(b"exec")
        };
        if meets {
            return true;
        }
        index += 1;
    }
    false
}

fn is_marked(environment: List) -> bool {
    let mut index = 0;
    while let Some(variable) = environment.get(index) {
        if variable.starts_with(b"_RTC_SEALED=") {
            return true;
        }
        index += 1;
    }
    false
}

/// What `from_overlay` of [`crate::sealed_exe`] does.
fn seal(arguments: List, environment: List) -> Option<()> {
    let mut path = Buffer::<PATH_MAX>::new();
    let into = [
        SELF_EXE as usize,
        path.bytes.as_mut_ptr() as usize,
        PATH_MAX - 1,
        0,
        0,
    ];
    path.length = call(libc::SYS_readlink, into)?;
    let path = path.finish()?.cast_mut();
    let mut name = 0;
    let mut index = 0;
    while Text(path).at(index) != 0 {
        if Text(path).at(index) == b'/' {
            name = index + 1;
        }
        index += 1;
    }
    // Its directory must be neither in nor above the second layer.
    if name < 2 || Text(path).starts_with(b"/sys/") {
        return None;
    }
    // SAFETY: the slash before the name is in the buffer.
    unsafe { path.wrapping_add(name - 1).write_volatile(0) };
    let name = path.wrapping_add(name).cast_const();

    let (mut program, mut inside) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let program = status(&mut program, AT_FDCWD, SELF_EXE, 0)?;
    if program.stx_attributes & STATX_ATTR_VERITY != 0 {
        return None;
    }
    let directory = open_path(path)?;
    let mount = overlay(&directory)?;
    let inside = status(&mut inside, mount.0, name, libc::AT_SYMLINK_NOFOLLOW)?;
    let same = program.stx_size == inside.stx_size
        && program.stx_mtime.tv_sec == inside.stx_mtime.tv_sec
        && program.stx_mtime.tv_nsec == inside.stx_mtime.tv_nsec
        && program.stx_ctime.tv_sec == inside.stx_ctime.tv_sec
        && program.stx_ctime.tv_nsec == inside.stx_ctime.tv_nsec;
    if !same {
        return None;
    }
    execute(&mount, name, arguments, environment, inside)
}

fn execute(
    mount: &Fd,
    name: *const u8,
    arguments: List,
    environment: List,
    file: &libc::statx,
) -> Option<()> {
    let mut marker = Buffer::<128>::new();
    marker.text(Text(c"_RTC_SEALED=".as_ptr().cast()));
    marker.number(call(libc::SYS_getpid, [0; 5])? as u64);
    for part in [
        file.stx_mnt_id,
        file.stx_dev_major.into(),
        file.stx_dev_minor.into(),
        file.stx_ino,
    ] {
        marker.push(b':');
        marker.number(part);
    }
    let marker = marker.finish()?;
    let length = environment.len();
    if length > MOST_VARIABLES {
        return None;
    }
    let mut variables = [const { MaybeUninit::<*const u8>::uninit() }; MOST_VARIABLES + 2];
    let mut index = 0;
    while let Some(variable) = environment.get(index) {
        variables[index].write(variable.0);
        index += 1;
    }
    variables[length].write(marker);
    variables[length + 1].write(std::ptr::null());
    let flags = (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) as usize;
    let (arguments, variables) = (arguments.0 as usize, variables.as_ptr() as usize);
    call(
        libc::SYS_execveat,
        [mount.0, name as usize, arguments, variables, flags],
    )
    .map(drop)
}
