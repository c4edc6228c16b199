//! What a finished command left: exit status and both streams, with checks that read as sentences.

use std::fmt;

use anyhow::{Result, bail};

/// A command that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// The command line, for messages.
    pub(crate) command: String,
    /// Exit code; 128 + signal where a signal ended it.
    pub(crate) code: i32,
    /// All of standard output.
    pub(crate) stdout: String,
    /// All of standard error.
    pub(crate) stderr: String,
    /// Whether the runtime under test is ours: only then are our own error texts checked.
    pub(crate) ours: bool,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: exit status {}", self.command, self.code)?;
        writeln!(f, "--- stdout\n{}--- stderr\n{}---", self.stdout, self.stderr)
    }
}

impl Output {
    /// The command succeeded.
    pub(crate) fn ok(self) -> Result<Self> {
        self.code(0)
    }

    /// The command ended with this exit code.
    pub(crate) fn code(self, expected: i32) -> Result<Self> {
        if self.code != expected {
            bail!("expected exit status {expected}\n{self}");
        }
        Ok(self)
    }

    /// The command failed, and its standard error contains each of the texts.
    pub(crate) fn fails_with(self, texts: &[&str]) -> Result<Self> {
        if self.code == 0 {
            bail!("expected an error\n{self}");
        }
        if let Some(missing) = texts.iter().find(|text| !self.stderr.contains(**text)) {
            bail!("expected an error with {missing:?}\n{self}");
        }
        Ok(self)
    }

    /// The command failed; where the runtime is ours, its error also names each of the texts (field, value, object).
    /// What the peers write is their business.
    pub(crate) fn fails_naming(self, texts: &[&str]) -> Result<Self> {
        let texts = if self.ours { texts } else { &[] };
        self.fails_with(texts)
    }

    /// The command succeeded and printed exactly this, white space at both ends aside.
    pub(crate) fn prints(self, expected: &str) -> Result<Self> {
        let output = self.ok()?;
        if output.stdout.trim() != expected.trim() {
            bail!("expected {expected:?}\n{output}");
        }
        Ok(output)
    }

    /// Standard output is exactly this.
    pub(crate) fn stdout_is(self, expected: &str) -> Result<Self> {
        if self.stdout != expected {
            bail!("expected {expected:?} on standard output\n{self}");
        }
        Ok(self)
    }

    /// The command succeeded and standard output contains the text.
    pub(crate) fn mentions(self, text: &str) -> Result<Self> {
        let output = self.ok()?;
        if !output.stdout.contains(text) {
            bail!("expected {text:?} in the output\n{output}");
        }
        Ok(output)
    }

    /// Standard output's lines, without white space at both ends.
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.stdout.trim().lines().map(str::trim).collect()
    }

    /// The line of standard output that begins with `key`, the rest of it (`key: value`, `key=value`, `key value`).
    pub(crate) fn value_of(&self, key: &str) -> Result<&str> {
        let rest = self
            .stdout
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(key));
        let Some(rest) = rest else {
            bail!("no line begins with {key:?}\n{self}")
        };
        Ok(rest.trim_start_matches([':', '=', ' ', '\t']).trim())
    }
}
