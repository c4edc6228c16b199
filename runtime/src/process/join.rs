//! The child of `exec`: a process beside a container's init.
//!
//! It is born inside of the container's namespaces (see `process::spawn`), but for the cgroup namespace.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Result;

use crate::namespace::Namespaces;
use crate::process::channel::Channel;
use crate::process::payload::Payload;
use crate::process::terminal::Terminal;
use crate::sys::entry::forget_caller;
use crate::sys::{Named, process};

/// Everything the child needs.
#[derive(Debug)]
pub struct Join<'a> {
    /// The container's.
    pub namespaces: &'a Namespaces,
    /// Whether the container has a user namespace.
    pub in_user_namespace: bool,
    /// What it becomes.
    pub payload: Payload,
}

impl Join<'_> {
    /// Runs the program. Returns only with an error.
    ///
    /// # Errors
    ///
    /// Any step of the list.
    pub fn run(mut self, channel: &Channel) -> Result<Infallible> {
        process::unblock_signals()?;
        forget_caller();
        self.namespaces.enter_cgroup_namespace()?;
        self.payload.identity.apply_affinity()?;
        if self.in_user_namespace {
            self.payload.identity.become_root()?;
        }
        nix::unistd::setsid().call(|| "setsid".into())?;
        self.payload.join_keyring(false)?;
        if let Some(slave) = self.payload.open_terminal(channel)? {
            Terminal::attach(slave)?;
        }
        let file = self
            .payload
            .become_the_user(channel, &[channel.as_fd().as_raw_fd()])?;
        self.payload.program.execute(&file)
    }
}
