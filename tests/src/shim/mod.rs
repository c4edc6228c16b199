//! Plays containerd for the shim under test, without containerd:
//!
//! ```text
//! Containerd   makes bundles, runs `SHIM start` (flags and environment, or BootstrapParams) and `SHIM delete`
//!   Events     containerd's events service on a Unix socket: records, goes away and comes back
//!   Shim       a connection to a started shim, and its Task service
//!     Sandbox  a pod that the shim makes: containerd's Sandbox service
//!     Process  a container's init or an exec: its verbs, and its streams (FIFOs that containerd reads)
//! ```
//!
//! ttrpc is spoken by hand (`ttrpc.rs`): so a test can also send what no client sends, or hang up in the middle.
//! A test looks like this; tasks and shims it leaves are ended after it:
//!
//! ```text
//! let containerd = Containerd::new(t)?;
//! let task = containerd.create(&containerd.bundle().sh("echo hello; exit 3"))?;   // a shim of its own, and Create
//! task.start()?;
//! task.exits_with(3)?;
//! task.delete()?;
//! ```

mod containerd;
mod events;
pub(crate) mod extension;
mod message;
mod process;
pub(crate) mod sandbox;
mod streams;
mod ttrpc;

pub(crate) use containerd::{Containerd, Shim, run};
pub(crate) use containerd_shim_protos::api;
pub(crate) use events::{Events, envelope_message};
pub(crate) use message::{OPTIONS_URL, any_message, bytes, mount, process_count};
pub(crate) use process::{Exited, Pending, Process, Status};
pub(crate) use streams::{Reader, Streams, fifo};
pub(crate) use ttrpc::{Code, Connection, REQUEST, Refusal, Refused, frame};
