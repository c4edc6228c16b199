//! CRIU for the tests of checkpoints: that of the machine, or the one that hack/peers has unpacked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::bundle::Bundle;
use crate::container::Container;
use crate::output::Output;
use crate::registry::Result;
use crate::test::Test;

/// The CRIU of hack/peers, and behind it our `PATH`.
pub(crate) fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    match std::env::var_os("PEERS").filter(|peers| !peers.is_empty()) {
        Some(peers) => format!("{}:{own}", Path::new(&peers).join("criu/bin").display()),
        None => own,
    }
}

/// A `PATH` with a CRIU that works on this machine; the test is skipped where there is none.
pub(crate) fn path(t: &Test) -> Result<String> {
    let path = search_path();
    if !works(&path) {
        let unpacked = std::env::var_os("PEERS").map(|peers| Path::new(&peers).join("criu"));
        if unpacked.is_some_and(|criu| criu.exists()) {
            let version = Command::new("criu")
                .arg("--version")
                .env("PATH", &path)
                .output()?;
            ensure!(
                version.status.success(),
                "that of hack/peers does not start: {version:?}"
            );
        }
        t.skip("no CRIU that works here")?;
    }
    Ok(path)
}

/// Whether there is one that works on this machine.
pub(crate) fn works(path: &str) -> bool {
    let check = Command::new("/bin/sh")
        .args(["-c", "criu check"])
        .env("PATH", path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    check.is_ok_and(|status| status.success())
}

/// Whether the machine's kernel and CRIU have a feature, as `criu check --feature` names it.
pub(crate) fn has(path: &str, feature: &str) -> bool {
    let check = Command::new("/bin/sh")
        .args(["-c", &format!("criu check --feature {feature}")])
        .env("PATH", path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    check.is_ok_and(|status| status.success())
}

/// A bundle whose container is written to an image and made again of it.
pub(crate) struct Checkpoints<'t> {
    t: &'t Test,
    path: String,
    /// The container.
    pub(crate) bundle: Bundle<'t>,
    /// Where the image is.
    pub(crate) image: PathBuf,
    /// Before the verb.
    pub(crate) globals: Vec<String>,
}

impl<'t> Checkpoints<'t> {
    /// Of this bundle, which gets a writable root. Skips where no CRIU works.
    pub(crate) fn of(t: &'t Test, bundle: Bundle<'t>) -> Result<Self> {
        Ok(Self {
            t,
            path: path(t)?,
            bundle: bundle.writable(),
            image: t.path("image"),
            globals: Vec::new(),
        })
    }

    /// The `PATH` of CRIU.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn command(&self, verb: &str, flags: &[&str]) -> crate::test::Rtc<'t> {
        let command = self.t.command(&self.globals).args([verb]).args(flags);
        command.env("PATH", &self.path)
    }

    /// Runs the container in the background.
    pub(crate) fn start(&self, flags: &[&str]) -> Result<Container<'t>> {
        self.background("run", flags)
    }

    /// `checkpoint`, to its end.
    pub(crate) fn checkpoint(&self, flags: &[&str]) -> Result<Output> {
        let image = ["--image-path".as_ref(), self.image.as_os_str()];
        self.command("checkpoint", flags)
            .args(image)
            .args([&self.bundle.id])
            .run()
    }

    /// `restore --detach`, which must succeed.
    pub(crate) fn restore(&self, flags: &[&str]) -> Result<Container<'t>> {
        let image = self.image.to_string_lossy().into_owned();
        let mut all = vec!["--image-path", &image];
        all.extend(flags);
        self.background("restore", &all)
    }

    /// `restore`, to its end, in the background or not.
    pub(crate) fn restore_command(&self, flags: &[&str]) -> Result<crate::test::Rtc<'t>> {
        self.bundle.write()?;
        let image = ["--image-path".as_ref(), self.image.as_os_str()];
        Ok(self
            .command("restore", flags)
            .args(image)
            .args(["--bundle".as_ref(), self.bundle.directory.as_os_str()])
            .args([&self.bundle.id]))
    }

    fn background(&self, verb: &str, flags: &[&str]) -> Result<Container<'t>> {
        self.bundle.write()?;
        self.t.delete_at_end(&self.bundle.id);
        let command = self
            .command(verb, &["--detach"])
            .args(flags)
            .args(["--bundle".as_ref(), self.bundle.directory.as_os_str()])
            .args([&self.bundle.id]);
        let running = command.spawn()?;
        let (stdout, stderr) = (running.stdout.clone(), running.stderr.clone());
        running.wait()?.ok()?;
        let path = self.bundle.spec["linux"]["cgroupsPath"]
            .as_str()
            .unwrap_or_default();
        let cgroup = self.t.cgroup_at(path);
        Ok(Container::new(self.t, &self.bundle.id, cgroup, stdout, stderr))
    }
}
