//! `containerd-shim-rtc-v2`: the containerd shim (v2) of rtc, one process of one thread for each pod.
//!
//! ```text
//! main -> start (bootstrap, address, daemon), delete, info
//!            |
//!         server -> task, sandbox: the services of containerd
//!                      |
//!                   shim: the pod's containers -> container -> process
//!                      |             |         |
//!                   events        runtime      io
//!                              (embedded, command)
//! ```
#![deny(unsafe_code)]
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, expect(dead_code, reason = "the harness does not call run"))]

mod address;
mod arguments;
mod bootstrap;
mod confinement;
mod container;
mod daemon;
mod delete;
mod descendants;
mod error;
mod events;
mod exec_sync;
mod exits;
mod extension;
mod info;
mod io;
mod kill;
mod log;
mod oom;
mod options;
mod pod;
mod pollable;
mod process;
mod reaper;
mod record;
mod rootfs;
mod runtime;
mod sandbox;
mod server;
mod shim;
mod signals;
mod start;
mod stats;
mod stuck;
mod task;
mod worker;

use arguments::Action;

#[cfg(not(test))]
rtc_runtime::entry!(run);

/// Returns the exit status.
fn run() -> u8 {
    // containerd parses what comes on both outputs: there is nothing but the answer, or the error.
    match dispatch() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("containerd-shim-rtc-v2: {error:#}");
            1
        }
    }
}

fn dispatch() -> anyhow::Result<()> {
    let (action, flags) = arguments::parse(std::env::args_os().skip(1))?;
    match action {
        Action::Start => start::start(flags),
        Action::Delete => delete::delete(&flags),
        Action::Version => info::version(),
        Action::Info => info::info(),
        Action::Help => info::print(arguments::USAGE.as_bytes()),
    }
}
