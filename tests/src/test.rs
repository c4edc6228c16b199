//! What a test function is given: its own directory, runtime root, cgroup parent and names; and ways to run the runtime.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::host::cgroup::{self, Cgroup};
use crate::output::Output;
use crate::user::User;
use crate::{lists, registry};

/// Exit status of a test process that skipped.
pub(crate) const SKIPPED: i32 = 77;

/// What a test's containerd namespace begins with.
pub(crate) const NAMESPACE: &str = "rtc-test-";

/// What the cgroup of a test ends with whose containers are systemd's.
const SLICE: &str = ".slice";

/// File of the test's directory that lists sockets which must be gone after it.
pub(crate) const SOCKETS: &str = "sockets";

/// The error by which a test ends as skipped.
#[derive(Debug)]
pub(crate) struct Skip(String);

impl Skip {
    /// As an error, for this reason.
    pub(crate) fn because(reason: &str) -> anyhow::Error {
        Self(reason.to_owned()).into()
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// One running test.
pub(crate) struct Test {
    /// The runtime under test.
    pub(crate) rtc: PathBuf,
    /// The shim under test.
    pub(crate) shim: PathBuf,
    /// The CRI server under test.
    pub(crate) cri: PathBuf,
    /// The peer that is tested in its place; empty for none.
    pub(crate) cri_peer: String,
    /// The runtime that the shim is told to run; empty for its own.
    pub(crate) binary_name: String,
    /// The runtime's `--root`.
    pub(crate) root: PathBuf,
    /// Directory for whatever the test makes; also its working directory.
    pub(crate) directory: PathBuf,
    /// Parent cgroup of all the test's containers.
    pub(crate) cgroup: Cgroup,
    /// Part of all names that would otherwise be global.
    pub(crate) unique: String,
    /// Who runs the runtime; root where nobody else.
    pub(crate) user: RefCell<Option<User>>,
    /// The runner's directory for this test: parent of the others.
    base: PathBuf,
    counter: Cell<u32>,
    /// Containers to delete at the end if they are still there.
    to_delete: RefCell<Vec<String>>,
    /// What else has to be done when the test is over.
    at_end: RefCell<Vec<AtEnd>>,
}

type AtEnd = Box<dyn FnOnce() -> Result<()>>;

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Test").field(&self.unique).finish()
    }
}

/// A variable the runner sets.
pub(crate) fn environment(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("${name}"))
}

/// `rtc-tests child AREA/NAME`: runs one test in this process.
pub(crate) fn main(path: &str) -> Result<ExitCode> {
    // What the supervisor has blocked is none of the test's, nor of what it starts.
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .context("sigprocmask")?;
    let registered = registry::all()
        .into_iter()
        .find(|test| test.path() == path)
        .context("no such test")?;
    let base = PathBuf::from(environment("RTC_TESTS_DIRECTORY")?);
    let cgroup = Cgroup {
        path: environment("RTC_TESTS_CGROUP")?,
    };
    let test = Test {
        rtc: PathBuf::from(environment("RTC")?),
        shim: PathBuf::from(environment("SHIM")?),
        cri: PathBuf::from(std::env::var_os("CRI").unwrap_or_default()),
        cri_peer: std::env::var("CRI_PEER").unwrap_or_default(),
        binary_name: std::env::var("BINARY_NAME").unwrap_or_default(),
        root: base.join("root"),
        directory: base.join("t"),
        unique: unique(&cgroup.path),
        cgroup,
        user: RefCell::default(),
        base,
        counter: Cell::new(0),
        to_delete: RefCell::default(),
        at_end: RefCell::default(),
    };
    let result = (registered.run)(&test).and_then(|()| test.end());
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                test.end()?;
                fs::write(test.base.join("skipped"), reason)?;
                Ok(ExitCode::from(SKIPPED.unsigned_abs() as u8))
            }
            None => {
                eprintln!("{error:#}");
                Ok(ExitCode::FAILURE)
            }
        },
    }
}

/// The last part of the name of a test's cgroup.
fn unique(cgroup: &str) -> String {
    let name = cgroup.strip_suffix(SLICE).unwrap_or(cgroup);
    name.rsplit('-').next().unwrap_or_default().to_owned()
}

impl Test {
    /// What a benchmark has in place of a test's: this directory, this cgroup, this CRI server.
    pub(crate) fn of_benchmark(base: &Path, cgroup: &str, cri_peer: &str) -> Result<Self> {
        let variable = |name| PathBuf::from(std::env::var_os(name).unwrap_or_default());
        let test = Self {
            rtc: variable("RTC"),
            shim: variable("SHIM"),
            cri: variable("CRI"),
            cri_peer: cri_peer.to_owned(),
            binary_name: String::new(),
            root: base.join("root"),
            directory: base.join("t"),
            unique: unique(cgroup),
            cgroup: Cgroup {
                path: cgroup.to_owned(),
            },
            user: RefCell::default(),
            base: base.to_owned(),
            counter: Cell::new(0),
            to_delete: RefCell::default(),
            at_end: RefCell::default(),
        };
        fs::create_dir_all(&test.directory).context("directory")?;
        Ok(test)
    }

    /// Ends the test as skipped, if the machine's list allows the reason. Use with `?`.
    pub(crate) fn skip(&self, reason: impl Into<String>) -> Result<()> {
        Err(Skip(reason.into()).into())
    }

    /// Skips where there is no such controller.
    pub(crate) fn needs_controller(&self, controller: &str) -> Result<()> {
        if cgroup::hierarchy_of(controller).is_none() {
            self.skip(format!("no cgroup controller {controller}"))?;
        }
        Ok(())
    }

    /// Skips where `/sys/fs/cgroup` is not cgroup v2.
    pub(crate) fn needs_cgroup_v2(&self) -> Result<()> {
        if !cgroup::is_unified() {
            self.skip("needs cgroup v2")?;
        }
        Ok(())
    }

    /// Whether the runtime under test is ours, not a peer.
    pub(crate) fn is_ours(&self) -> bool {
        lists::peer(&self.rtc).is_none()
    }

    /// Whether the runtime is called with the systemd driver.
    pub(crate) fn uses_systemd(&self) -> bool {
        self.cgroup.path.ends_with(SLICE)
    }

    /// Skips where the runtime is called with the systemd driver.
    pub(crate) fn needs_cgroupfs_driver(&self) -> Result<()> {
        if self.uses_systemd() {
            self.skip("needs the cgroupfs driver")?;
        }
        Ok(())
    }

    /// The cgroup of the container of a bundle whose `linux.cgroupsPath` is as [`Bundle::new`] makes it.
    pub(crate) fn cgroup_of(&self, id: &str) -> Cgroup {
        self.cgroup_at(&format!("{}/{id}", self.cgroup.path))
    }

    /// The cgroup that a `linux.cgroupsPath` below [`Test::cgroup`] comes to: with the systemd driver a scope.
    pub(crate) fn cgroup_at(&self, path: &str) -> Cgroup {
        Cgroup {
            path: match self.scope(path) {
                Some(name) => format!("{}/t-{name}.scope", self.cgroup.path),
                None => path.to_owned(),
            },
        }
    }

    /// The container's part of the name of the scope at a path below the test's slice.
    fn scope<'p>(&self, path: &'p str) -> Option<&'p str> {
        let name = path.strip_prefix(&self.cgroup.path)?.strip_prefix('/')?;
        let scope = name
            .strip_prefix("t-")
            .and_then(|name| name.strip_suffix(".scope"));
        (self.uses_systemd() && !name.contains('/')).then_some(scope.unwrap_or(name))
    }

    /// `linux.cgroupsPath` for the driver: with systemd `SLICE:t:NAME` for what is below the test's slice.
    pub(crate) fn cgroups_path(&self, path: &str) -> String {
        match self.scope(path) {
            Some(name) => format!("rtctest-{}{SLICE}:t:{name}", self.unique),
            None => path.to_owned(),
        }
    }

    /// A number no other call in this test gets.
    pub(crate) fn number(&self) -> u32 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    /// A container id no other test uses either.
    pub(crate) fn id(&self) -> String {
        format!("c{}-{}", self.number(), self.unique)
    }

    /// A new path in the test's directory; nothing is there yet.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{}", self.number()))
    }

    /// A file of the whole run (`busybox`, `rtc-tests`), hard-linked where possible.
    pub(crate) fn link_shared(&self, name: &str, to: &Path) -> Result<()> {
        let shared = self.base.parent().unwrap_or(Path::new("/")).join(name);
        let linked = fs::hard_link(&shared, to).or_else(|_| fs::copy(&shared, to).map(|_| ()));
        linked.with_context(|| format!("{} -> {}", shared.display(), to.display()))
    }

    /// A new bundle: busybox rootfs and the configuration of `config.json` beside this source.
    pub(crate) fn bundle(&self) -> Bundle<'_> {
        Bundle::new(self).unwrap_or_else(|error| panic!("make a bundle: {error:#}"))
    }

    /// Runs the runtime with these arguments after `--root`, to its end.
    pub(crate) fn rtc<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.command(args).run()
    }

    /// The runtime with these arguments after `--root`, not started yet.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Rtc<'_> {
        let root: [&OsStr; 2] = ["--root".as_ref(), self.root.as_ref()];
        let driver = self.uses_systemd().then_some("--systemd-cgroup");
        self.bare(root).args(driver).args(args)
    }

    /// The runtime with exactly these arguments: no `--root`.
    pub(crate) fn bare<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Rtc<'_> {
        let command = Rtc {
            test: self,
            program: self.rtc.clone(),
            args: Vec::new(),
            cwd: None,
            stdin: None,
            terminal: None,
            shell: None,
            env: Vec::new(),
        };
        command.args(args)
    }

    /// Has the container deleted when the test is over, if it is still there then.
    pub(crate) fn delete_at_end(&self, id: &str) {
        self.to_delete.borrow_mut().push(id.to_owned());
    }

    /// Has this done when the test is over, the last one first.
    pub(crate) fn at_end(&self, action: impl FnOnce() -> Result<()> + 'static) {
        self.at_end.borrow_mut().push(Box::new(action));
    }

    /// containerd's namespace of this test: a directory of the runtime's root, too.
    pub(crate) fn namespace(&self) -> String {
        format!("{NAMESPACE}{}", self.unique)
    }

    /// Whether the shim under test is ours, not a peer.
    pub(crate) fn shim_is_ours(&self) -> bool {
        lists::peer(&self.shim).is_none()
    }

    /// Has the supervisor look whether this socket is gone after the test.
    pub(crate) fn remember_socket(&self, socket: &Path) -> Result<()> {
        let mut list = append(&self.base.join(SOCKETS))?;
        writeln!(list, "{}", socket.display()).context("list of sockets")
    }

    fn end(&self) -> Result<()> {
        while let Some(action) = self.at_end.borrow_mut().pop() {
            action()?;
        }
        self.delete_containers()
    }

    fn delete_containers(&self) -> Result<()> {
        for id in self.to_delete.take() {
            if self.root.join(&id).exists() {
                self.rtc(["delete", "--force", &id])?
                    .ok()
                    .context("delete what the test left running")?;
            }
        }
        Ok(())
    }
}

/// A call of the runtime, being put together.
pub(crate) struct Rtc<'t> {
    test: &'t Test,
    program: PathBuf,
    args: Vec<OsString>,
    cwd: Option<PathBuf>,
    stdin: Option<Stdio>,
    terminal: Option<OwnedFd>,
    shell: Option<String>,
    env: Vec<(String, String)>,
}

impl Rtc<'_> {
    /// Appends arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Working directory; the test's own by default.
    pub(crate) fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// Standard input; `/dev/null` by default.
    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Another program than the runtime under test: a copy of it.
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// All three standard streams are this terminal, which controls a session of the runtime's own.
    pub(crate) fn terminal(mut self, slave: OwnedFd) -> Self {
        self.terminal = Some(slave);
        self
    }

    /// Redirections as a shell writes them (`3</etc/group`), for descriptors the runtime inherits.
    pub(crate) fn redirect(mut self, redirections: &str) -> Self {
        self.shell = Some(format!("exec \"$@\" {redirections}"));
        self
    }

    /// Passes descriptors as a service manager does: the redirections from 3 on, their number and the receiver's pid.
    pub(crate) fn activate(mut self, count: u32, redirections: &str) -> Self {
        let environment = format!("export LISTEN_FDS={count} LISTEN_PID=$$");
        self.shell = Some(format!("{environment}; exec \"$@\" {redirections}"));
        self
    }

    /// Sets an environment variable of the runtime.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits for its end. The streams are files: a container that lives on may hold them.
    pub(crate) fn run(self) -> Result<Output> {
        self.spawn()?.wait()
    }

    /// Starts it.
    pub(crate) fn spawn(self) -> Result<Running> {
        let stdout = self.test.path("stdout");
        let stderr = self.test.path("stderr");
        let mut words: Vec<OsString> = Vec::new();
        if self.terminal.is_some() {
            words.extend(["/bin/busybox", "setsid", "-c"].map(OsString::from));
        }
        if let Some(script) = &self.shell {
            words.extend(["/bin/busybox", "sh", "-c", script, "sh"].map(OsString::from));
        }
        let user = self.test.user.borrow().clone();
        let program = match &user {
            Some(user) => {
                words.extend(user.words());
                user.reachable(&self.program, &self.test.directory)?
            }
            None => self.program.clone(),
        };
        words.push(program.into_os_string());
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let (out, error) = (append(&stdout)?, append(&stderr)?);
        match self.terminal {
            Some(slave) => command
                .stdin(slave.try_clone()?)
                .stdout(slave.try_clone()?)
                .stderr(slave),
            None => command
                .stdin(self.stdin.unwrap_or_else(Stdio::null))
                .stdout(out)
                .stderr(error),
        };
        command.current_dir(self.cwd.as_deref().unwrap_or(&self.test.directory));
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "XDG_RUNTIME_DIR",
        ] {
            command.env_remove(name);
        }
        command.envs(self.env);
        let words: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let text = format!("{} {}", self.program.display(), words.join(" "));
        let child = command.spawn().with_context(|| text.clone())?;
        Ok(Running {
            child,
            text,
            stdout,
            stderr,
            ours: self.test.is_ours(),
        })
    }
}

fn append(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// A call of the runtime that has been started.
pub(crate) struct Running {
    child: Child,
    text: String,
    /// File that gets standard output.
    pub(crate) stdout: PathBuf,
    /// File that gets standard error.
    pub(crate) stderr: PathBuf,
    ours: bool,
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Ends it at once.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<Output> {
        let status = self.child.wait().with_context(|| self.text.clone())?;
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        let read =
            |path: &Path| -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned()) };
        let (stdout, stderr) = (read(&self.stdout)?, read(&self.stderr)?);
        Ok(Output {
            command: self.text,
            code,
            stdout,
            stderr,
            ours: self.ours,
        })
    }
}
