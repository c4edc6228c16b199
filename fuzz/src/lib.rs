//! What the fuzz targets share: an interpreter of classic BPF, and random seccomp profiles with what they mean.

pub mod bpf;
pub mod profile;
