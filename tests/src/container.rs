//! A container that has been created: verbs on it, and what can be seen of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::host::cgroup::Cgroup;
use crate::output::Output;
use crate::registry::Result;
use crate::test::{Rtc, Test};
use crate::wait;

/// A container by its id.
pub(crate) struct Container<'t> {
    test: &'t Test,
    /// Its id.
    pub(crate) id: String,
    /// Its cgroup, the same path in all hierarchies.
    pub(crate) cgroup: Cgroup,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl<'t> Container<'t> {
    pub(crate) fn new(test: &'t Test, id: &str, cgroup: Cgroup, stdout: PathBuf, stderr: PathBuf) -> Self {
        Self {
            test,
            id: id.to_owned(),
            cgroup,
            stdout,
            stderr,
        }
    }

    /// `rtc VERB FLAGS... ID`, to its end.
    pub(crate) fn verb(&self, verb: &str, flags: &[&str]) -> Result<Output> {
        self.test.command([verb]).args(flags).args([&self.id]).run()
    }

    /// `rtc start ID`.
    pub(crate) fn start(&self) -> Result<Output> {
        self.verb("start", &[])
    }

    /// `rtc kill ID SIGNAL`.
    pub(crate) fn kill(&self, signal: &str) -> Result<Output> {
        self.test.rtc(["kill", &self.id, signal])
    }

    /// `rtc delete ID`.
    pub(crate) fn delete(&self) -> Result<Output> {
        self.verb("delete", &[])
    }

    /// `rtc exec ID ARGS...`, not started yet.
    pub(crate) fn exec_command(&self, flags: &[&str], args: &[&str]) -> Rtc<'t> {
        self.test
            .command(["exec"])
            .args(flags)
            .args([&self.id])
            .args(args)
    }

    /// `rtc exec ID ARGS...`, to its end.
    pub(crate) fn exec(&self, args: &[&str]) -> Result<Output> {
        self.exec_command(&[], args).run()
    }

    /// What `rtc state` prints.
    pub(crate) fn state(&self) -> Result<Value> {
        let output = self.verb("state", &[])?.ok()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("state is not JSON\n{output}"))
    }

    /// `status` in the state.
    pub(crate) fn status(&self) -> Result<String> {
        let state = self.state()?;
        Ok(state["status"]
            .as_str()
            .with_context(|| format!("no status: {state}"))?
            .to_owned())
    }

    /// The status is this one now.
    pub(crate) fn is(&self, expected: &str) -> Result {
        let status = self.status()?;
        if status != expected {
            bail!("expected status {expected}, found {status}");
        }
        Ok(())
    }

    /// Waits until the status is this one.
    pub(crate) fn wait(&self, expected: &str) -> Result {
        wait::until(&format!("status {expected}"), || {
            Ok((self.status()? == expected).then_some(()))
        })
    }

    /// Host pid of the init process, from the state.
    pub(crate) fn pid(&self) -> Result<i32> {
        let state = self.state()?;
        let pid = state["pid"]
            .as_i64()
            .with_context(|| format!("no pid: {state}"))?;
        Ok(i32::try_from(pid)?)
    }

    /// What the container has written to standard output so far.
    pub(crate) fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stdout)?).into_owned())
    }

    /// What the container has written to standard error so far.
    pub(crate) fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned())
    }

    /// Waits until standard output contains the text.
    pub(crate) fn wait_for_output(&self, text: &str) -> Result<String> {
        wait::until(&format!("output {text:?}"), || {
            Ok(Some(self.stdout()?).filter(|output| output.contains(text)))
        })
        .with_context(|| format!("stdout: {:?}, stderr: {:?}", self.stdout(), self.stderr()))
    }

    /// Waits until it has stopped, and returns its standard output.
    pub(crate) fn finish(&self) -> Result<String> {
        self.wait("stopped")?;
        self.stdout()
    }
}
