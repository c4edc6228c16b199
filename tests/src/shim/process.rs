//! A container's init process, or one exec'd into it, through the shim's Task service.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use serde_json::{Value, json};

use super::containerd::Shim;
use super::message::{SPEC_URL, any};
use super::streams::Streams;
use super::ttrpc::Connection;
use crate::wait::until;

pub(crate) use containerd_shim_protos::types::task::Status;

/// A request whose answer is fetched later, on a connection of its own.
#[derive(Debug)]
pub(crate) struct Pending<A> {
    connection: Connection,
    stream: u32,
    answer: PhantomData<A>,
}

impl<A: Message> Pending<A> {
    pub(crate) fn new(
        mut connection: Connection,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<Self> {
        let stream = connection.send(service, method, request.write_to_bytes()?)?;
        Ok(Self {
            connection,
            stream,
            answer: PhantomData,
        })
    }

    /// Waits for the answer.
    pub(crate) fn answer(mut self) -> Result<A> {
        let payload = self.connection.receive(self.stream)?;
        A::parse_from_bytes(&payload).context("malformed answer")
    }
}

/// How and when a process ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exited {
    /// Exit code, or 128 + signal.
    pub(crate) status: u32,
    /// When; 0 where the shim gave no time.
    pub(crate) at: SystemTime,
}

impl Exited {
    pub(crate) fn new(status: u32, at: Option<&Timestamp>) -> Self {
        let since = at.map_or(Duration::ZERO, |at| {
            Duration::new(at.seconds.unsigned_abs(), at.nanos.unsigned_abs())
        });
        Self {
            status,
            at: SystemTime::UNIX_EPOCH + since,
        }
    }
}

/// A process of a container.
pub(crate) struct Process<'t> {
    /// Whose it is.
    pub(crate) shim: Shim<'t>,
    /// The container.
    pub(crate) id: String,
    /// Empty for the container's init.
    pub(crate) exec_id: String,
    /// Its FIFOs.
    pub(crate) streams: Streams,
    /// `process` of the configuration.
    pub(crate) spec: Value,
    pid: Cell<i32>,
}

impl fmt::Debug for Process<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {:?} of {:?}, pid {}",
            self.exec_id,
            self.id,
            self.pid()
        )
    }
}

impl<'t> Process<'t> {
    pub(crate) fn init(shim: Shim<'t>, id: &str, spec: Value, streams: Streams, pid: i32) -> Self {
        Self {
            shim,
            id: id.to_owned(),
            exec_id: String::new(),
            streams,
            spec,
            pid: Cell::new(pid),
        }
    }

    /// One that the shim may not know.
    pub(crate) fn unknown(other: &Self, id: &str, exec_id: &str) -> Self {
        Self {
            shim: other.shim.clone(),
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            streams: Streams::default(),
            spec: other.spec.clone(),
            pid: Cell::new(0),
        }
    }

    /// Its host pid, as Create or Start said.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.get()
    }

    /// Start.
    pub(crate) fn start(&self) -> Result<i32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..api::StartRequest::default()
        };
        let started: api::StartResponse = self.shim.call("Start", &request)?;
        self.pid.set(started.pid.cast_signed());
        Ok(self.pid())
    }

    /// State.
    pub(crate) fn state(&self) -> Result<api::StateResponse> {
        let request = api::StateRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..api::StateRequest::default()
        };
        self.shim.call("State", &request)
    }

    /// The status in State is this one now.
    pub(crate) fn is(&self, expected: Status) -> Result<()> {
        let state = self.state()?;
        let found = state.status.enum_value_or_default();
        ensure!(found == expected, "expected {expected:?}, found {found:?}");
        Ok(())
    }

    /// Waits until the status in State is this one.
    pub(crate) fn becomes(&self, expected: Status) -> Result<()> {
        until(&format!("{expected:?}"), || {
            let state = self.state()?;
            Ok((state.status.enum_value_or_default() == expected).then_some(()))
        })
    }

    /// Sends Wait on a connection of its own.
    pub(crate) fn begin_wait(&self) -> Result<Pending<api::WaitResponse>> {
        self.shim.begin("Wait", &self.wait_request())
    }

    fn wait_request(&self) -> api::WaitRequest {
        api::WaitRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..api::WaitRequest::default()
        }
    }

    /// Wait.
    pub(crate) fn wait(&self) -> Result<Exited> {
        let exit: api::WaitResponse = self.shim.call("Wait", &self.wait_request())?;
        Ok(Exited::new(exit.exit_status, exit.exited_at.as_ref()))
    }

    /// Wait gives this exit status.
    pub(crate) fn exits_with(&self, expected: u32) -> Result<Exited> {
        let exited = self.wait()?;
        let (out, err) = (self.streams.out.text(), self.streams.err.text());
        let found = exited.status;
        ensure!(
            found == expected,
            "expected exit status {expected}, found {found}\nstdout: {out}\nstderr: {err}"
        );
        Ok(exited)
    }

    /// What Kill is asked with.
    pub(crate) fn kill_request(&self, signal: i32) -> api::KillRequest {
        api::KillRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            signal: signal.unsigned_abs(),
            ..api::KillRequest::default()
        }
    }

    /// Kill.
    pub(crate) fn kill(&self, signal: i32) -> Result<()> {
        self.shim.call::<api::Empty>("Kill", &self.kill_request(signal))?;
        Ok(())
    }

    /// Kill with `all`.
    pub(crate) fn kill_all(&self, signal: i32) -> Result<()> {
        let mut request = self.kill_request(signal);
        request.all = true;
        self.shim.call::<api::Empty>("Kill", &request)?;
        Ok(())
    }

    /// What Delete is asked with.
    pub(crate) fn delete_request(&self) -> api::DeleteRequest {
        api::DeleteRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            ..api::DeleteRequest::default()
        }
    }

    /// Delete.
    pub(crate) fn delete(&self) -> Result<api::DeleteResponse> {
        self.shim.call("Delete", &self.delete_request())
    }

    /// Kill with SIGKILL, Wait, Delete.
    pub(crate) fn end(&self) -> Result<()> {
        self.kill(libc::SIGKILL)?;
        self.exits_with(137)?;
        self.delete()?;
        Ok(())
    }

    /// [`Process::end`] of a container that has running execs, which end with it.
    pub(crate) fn end_with_execs(&self, execs: &[&Self]) -> Result<()> {
        self.kill(libc::SIGKILL)?;
        for exec in execs {
            exec.exits_with(137)?;
            exec.delete()?;
        }
        self.exits_with(137)?;
        self.delete()?;
        Ok(())
    }

    /// CloseIO of standard input.
    pub(crate) fn close_stdin(&self) -> Result<()> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: true,
            ..api::CloseIORequest::default()
        };
        self.shim.call::<api::Empty>("CloseIO", &request)?;
        Ok(())
    }

    /// ResizePty.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            width,
            height,
            ..api::ResizePtyRequest::default()
        };
        self.shim.call::<api::Empty>("ResizePty", &request)?;
        Ok(())
    }

    /// Pause of the container.
    pub(crate) fn pause(&self) -> Result<()> {
        let request = api::PauseRequest {
            id: self.id.clone(),
            ..api::PauseRequest::default()
        };
        self.shim.call::<api::Empty>("Pause", &request)?;
        Ok(())
    }

    /// Resume of the container.
    pub(crate) fn resume(&self) -> Result<()> {
        let request = api::ResumeRequest {
            id: self.id.clone(),
            ..api::ResumeRequest::default()
        };
        self.shim.call::<api::Empty>("Resume", &request)?;
        Ok(())
    }

    /// Pids of the container.
    pub(crate) fn pids(&self) -> Result<Vec<api::ProcessInfo>> {
        let request = api::PidsRequest {
            id: self.id.clone(),
            ..api::PidsRequest::default()
        };
        Ok(self.shim.call::<api::PidsResponse>("Pids", &request)?.processes)
    }

    /// Stats of the container.
    pub(crate) fn stats(&self) -> Result<Any> {
        let request = api::StatsRequest {
            id: self.id.clone(),
            ..api::StatsRequest::default()
        };
        let stats: api::StatsResponse = self.shim.call("Stats", &request)?;
        stats.stats.into_option().context("no statistics")
    }

    /// Update of the container to these resources of the runtime specification.
    pub(crate) fn update(&self, resources: &Value) -> Result<()> {
        let url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(any(url, resources)).into(),
            ..api::UpdateTaskRequest::default()
        };
        self.shim.call::<api::Empty>("Update", &request)?;
        Ok(())
    }

    /// Connect.
    pub(crate) fn connect(&self) -> Result<api::ConnectResponse> {
        let request = api::ConnectRequest {
            id: self.id.clone(),
            ..api::ConnectRequest::default()
        };
        self.shim.call("Connect", &request)
    }

    /// What Exec is asked with: the container's own process with other arguments.
    pub(crate) fn exec_request(
        &self,
        exec_id: &str,
        args: &[&str],
        streams: &Streams,
    ) -> api::ExecProcessRequest {
        let mut spec = self.spec.clone();
        spec["args"] = json!(args);
        spec["terminal"] = json!(streams.terminal);
        self.exec_request_of(exec_id, &spec, streams)
    }

    /// What Exec is asked with: a whole process.
    pub(crate) fn exec_request_of(
        &self,
        exec_id: &str,
        spec: &Value,
        streams: &Streams,
    ) -> api::ExecProcessRequest {
        api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal: streams.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            spec: Some(any(SPEC_URL, spec)).into(),
            ..api::ExecProcessRequest::default()
        }
    }

    /// Exec by a request that a test has made; it is not started.
    pub(crate) fn exec_by(&self, request: &api::ExecProcessRequest, streams: Streams) -> Result<Process<'t>> {
        self.shim.call::<api::Empty>("Exec", request)?;
        Ok(Process {
            shim: self.shim.clone(),
            id: self.id.clone(),
            exec_id: request.exec_id.clone(),
            streams,
            spec: self.spec.clone(),
            pid: Cell::new(0),
        })
    }

    /// Exec with FIFOs for its output; it is not started.
    pub(crate) fn exec(&self, exec_id: &str, args: &[&str]) -> Result<Process<'t>> {
        let streams = Streams::output(self.shim.t)?;
        self.exec_by(&self.exec_request(exec_id, args, &streams), streams)
    }

    /// Exec and Start of a shell script.
    pub(crate) fn exec_sh(&self, exec_id: &str, script: &str) -> Result<Process<'t>> {
        let process = self.exec(exec_id, &["sh", "-c", script])?;
        process.start()?;
        Ok(process)
    }

    /// Runs a shell script in the container to its end, and gives its standard output; it must exit with 0.
    pub(crate) fn output_of(&self, exec_id: &str, script: &str) -> Result<String> {
        let process = self.exec_sh(exec_id, script)?;
        process.exits_with(0)?;
        let output = process.streams.out.text_to_end()?;
        process.delete()?;
        Ok(output)
    }
}
