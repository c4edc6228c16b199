//! A pod's shim: started, connected to, asked over ttrpc (containerd's Task v3 and Sandbox, `rtc.shim.v1`).

/// A shim that runs.
#[derive(Debug)]
pub(crate) struct Shim {
    /// Its ttrpc socket, `unix:///...`.
    pub(crate) address: String,
}
