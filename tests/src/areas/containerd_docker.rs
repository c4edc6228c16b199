//! `docker run --runtime io.containerd.rtc.v2`: Docker takes a shim's name since version 23.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::containerd::{Daemon, with_each};
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::until;

const DOCKERD: &str = "/usr/sbin/dockerd";
const OLDEST: u32 = 23;

/// Skips where there is no Docker that knows shims by name.
fn needs_docker(t: &Test) -> Result {
    let version = Command::new(DOCKERD).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    // `Docker version 26.1.5+dfsg1, build a72d7cd`
    let major = version
        .ok()
        .and_then(|text| text.split_whitespace().nth(2)?.split('.').next()?.parse().ok());
    if !Path::new("/usr/bin/docker").exists() || major.unwrap_or(0_u32) < OLDEST {
        t.skip("no Docker 23 or newer")?;
    }
    Ok(())
}

/// dockerd over a containerd of the test's.
struct Docker<'d, 't> {
    containerd: &'d Daemon<'t>,
    socket: PathBuf,
    process: Child,
}

impl<'d, 't> Docker<'d, 't> {
    fn start(containerd: &'d Daemon<'t>) -> Result<Self> {
        let t = containerd.t;
        let directory = t.path("docker");
        std::fs::create_dir(&directory)?;
        let socket = directory.join("d.sock");
        std::fs::write(directory.join("config.json"), "{}")?;
        let log = File::create(directory.join("log"))?;
        let mut command = Command::new(DOCKERD);
        for (option, value) in [
            ("--data-root", directory.join("data")),
            ("--exec-root", directory.join("exec")),
            ("--pidfile", directory.join("pid")),
            ("--containerd", containerd.socket()),
            ("--config-file", directory.join("config.json")),
        ] {
            command.arg(option).arg(value);
        }
        command.args(["--host", &format!("unix://{}", socket.display())]);
        command.args(["--containerd-namespace", &t.namespace()]);
        // No network of any kind, and nothing of the machine's that tests share.
        command.args([
            "--bridge",
            "none",
            "--iptables=false",
            "--ip6tables=false",
            "--storage-driver",
            "vfs",
        ]);
        command.args([
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--cgroup-parent",
            &t.cgroup.path,
        ]);
        command.env("PATH", containerd.path_variable());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context(DOCKERD)?;
        let docker = Self {
            containerd,
            socket,
            process,
        };
        until("dockerd to answer", || {
            let alive = crate::host::process::is_alive(docker.process.id().cast_signed());
            ensure!(alive, "dockerd ended");
            Ok((docker.run(&["version"])?.code == 0).then_some(()))
        })
        .with_context(|| std::fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        Ok(docker)
    }

    /// `docker ARGS`, to its end.
    fn run(&self, args: &[&str]) -> Result<Output> {
        let host = format!("unix://{}", self.socket.display());
        self.containerd
            .t
            .bare(["--host", &host])
            .program("/usr/bin/docker")
            .args(args)
            .run()
    }

    /// An image of the busybox root.
    fn import(&self) -> Result {
        let archive = self.containerd.t.path("root.tar").display().to_string();
        let rootfs = self.containerd.busybox().display().to_string();
        let tar = Command::new("/bin/busybox")
            .args(["tar", "-C", &rootfs, "-cf", &archive, "."])
            .status()?;
        ensure!(tar.success(), "tar: {tar}");
        self.run(&["import", "--change", "ENV PATH=/bin", &archive, "busybox"])?
            .ok()?;
        Ok(())
    }

    fn end(mut self) -> Result {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.process.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        self.process.wait()?;
        Ok(())
    }
}

test!(
    fn docker_runs_executes_and_removes_containers(t: &Test) -> Result {
        needs_docker(t)?;
        with_each(t, |containerd| {
            let docker = Docker::start(containerd)?;
            docker.import()?;
            let runtime = containerd.runtime();
            let run = ["run", "--network", "none", "--runtime", &runtime];
            docker
                .run(
                    &[
                        &run[..],
                        &["--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 6"],
                    ]
                    .concat(),
                )?
                .code(6)?
                .stdout_is("out\n")?;
            docker
                .run(
                    &[
                        &run[..],
                        &["--detach", "--name", "web", "busybox", "sleep", "1000"],
                    ]
                    .concat(),
                )?
                .ok()?;
            docker.run(&["exec", "web", "echo", "in"])?.prints("in")?;
            docker.run(&["pause", "web"])?.ok()?;
            docker.run(&["unpause", "web"])?.ok()?;
            docker
                .run(&[
                    "inspect",
                    "--format",
                    "{{.HostConfig.Runtime}} {{.State.Status}}",
                    "web",
                ])?
                .prints(&format!("{runtime} running"))?;
            docker.run(&["kill", "web"])?.ok()?;
            docker.run(&["wait", "web"])?.prints("137")?;
            docker.run(&["logs", "web"])?.prints("")?;
            docker.run(&["rm", "web"])?.ok()?;
            docker.end()
        })
    }
);
