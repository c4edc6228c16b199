//! A hook that holds up what runs it, until the test lets it go on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::bundle::Bundle;
use crate::test::Test;
use crate::wait::until;

/// A hook that says it is there and then waits for [`Gate::open`], for ever if need be.
pub(crate) struct Gate {
    directory: PathBuf,
}

impl Gate {
    /// A gate that is closed.
    pub(crate) fn new(t: &Test) -> Result<Self> {
        let directory = t.path("gate");
        fs::create_dir(&directory)?;
        mkfifo(&directory.join("go"), Mode::from_bits_truncate(0o600))?;
        Ok(Self { directory })
    }

    /// Puts the hook into a bundle.
    pub(crate) fn hook<'t>(&self, bundle: Bundle<'t>, kind: &str) -> Bundle<'t> {
        let outside = self.directory.to_string_lossy().into_owned();
        let seen = if kind == "startContainer" {
            "/tmp"
        } else {
            &outside
        };
        let script = format!("touch {seen}/arrived; cat {seen}/go");
        let hook =
            json!({"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]});
        bundle
            .mount("/tmp", "bind", &outside, &["bind"])
            .set("/hooks", json!({kind: [hook]}))
    }

    /// Waits until the hook runs.
    pub(crate) fn reached(&self) -> Result<()> {
        let arrived = self.directory.join("arrived");
        until("the hook to run", || Ok(arrived.exists().then_some(())))
    }

    /// Lets the hook end: its reading ends once somebody had the FIFO open for writing.
    pub(crate) fn open(&self) -> Result<()> {
        let fifo: &Path = &self.directory.join("go");
        until("the hook to read", || {
            match open(fifo, OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty()) {
                Ok(_) => Ok(Some(())),
                // Nobody reads yet.
                Err(Errno::ENXIO) => Ok(None),
                Err(errno) => Err(errno).context("open the FIFO"),
            }
        })
    }
}
