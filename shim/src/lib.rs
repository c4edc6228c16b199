//! `containerd-shim-rtc-v2`: the containerd shim (v2) of rtc. Nothing is here yet.
#![forbid(unsafe_code)]
