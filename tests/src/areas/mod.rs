//! The tests, one file per area.

mod attributes;
mod bad_input;
mod cgroups;
mod command_line;
mod concurrency;
mod descriptors;
mod devices;
mod exec;
mod hooks;
mod idmapped_mounts;
mod kill;
mod lifecycle;
mod mounts;
mod namespaces;
mod notify;
mod process;
mod resources;
mod rootfs;
mod seccomp;
mod security;
mod sockets;
mod systemd;
mod terminal;
mod time;
