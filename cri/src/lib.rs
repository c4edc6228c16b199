//! `rtc-cri`: the CRI v1 server of rtc. Nothing is here yet.
#![forbid(unsafe_code)]
