//! Podman, which has no daemon: `conmon` starts the runtime, and calls `podman container cleanup` at a container's end.

use std::fs;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;

use super::engine::IMAGE;
use super::{Engine, Programs, enter};
use crate::registry::Result;
use crate::test::Test;
use crate::wait::until;

/// The runtime's name in containers.conf.
pub(crate) const RUNTIME: &str = "tested";

/// Where it keeps what does not outlive the machine: locks, exit codes.
pub(crate) const TEMPORARY: &str = "/run/libpod";

/// Podman with a storage of its own.
pub(crate) struct Podman<'t> {
    pub(crate) engine: Engine<'t>,
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manager {
    Cgroupfs,
    Systemd,
}

/// Runs the body with a Podman that has the image `busybox`; nothing may be left when it is over.
pub(crate) fn with_podman(t: &Test, body: impl FnOnce(&Podman<'_>) -> Result) -> Result {
    with_manager(t, Manager::Cgroupfs, body)
}

/// [`with_podman`], with this manager of cgroups.
pub(crate) fn with_manager(t: &Test, manager: Manager, body: impl FnOnce(&Podman<'_>) -> Result) -> Result {
    let podman = Podman::new(t, manager)?;
    body(&podman)?;
    podman.engine.nothing_left()?;
    podman.remove_its_cgroups()
}

impl<'t> Podman<'t> {
    fn new(t: &'t Test, manager: Manager) -> Result<Self> {
        let programs = Programs::of(t, "podman")?;
        enter(t, &programs)?;
        let directory = t.path("podman");
        let home = directory.join("home");
        // The only place of a policy that needs no file of the machine's.
        fs::create_dir_all(home.join(".config/containers"))?;
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(home.join(".config/containers/policy.json"), policy.to_string())?;
        let own = |name: &str| directory.join(name).display().to_string();
        fs::write(
            own("containers.conf"),
            Self::configuration(t, &programs, manager)?,
        )?;
        fs::write(own("registries.conf"), "")?;
        fs::create_dir(own("temporary"))?;
        let mut options = Vec::new();
        for (option, value) in [
            ("--root", own("root")),
            // It takes no longer paths than 50 characters; `/run` is the test's own.
            ("--runroot", "/run/containers/storage".to_owned()),
            ("--tmpdir", TEMPORARY.to_owned()),
            ("--storage-driver", "vfs".to_owned()),
        ] {
            options.extend([option.to_owned(), value]);
        }
        let variables = [
            ("CONTAINERS_CONF", own("containers.conf")),
            ("CONTAINERS_REGISTRIES_CONF", own("registries.conf")),
            ("HOME", home.display().to_string()),
            ("TMPDIR", own("temporary")),
            ("PATH", programs.path_variable()),
        ];
        let creating = match manager {
            Manager::Cgroupfs => vec!["--cgroup-parent".to_owned(), t.cgroup.path.clone()],
            Manager::Systemd => Vec::new(),
        };
        let engine = Engine {
            t,
            name: "podman",
            program: programs.path("podman")?,
            options,
            creating,
            environment: variables.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        };
        let podman = Self { engine };
        let archive = podman.engine.archive()?;
        podman
            .engine
            .call(&["import", "--change", "ENV PATH=/bin", &archive, IMAGE])?
            .ok()?;
        Ok(podman)
    }

    fn configuration(t: &Test, programs: &Programs, manager: Manager) -> Result<String> {
        let conmon = programs.path("conmon")?;
        let init = programs.path("catatonit").unwrap_or_default();
        let helpers = conmon.parent().context("conmon's directory")?;
        let manager = match manager {
            Manager::Cgroupfs => "cgroupfs",
            Manager::Systemd => "systemd",
        };
        // Its own defaults are more than a root without CAP_SYS_RESOURCE may give; and it lowers its own limit of
        // processes to the highest pid.
        let highest: u64 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
        let [files, processes] = [Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC].map(getrlimit);
        let (files, processes) = (files?.1, processes?.1.min(highest));
        Ok(format!(
            "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\nnetns = \"none\"\nlog_driver = \"k8s-file\"\ninit_path = \"{init}\"\n\
             [engine]\ncgroup_manager = \"{manager}\"\nevents_logger = \"file\"\nruntime = \"{RUNTIME}\"\n\
             conmon_path = [\"{conmon}\"]\nhelper_binaries_dir = [\"{helpers}\", \"/usr/lib/podman\", \"/usr/libexec/podman\"]\n\
             runtime_supports_json = [\"{RUNTIME}\"]\n\
             [engine.runtimes]\n{RUNTIME} = [\"{runtime}\"]\n",
            init = init.display(),
            conmon = conmon.display(),
            helpers = helpers.display(),
            runtime = t.rtc.display(),
        ))
    }

    /// The options of what makes a container or a pod.
    pub(crate) fn creating(&self) -> Vec<String> {
        self.engine.creating.clone()
    }

    /// Podman makes a cgroup for all conmons and one for a pod, in hierarchies that the runtime's containers are not in,
    /// too, and leaves them, empty.
    fn remove_its_cgroups(&self) -> Result {
        for directory in self.engine.t.cgroup.directories()? {
            for entry in fs::read_dir(&directory)?.flatten() {
                let name = entry.file_name();
                let of_podman = name == "conmon" || name.len() == 64;
                if of_podman && entry.path().is_dir() {
                    until("conmon to leave its cgroup", || {
                        let _ = fs::remove_dir(entry.path().join("conmon"));
                        Ok(fs::remove_dir(entry.path()).ok())
                    })?;
                }
            }
        }
        Ok(())
    }
}
