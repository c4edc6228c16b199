//! `rtc`: the OCI runtime, with runc's command line.
//!
//! `main` runs one command, and is the only place that reports an error.

mod commands;

use std::ffi::OsString;
use std::process::ExitCode;

use rtc_runtime::log;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match commands::dispatch(&arguments) {
        // An exit status has eight bits; a code is made by the library from one.
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(failure) => {
            log::error(format_args!("{:#}", failure.error));
            ExitCode::from(failure.code)
        }
    }
}
