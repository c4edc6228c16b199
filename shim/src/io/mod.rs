//! Standard input and output of a container's process: what the four fields of the Task API ask for.
//!
//! ```text
//! ""                nothing: /dev/null
//! /path, fifo://    a FIFO of containerd: the process writes to it without us between
//! binary://         a logger that is run for the process
//! file://           a file, written by a process of ours
//! cri://            a log in the format of CRI, written by a process of ours
//! terminal          the master of its terminal, relayed
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;

/// What a request says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// Owner and group of what the process gets.
    pub(crate) owner: (u32, u32),
    /// What a logger is told.
    pub(crate) namespace: String,
    /// What a logger is told.
    pub(crate) id: String,
    /// Where relative things are.
    pub(crate) bundle: PathBuf,
}

/// The process' ends: its descriptors 0, 1 and 2. To be dropped once it has them.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The shim's side, as long as the process is known.
#[derive(Debug)]
pub(crate) struct Io {}

impl Io {
    /// Opens what the request names.
    pub(crate) async fn open(_request: &Request) -> Result<(Self, ChildEnds)> {
        unreachable!("io")
    }

    /// Relays the terminal whose master this is, from now on.
    pub(crate) fn attach_terminal(&self, _master: OwnedFd) -> Result<()> {
        unreachable!("io")
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&self, _rows: u16, _columns: u16) -> Result<()> {
        unreachable!("io")
    }

    /// Nothing more comes on its standard input.
    pub(crate) fn close_stdin(&self) {}

    /// After the process' end: returns when all of its output was passed on, or patience is over.
    pub(crate) async fn drain(&self, _patience: Duration) {}

    /// Lets go of everything.
    pub(crate) fn close(&self) {}
}
