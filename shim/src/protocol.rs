//! `rtc.shim.v1`: what rtc-cri says to the shim beside containerd's Task and Sandbox services (`proto/rtc_shim.proto`).

#[expect(
    missing_docs,
    nonstandard_style,
    unused,
    clippy::all,
    clippy::semicolon_if_nothing_returned,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; proto/rtc_shim.proto has the words"
)]
mod rtc_shim {
    include!(concat!(env!("OUT_DIR"), "/rtc_shim/rtc_shim.rs"));
}

#[expect(
    missing_docs,
    unused_imports,
    reason = "generated; proto/rtc_shim.proto has the words"
)]
mod rtc_shim_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/rtc_shim/rtc_shim_ttrpc.rs"));
}

pub use rtc_shim::*;
pub use rtc_shim_ttrpc::{Shim, ShimClient, create_shim};

/// The version of this protocol, as `Info` answers it.
pub const VERSION: u32 = 1;

/// The longest piece of output in one message, in bytes.
pub const CHUNK_MAX: usize = 64 * 1024;
