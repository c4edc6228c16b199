//! CRI v1 as Rust: messages, the server's traits and clients. Everything else of rtc-cri is its program.
#![forbid(unsafe_code)]

pub mod proto;
