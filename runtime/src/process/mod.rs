//! A process of a container, from the parent's `clone3` to the user's program.
//!
//! | file | what |
//! |---|---|
//! | [`channel`] | what parent and child say to each other |
//! | [`spawn`] | the parent's half: the clone, directly or by a helper |
//! | [`init`] | the child of `create` and `run`: from the new namespaces to the program |
//! | [`join`] | the child of `exec` |
//! | [`identity`] | user, groups, capabilities, limits, scheduling |
//! | [`memory_policy`] | on which memory nodes its pages are |
//! | [`label`] | security labels, the OOM score |
//! | [`payload`] | the end both share: user, filter, program |
//! | [`program`] | arguments, environment, working directory, the lookup in PATH |
//! | [`terminal`] | the pseudo-terminal, and sockets that take descriptors |
//! | [`foreground`] | waiting for it: signals, the relay of its terminal |
//! | [`worker`] | a copy of the shim that does all this for it |
//! | [`gate`] | where a created container waits for `start` |

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod channel;
pub mod foreground;
pub mod gate;
pub mod identity;
pub mod init;
pub mod join;
pub mod label;
pub mod memory_policy;
pub mod payload;
pub mod program;
pub mod spawn;
pub mod terminal;
pub mod worker;
