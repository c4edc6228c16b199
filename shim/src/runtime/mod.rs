//! Who makes the containers: the runtime inside of the shim, or a foreign one by its command line.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rtc_runtime::cgroup::Cgroup;
use rtc_runtime::sys::clone::Child;

use crate::io::ChildEnds;

/// A container to make.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) stdio: ChildEnds,
    pub(crate) terminal: bool,
}

/// A container that was made: its init waits for start.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) init: Child,
    /// The master of its terminal.
    pub(crate) master: Option<OwnedFd>,
    pub(crate) cgroup: Cgroup,
}

/// A process to start in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) container: String,
    pub(crate) id: String,
    /// As JSON.
    pub(crate) process: Vec<u8>,
    pub(crate) stdio: ChildEnds,
    pub(crate) terminal: bool,
}

/// A process of exec that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Child,
    /// The master of its terminal.
    pub(crate) master: Option<OwnedFd>,
}
