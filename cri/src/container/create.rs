//! CreateContainer.
//!
//! ```text
//! checks ── id and name taken ── recorded (Making) ──┬─ volumes, upper layer ───────┬─ bundle ── Task Create ── Created
//!                                                    └─ OCI configuration ──────────┘
//! a failure anywhere: clean.rs, then the name is free again; where that fails it stays Making, for whoever comes next
//! ```
//!
//! A second request with the same name waits for what becomes of the first: the kubelet tries again after its deadline.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use oci_spec::runtime::Spec;
use tokio::sync::Semaphore;

use super::{Container, Record, State, clean, exec_sync, log as container_log};
use crate::error::{Error, Kind, Result};
use crate::events;
use crate::id;
use crate::image::{Image, RootMount, Users};
use crate::log;
use crate::node::Node;
use crate::proto::{
    ContainerConfig, ContainerEventType, CreateContainerRequest, CreateContainerResponse, IdMapping,
    ImageSpec, Mount, NamespaceMode, PodSandboxConfig,
};
use crate::sandbox::{self, Sandbox};
use crate::shim::{self, Shim, Task};
use crate::spec::{self, Files};

/// How long work with files of the host may take.
const HOST_FILES: Duration = Duration::from_secs(60);
/// So many works at once: where file systems hang, threads are left for all else (tokio has 512).
static HANGING: Semaphore = Semaphore::const_new(64);

/// CreateContainer.
pub(crate) async fn create(
    node: &Arc<Node>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse> {
    let config = request
        .config
        .ok_or_else(|| Error::invalid("config: is missing"))?;
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Error::invalid("config.metadata: is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name: is empty"));
    }
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let directory = match &request.sandbox_config {
        Some(pod) if !pod.log_directory.is_empty() => pod.log_directory.clone(),
        _ => sandbox.record().config.log_directory.clone(),
    };
    let log_path = container_log::path(&directory, &config.log_path)?;
    let image = image(node, config.image.as_ref(), "config.image")?;
    let container = Arc::new(Container::new(Record {
        id: id::new()?,
        sandbox: sandbox.id.clone(),
        image_id: image.id.clone(),
        image_ref: image.digests.first().unwrap_or(&image.id).clone(),
        created_at: events::now(),
        state: State::Making,
        log_path,
        cgroup: String::new(),
        user: None,
        stop_signal: libc::SIGTERM,
        resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
        mounted_images: Vec::new(),
        task: false,
        config,
    }));
    let _turn = container.turn.lock().await;
    while let Err(other) = node.insert_container(&container) {
        if let Some(container_id) = adopt(node, &other, &container.record().config).await? {
            return Ok(CreateContainerResponse { container_id });
        }
    }
    let making = Making {
        node,
        container: &container,
        sandbox: &sandbox,
        image: &image,
    };
    match making.make().await {
        Ok(()) => Ok(CreateContainerResponse {
            container_id: container.id.clone(),
        }),
        Err(error) => {
            if let Err(left) = give_up(node, &container).await {
                log::warn(left);
            }
            Err(error)
        }
    }
}

/// By a name of a request.
fn image(node: &Node, spec: Option<&ImageSpec>, field: &str) -> Result<Arc<Image>> {
    let name = spec.map_or("", |spec| spec.image.as_str());
    if name.is_empty() {
        return Err(Error::invalid(format_args!("{field}.image: is empty")));
    }
    let found = node.images.find(name);
    found.ok_or_else(|| {
        Error::not_found(format_args!(
            "{field}.image: {name:?}: is not here: pull it first"
        ))
    })
}

/// The container that has the name, where it is the one that is asked for. `None`: it is gone, the name is free.
async fn adopt(node: &Arc<Node>, other: &Arc<Container>, config: &ContainerConfig) -> Result<Option<String>> {
    let _turn = other.turn.lock().await;
    if node.container(&other.id).is_err() {
        return Ok(None);
    }
    let record = other.record();
    match &record.state {
        State::Created if record.config == *config => Ok(Some(other.id.clone())),
        // It failed, and could not be taken back; or whoever made it panicked.
        State::Making => {
            give_up(node, other).await?;
            Ok(None)
        }
        state => Err(Error::text(
            Kind::AlreadyExists,
            format_args!(
                "config.metadata: {} has this name and attempt in sandbox {}, and is {}: remove it, or count the attempt up",
                other.id,
                record.sandbox,
                state.word()
            ),
        )),
    }
}

/// Removes what was half made; its turn is ours.
///
/// # Errors
///
/// Something of it is left, and so is it, in no list: who asks for its name tries again, who removes its pod, the next start.
pub(crate) async fn give_up(node: &Node, container: &Container) -> Result<()> {
    let cleaned = clean::clean(node, &container.record()).await;
    cleaned.map_err(|error| error.context(format!("take back container {}", container.id)))?;
    node.forget_container(container).await
}

/// What is on its way.
struct Making<'a> {
    node: &'a Arc<Node>,
    container: &'a Arc<Container>,
    sandbox: &'a Sandbox,
    image: &'a Arc<Image>,
}

/// What was made ready to be mounted.
struct Volumes {
    /// For each mount of the request: the directory of its image.
    images: Vec<Option<PathBuf>>,
    /// Paths in the container, with their directories.
    anonymous: Vec<(PathBuf, PathBuf)>,
}

impl Making<'_> {
    /// All of it. Whatever a failure leaves is found by the record.
    async fn make(&self) -> Result<()> {
        // Before anything is made, and after whoever stops the sandbox can see us.
        self.node.record_container(self.container).await?;
        let (pod, shim) = self.pod()?;
        let record = self.container.record();
        let volumes = Volumes {
            images: self.volumes(&record.config).await?,
            anonymous: self.anonymous(&record).await?,
        };
        let users = users(&pod.config);
        let prepared = self.node.images.prepare(&record.id, self.image, users.as_ref());
        let (root, made) = tokio::join!(prepared, self.spec(&record, &pod, volumes));
        // Both to their ends: a failure of one leaves no other at work in what is then taken back.
        let (root, made) = (root?, made?);
        self.container.change(|record| {
            record.cgroup = made.cgroup;
            record.user = Some(made.user);
            record.stop_signal = made.stop_signal;
            record.task = true;
        });
        // From here on its shim may have something of it.
        self.node.record_container(self.container).await?;
        let record = self.container.record();
        self.bundle(&record, made.spec).await?;
        self.task(&record, &pod, &shim, root).await?;
        self.container.change(|record| record.state = State::Created);
        self.node.record_container(self.container).await?;
        events::send(
            self.node,
            &record.id,
            &record.sandbox,
            ContainerEventType::ContainerCreatedEvent,
        )
        .await;
        Ok(())
    }

    fn pod(&self) -> Result<(Arc<sandbox::Record>, Arc<Shim>)> {
        let pod = self.sandbox.record();
        match (pod.state, self.sandbox.shim()) {
            (sandbox::State::Ready, Some(shim)) => Ok((pod, shim)),
            _ => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("pod_sandbox_id: sandbox {} is not ready", self.sandbox.id),
            )),
        }
    }

    /// Mounts images that are volumes. For each mount of the request: the directory of its image.
    async fn volumes(&self, config: &ContainerConfig) -> Result<Vec<Option<PathBuf>>> {
        let (mut paths, mut digests) = (Vec::new(), Vec::new());
        for (number, mount) in config.mounts.iter().enumerate() {
            let volume = match &mount.image {
                Some(spec) if !spec.image.is_empty() => Some(self.volume(number, mount, spec).await?),
                _ => None,
            };
            let (path, digest) = volume.unzip();
            paths.push(path);
            digests.push(digest);
        }
        self.container.change(|record| record.mounted_images = digests);
        Ok(paths)
    }

    /// The volumes that the image defines: each path with its directory.
    async fn anonymous(&self, record: &Record) -> Result<Vec<(PathBuf, PathBuf)>> {
        let paths = spec::volumes::paths(&record.config, &self.image.config)?;
        let images = &self.node.images;
        let made = images
            .anonymous_volumes(&record.id, self.image, paths.clone())
            .await?;
        Ok(paths.into_iter().zip(made).collect())
    }

    async fn volume(&self, number: usize, mount: &Mount, spec: &ImageSpec) -> Result<(PathBuf, String)> {
        let field = format!("config.mounts[{number}]");
        if !mount.host_path.is_empty() {
            return Err(Error::invalid(format_args!(
                "{field}.host_path: {:?}: must be empty where an image is mounted",
                mount.host_path
            )));
        }
        if !mount.readonly {
            return Err(Error::invalid(format_args!(
                "{field}.readonly: must be true where an image is mounted"
            )));
        }
        let image = image(self.node, Some(spec), &format!("{field}.image"))?;
        let owners = (!mount.uid_mappings.is_empty()).then(|| Users {
            uids: extents(&mount.uid_mappings),
            gids: extents(&mount.gid_mappings),
        });
        let volume = self
            .node
            .images
            .mount_volume(&self.container.id, &image, &mount.image_sub_path, owners)
            .await
            .map_err(|error| error.context(field))?;
        Ok((volume.path, image.id.clone()))
    }

    /// The OCI configuration. Looks at the host's files: off the runtime's threads.
    async fn spec(
        &self,
        record: &Arc<Record>,
        pod: &Arc<sandbox::Record>,
        volumes: Volumes,
    ) -> Result<spec::Made> {
        let target_pid = self.target(&record.config)?;
        let files = Files::read(&self.node.images, self.image, &record.config).await?;
        let (node, record, pod) = (Arc::clone(self.node), Arc::clone(record), Arc::clone(pod));
        let image = Arc::clone(self.image);
        let making = move || {
            let asked = spec::Asked {
                id: &record.id,
                sandbox: &record.sandbox,
                sandbox_pid: pod.pid,
                target_pid,
                pod: &pod.config,
                config: &record.config,
                handler: node.config.handler(&pod.handler)?,
                image: &image.config,
                files: &files,
                image_mounts: &volumes.images,
                volumes: &volumes.anonymous,
                selinux_level: &pod.selinux_level,
            };
            spec::make(&node.facts, &asked)
        };
        host_files("look at what is to be mounted", making).await
    }

    /// The process whose PID namespace is wanted.
    fn target(&self, config: &ContainerConfig) -> Result<Option<u32>> {
        const FIELD: &str = "config.linux.security_context.namespace_options.target_id";
        let options = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.as_ref());
        let Some(options) = options.filter(|options| options.pid() == NamespaceMode::Target) else {
            return Ok(None);
        };
        let target = self.node.container(&options.target_id)?.record();
        if target.sandbox != self.sandbox.id {
            return Err(Error::invalid(format_args!(
                "{FIELD}: {:?}: is in another sandbox",
                options.target_id
            )));
        }
        match target.state {
            State::Running { pid, .. } => Ok(Some(pid)),
            ref state => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!(
                    "{FIELD}: {:?}: must run, and is {}",
                    options.target_id,
                    state.word()
                ),
            )),
        }
    }

    /// Writes the bundle, and makes the directory of the log.
    async fn bundle(&self, record: &Arc<Record>, spec: Spec) -> Result<()> {
        let bundle = clean::bundle(self.node, &record.id);
        let record = Arc::clone(record);
        let writing = move || {
            directory(&bundle.join("rootfs"), 0o700)?;
            let config = bundle.join("config.json");
            let text = serde_json::to_vec(&spec)?;
            std::fs::write(&config, text).with_context(|| config.display().to_string())?;
            if let Some(process) = spec.process() {
                let path = bundle.join(exec_sync::PROCESS);
                std::fs::write(&path, serde_json::to_vec(process)?)
                    .with_context(|| path.display().to_string())?;
            }
            if let Some(parent) = record.log_path.as_deref().and_then(Path::parent) {
                directory(parent, 0o755)?;
            }
            if record.config.stdin {
                let path = bundle.join("stdin");
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                    .with_context(|| path.display().to_string())?;
            }
            Ok::<(), anyhow::Error>(())
        };
        host_files("write its bundle", move || writing().map_err(Error::from)).await
    }

    async fn task(
        &self,
        record: &Record,
        pod: &sandbox::Record,
        shim: &Shim,
        root: Vec<RootMount>,
    ) -> Result<()> {
        let rootfs: Vec<shim::Mount> = root
            .into_iter()
            .map(|mount| shim::Mount {
                kind: mount.kind,
                source: mount.source,
                target: String::new(),
                options: mount.options,
            })
            .collect();
        let bundle = clean::bundle(self.node, &record.id);
        // Where no log is wanted there is one nevertheless: clients attach to it.
        let log = match record.log_path.as_deref() {
            Some(path) => container_log::uri(path),
            None => "file:///dev/null".into(),
        };
        let stdin = match record.config.stdin {
            true => bundle.join("stdin").to_string_lossy().into_owned(),
            false => String::new(),
        };
        let task = Task {
            id: &record.id,
            bundle: &bundle,
            rootfs: &rootfs,
            terminal: record.config.tty,
            stdin: &stdin,
            stdout: &log,
            // With a terminal there is one output.
            stderr: if record.config.tty { "" } else { &log },
            options: &sandbox::options(&self.node.config, &pod.handler)?,
        };
        shim.create_task(&task).await.map(drop)
    }
}

/// Works with files of the host, off the runtime's threads. One that hangs holds up this call for so long, and a thread for
/// ever.
///
/// # Errors
///
/// `DeadlineExceeded`; those of the work.
async fn host_files<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let working = async {
        let place = HANGING.acquire().await.map_err(anyhow::Error::from)?;
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(anyhow::Error::from)?
    };
    tokio::time::timeout(HOST_FILES, working)
        .await
        .unwrap_or_else(|_| {
            Err(Error::text(
                Kind::DeadlineExceeded,
                format_args!("{what}: it does not end within {HOST_FILES:?}: does a file system hang?"),
            ))
        })
}

/// Makes it, with its parents; one that is there stays as it is.
fn directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| path.display().to_string())
}

/// The id maps of a pod with a user namespace of its own.
fn users(pod: &PodSandboxConfig) -> Option<Users> {
    let options = pod
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .as_ref()?
        .userns_options
        .as_ref()
        .filter(|options| options.mode() == NamespaceMode::Pod)?;
    Some(Users {
        uids: extents(&options.uids),
        gids: extents(&options.gids),
    })
}

fn extents(maps: &[IdMapping]) -> Vec<(u32, u32, u32)> {
    maps.iter()
        .map(|map| (map.container_id, map.host_id, map.length))
        .collect()
}
