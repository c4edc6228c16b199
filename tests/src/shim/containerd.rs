//! What containerd's runtime v2 plugin does with a shim's binary and its socket (containerd `core/runtime/v2/binary.go`,
//! `shim.go`; the flags and environment are those of 1.6 to 2.3 together).

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;

use super::events::Events;
use super::message::{OPTIONS_URL, any_message};
use super::process::{Pending, Process};
use super::streams::{Streams, show_log};
use super::ttrpc::{Code, Connection, Refused};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundle::Bundle;
use crate::host::cgroup::Cgroup;
use crate::host::mounts;
use crate::host::process::is_alive;
use crate::test::Test;
use crate::wait::until;

/// containerd, as a shim sees it.
pub(crate) struct Containerd<'t> {
    t: &'t Test,
    /// Its namespace: the test's own.
    pub(crate) namespace: String,
    /// Address of its gRPC socket: nobody listens; part of what a shim's socket is named by.
    pub(crate) address: String,
    /// Its events service.
    pub(crate) events: Rc<Events>,
    /// Parent of all bundles.
    pub(crate) bundles: PathBuf,
    /// Those it has started.
    shims: RefCell<Vec<Shim<'t>>>,
}

impl<'t> Containerd<'t> {
    /// Starts to serve events.
    pub(crate) fn new(t: &'t Test) -> Result<Self> {
        let namespace = t.namespace();
        let bundles = t.directory.join("task").join(&namespace);
        fs::create_dir_all(&bundles)?;
        let socket = t.path("containerd.sock");
        Ok(Self {
            t,
            namespace,
            address: socket.to_string_lossy().into_owned(),
            events: Rc::new(Events::serve(&t.path("containerd.sock.ttrpc"))?),
            bundles,
            shims: RefCell::default(),
        })
    }

    /// A bundle where containerd makes it: its directory is named as the container.
    pub(crate) fn bundle(&self) -> Bundle<'t> {
        let id = self.t.id();
        Bundle::at(self.t, self.bundles.join(&id), &id)
            .unwrap_or_else(|error| panic!("make a bundle: {error:#}"))
    }

    /// A call of the shim's binary in a bundle, with flags and environment as containerd gives them.
    pub(crate) fn command(&self, bundle: &Path, id: &str, action: &[&str]) -> Command {
        let mut command = Command::new(&self.t.shim);
        command.args(["-namespace", &self.namespace, "-address", &self.address]);
        command
            .args(["-publish-binary", "/usr/bin/containerd", "-id", id])
            .args(action);
        command.current_dir(bundle).stdin(Stdio::null());
        command
            .env("PATH", crate::criu::search_path())
            .env("TTRPC_ADDRESS", &self.events.socket)
            .env("GRPC_ADDRESS", &self.address)
            .env("NAMESPACE", &self.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .env("GOMAXPROCS", "2");
        command
    }

    /// `start` by flags and environment, the runtime's options on standard input if any (containerd 1.6 to 2.2).
    pub(crate) fn start_with(&self, bundle: &Bundle, options: Option<&Any>) -> Result<Shim<'t>> {
        let input = options.map_or(Ok(Vec::new()), Message::write_to_bytes)?;
        self.start_by(bundle, &["start"], &input)
    }

    /// [`Containerd::start_with`] nothing on standard input.
    pub(crate) fn start(&self, bundle: &Bundle) -> Result<Shim<'t>> {
        self.start_with(bundle, None)
    }

    /// What containerd 2.3 and newer sends on standard input.
    pub(crate) fn bootstrap_params(&self, id: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.to_owned(),
            namespace: self.namespace.clone(),
            containerd_version: "v2.3.0".to_owned(),
            containerd_ttrpc_address: self.events.socket.to_string_lossy().into_owned(),
            containerd_grpc_address: self.address.clone(),
            containerd_binary: "/usr/bin/containerd".to_owned(),
            ..BootstrapParams::default()
        }
    }

    /// `start` with parameters on standard input. The flags and the environment are there too, as 2.3 gives them.
    pub(crate) fn bootstrap(&self, bundle: &Bundle, params: &BootstrapParams) -> Result<Shim<'t>> {
        self.start_by(bundle, &["start"], &params.write_to_bytes()?)
    }

    /// `start` with these words as the action and this standard input.
    pub(crate) fn start_by(&self, bundle: &Bundle, action: &[&str], input: &[u8]) -> Result<Shim<'t>> {
        bundle.write()?;
        show_log(&bundle.directory)?;
        let output = run(self.command(&bundle.directory, &bundle.id, action), input)?;
        ensure!(
            output.status.success(),
            "start: {}: {}",
            output.status,
            text(&output)
        );
        // containerd takes both streams for the answer.
        let mut answer = output.stdout;
        answer.extend(output.stderr);
        let result = parse_answer(&answer)?;
        ensure!(result.protocol == "ttrpc", "protocol {:?}", result.protocol);
        let shim = Shim::connect(self.t, result)?;
        let mut shims = self.shims.borrow_mut();
        // The containers of a pod have one.
        if let Some(known) = shims.iter().find(|known| known.pid() == shim.pid()) {
            return Ok(known.clone());
        }
        let at_end = Rc::clone(&shim.state);
        self.t.at_end(move || at_end.end());
        shims.push(shim.clone());
        Ok(shim)
    }

    /// Starts a shim for the bundle, and has it create the container with its streams as FIFOs that are read.
    pub(crate) fn create(&self, bundle: &Bundle) -> Result<Process<'t>> {
        self.start(bundle)?.create(bundle, Streams::output(self.t)?)
    }

    /// [`Containerd::create`] and Start.
    pub(crate) fn run(&self, bundle: &Bundle) -> Result<Process<'t>> {
        let task = self.create(bundle)?;
        task.start()?;
        Ok(task)
    }

    /// Where a shim for this id listens: `SocketAddress` of containerd's `pkg/shim`.
    pub(crate) fn usual_socket(&self, id: &str) -> Result<PathBuf> {
        let mut command = Command::new("/bin/busybox");
        command.arg("sha256sum");
        let name = format!("{}/{}/{id}", self.address, self.namespace);
        let output = run(command, name.as_bytes())?;
        let digits = String::from_utf8(output.stdout)?;
        let digits = digits.split_whitespace().next().context("no digest")?;
        Ok(Path::new("/run/containerd/s").join(digits))
    }

    /// `delete`, as containerd calls it when the connection to a shim has broken.
    pub(crate) fn delete_dead(&self, bundle: &Bundle) -> Result<api::DeleteResponse> {
        self.delete_dead_of(&bundle.directory, &bundle.id)
    }

    /// [`Containerd::delete_dead`] of the container in this bundle.
    pub(crate) fn delete_dead_of(&self, directory: &Path, id: &str) -> Result<api::DeleteResponse> {
        let path = directory.to_string_lossy().into_owned();
        let output = run(self.command(directory, id, &["-bundle", &path, "delete"]), &[])?;
        ensure!(
            output.status.success(),
            "delete: {}: {}",
            output.status,
            text(&output)
        );
        if !output.stderr.is_empty() {
            eprintln!("delete: {}", String::from_utf8_lossy(&output.stderr));
        }
        if !self.t.shim_is_ours() {
            // The Go shim leaves it when it was killed.
            for shim in self.shims.borrow().iter().filter(|shim| !is_alive(shim.pid())) {
                let _ = fs::remove_file(shim.socket());
            }
        }
        api::DeleteResponse::parse_from_bytes(&output.stdout).context("answer of delete")
    }

    /// No mount in the bundle, no cgroup and no state of its container. A cgroup that empties is not gone at once.
    pub(crate) fn nothing_is_left_of(&self, bundle: &Bundle) -> Result<()> {
        let group = Cgroup {
            path: format!("{}/{}", self.t.cgroup.path, bundle.id),
        };
        let state = self.t.root.join(&self.namespace).join(&bundle.id);
        let find = || -> Result<Vec<PathBuf>> {
            let mut found: Vec<PathBuf> = mounts::under(&bundle.directory)?
                .into_iter()
                .map(|mount| mount.target)
                .collect();
            found.extend(group.directories()?);
            found.extend(state.exists().then(|| state.clone()));
            Ok(found)
        };
        until("nothing to be left", || Ok(find()?.is_empty().then_some(())))
            .with_context(|| format!("{:?}", find()))
    }
}

/// Runs a command to its end, with this on its standard input. Its streams end only when nothing holds them any more.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Result<Output> {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end without having read.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output().with_context(|| format!("{command:?}"))
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The answer to `start`: a message (2.3), JSON (2.0), or an address alone (1.6).
fn parse_answer(answer: &[u8]) -> Result<BootstrapResult> {
    let answer = answer.trim_ascii();
    if let Ok(result) = BootstrapResult::parse_from_bytes(answer)
        && !result.address.is_empty()
    {
        return Ok(result);
    }
    let text = std::str::from_utf8(answer).context("answer of start")?;
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let version = json["version"].as_i64().unwrap_or_default();
    let word = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    let mut result = BootstrapResult::new();
    if version >= 2 {
        result.version = i32::try_from(version)?;
        result.address = word("address");
        result.protocol = word("protocol");
    } else {
        result.version = 2;
        result.address = text.to_owned();
        "ttrpc".clone_into(&mut result.protocol);
    }
    Ok(result)
}

/// A started shim.
#[derive(Clone, Debug)]
pub(crate) struct Shim<'t> {
    pub(crate) t: &'t Test,
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    answer: BootstrapResult,
    socket: PathBuf,
    service: RefCell<String>,
    ours: bool,
    connection: RefCell<Connection>,
    /// Containers to delete when the test is over.
    tasks: RefCell<Vec<String>>,
    pid: Cell<i32>,
}

impl<'t> Shim<'t> {
    fn connect(t: &'t Test, answer: BootstrapResult) -> Result<Self> {
        let socket = answer.address.strip_prefix("unix://");
        let socket = PathBuf::from(socket.with_context(|| format!("address {:?}", answer.address))?);
        t.remember_socket(&socket)?;
        let ours = t.shim_is_ours();
        let service = format!("containerd.task.v{}.Task", answer.version);
        let state = Rc::new(State {
            connection: RefCell::new(Connection::open(&socket, ours)?),
            answer,
            socket,
            service: RefCell::new(service),
            ours,
            tasks: RefCell::default(),
            pid: Cell::new(0),
        });
        let connected: api::ConnectResponse = state.call("Connect", &api::ConnectRequest::new())?;
        state.pid.set(connected.shim_pid.cast_signed());
        Ok(Self { t, state })
    }

    /// Its answer to `start`.
    pub(crate) fn answer(&self) -> &BootstrapResult {
        &self.state.answer
    }

    /// Path of its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.state.socket
    }

    /// The process id it says.
    pub(crate) fn pid(&self) -> i32 {
        self.state.pid.get()
    }

    /// Name of its Task service.
    pub(crate) fn service(&self) -> String {
        self.state.service.borrow().clone()
    }

    /// Speaks to this version of the Task service from now on.
    pub(crate) fn speak_version(&self, version: i32) {
        *self.state.service.borrow_mut() = format!("containerd.task.v{version}.Task");
    }

    /// Another connection.
    pub(crate) fn connection(&self) -> Result<Connection> {
        Connection::open(&self.state.socket, self.state.ours)
    }

    /// Calls a method of the Task service.
    pub(crate) fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.state.call(method, request)
    }

    /// Calls a method on a connection of its own; the answer is fetched later.
    pub(crate) fn begin<A: Message>(&self, method: &str, request: &impl Message) -> Result<Pending<A>> {
        Pending::new(self.connection()?, &self.service(), method, request)
    }

    /// Options with the test's own state directory.
    pub(crate) fn options(&self) -> Options {
        Options {
            root: self.t.root.to_string_lossy().into_owned(),
            binary_name: self.t.binary_name.clone(),
            ..Options::default()
        }
    }

    /// What containerd sends to create the bundle's container.
    pub(crate) fn create_request(
        &self,
        bundle: &Bundle,
        streams: &Streams,
    ) -> Result<api::CreateTaskRequest> {
        bundle.write()?;
        Ok(api::CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.directory.to_string_lossy().into_owned(),
            terminal: streams.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            options: Some(any_message(OPTIONS_URL, &self.options())?).into(),
            ..api::CreateTaskRequest::default()
        })
    }

    /// Create, of a container whose rootfs is there.
    pub(crate) fn create(&self, bundle: &Bundle, streams: Streams) -> Result<Process<'t>> {
        let request = self.create_request(bundle, &streams)?;
        self.create_by(&request, bundle, streams)
    }

    /// Create by a request that a test has changed.
    pub(crate) fn create_by(
        &self,
        request: &api::CreateTaskRequest,
        bundle: &Bundle,
        streams: Streams,
    ) -> Result<Process<'t>> {
        self.delete_at_end(&request.id);
        let created: api::CreateTaskResponse = self.call("Create", request)?;
        Ok(self.process(bundle, streams, created.pid.cast_signed()))
    }

    /// A container that was created already.
    pub(crate) fn process(&self, bundle: &Bundle, streams: Streams, pid: i32) -> Process<'t> {
        Process::init(
            self.clone(),
            &bundle.id,
            bundle.spec["process"].clone(),
            streams,
            pid,
        )
    }

    /// Deletes the container when the test is over, if it is still there then.
    pub(crate) fn delete_at_end(&self, id: &str) {
        self.state.tasks.borrow_mut().push(id.to_owned());
    }

    /// Shutdown.
    pub(crate) fn shutdown(&self) -> Result<()> {
        self.state.shutdown()
    }

    /// Shutdown, and waits for the process to be gone.
    pub(crate) fn ends(&self) -> Result<()> {
        self.shutdown()?;
        self.gone()
    }

    /// Sends the shim a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    /// Waits for the process to be gone.
    pub(crate) fn gone(&self) -> Result<()> {
        until("the shim to end", || Ok((!is_alive(self.pid())).then_some(())))
    }
}

impl State {
    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        let service = self.service.borrow().clone();
        let answer = self.connection.borrow_mut().call(&service, method, request);
        answer.with_context(|| method.to_owned())
    }

    fn shutdown(&self) -> Result<()> {
        let answer: Result<api::Empty> = self.call("Shutdown", &api::ShutdownRequest::new());
        match answer {
            // It may end before it has answered.
            Err(error) if error.downcast_ref::<Refused>().is_some() => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends what the test left: nothing, where the shim is dead already.
    fn end(&self) -> Result<()> {
        let Ok(connection) = Connection::open(&self.socket, self.ours) else {
            return Ok(());
        };
        *self.connection.borrow_mut() = connection;
        for id in self.tasks.take() {
            self.delete(&id)
                .with_context(|| format!("delete what the test left: {id}"))?;
        }
        self.shutdown()?;
        let pid = self.pid.get();
        until("the shim to end after Shutdown", || {
            Ok((!is_alive(pid)).then_some(()))
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        let mut wait = api::WaitRequest::new();
        wait.id.clone_from(&id);
        let mut kill = api::KillRequest::new();
        (kill.id, kill.signal, kill.all) = (id.clone(), 9, true);
        let mut delete = api::DeleteRequest::new();
        delete.id = id;
        // Refused where it has stopped already.
        let killed: Result<api::Empty> = self.call("Kill", &kill);
        if killed.is_err_and(|error| is_not_found(&error))
            && self.call::<api::WaitResponse>("Wait", &wait).is_err()
        {
            return Ok(());
        }
        self.call::<api::WaitResponse>("Wait", &wait)?;
        match self.call::<api::DeleteResponse>("Delete", &delete) {
            Err(error) if !is_not_found(&error) => bail!("{error:#}"),
            _ => Ok(()),
        }
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.code == Code::NOT_FOUND)
}
