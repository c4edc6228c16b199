//! The OCI runtime as a library: everything `rtc` does, callable in-process by the shim.
//!
//! Arrows point downwards only:
//!
//! ```text
//! commands (binary) -> checkpoint -> container -> { bundle, process, cgroup, hooks } -> { rootfs, namespace, seccomp } -> sys
//! ```
//!
//! The library is synchronous and never starts a thread.

pub mod annotations;
pub mod bundle;
pub mod cgroup;
pub mod checkpoint;
pub mod container;
pub mod features;
pub mod hooks;
pub mod log;
pub mod namespace;
pub mod netdev;
pub mod pod;
pub mod process;
pub mod procfs;
pub mod resctrl;
pub mod rootfs;
pub mod rootless;
pub mod sealed_exe;
pub mod seccomp;
pub mod sys;
