//! The real containerd, one for each test: with a root, a state directory and a socket of its own, and with what it
//! and its shims keep in `/run/containerd` in a mount namespace of the test's.
//!
//! ```text
//! with_each(t, |containerd| {                            // once for every version that hack/peers made
//!     let task = containerd.start(&containerd.busybox(), &["sleep", "1000"])?;      // ctr run --detach
//!     containerd.ctr(["task", "exec", "--exec-id", "e", &task, "true"])?.ok()?;
//!     containerd.remove(&task)                             // ctr task rm --force, ctr container rm
//! })
//! ```
//!
//! A test fails if containerd's directories show something left when it is over: bundles, FIFOs, sockets, mounts.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{mounts, process};
use crate::output::Output;
use crate::registry::Result;
use crate::test::{Rtc, Test};
use crate::wait;

/// What containerd and its shims hard-code.
const STATE: &str = "/run/containerd";

/// Where `hack/peers build` has put the peers; the test is skipped where it has not run.
pub(crate) fn peers(t: &Test) -> Result<PathBuf> {
    let peers = std::env::var_os("PEERS")
        .map(PathBuf::from)
        .filter(|path| path.join("ready").exists());
    if peers.is_none() {
        t.skip("no containerd (hack/peers build)")?;
    }
    peers.context("unreachable: skipped")
}

/// Who makes the pods of containerd's CRI plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pods {
    /// containerd, with a pause container.
    Pause,
    /// containerd, with its own shim for runc, which is told to call the runtime under test (`BinaryName`).
    OwnShim,
    /// The shim, by its Sandbox service (`sandboxer = "shim"`, containerd 2.3): ours alone has one.
    Shim,
}

/// Runs the body with each version of containerd in turn; a failure names the version.
pub(crate) fn with_each(t: &Test, body: impl Fn(&Daemon<'_>) -> Result) -> Result {
    with_each_configured(t, None, body)
}

/// [`with_each`], with the CRI plugin on.
pub(crate) fn with_each_cri(t: &Test, pods: Pods, body: impl Fn(&Daemon<'_>) -> Result) -> Result {
    if pods == Pods::Shim && !t.shim_is_ours() {
        t.skip("containerd's own shim makes no pods")?;
    }
    with_each_configured(t, Some(pods), body)
}

fn with_each_configured(t: &Test, pods: Option<Pods>, body: impl Fn(&Daemon<'_>) -> Result) -> Result {
    let peers = peers(t)?;
    own_state()?;
    let mut versions: Vec<String> = fs::read_dir(&peers)?
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("containerd-")
                .map(str::to_owned)
        })
        .collect();
    if pods == Some(Pods::Shim) {
        // containerd 2.1 panics for want of the pod's spec (`NewBundle`).
        versions.retain(|version| !version.starts_with("1.") && version != "2.1");
    }
    versions.sort();
    ensure!(!versions.is_empty(), "no containerd in {}", peers.display());
    for version in versions {
        let run = || {
            let daemon = Daemon::new(t, &peers, &version, pods)?;
            body(&daemon).with_context(|| daemon.last_words())?;
            daemon.end().with_context(|| daemon.last_words())
        };
        match run() {
            Err(error) if error.is::<crate::test::Skip>() => return Err(error),
            result => result.with_context(|| format!("containerd {version}"))?,
        }
    }
    Ok(())
}

/// `/run/containerd` of this process and its children is the test's: no other containerd or shim meets it.
fn own_state() -> Result {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("mount(/, MS_SLAVE)")?;
    fs::create_dir_all(STATE)?;
    mount(
        Some("tmpfs"),
        STATE,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=711"),
    )
    .context(STATE)
}

/// A running containerd.
pub(crate) struct Daemon<'t> {
    pub(crate) t: &'t Test,
    /// `1.6`, `2.4`.
    pub(crate) version: String,
    /// Its files, and the socket.
    pub(crate) directory: PathBuf,
    /// `containerd`, `ctr`.
    programs: PathBuf,
    peers: PathBuf,
    process: RefCell<Option<Child>>,
}

impl<'t> Daemon<'t> {
    fn new(t: &'t Test, peers: &Path, version: &str, pods: Option<Pods>) -> Result<Self> {
        let directory = t.path("c");
        let daemon = Self {
            t,
            version: version.to_owned(),
            programs: peers.join(format!("containerd-{version}/bin")),
            peers: peers.to_owned(),
            directory,
            process: RefCell::default(),
        };
        fs::create_dir_all(daemon.directory.join("bin"))?;
        let name = t.shim.file_name().context("the shim's name")?;
        // containerd's own shim of 2.3 and newer refuses an older containerd: each has its own.
        let shim = if t.shim_is_ours() {
            t.shim.clone()
        } else {
            daemon.programs.join(name)
        };
        symlink(&shim, daemon.directory.join("bin").join(name))?;
        daemon.configure(pods)?;
        daemon.start_daemon()?;
        Ok(daemon)
    }

    /// The name by which containerd finds the shim under test: `io.containerd.rtc.v2` for `containerd-shim-rtc-v2`.
    pub(crate) fn runtime(&self) -> String {
        let name = self.t.shim.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix("containerd-shim-").unwrap_or("rtc-v2");
        format!("io.containerd.{}", name.replace("-v", ".v"))
    }

    /// Whether it is containerd 2 or newer.
    pub(crate) fn is_2(&self) -> bool {
        !self.version.starts_with("1.")
    }

    fn configure(&self, pods: Option<Pods>) -> Result {
        let directory = self.directory.display();
        let without = if pods.is_some() {
            String::new()
        } else {
            let cri = [
                "grpc.v1.cri",
                "cri.v1.images",
                "cri.v1.runtime",
                "podsandbox.controller.v1.podsandbox",
            ];
            cri.map(|plugin| format!("\"io.containerd.{plugin}\", ")).concat()
        };
        let text = format!(
            "version = {}\nroot = \"{directory}/root\"\nstate = \"{STATE}\"\n\
             disabled_plugins = [{without}\"io.containerd.nri.v1.nri\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\n  address = \"{}\"\n[debug]\n  level = \"debug\"\n{}",
            if self.is_2() { 3 } else { 2 },
            self.socket().display(),
            pods.map(|pods| self.cri_settings(pods)).unwrap_or_default(),
        );
        Ok(fs::write(self.directory.join("config.toml"), text)?)
    }

    /// The pause image and the handler; no limit may be raised here (`restrict_oom_score_adj`).
    fn cri_settings(&self, pods: Pods) -> String {
        let pause = "registry.k8s.io/pause:3.10";
        let (images, runtime) = if self.is_2() {
            (
                "plugins.\"io.containerd.cri.v1.images\"",
                "plugins.\"io.containerd.cri.v1.runtime\"",
            )
        } else {
            ("", "plugins.\"io.containerd.grpc.v1.cri\"")
        };
        let mut text = if self.is_2() {
            format!(
                "[{images}]\n  snapshotter = \"native\"\n[{images}.pinned_images]\n  sandbox = \"{pause}\"\n\
                 [{runtime}]\n  restrict_oom_score_adj = true\n[{runtime}.containerd]\n"
            )
        } else {
            format!(
                "[{runtime}]\n  sandbox_image = \"{pause}\"\n  restrict_oom_score_adj = true\n\
                 [{runtime}.containerd]\n  snapshotter = \"native\"\n"
            )
        };
        let kind = match pods {
            Pods::OwnShim => "io.containerd.runc.v2".to_owned(),
            Pods::Pause | Pods::Shim => self.runtime(),
        };
        text += &format!(
            "  default_runtime_name = \"tested\"\n[{runtime}.containerd.runtimes.tested]\n  runtime_type = \"{kind}\"\n",
        );
        if pods == Pods::OwnShim {
            text += &format!(
                "[{runtime}.containerd.runtimes.tested.options]\n  BinaryName = \"{}\"\n",
                self.t.rtc.display()
            );
        }
        if pods == Pods::Shim {
            text += "  sandboxer = \"shim\"\n";
        }
        text
    }

    /// Its gRPC socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    /// Starts it, and waits until it answers. Also after [`Daemon::signal`] and [`Daemon::kill`].
    pub(crate) fn start_daemon(&self) -> Result {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(self.programs.join("containerd"));
        command.arg("--config").arg(self.directory.join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("PATH", self.path_variable());
        *self.process.borrow_mut() = Some(command.spawn().context("start containerd")?);
        wait::until("containerd to answer", || {
            if !process::is_alive(self.pid()?) {
                bail!("containerd ended\n{}", self.last_words());
            }
            Ok((self.ctr(["version"])?.code == 0).then_some(()))
        })
    }

    /// The shim under test first, then a current runc for containerd's own.
    pub(crate) fn path_variable(&self) -> String {
        let own = [
            self.directory.join("bin"),
            self.peers.join("runc/bin"),
            self.peers.join("criu/bin"),
            self.programs.clone(),
        ];
        let own: Vec<_> = own.iter().map(|path| path.to_string_lossy()).collect();
        let criu = self.peers.join("criu/bin");
        format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin:{}",
            own.join(":"),
            criu.display()
        )
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn pid(&self) -> Result<i32> {
        let process = self.process.borrow();
        Ok(process
            .as_ref()
            .context("containerd does not run")?
            .id()
            .cast_signed())
    }

    fn stop(&self) -> Result {
        self.signal(Signal::SIGTERM)
    }

    /// Ends it in the middle of whatever it does; its shims go on.
    pub(crate) fn kill(&self) -> Result {
        self.signal(Signal::SIGKILL)
    }

    /// Ends it by this signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result {
        kill(Pid::from_raw(self.pid()?), signal).with_context(|| signal.to_string())?;
        if let Some(mut child) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// `ctr ARGS`, to its end, in the test's namespace.
    pub(crate) fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.ctr_command(args).run()
    }

    /// `ctr ARGS`, not started yet.
    pub(crate) fn ctr_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Rtc<'t> {
        let socket = self.socket().to_string_lossy().into_owned();
        self.t
            .bare(["--address", &socket, "--namespace", &self.t.namespace()])
            .program(self.programs.join("ctr"))
            .env("PATH", &self.path_variable())
            .args(args)
    }

    /// `crictl ARGS`, to its end.
    pub(crate) fn crictl(&self, args: &[&str]) -> Result<Output> {
        let endpoint = format!("unix://{}", self.socket().display());
        let options = ["--runtime-endpoint", &endpoint, "--timeout", "60s"];
        let command = self
            .t
            .bare(options)
            .program(self.peers.join("cri-tools/bin/crictl"));
        command.args(args).run()
    }

    /// A file of the peers.
    pub(crate) fn peer_file(&self, name: &str) -> String {
        self.peers.join(name).display().to_string()
    }

    /// A directory with busybox, for `ctr run --rootfs`.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.t.bundle().rootfs()
    }

    /// `ctr run FLAGS --rootfs ROOTFS ID ARGS`, not started yet; and the id.
    pub(crate) fn run(&self, flags: &[&str], args: &[&str]) -> (Rtc<'t>, String) {
        let id = self.t.id();
        let command = self
            .ctr_command(["run", "--env", "PATH=/bin", "--runtime", &self.runtime()])
            .args(flags);
        let command = command
            .args(["--rootfs"])
            .args([self.busybox()])
            .args([&id])
            .args(args);
        (command, id)
    }

    /// `ctr run --detach FLAGS`: the id of what runs then.
    pub(crate) fn start(&self, flags: &[&str], args: &[&str]) -> Result<String> {
        let (command, id) = self.run(&[&["--detach"], flags].concat(), args);
        command.run()?.ok()?;
        Ok(id)
    }

    /// What `ctr task ls` says of a task: pid and status; `None` where it does not list it.
    pub(crate) fn task(&self, id: &str) -> Result<Option<(i32, String)>> {
        let list = self.ctr(["task", "ls"])?.ok()?;
        let Some(line) = list
            .lines()
            .into_iter()
            .find(|line| line.split_whitespace().next() == Some(id))
        else {
            return Ok(None);
        };
        let mut fields = line.split_whitespace().skip(1);
        let (pid, status) = (fields.next().context("pid")?, fields.next().context("status")?);
        Ok(Some((pid.parse()?, status.to_owned())))
    }

    /// Host pid of a task's init.
    pub(crate) fn task_pid(&self, id: &str) -> Result<i32> {
        Ok(self.task(id)?.with_context(|| format!("no task {id}"))?.0)
    }

    /// Waits until the task has this status (`RUNNING`, `STOPPED`, `PAUSED`).
    pub(crate) fn wait(&self, id: &str, status: &str) -> Result {
        wait::until(&format!("{id} to be {status}"), || {
            Ok(self.task(id)?.filter(|(_, found)| found == status).map(drop))
        })
    }

    /// `ctr task exec --exec-id E ID ARGS`, to its end.
    pub(crate) fn exec(&self, id: &str, args: &[&str]) -> Result<Output> {
        let exec = format!("e{}", self.t.number());
        self.ctr_command(["task", "exec", "--exec-id", &exec, id])
            .args(args)
            .run()
    }

    /// Kills what runs of it, and removes the task and the container.
    pub(crate) fn remove(&self, id: &str) -> Result {
        self.ctr(["task", "rm", "--force", id])?.ok()?;
        self.ctr(["container", "rm", id])?.ok()?;
        Ok(())
    }

    /// Removes a task that ended with this status, and its container. containerd 1.6 only mentions the status.
    pub(crate) fn remove_ended(&self, id: &str, status: i32) -> Result {
        let output = self.ctr(["task", "rm", id])?;
        let mentioned = output.code == 0 && output.stderr.contains(&format!("exit code {status}"));
        ensure!(
            mentioned || output.code == status,
            "expected status {status}\n{output}"
        );
        self.ctr(["container", "rm", id])?.ok()?;
        Ok(())
    }

    /// Pids of the shims under this containerd: children of none, with its socket among their arguments or environment.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let shim = self
            .t
            .shim
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let supervisor = std::os::unix::process::parent_id().cast_signed();
        let mut found = process::descendants(supervisor);
        found.retain(|&pid| {
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).ends_with(&shim)
        });
        found
    }

    /// Ends it; nothing of what it ran may be left.
    fn end(&self) -> Result {
        self.stop()?;
        let nothing_left = wait::until("nothing left of containerd's tasks", || {
            Ok(self.leftovers()?.is_empty().then_some(()))
        });
        nothing_left.with_context(|| format!("left: {:?}", self.leftovers()))
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = self.shims().into_iter().map(process::describe).collect();
        // Where tasks have their bundles, streams and sockets; `rtc` and `runc` are the runtimes' own.
        for parent in ["io.containerd.runtime.v2.task", "fifo", "s", "rtc", "runc"] {
            for path in entries(&Path::new(STATE).join(parent)) {
                // A namespace may stay, empty.
                if path.is_dir() {
                    found.extend(entries(&path).iter().map(|path| path.display().to_string()));
                } else {
                    found.push(path.display().to_string());
                }
            }
        }
        for place in [Path::new(STATE), &self.directory] {
            let mounts = mounts::under(place)?;
            let of_tasks = mounts.iter().filter(|mount| mount.target != Path::new(STATE));
            found.extend(of_tasks.map(|mount| format!("mount {}", mount.target.display())));
        }
        Ok(found)
    }

    /// The end of its log, without debugging.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("level=info")).collect();
        let last = &lines[lines.len().saturating_sub(30)..];
        format!("--- containerd {}:\n{}\n---", self.version, last.join("\n"))
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
