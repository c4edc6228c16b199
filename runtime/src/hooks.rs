//! Hooks: programs of the bundle's author that run at points of a container's life (runtime-spec, "POSIX-platform Hooks").
//!
//! | hook | when | where |
//! |---|---|---|
//! | prestart, createRuntime | namespaces and mounts are there | runtime's namespaces |
//! | createContainer | then, before the root is pivoted | container's namespaces, runtime's paths |
//! | startContainer | `start`, before the program | inside the container |
//! | poststart | the program runs | runtime's namespaces |
//! | poststop | the container is deleted | runtime's namespaces |
//!
//! Each gets the container's state on stdin. Those before the program abort the container by failing; poststop hooks
//! only warn, and all of them run.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SIGKILL, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;

use crate::annotations::Annotations;
use crate::sys::process::{pidfd_open, pidfd_send_signal};

/// The state of a container as hooks read it (runtime-spec, "State"), but for what changes between them.
#[derive(Debug)]
pub struct State {
    /// JSON up to the status.
    before: String,
    /// JSON from behind the pid.
    after: String,
}

impl State {
    /// Of a container.
    #[must_use]
    pub fn new<'a>(
        id: &str,
        version: &str,
        bundle: &Path,
        annotations: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Self {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let annotations: BTreeMap<_, _> = annotations.collect();
        let annotations = if annotations.is_empty() {
            String::new()
        } else {
            format!(",\"annotations\":{}", serde_json::json!(annotations))
        };
        Self {
            before: format!("{{\"ociVersion\":{},\"id\":{},", quoted(version), quoted(id)),
            after: format!("\"bundle\":{}{annotations}}}", quoted(&bundle.to_string_lossy())),
        }
    }

    /// In this status, with the pid of init; 0 once it has ended.
    #[must_use]
    pub fn json(&self, status: &str, pid: i32) -> String {
        let Self { before, after } = self;
        if pid == 0 {
            return format!("{before}\"status\":\"{status}\",{after}");
        }
        format!("{before}\"status\":\"{status}\",\"pid\":{pid},{after}")
    }
}

/// What a failing hook printed is told up to here, in bytes.
const OUTPUT_MAX: usize = 4096;

/// Files that take what hooks print, in the place of errors that tell it (`run.oci.hooks.stdout`, `.stderr`).
#[derive(Debug, Default)]
pub struct Output {
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Output {
    /// Opens the files that annotations name, to append to them. They are made where they are missing, for their owner
    /// alone.
    ///
    /// # Errors
    ///
    /// A file can't be opened for writing, or is a FIFO that nobody reads.
    pub fn open<'a>(annotations: impl Iterator<Item = (&'a String, &'a String)>) -> Result<Self> {
        let (annotations, _) = Annotations::read(annotations)?;
        let open = |path: Option<&String>| -> Result<Option<File>> {
            let Some(path) = path else { return Ok(None) };
            let mut options = File::options();
            options.append(true).create(true).mode(0o600);
            // A FIFO would hold up everything.
            let options = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            let file = options
                .open(path)
                .with_context(|| format!("open {path:?} for the output of hooks"))?;
            // Hooks expect a write to wait.
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).context("fcntl(F_SETFL)")?;
            Ok(Some(file))
        };
        Ok(Self {
            stdout: open(annotations.hooks_stdout.as_ref())?,
            stderr: open(annotations.hooks_stderr.as_ref())?,
        })
    }
}

/// Where hooks run, and with what.
#[derive(Debug)]
pub enum Place<'a> {
    /// In the runtime's namespaces, in the bundle's directory; a hook without an environment of its own gets the runtime's.
    Runtime {
        /// The bundle.
        bundle: &'a Path,
        /// A pidfd of init, where nothing is to be waited for once that has ended.
        init: Option<BorrowedFd<'a>>,
        /// Where what they print goes.
        output: &'a Output,
    },
    /// In the container's; a hook without an environment of its own gets that of the container's process.
    Container {
        /// `NAME=value`.
        environment: &'a [CString],
        /// Where what they print goes.
        output: &'a Output,
    },
}

/// Runs hooks in their order; the first failure ends it. `state` is the container's state as JSON.
///
/// # Errors
///
/// A hook that can't be run, fails or takes longer than its timeout, by kind and number.
pub fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &str, place: &Place<'_>) -> Result<()> {
    for (number, hook) in hooks.into_iter().flatten().enumerate() {
        run_one(hook, state, place).with_context(|| format!("error running {kind} hook #{number}"))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str, place: &Place<'_>) -> Result<()> {
    let mut command = command(hook, place)?;
    let mut child = command
        .spawn()
        .with_context(|| format!("run {}", hook.path().display()))?;
    let deadline = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let init = match place {
        Place::Runtime { init, .. } => *init,
        Place::Container { .. } => None,
    };
    let followed = follow(&mut child, state, deadline, init);
    if followed.is_err() {
        // It may have ended meanwhile; then there is nobody to signal.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), SIGKILL);
    }
    let status = child.wait().context("wait for the hook")?;
    let output = followed?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(anyhow!("exit status {code}, {output}")),
        (None, signal) => Err(anyhow!("{}, {output}", signal_text(signal.unwrap_or(0)))),
    }
}

fn command(hook: &Hook, place: &Place<'_>) -> Result<Command> {
    let mut command = Command::new(hook.path());
    if let [name, arguments @ ..] = hook.args().as_deref().unwrap_or_default() {
        command.arg0(name).args(arguments);
    }
    let own = hook.env().as_ref().filter(|variables| !variables.is_empty());
    match (own, place) {
        (Some(variables), _) => {
            command
                .env_clear()
                .envs(variables.iter().filter_map(|variable| variable.split_once('=')));
        }
        (None, Place::Container { environment, .. }) => {
            command
                .env_clear()
                .envs(environment.iter().filter_map(|variable| {
                    let bytes = variable.as_bytes();
                    let equals = bytes.iter().position(|byte| *byte == b'=')?;
                    Some((
                        OsStr::from_bytes(&bytes[..equals]),
                        OsStr::from_bytes(&bytes[equals + 1..]),
                    ))
                }));
        }
        (None, Place::Runtime { .. }) => {}
    }
    if let Place::Runtime { bundle, .. } = place {
        command.current_dir(bundle);
    }
    // In a process group of its own, so that a timeout ends what it started, too.
    command.process_group(0).stdin(Stdio::piped());
    let (Place::Runtime { output, .. } | Place::Container { output, .. }) = place;
    let stream = |file: &Option<File>| -> Result<Stdio> {
        Ok(match file {
            Some(file) => file.try_clone().context("dup")?.into(),
            None => Stdio::piped(),
        })
    };
    command
        .stdout(stream(&output.stdout)?)
        .stderr(stream(&output.stderr)?);
    Ok(command)
}

/// As Go words it, which is what tests of runc look for (`bad system call`).
fn signal_text(signal: i32) -> String {
    match signal {
        libc::SIGSYS => "signal: bad system call".into(),
        libc::SIGKILL => "signal: killed".into(),
        other => format!("signal: {other}"),
    }
}

/// Feeds the hook and gathers what it prints, until it ends. A hook that reads or prints nothing, too much, or leaves a
/// child behind that holds its output, holds up nobody.
fn follow(
    child: &mut Child,
    state: &str,
    deadline: Option<Instant>,
    init: Option<BorrowedFd<'_>>,
) -> Result<String> {
    let ended = pidfd_open(Pid::from_raw(child.id().cast_signed()))?;
    let mut stdin = child.stdin.take().map(OwnedFd::from);
    let mut stdout = child.stdout.take().map(OwnedFd::from);
    let mut stderr = child.stderr.take().map(OwnedFd::from);
    let mut unread = state.as_bytes();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for pipe in [&stdin, &stdout, &stderr].into_iter().flatten() {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    loop {
        let mut waiting = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        waiting.extend(init.map(|init| PollFd::new(init, PollFlags::POLLIN)));
        for (pipe, events) in [
            (&stdin, PollFlags::POLLOUT),
            (&stdout, PollFlags::POLLIN),
            (&stderr, PollFlags::POLLIN),
        ] {
            waiting.extend(pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), events)));
        }
        match poll(&mut waiting, remaining(deadline)) {
            Err(nix::Error::EINTR) => continue,
            Ok(0) => {
                pidfd_send_signal(&ended, libc::SIGKILL)?;
                bail!("it took longer than its timeout");
            }
            polled => polled.context("poll")?,
        };
        let has_ended = waiting[0].any().unwrap_or(false);
        if init.is_some() && waiting[1].any().unwrap_or(false) {
            bail!("the container's init has ended meanwhile");
        }
        feed(&mut stdin, &mut unread);
        gather(&mut stdout, &mut out);
        gather(&mut stderr, &mut err);
        if has_ended {
            return Ok(format!(
                "stdout: {}, stderr: {}",
                String::from_utf8_lossy(&out).trim_end(),
                String::from_utf8_lossy(&err).trim_end()
            ));
        }
    }
}

fn remaining(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// Writes what fits. A hook that closed its stdin has read enough.
fn feed(stdin: &mut Option<OwnedFd>, unread: &mut &[u8]) {
    let Some(pipe) = stdin else { return };
    let done = match nix::unistd::write(pipe, unread) {
        Ok(written) => {
            *unread = &unread[written..];
            unread.is_empty()
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => false,
        Err(_) => true,
    };
    if done {
        *stdin = None;
    }
}

/// Reads what is there, keeps the first part, drops the rest.
fn gather(pipe: &mut Option<OwnedFd>, text: &mut Vec<u8>) {
    let Some(open) = pipe else { return };
    let mut buffer = [0; 4096];
    loop {
        match nix::unistd::read(&mut *open, &mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let room = OUTPUT_MAX.saturating_sub(text.len());
                text.extend_from_slice(&buffer[..length.min(room)]);
            }
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return,
            Err(_) => break,
        }
    }
    *pipe = None;
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str) -> Hook {
        let args: Vec<String> = ["hook", "-c", script].map(String::from).into();
        HookBuilder::default().path("/bin/sh").args(args).build().unwrap()
    }

    const NO_OUTPUT: &Output = &Output {
        stdout: None,
        stderr: None,
    };

    const HERE: Place<'static> = Place::Container {
        environment: &[],
        output: NO_OUTPUT,
    };

    fn run_shell(script: &str) -> Result<()> {
        run("poststart", Some(&vec![shell(script)]), "{\"id\":\"x\"}", &HERE)
    }

    #[test]
    fn a_hook_reads_the_state_on_its_stdin() {
        run_shell("[ \"$(cat)\" = '{\"id\":\"x\"}' ]").unwrap();
    }

    #[test]
    fn a_failing_hook_is_told_with_its_number_and_what_it_printed() {
        let error = run_shell("echo out; echo err >&2; exit 3").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "error running poststart hook #0: exit status 3, stdout: out, stderr: err"
        );
    }

    #[test]
    fn what_hooks_print_is_appended_to_files_where_so_told() {
        let path = std::env::temp_dir().join(format!("rtc-hooks-{}", std::process::id()));
        let (key, value) = ("run.oci.hooks.stdout".to_owned(), path.display().to_string());
        let output = Output::open([(&key, &value)].into_iter()).unwrap();
        let place = Place::Container {
            environment: &[],
            output: &output,
        };
        let hooks = vec![shell("echo one"), shell("echo two; echo bad >&2; exit 1")];
        let error = run("poststop", Some(&hooks), "{}", &place).unwrap_err();
        let written = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(written, "one\ntwo\n");
        assert_eq!(
            format!("{error:#}"),
            "error running poststop hook #1: exit status 1, stdout: , stderr: bad"
        );
    }

    #[test]
    fn a_hook_that_reads_nothing_and_prints_much_holds_up_nobody() {
        run_shell("exec <&-; head -c 1000000 /dev/zero").unwrap();
    }

    #[test]
    fn a_hook_that_leaves_a_child_behind_holds_up_nobody() {
        let started = Instant::now();
        run_shell("sleep 60 & echo $! >&2; exit 0").unwrap();
        assert!(started.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_hook_is_ended_at_its_timeout() {
        let mut hook = shell("sleep 300");
        hook.set_timeout(Some(1));
        let error = run("prestart", Some(&vec![hook]), "{}", &HERE).unwrap_err();
        assert!(
            format!("{error:#}").contains("longer than its timeout"),
            "{error:#}"
        );
    }

    #[test]
    fn a_hook_without_an_environment_gets_the_one_it_inherits() {
        let environment = [CString::new("A=b=c").unwrap()];
        let place = Place::Container {
            environment: &environment,
            output: NO_OUTPUT,
        };
        run("x", Some(&vec![shell("[ \"$A\" = b=c ]")]), "{}", &place).unwrap();
    }
}
