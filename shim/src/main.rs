//! `containerd-shim-rtc-v2`: the containerd shim (v2) of rtc, one process of one thread for each pod.
//!
//! ```text
//! main -> bootstrap: start, delete, -info -> server -> task, sandbox: the services of containerd
//!                                                        |
//!                                  shim: the pod's containers -> container -> process
//!                                                        |             |         |
//!                                                     events        runtime      io
//!                                                            (embedded, command)
//! ```
#![deny(unsafe_code)]
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, expect(dead_code, reason = "the harness does not call run"))]

mod container;
mod error;
mod events;
mod exits;
mod io;
mod kill;
mod options;
mod pollable;
mod process;
mod reaper;
mod rootfs;
mod runtime;
mod shim;
mod stats;
mod task;
mod worker;

#[cfg(not(test))]
rtc_runtime::entry!(run);

/// Returns the exit status.
fn run() -> u8 {
    1
}
