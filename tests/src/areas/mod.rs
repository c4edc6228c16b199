//! The tests, one file per area.

mod devices;
mod exec;
mod lifecycle;
mod mounts;
mod namespaces;
mod process;
mod rootfs;
