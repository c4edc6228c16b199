//! `rtc`: the OCI runtime, with runc's command line.
//!
//! `run` runs one command, and is the only place that reports an error.

// Under test the harness has the entry.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, expect(dead_code, reason = "the harness does not call run"))]

mod commands;

use std::ffi::OsString;

use rtc_runtime::log;

#[cfg(not(test))]
rtc_runtime::entry!(run);

/// Returns the exit status.
fn run() -> u8 {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match commands::dispatch(&arguments) {
        // An exit status has eight bits; a code is made by the library from one.
        Ok(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Err(failure) => {
            log::error(format_args!("{:#}", failure.error));
            failure.code
        }
    }
}
