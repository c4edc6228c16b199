//! The OCI runtime as a library: everything `rtc` does, callable in-process by the shim.
//!
//! Arrows point downwards only:
//!
//! ```text
//! commands (binary) -> container -> { bundle, process, cgroup, hooks } -> { rootfs, namespace, seccomp } -> sys
//! ```
//!
//! The library is synchronous and never starts a thread.

pub mod rootfs;
pub mod sys;
