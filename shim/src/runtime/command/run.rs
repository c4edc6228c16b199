//! One command of a foreign runtime, from its arguments to its end.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result as Anyhow, bail};
use nix::unistd::{execvpe, getpid, setsid};
use rtc_runtime::process::worker::{self, Report, Worker};
use rtc_runtime::sys::Named as _;
use rtc_runtime::sys::process::{self, Exit};

use super::Command;
use super::orphans::InFlight;
use super::scratch::{memory_file, path_of, tail_of};
use crate::error::{Error, Kind, Result};
use crate::io::ChildEnds;
use crate::reaper;
use crate::record::{Identified, Maker};

/// What the runtime is told, and how long it may take.
pub(super) struct Invocation {
    pub(super) verb: &'static str,
    pub(super) arguments: Vec<OsString>,
    /// `None`: nothing in, and the output kept for an error.
    pub(super) stdio: Option<ChildEnds>,
    pub(super) patience: Duration,
    /// The bundle of the container that it makes.
    pub(super) makes: Option<PathBuf>,
}

impl Command {
    /// Runs the runtime to its end.
    ///
    /// # Errors
    ///
    /// In its own words; `DeadlineExceeded` where it was killed.
    pub(super) async fn run(&self, invocation: Invocation) -> Result<()> {
        let _orphans_wait = InFlight::begin();
        let log = memory_file(b"")?;
        let output = memory_file(b"")?;
        let worker = self.launch(&invocation, &log, &output)?;
        let Invocation {
            verb,
            stdio,
            patience,
            ..
        } = invocation;
        // The runtime has them: without ours its process sees their other ends close.
        drop(stdio);
        let child = &worker.child;
        reaper::adopt(child.pid);
        let ended = tokio::time::timeout(patience, reaper::ended(&child.pidfd)).await;
        if !matches!(ended, Ok(Ok(()))) {
            let _ = process::pidfd_send_signal(&child.pidfd, nix::libc::SIGKILL);
        }
        let exit = reaper::collect(child.pid, &child.pidfd).await?;
        let program = self.program.display();
        match ended {
            Err(_) => Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!("{program} {verb}: was killed, after {} s", patience.as_secs()),
            )),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(())) if exit == Exit::Code(0) => Ok(()),
            Ok(Ok(())) => {
                let why = why_not_run(&worker)
                    .or_else(|| last_error(&tail_of(&log)))
                    .or_else(|| last_line(&tail_of(&output)))
                    .unwrap_or_else(|| exit.to_string());
                Err(Error::text(
                    kind_of(&why),
                    format_args!("{program} {verb}: {why}"),
                ))
            }
        }
    }

    /// A worker that becomes the runtime.
    fn launch(&self, invocation: &Invocation, log: &OwnedFd, output: &OwnedFd) -> Anyhow<Worker> {
        let null = File::open("/dev/null").context("open /dev/null")?;
        let stdio: [BorrowedFd<'_>; 3] = match &invocation.stdio {
            Some(ends) => [ends.stdin.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()],
            None => [null.as_fd(), output.as_fd(), output.as_fd()],
        };
        let arguments = self.arguments(invocation, &path_of(log));
        worker::fork(Some(stdio), &[], |_| {
            // Without the shim nobody hears of what it does: `delete` of containerd cleans up.
            process::set_parent_death_signal(nix::libc::SIGKILL)?;
            if let Some(bundle) = &invocation.makes {
                setsid().context("setsid")?;
                let own = Identified::of(getpid()).context("this process is not in /proc")?;
                Maker { process: own }.save(bundle)?;
            }
            // Not all runtimes see to it that their containers begin with the default.
            process::default_sigpipe();
            let program = CString::new(self.program.as_os_str().as_bytes())?;
            let environment = environment();
            let Err(errno) = execvpe(&program, &arguments, &environment);
            Err(errno).call(|| format!("execve({program:?})"))?;
            bail!("execve returned")
        })
    }

    fn arguments(&self, invocation: &Invocation, log: &Path) -> Vec<CString> {
        let mut all: Vec<OsString> = vec![
            self.program.clone().into(),
            "--root".into(),
            self.root.clone().into(),
            "--log".into(),
            log.into(),
            "--log-format".into(),
            "json".into(),
        ];
        if self.systemd_cgroup {
            all.push("--systemd-cgroup".into());
        }
        all.push(invocation.verb.into());
        all.extend(invocation.arguments.iter().cloned());
        // None has a NUL: paths that were opened, ids that were checked, words of ours.
        all.into_iter()
            .filter_map(|argument| CString::new(argument.into_vec()).ok())
            .collect()
    }
}

fn environment() -> Vec<CString> {
    let variable = |(name, value): (OsString, OsString)| {
        let mut both = name.into_vec();
        both.push(b'=');
        both.extend(value.into_vec());
        CString::new(both).ok()
    };
    std::env::vars_os().filter_map(variable).collect()
}

/// What the worker said before it became the runtime: only why it did not.
fn why_not_run(worker: &Worker) -> Option<String> {
    loop {
        match worker.receive() {
            Ok(Some(Report::Failed(text))) => return Some(text),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The message of the last error in a log of JSON lines.
fn last_error(log: &[u8]) -> Option<String> {
    log.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_slice(line).ok()?;
        let level = line.get("level")?.as_str()?.to_ascii_lowercase();
        if !matches!(&*level, "error" | "fatal" | "panic") {
            return None;
        }
        // runc, crun and rtc say "msg"; youki has it in "fields".
        let fields = line.get("fields");
        let message = line
            .get("msg")
            .or_else(|| fields?.get("error"))
            .or_else(|| fields?.get("message"));
        Some(message?.as_str()?.to_owned())
    })
}

fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

/// By the words of runc, crun and rtc, as containerd's own shim tells them.
fn kind_of(message: &str) -> Kind {
    let says = |words: &str| message.contains(words);
    if says("already finished") || says("no such process") || says("does not exist") {
        Kind::NotFound
    } else if says("already exists") {
        Kind::AlreadyExists
    } else if says("not running") || says("stopped") || says("paused") {
        Kind::FailedPrecondition
    } else if says("No such file or directory") && says("execve(") {
        Kind::InvalidArgument
    } else {
        Kind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_reason() {
        let runc = br#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"first","time":"t"}
{"level":"error","msg":"container does not exist","time":"t"}
{"level":"info","msg":"after","time":"t"}
half a li"#;
        assert_eq!(last_error(runc).unwrap(), "container does not exist");
        let youki = br#"{"timestamp":"t","level":"ERROR","fields":{"error":"no root","message":"failed"}}"#;
        assert_eq!(last_error(youki).unwrap(), "no root");
        assert_eq!(last_error(br#"{"level":"info","msg":"x"}"#), None);
        assert_eq!(last_error(b"[1]\n7\nnull\n{}"), None);
    }

    #[test]
    fn without_a_log_the_last_line_of_the_output_is_the_reason() {
        assert_eq!(last_line(b"usage\nno such flag\n\n").unwrap(), "no such flag");
        assert_eq!(last_line(b" \n"), None);
    }

    #[test]
    fn the_words_of_runtimes_have_kinds() {
        assert_eq!(kind_of("container does not exist"), Kind::NotFound);
        assert_eq!(
            kind_of("container with given ID already exists"),
            Kind::AlreadyExists
        );
        assert_eq!(
            kind_of("cannot exec in a stopped container"),
            Kind::FailedPrecondition
        );
        assert_eq!(
            kind_of("execve(\"nope\"): No such file or directory"),
            Kind::InvalidArgument
        );
        assert_eq!(kind_of("exec: \"x\": executable file not found"), Kind::Unknown);
    }
}
