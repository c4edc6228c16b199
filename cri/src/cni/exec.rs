//! Running a plugin: a program of `bin_dirs` that reads its configuration from stdin, and the rest from its environment.
//!
//! ```text
//! CNI_COMMAND=ADD CNI_CONTAINERID=.. CNI_NETNS=.. CNI_IFNAME=eth0 CNI_ARGS=K8S_POD_NAME=..;..  CNI_PATH=/opt/cni/bin:..
//!   stdin: {"cniVersion", "name", "type", .., "runtimeConfig", "prevResult"}
//!   exit 0, stdout: a result        else, stdout: {"code", "msg", "details"}; stderr: for people
//! ```
//!
//! A plugin runs as root with our trust, and is held to its bounds all the same: its time, and what it may write. One that
//! is late is killed with all its process group.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, Kind};
use crate::log;

/// More is no answer: bytes on stdout.
const OUTPUT_MAX: usize = 1 << 20;
/// So much of stderr is kept for an error, in bytes; the rest is read and forgotten.
const STDERR_MAX: usize = 4 << 10;
/// A message of a plugin is cut behind so many bytes.
const MESSAGE_MAX: usize = 1 << 10;
/// A plugin has exited, and something it started still has its stdout: so long is waited for its end.
const LINGER: Duration = Duration::from_millis(500);
/// A program that is being written just now (`ETXTBSY`): so often, so long between.
const BUSY_TRIES: u32 = 20;
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// What the service manager tells us, and means nobody else with.
const OURS: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
];

/// What is asked of plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// What a plugin gets by its environment.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment<'a> {
    pub(super) container: &'a str,
    pub(super) netns: &'a str,
    pub(super) interface: &'a str,
    pub(super) arguments: &'a str,
}

/// How a plugin failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verb: Verb,
    pub(super) program: String,
    pub(super) cause: Cause,
}

/// Why.
#[derive(Debug)]
pub(super) enum Cause {
    /// It says so itself (SPEC.md, "Error").
    Said { code: u64, message: String },
    /// Its time was up.
    Late,
    /// It is missing, can't be run, dies, or writes nonsense.
    Broken(String),
}

impl Failure {
    pub(super) fn broken(verb: Verb, program: &str, why: impl Into<String>) -> Self {
        Self {
            verb,
            program: program.into(),
            cause: Cause::Broken(why.into()),
        }
    }

    /// The plugin does not know the container: there is nothing to undo (code 3).
    pub(super) fn is_unknown_container(&self) -> bool {
        matches!(self.cause, Cause::Said { code: 3, .. })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI plugin {:?}: {}: ", self.program, self.verb)?;
        match &self.cause {
            Cause::Said { code, message } => write!(f, "{message} (code {code})"),
            Cause::Late => f.write_str("its time was up, it was killed"),
            Cause::Broken(why) => f.write_str(why),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.cause {
            // Try again later; not available; not available, and pods may be cut off.
            Cause::Said {
                code: 11 | 50 | 51, ..
            } => Kind::Unavailable,
            Cause::Late => Kind::DeadlineExceeded,
            Cause::Said { .. } | Cause::Broken(_) => Kind::Unknown,
        };
        Self::text(kind, failure)
    }
}

/// Where plugins are.
#[derive(Debug)]
pub(super) struct Programs {
    directories: Vec<PathBuf>,
    /// `CNI_PATH`: where they look for those that they call.
    path: String,
}

/// A program, and which one of that name it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Programs {
    pub(super) fn new(directories: &[PathBuf]) -> Self {
        let texts: Vec<&str> = directories
            .iter()
            .filter_map(|directory| directory.to_str())
            .collect();
        Self {
            path: texts.join(":"),
            directories: directories.to_vec(),
        }
    }

    /// The program of a plugin.
    ///
    /// # Errors
    ///
    /// There is none in any of the directories, or one that can't be executed.
    pub(super) fn find(&self, name: &str) -> Result<Program, String> {
        for directory in &self.directories {
            let path = directory.join(name);
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            if metadata.permissions().mode() & 0o111 == 0 {
                return Err(format!("{} is not executable", path.display()));
            }
            return Ok(Program {
                inode: metadata.ino(),
                size: metadata.size(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
                path,
            });
        }
        Err(format!("no such program in {} (cni.bin_dirs)", self.path))
    }

    /// Runs a plugin until `deadline`; gives what it wrote on stdout.
    ///
    /// # Errors
    ///
    /// What it says, or what is wrong with it. It is dead.
    pub(super) async fn run(
        &self,
        verb: Verb,
        program: &str,
        environment: &Environment<'_>,
        input: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let broken = |why: String| Failure::broken(verb, program, why);
        let path = self.find(program).map_err(broken)?.path;
        let mut command = self.command(&path, verb, environment);
        let child = start(&mut command)
            .await
            .map_err(|error| broken(format!("{}: {error}", path.display())))?;
        let mut group = Group::new(child);
        let Ok(ended) = timeout_at(deadline, group.converse(input)).await else {
            group.kill().await;
            return Err(Failure {
                verb,
                program: program.into(),
                cause: Cause::Late,
            });
        };
        let answer = match ended {
            Ok(answer) => answer,
            Err(why) => {
                group.kill().await;
                return Err(broken(why));
            }
        };
        if !answer.stderr.is_empty() {
            log::debug(|| format!("CNI plugin {program:?}: {verb}: {}", answer.stderr));
        }
        if answer.status.success() {
            return Ok(answer.stdout);
        }
        Err(Failure {
            verb,
            program: program.into(),
            cause: answer.cause(),
        })
    }

    fn command(&self, path: &Path, verb: Verb, environment: &Environment<'_>) -> Command {
        let mut command = Command::new(path);
        command
            .env("CNI_COMMAND", verb.to_string())
            .env("CNI_CONTAINERID", environment.container)
            .env("CNI_NETNS", environment.netns)
            .env("CNI_IFNAME", environment.interface)
            .env("CNI_ARGS", environment.arguments)
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for name in OURS {
            command.env_remove(name);
        }
        command
    }
}

async fn start(command: &mut Command) -> std::io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                sleep(BUSY_WAIT).await;
            }
            result => return result,
        }
    }
}

/// A plugin that runs, and all it started.
struct Group {
    child: Child,
    /// While the child is not waited for, nobody else can have its number.
    id: Option<Pid>,
}

/// How it ended.
struct Answer {
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Group {
    fn new(child: Child) -> Self {
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        Self { child, id }
    }

    /// Gives it its input, and takes what it writes until it ends.
    async fn converse(&mut self, input: &[u8]) -> Result<Answer, String> {
        let stdin = self.child.stdin.take();
        let mut stdout = Kept::new(self.child.stdout.take(), OUTPUT_MAX + 1);
        let mut stderr = Kept::new(self.child.stderr.take(), STDERR_MAX);
        let mut out = Vec::new();
        let mut err = Vec::new();
        let write = async {
            if let Some(mut stdin) = stdin {
                // One that does not read it knows why.
                let _ = stdin.write_all(input).await;
            }
        };
        tokio::pin!(write);
        let mut written = false;
        let mut ended = None;
        let linger = sleep(LINGER);
        tokio::pin!(linger);
        while ended.is_none() || stdout.is_some() || stderr.is_some() {
            tokio::select! {
                () = &mut write, if !written => written = true,
                more = Kept::read(&mut stdout, &mut out), if stdout.is_some() => {
                    if !more {
                        stdout = None;
                    }
                    if out.len() > OUTPUT_MAX {
                        return Err(format!("wrote more than {OUTPUT_MAX} bytes"));
                    }
                }
                more = Kept::read(&mut stderr, &mut err), if stderr.is_some() => {
                    if !more {
                        stderr = None;
                    }
                }
                status = self.child.wait(), if ended.is_none() => {
                    self.id = None;
                    ended = Some(status.map_err(|error| error.to_string())?);
                    linger.as_mut().reset(Instant::now() + LINGER);
                }
                () = &mut linger, if ended.is_some() => break,
            }
        }
        Ok(Answer {
            status: ended.ok_or("did not end")?,
            stdout: out,
            stderr: shown(&err),
        })
    }

    fn signal(&mut self) {
        if let Some(id) = self.id.take() {
            // None is left: that is what is wanted.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }

    async fn kill(&mut self) {
        self.signal();
        // Bounded: nothing outlives SIGKILL for long but in the kernel, and then nobody can help.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal();
    }
}

/// A stream of which the first bytes are kept, and all are read.
struct Kept<R> {
    stream: R,
    max: usize,
}

impl<R: AsyncRead + Unpin> Kept<R> {
    fn new(stream: Option<R>, max: usize) -> Option<Self> {
        stream.map(|stream| Self { stream, max })
    }

    /// Whether there may be more.
    async fn read(this: &mut Option<Self>, into: &mut Vec<u8>) -> bool {
        let Some(Self { stream, max }) = this else {
            return false;
        };
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                let room = max.saturating_sub(into.len());
                into.extend_from_slice(&buffer[..read.min(room)]);
                true
            }
        }
    }
}

/// An error object. Fields that are not there are as empty as Go's.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Said {
    code: u64,
    msg: String,
    details: String,
}

impl Answer {
    fn cause(&self) -> Cause {
        let code = self.status;
        if self.stdout.iter().all(u8::is_ascii_whitespace) {
            return Cause::Broken(if self.stderr.is_empty() {
                format!("{code}, without a message")
            } else {
                format!("{code}: {}", self.stderr)
            });
        }
        match serde_json::from_slice::<Said>(&self.stdout) {
            Ok(said) if !said.msg.is_empty() || said.code != 0 => {
                let mut message = said.msg;
                if !said.details.is_empty() {
                    message = format!("{message}; {}", said.details);
                }
                Cause::Said {
                    code: said.code,
                    message: cut(message),
                }
            }
            _ => Cause::Broken(format!("{code}, with no error object: {}", shown(&self.stdout))),
        }
    }
}

/// What a program wrote, for a message.
pub(super) fn shown(bytes: &[u8]) -> String {
    cut(String::from_utf8_lossy(bytes).trim().to_owned())
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        let end = text.floor_char_boundary(MESSAGE_MAX);
        text.truncate(end);
        text.push('…');
    }
    text
}
