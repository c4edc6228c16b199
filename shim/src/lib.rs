//! What a client of `containerd-shim-rtc-v2` needs: its own protocol beside those of containerd.

#![forbid(unsafe_code)]

pub mod protocol;
