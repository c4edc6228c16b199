//! The unpacker: a process of its own for each layer.

use std::process::ExitCode;

/// The hidden argument that makes `rtc-cri` one.
pub(crate) const ARGUMENT: &str = "unpack-layer";

/// Its main.
pub(crate) fn main() -> ExitCode {
    ExitCode::FAILURE
}
