//! Who makes the containers: the runtime inside of the shim, or a foreign one by its command line.

mod command;
mod embedded;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use std::os::fd::OwnedFd;

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use rtc_runtime::cgroup::Cgroup;
use rtc_runtime::container::ContainerId;
use rtc_runtime::sys::clone::Child;

use command::Command;
use embedded::Embedded;

use crate::error::{Error, Kind, Result};
use crate::io::ChildEnds;
use crate::options::Options;
use crate::pod::spec::Substitution;

/// A container to make.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    /// What its sandbox changes in its configuration.
    pub(crate) pod: Option<Arc<Substitution>>,
    /// What its root is made of.
    pub(crate) rootfs: Vec<Mount>,
    /// Where its processes were written to, to be restored.
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) stdio: ChildEnds,
    pub(crate) terminal: bool,
}

/// A container that was made: its init waits for start.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) init: Child,
    /// The master of its terminal.
    pub(crate) master: Option<OwnedFd>,
    pub(crate) cgroup: Cgroup,
    /// Whether init is the first process of a PID namespace of its own, so that all others end with it.
    pub(crate) owns_pids: bool,
}

/// A process to start in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) container: ContainerId,
    /// As JSON.
    pub(crate) process: Vec<u8>,
    pub(crate) stdio: ChildEnds,
    pub(crate) terminal: bool,
    /// How long it may take until the program runs: it may be on a server that does not answer.
    pub(crate) patience: Duration,
}

/// How long a process may take to run its program, at most.
pub(crate) const EXEC_PATIENCE: Duration = Duration::from_secs(120);

/// A process of exec that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) process: Child,
    /// The master of its terminal.
    pub(crate) master: Option<OwnedFd>,
    /// The name of a cgroup of its own, below the container's ([`Cgroup::exec_cgroup`]).
    pub(crate) cgroup: Option<String>,
}

/// The runtime of a container.
#[derive(Debug)]
pub(crate) enum Runtime {
    /// `rtc_runtime`, in this process and its workers.
    Embedded(Embedded),
    /// runc, crun, youki or another, run for each verb.
    Command(Box<Command>),
}

impl Runtime {
    /// What the options ask for, for the containers of a namespace of containerd.
    ///
    /// # Errors
    ///
    /// The kernel has not what a foreign runtime needs.
    pub(crate) fn new(options: &Options, namespace: &str) -> Result<Self> {
        Ok(match &options.binary_name {
            None => Self::Embedded(Embedded::new(options, namespace)),
            Some(program) => Self::Command(Box::new(Command::new(program, options, namespace)?)),
        })
    }

    /// Mounts the root and makes the container.
    ///
    /// # Errors
    ///
    /// Nothing is left of it.
    pub(crate) async fn create(&self, create: Create) -> Result<Created> {
        match self {
            Self::Embedded(runtime) => runtime.create(create).await,
            Self::Command(runtime) => runtime.create(create).await,
        }
    }

    /// Lets init run its program, and returns once it does.
    ///
    /// # Errors
    ///
    /// It can't be run; init ends.
    pub(crate) async fn start(&self, id: &ContainerId) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.start(id).await,
            Self::Command(runtime) => runtime.start(id).await,
        }
    }

    /// What is to be done once the program runs: poststart hooks.
    ///
    /// # Errors
    ///
    /// A hook failed, and the container was ended.
    pub(crate) async fn started(&self, id: &ContainerId) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.started(id).await,
            // The runtime's start has done it.
            Self::Command(_) => Ok(()),
        }
    }

    /// Runs a process beside init.
    ///
    /// # Errors
    ///
    /// It can't be run; nothing is left of it. `DeadlineExceeded` where that took too long: then it ends whenever the
    /// kernel lets it.
    pub(crate) async fn exec(&self, exec: Exec) -> Result<Started> {
        match self {
            Self::Embedded(runtime) => runtime.exec(exec).await,
            Self::Command(runtime) => runtime.exec(exec).await,
        }
    }

    /// Deletes a container that is created or stopped, and unmounts its root. One that is gone already is fine.
    ///
    /// # Errors
    ///
    /// Something is left; it can be deleted again.
    pub(crate) async fn delete(&self, id: &ContainerId, bundle: &Path) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.delete(id, bundle).await,
            Self::Command(runtime) => runtime.delete(id, bundle).await,
        }
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    ///
    /// They can't be listed.
    pub(crate) async fn kill_all(&self, id: &ContainerId, signal: i32) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.kill_all(id, signal).await,
            Self::Command(runtime) => runtime.kill_all(id, signal).await,
        }
    }

    /// Freezes the container.
    ///
    /// # Errors
    ///
    /// It is not frozen after some time; then it runs.
    pub(crate) async fn pause(&self, id: &ContainerId) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.pause(id).await,
            Self::Command(runtime) => runtime.pause(id).await,
        }
    }

    /// Thaws the container.
    ///
    /// # Errors
    ///
    /// Its cgroup can't be written.
    pub(crate) async fn resume(&self, id: &ContainerId) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.resume(id).await,
            Self::Command(runtime) => runtime.resume(id).await,
        }
    }

    /// Changes the limits.
    ///
    /// # Errors
    ///
    /// The kernel or systemd refuses one.
    pub(crate) async fn update(&self, id: &ContainerId, resources: LinuxResources) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.update(id, resources).await,
            Self::Command(runtime) => runtime.update(id, &resources).await,
        }
    }

    /// Writes the processes of a container to files, at `image` or where the options say.
    ///
    /// # Errors
    ///
    /// CRIU's reason, in the runtime's words.
    pub(crate) async fn checkpoint(
        &self,
        id: &ContainerId,
        image: &Path,
        options: &CheckpointOptions,
    ) -> Result<()> {
        match self {
            Self::Embedded(runtime) => runtime.checkpoint(id, image, options).await,
            Self::Command(runtime) => runtime.checkpoint(id, image, options).await,
        }
    }
}

/// How long writing or reading the memory of a container may take.
const CHECKPOINT: Duration = Duration::from_secs(600);

/// Where a checkpoint goes and where CRIU works: what the call says, else the options of the container, else `image`.
fn checkpoint_paths<'a>(
    image: &'a Path,
    options: &'a CheckpointOptions,
    usual_image: &'a Option<PathBuf>,
    usual_work: &'a Option<PathBuf>,
) -> Result<(&'a Path, Option<&'a Path>)> {
    let image = if options.image_path.is_empty() {
        usual_image.as_deref().unwrap_or(image)
    } else {
        Path::new(&options.image_path)
    };
    if !image.is_absolute() {
        return Err(Error::text(
            Kind::InvalidArgument,
            format_args!("path: {image:?}: must be the absolute path of a directory for the checkpoint"),
        ));
    }
    let work = if options.work_path.is_empty() {
        usual_work.as_deref()
    } else {
        Some(Path::new(options.work_path.as_str()))
    };
    Ok((image, work))
}

/// Whether init is the first process of a PID namespace that is made for it.
fn owns_pids(spec: &Spec) -> bool {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace
                .path()
                .as_ref()
                .is_none_or(|path| path.as_os_str().is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        serde_json::from_str(&format!(
            r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": [{namespaces}]}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn only_a_new_pid_namespace_ends_with_init() {
        assert!(owns_pids(&spec(r#"{"type": "pid"}"#)));
        assert!(!owns_pids(&spec(r#"{"type": "pid", "path": "/proc/1/ns/pid"}"#)));
        assert!(!owns_pids(&spec(r#"{"type": "mount"}"#)));
    }
}
