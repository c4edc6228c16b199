//! `rtc.shim.v1`: what rtc-cri asks a shim beside containerd's services.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::message::{Field, by_hand, fields};
use super::ttrpc::Connection;
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
        let mut process = task.spec.clone();
        process["args"] = json!(["sh", "-c", script]);
        Self::begin_process(task, &process, timeout)
    }

    /// Asks for any process.
    pub(crate) fn begin_process(task: &Process<'_>, process: &Value, timeout: u64) -> Result<Self> {
        // How long after its end the output of what it leaves is still taken, in milliseconds.
        const DRAIN: u64 = 1000;
        let request = by_hand(&[
            Field::text(1, &task.id),
            Field::text(2, &process.to_string()),
            Field::Number(3, timeout),
            Field::Number(4, DRAIN),
        ]);
        let mut connection = task.shim.connection()?;
        let stream = connection.open_stream(SERVICE, "ExecSync", request)?;
        Ok(Self {
            connection,
            stream,
            executed: Executed::default(),
        })
    }

    /// Fetches one message. Returns whether it was the last.
    pub(crate) fn next(&mut self) -> Result<bool> {
        let message = self.connection.next_message(self.stream)?;
        let message = message.context("the stream ended without an exit code")?;
        for field in fields(&message).context("no message")? {
            match field {
                Field::Bytes(1, piece) => {
                    self.executed.longest = self.executed.longest.max(piece.len());
                    self.executed.stdout.extend(piece);
                }
                Field::Bytes(2, piece) => self.executed.stderr.extend(piece),
                Field::Bytes(3, exit) => {
                    let exit = fields(&exit).context("no exit")?;
                    let number = |wanted| {
                        exit.iter().find_map(|field| match *field {
                            Field::Number(found, number) if found == wanted => Some(number),
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

/// What Info says.
#[derive(Debug, Default)]
pub(crate) struct Info {
    /// The protocol's version.
    pub(crate) version: u64,
    /// Names of what the shim can do.
    pub(crate) features: Vec<String>,
    /// The shim's process.
    pub(crate) pid: u64,
}

/// Info.
pub(crate) fn info(shim: &Shim<'_>) -> Result<Info> {
    let mut info = Info::default();
    for field in fields(&call(shim, "Info", &[])?).context("no message")? {
        match field {
            Field::Number(1, number) => info.version = number,
            Field::Bytes(3, name) => info.features.push(String::from_utf8(name)?),
            Field::Number(4, number) => info.pid = number,
            _ => {}
        }
    }
    ensure!(info.version != 0, "no version");
    Ok(info)
}

/// ReopenLog.
pub(crate) fn reopen_log(task: &Process<'_>) -> Result<()> {
    call(&task.shim, "ReopenLog", &[Field::text(1, &task.id)]).map(drop)
}

/// Attach, of FIFOs for output and errors.
pub(crate) fn attach(task: &Process<'_>, stdout: &Path, stderr: Option<&Path>) -> Result<()> {
    let path = |number, path: &Path| Field::text(number, &path.to_string_lossy());
    let mut request = vec![Field::text(1, &task.id), path(2, stdout)];
    request.extend(stderr.map(|stderr| path(3, stderr)));
    call(&task.shim, "Attach", &request).map(drop)
}

fn call(shim: &Shim<'_>, method: &str, request: &[Field]) -> Result<Vec<u8>> {
    let mut connection = shim.connection()?;
    let stream = connection.send(SERVICE, method, by_hand(request))?;
    connection.receive(stream)
}
