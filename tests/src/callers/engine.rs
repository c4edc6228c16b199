//! A command line that Docker and Podman have in common.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::host::cgroup::Cgroup;
use crate::output::Output;
use crate::registry::Result;
use crate::test::{Rtc, Test};
use crate::wait::until;

/// The image of the busybox root.
pub(crate) const IMAGE: &str = "busybox";

/// One that is ready to be called.
#[derive(Clone)]
pub(crate) struct Engine<'t> {
    pub(crate) t: &'t Test,
    /// `docker` or `podman`.
    pub(crate) name: &'static str,
    pub(super) program: PathBuf,
    /// What stands before each verb.
    pub(super) options: Vec<String>,
    /// What stands behind the verb where a container is made.
    pub(super) creating: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

impl<'t> Engine<'t> {
    /// `docker ARGS`, not started yet.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Rtc<'t> {
        let mut command = self.t.bare(&self.options).program(&self.program);
        for (name, value) in &self.environment {
            command = command.env(name, value);
        }
        command.args(args)
    }

    /// `docker ARGS`, to its end.
    pub(crate) fn call(&self, args: &[&str]) -> Result<Output> {
        self.command(args).run()
    }

    /// `docker VERB FLAGS busybox ARGS`, where the verb is `run` or `create`; not started yet.
    pub(crate) fn making(&self, verb: &str, flags: &[&str], args: &[&str]) -> Rtc<'t> {
        let command = self.command([verb]).args(&self.creating);
        command.args(flags).args([IMAGE]).args(args)
    }

    /// `docker run --rm FLAGS busybox ARGS`, to its end.
    pub(crate) fn run(&self, flags: &[&str], args: &[&str]) -> Result<Output> {
        self.making("run", &[&["--rm"], flags].concat(), args).run()
    }

    /// [`Engine::run`] of a shell script.
    pub(crate) fn sh(&self, flags: &[&str], script: &str) -> Result<Output> {
        self.run(flags, &["sh", "-c", script])
    }

    /// `docker run --detach --name NAME FLAGS busybox ARGS`; the name.
    pub(crate) fn start(&self, flags: &[&str], args: &[&str]) -> Result<String> {
        let name = self.t.id();
        let detached = ["--detach", "--name", &name];
        self.making("run", &[&detached, flags].concat(), args)
            .run()?
            .ok()?;
        Ok(name)
    }

    /// One that does nothing, and ends at once when it is asked to.
    pub(crate) fn sleeper(&self, flags: &[&str]) -> Result<String> {
        self.start(
            flags,
            &[
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
            ],
        )
    }

    /// `docker exec NAME ARGS`, to its end.
    pub(crate) fn exec(&self, name: &str, args: &[&str]) -> Result<Output> {
        self.call(&[&["exec", name], args].concat())
    }

    /// What `docker inspect` says by this template.
    pub(crate) fn inspect(&self, name: &str, template: &str) -> Result<String> {
        let output = self.call(&["inspect", "--format", template, name])?.ok()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Waits until `docker inspect` says this.
    pub(crate) fn wait_for(&self, name: &str, template: &str, wanted: &str) -> Result {
        until(&format!("{template} of {name} to be {wanted:?}"), || {
            Ok((self.inspect(name, template)? == wanted).then_some(()))
        })
        .with_context(|| self.inspect(name, "{{json .State}}").unwrap_or_default())
    }

    /// Waits until the container's log has this text.
    pub(crate) fn wait_for_log(&self, name: &str, text: &str) -> Result {
        until(&format!("{text:?} in the log of {name}"), || {
            let output = self.call(&["logs", name])?.ok()?;
            Ok((output.stdout + &output.stderr).contains(text).then_some(()))
        })
    }

    /// Removes it, whatever it does.
    pub(crate) fn remove(&self, name: &str) -> Result {
        self.call(&["rm", "--force", name])?.ok().map(drop)
    }

    /// Host pid of its init.
    pub(crate) fn pid(&self, name: &str) -> Result<i32> {
        self.inspect(name, "{{.State.Pid}}")?.parse().context("pid")
    }

    /// The cgroup of its init.
    pub(crate) fn cgroup(&self, name: &str) -> Result<Cgroup> {
        let path = format!("/proc/{}/cgroup", self.pid(name)?);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let of = |controller: &str| {
            let mut lines = text
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'));
            lines
                .find(|(controllers, _)| *controllers == controller)
                .map(|(_, path)| path.to_owned())
        };
        let path = of("memory").or_else(|| of("")).with_context(|| text.clone())?;
        Ok(Cgroup { path })
    }

    /// The same with this variable.
    pub(crate) fn with_variable(&self, name: &str, value: &str) -> Self {
        let mut environment = self.environment.clone();
        environment.retain(|(other, _)| other != name);
        environment.push((name.to_owned(), value.to_owned()));
        Self {
            environment,
            ..self.clone()
        }
    }

    /// An archive of the busybox root, to import.
    pub(super) fn archive(&self) -> Result<String> {
        let archive = self.t.path("root.tar").display().to_string();
        let rootfs = self.t.bundle().rootfs().display().to_string();
        let tar = Command::new("/bin/busybox")
            .args(["tar", "-C", &rootfs, "-cf", &archive, "."])
            .status()?;
        ensure!(tar.success(), "tar: {tar}");
        Ok(archive)
    }

    /// No container is left.
    pub(super) fn nothing_left(&self) -> Result {
        self.call(&["ps", "--all", "--quiet"])?.prints("").map(drop)
    }
}
