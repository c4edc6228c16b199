//! What the containers of a pod share, without a pause container: namespaces that the shim holds by descriptor, and files.
//!
//! ```text
//! PodConfig --make, in a worker--> namespaces (fds), the pod init where PIDs are shared, files in the sandbox's bundle
//!                                       `- Substitution: what they change in the configuration of a container
//! ```

pub(crate) mod cgroup;
pub(crate) mod config;
pub(crate) mod files;
pub(crate) mod spec;

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::libc::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, SIGKILL};
use oci_spec::runtime::{Linux, LinuxBuilder, LinuxIdMapping, LinuxIdMappingBuilder};
use rtc_runtime::namespace::IdMaps;
use rtc_runtime::pod::{self, PodOptions};
use rtc_runtime::process::worker::Reporter;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process;

use crate::error::Result;
use crate::{log, reaper, worker};
use config::{Mapping, Network, Pids, PodConfig, Users};
use files::Files;
use spec::Substitution;

/// How long unmounting its files may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod that is there.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Held, and joined by the containers.
    namespaces: Vec<(&'static str, OwnedFd)>,
    init: Option<Arc<Child>>,
    bundle: PathBuf,
    substitution: Arc<Substitution>,
}

impl Pod {
    /// Makes it. The files go into the sandbox's bundle.
    ///
    /// # Errors
    ///
    /// Nothing is left of it.
    pub(crate) async fn make(config: &PodConfig, bundle: &Path) -> Result<Self> {
        let files = Files::of(config, bundle);
        let working = worker::start(None, &[], |reporter| {
            let made = make_in_worker(config, files.as_ref(), reporter);
            if made.is_err() {
                clean(bundle);
            }
            made.map(|()| Vec::new())
        })?;
        let outcome = worker::outcome(working).await.map_err(anyhow::Error::from)?;
        let mut namespaces: Vec<(&'static str, OwnedFd)> = outcome
            .namespaces
            .into_iter()
            .map(|(flag, namespace)| (kind(flag), namespace))
            .collect();
        if let Network::At(path) = &config.network {
            namespaces.push(("network", open_namespace(path)?));
        }
        let init = outcome.born.map(Arc::new);
        let substitution = Substitution {
            sandbox_pids: init
                .iter()
                .map(|init| init.pid.as_raw().cast_unsigned())
                .chain([std::process::id()])
                .collect(),
            namespaces: namespaces
                .iter()
                .map(|(kind, namespace)| (*kind, path_of(namespace)))
                .collect(),
            host_pids: config.pids == Pids::Host,
            etc: files.as_ref().map(Files::etc).unwrap_or_default(),
            shm: files.as_ref().and_then(Files::shm),
        };
        Ok(Self {
            namespaces,
            init,
            bundle: bundle.to_owned(),
            substitution: Arc::new(substitution),
        })
    }

    /// The process whose namespaces containerd names in the configurations of containers: the pod init, or the shim, which
    /// stands for it.
    pub(crate) fn pid(&self) -> u32 {
        match &self.init {
            Some(init) => init.pid.as_raw().cast_unsigned(),
            None => std::process::id(),
        }
    }

    /// What it changes in the configurations of containers.
    pub(crate) fn substitution(&self) -> Arc<Substitution> {
        Arc::clone(&self.substitution)
    }

    /// The first process of the shared PID namespace: its end is that of all processes of the pod.
    pub(crate) fn init(&self) -> Option<Arc<Child>> {
        self.init.clone()
    }

    /// Its own namespaces as `/proc/<pid>/ns` shows them, as `net:[4026532281]`.
    pub(crate) fn describe(&self) -> Vec<(&'static str, String)> {
        let link = |namespace: &OwnedFd| {
            std::fs::read_link(path_of(namespace)).map_or_else(
                |error| error.to_string(),
                |link| link.to_string_lossy().into_owned(),
            )
        };
        self.namespaces
            .iter()
            .map(|(kind, namespace)| (*kind, link(namespace)))
            .collect()
    }

    /// Lets go of everything. What still runs in its namespaces goes on, but for a shared PID namespace.
    pub(crate) async fn end(self) {
        if let Some(init) = &self.init {
            // One that has ended is what is wanted.
            let _ = process::pidfd_send_signal(&init.pidfd, SIGKILL);
        }
        unmount(&self.bundle).await;
    }
}

/// Where any process finds a descriptor of this one. runc up to 1.5 takes any path of a user namespace that begins with
/// `/proc/<pid>/` for one of that process, and reads its id maps: the dot makes it look into the namespace.
fn path_of(descriptor: &OwnedFd) -> PathBuf {
    let pid = std::process::id();
    format!("/proc/./{pid}/fd/{}", descriptor.as_raw_fd()).into()
}

/// Unmounts the files of a pod, be it one that was never whole.
async fn unmount(bundle: &Path) {
    let unmounting = worker::start(None, &[], |_| files::unmount(bundle).map(|()| Vec::new()));
    let unmounted = match unmounting {
        Ok(unmounting) => worker::patiently(unmounting, PATIENCE).await.map(drop),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = unmounted {
        log::warn(format_args!("clean up: {error}"));
    }
}

/// In a worker.
fn clean(bundle: &Path) {
    if let Err(error) = files::unmount(bundle) {
        log::warn(format_args!("clean up: {error:#}"));
    }
}

fn make_in_worker(config: &PodConfig, files: Option<&Files>, reporter: &Reporter) -> anyhow::Result<()> {
    if let Some(files) = files {
        files.make(config)?;
    }
    let joined = match &config.network {
        Network::At(path) => Some(open_namespace(path)?),
        Network::Host | Network::Own => None,
    };
    let uts = config.network != Network::Host;
    let options = PodOptions {
        user: config.users.as_ref().map(id_maps).transpose()?,
        network: match &joined {
            Some(network) => pod::Network::Joined(network.as_fd()),
            None if uts => pod::Network::New,
            None => pod::Network::Host,
        },
        ipc: !config.host_ipc,
        uts,
        pid: config.pids == Pids::Shared,
        hostname: (uts && !config.hostname.is_empty()).then(|| config.hostname.clone()),
        sysctls: config.sysctls.clone(),
    };
    pod::make(&options, reporter)
}

/// On a tmpfs, as `/run/netns`: it does not wait.
fn open_namespace(path: &Path) -> anyhow::Result<OwnedFd> {
    let namespace = File::open(path).with_context(|| format!("netns_path: {path:?}"))?;
    Ok(namespace.into())
}

fn id_maps(users: &Users) -> anyhow::Result<IdMaps> {
    let linux: Linux = LinuxBuilder::default()
        .uid_mappings(lines(&users.uids)?)
        .gid_mappings(lines(&users.gids)?)
        .build()?;
    Ok(IdMaps::new(&linux))
}

fn lines(mappings: &[Mapping]) -> anyhow::Result<Vec<LinuxIdMapping>> {
    let line = |mapping: &Mapping| {
        LinuxIdMappingBuilder::default()
            .container_id(mapping.inside)
            .host_id(mapping.host)
            .size(mapping.length)
            .build()
    };
    let lines: std::result::Result<_, _> = mappings.iter().map(line).collect();
    Ok(lines?)
}

/// The type of the runtime specification.
fn kind(flag: i32) -> &'static str {
    match flag {
        CLONE_NEWUSER => "user",
        CLONE_NEWNET => "network",
        CLONE_NEWIPC => "ipc",
        CLONE_NEWUTS => "uts",
        CLONE_NEWPID => "pid",
        _ => "",
    }
}

/// Collects the pod init. Returns its status, as a shell shows it.
pub(crate) async fn end_of(init: Arc<Child>) -> u32 {
    match reaper::collect(init.pid, &init.pidfd).await {
        Ok(exit) => exit.status().cast_unsigned(),
        Err(error) => {
            log::warn(format_args!("the pod init: {error:#}"));
            crate::process::UNKNOWN_STATUS
        }
    }
}
