//! Containers: one file for each verb, over the state on disk.
//!
//! ```text
//! create ----> created --start--> running --(init ends)--> stopped --delete--> (gone)
//! run  = create, start, and in the foreground wait and delete      ^
//!                 created, running <--pause, resume--> paused      |  kill, delete --force
//! ```
//!
//! Which verb is possible when is one table: [`state::Status::allows`].

pub mod cgroup_view;
pub mod create;
pub mod delete;
pub mod exec;
pub mod exec_process;
pub mod handover;
pub mod id;
pub mod kill;
pub mod mounts;
pub mod notify;
pub mod pause;
pub(crate) mod plan;
pub mod query;
pub mod run;
pub mod start;
pub mod state;
pub mod update;
mod without_cgroup;

pub use create::{Created, create};
pub use delete::delete;
pub use exec::{ExecOptions, Executed, exec};
pub use exec_process::{ExecOverrides, ExecProcess};
pub use id::ContainerId;
pub use kill::kill;
pub use mounts::{add_mounts, remove_mounts};
pub use pause::{pause, resume};
pub use plan::CreateOptions;
pub use query::{Meters, StateReport, list, meters, processes, state};
pub use run::{RunOptions, run};
pub use start::{Starting, run_poststart, start};
pub use state::{NotFound, StateRoot};
pub use update::{update, update_with_rdt};
