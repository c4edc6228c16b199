//! The tests, one file per area.

mod cgroups;
mod devices;
mod exec;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod rootfs;
mod seccomp;
