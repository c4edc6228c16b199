//! `rtc.shim.v1`: what rtc-cri asks a shim beside containerd's services.

use anyhow::{Result, bail, ensure};
use serde_json::{Value as Json, json};

use super::ttrpc::{Connection, Incoming};
use super::wire::{Fields, Value, fields};
use super::{Process, Shim};

const SERVICE: &str = "rtc.shim.v1.Shim";

/// What an ExecSync gave.
#[derive(Debug, Default)]
pub(crate) struct Executed {
    /// All of standard output.
    pub(crate) stdout: Vec<u8>,
    /// All of standard error.
    pub(crate) stderr: Vec<u8>,
    /// Exit code, and whether its time was over; `None` until it ended.
    pub(crate) exit: Option<(u64, bool)>,
    /// The longest piece.
    pub(crate) longest: usize,
}

/// An ExecSync whose answers are fetched.
#[derive(Debug)]
pub(crate) struct Executing {
    connection: Connection,
    stream: u32,
    /// So far.
    pub(crate) executed: Executed,
}

impl Executing {
    /// Asks for a shell script, with a limit in milliseconds (0 for none).
    pub(crate) fn begin(task: &Process<'_>, script: &str, timeout: u64) -> Result<Self> {
        let process = json!({"args": ["sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0},
                             "env": ["PATH=/bin"]});
        Self::begin_process(task, &process, timeout)
    }

    /// Asks for any process.
    pub(crate) fn begin_process(task: &Process<'_>, process: &Json, timeout: u64) -> Result<Self> {
        let request = Fields::new()
            .text(1, &task.id)
            .text(2, &process.to_string())
            .number(3, timeout);
        let mut connection = task.shim.connection()?;
        let stream = connection.send(SERVICE, "ExecSync", request.bytes())?;
        Ok(Self {
            connection,
            stream,
            executed: Executed::default(),
        })
    }

    /// Fetches one message. Returns whether it was the last.
    pub(crate) fn next(&mut self) -> Result<bool> {
        let message = match self.connection.next_of(self.stream)? {
            Incoming::Data(message) => message,
            Incoming::Answer => bail!("the stream ended without an exit code"),
        };
        for (field, value) in fields(&message)? {
            match (field, value) {
                (1, Value::Data(piece)) => {
                    self.executed.longest = self.executed.longest.max(piece.len());
                    self.executed.stdout.extend(piece);
                }
                (2, Value::Data(piece)) => self.executed.stderr.extend(piece),
                (3, Value::Data(exit)) => {
                    let exit = fields(&exit)?;
                    let number = |field| {
                        exit.iter().find_map(|(found, value)| match value {
                            Value::Number(number) if *found == field => Some(*number),
                            _ => None,
                        })
                    };
                    self.executed.exit = Some((number(1).unwrap_or(0), number(2) == Some(1)));
                }
                other => bail!("unexpected {other:?}"),
            }
        }
        Ok(self.executed.exit.is_some())
    }

    /// Fetches everything.
    pub(crate) fn finish(mut self) -> Result<Executed> {
        while !self.next()? {}
        Ok(self.executed)
    }
}

/// Runs a script to its end.
pub(crate) fn exec_sync(task: &Process<'_>, script: &str, timeout: u64) -> Result<Executed> {
    Executing::begin(task, script, timeout)?.finish()
}

/// The protocol's version, and the names of what the shim can do.
pub(crate) fn info(shim: &Shim<'_>) -> Result<(u64, Vec<String>)> {
    let answer = call(shim, "Info", Fields::new())?;
    let (mut version, mut features) = (0, Vec::new());
    for (field, value) in fields(&answer)? {
        match (field, value) {
            (1, Value::Number(number)) => version = number,
            (3, Value::Data(name)) => features.push(String::from_utf8(name)?),
            _ => {}
        }
    }
    ensure!(version != 0, "no version");
    Ok((version, features))
}

/// ReopenLog.
pub(crate) fn reopen_log(task: &Process<'_>) -> Result<()> {
    call(&task.shim, "ReopenLog", Fields::new().text(1, &task.id)).map(drop)
}

/// Attach, of FIFOs for output and errors.
pub(crate) fn attach(task: &Process<'_>, stdout: &str, stderr: &str) -> Result<()> {
    let request = Fields::new().text(1, &task.id).text(2, stdout).text(3, stderr);
    call(&task.shim, "Attach", request).map(drop)
}

fn call(shim: &Shim<'_>, method: &str, request: Fields) -> Result<Vec<u8>> {
    let mut connection = shim.connection()?;
    let stream = connection.send(SERVICE, method, request.bytes())?;
    connection.receive(stream)
}
