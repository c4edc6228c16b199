//! CNI: a pod's network, by plugins (CNI specification 0.1.0 to 1.1.0).
//!
//! ```text
//! add:     configuration -> recorded, durably -> ADD of each plugin -> result cached -> addresses of eth0
//!             any failure -> DEL of all -> forgotten           DEL fails too -> kept, tried again in the background
//! delete:  recorded? -> DEL of each, last to first, with the cached result -> forgotten; not recorded: done already
//! start:   reconcile: DEL of what is recorded of pods that are no more, then GC
//! ```
//!
//! Two pods never wait for each other, two calls for one pod always do; GC has the network for itself (SPEC.md, "Lifecycle
//! & Ordering"). Loopback is the shim's.

mod arguments;
mod attachment;
mod chain;
mod config;
mod exec;
mod result;
mod turns;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use self::attachment::{Attachment, Cache};
use self::chain::Chain;
use self::config::{Network, Seen};
use self::exec::{Environment, Program, Programs, Verb};
use self::result::{Attached, Dns};
use self::turns::Turns;
use self::version::Version;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::journal::{Durability, Journal};
use crate::log;
use crate::proto::{DnsConfig, PortMapping};

/// The interface of a pod (the kubelet and its plugins expect it).
const INTERFACE: &str = "eth0";

/// Answers of STATUS are good for so long: the kubelet asks for the node's every five seconds.
const STATUS_GOOD: Duration = Duration::from_secs(15);
const STATUS_BAD: Duration = Duration::from_secs(2);
/// GC at start, and then no more often than so.
const GC_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A DEL that failed is tried again after this, then twice that ...
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// ... and no later than this.
const RETRY_LAST: Duration = Duration::from_secs(600);
/// So many DELs at once, at start.
const AT_ONCE: usize = 4;

/// The networks of the node.
#[derive(Debug, Clone)]
pub(crate) struct Cni {
    node: Arc<Networks>,
}

#[derive(Debug)]
struct Networks {
    directory: PathBuf,
    programs: Programs,
    cache: Cache,
    /// How long the plugins of a network may take, all of them.
    time: Duration,
    /// The pod ranges of the node, as the kubelet said; kept here.
    pod_cidrs_file: PathBuf,
    pod_cidrs: Mutex<Vec<String>>,
    journal: Journal<Attachment>,
    /// What is attached, by pod; as the journal has it.
    attachments: Mutex<HashMap<String, Arc<Attachment>>>,
    /// The configuration as it was read, and what the directory looked like.
    network: Mutex<Option<(Seen, std::result::Result<Arc<Network>, String>)>>,
    /// What programs said they speak.
    spoken: Mutex<HashMap<Program, Option<Vec<Version>>>>,
    /// The last answer of STATUS, of which network, and until when it is good.
    status: tokio::sync::Mutex<Option<Answered>>,
    turns: Turns,
    /// Read: who adds or deletes. Written: GC.
    in_use: tokio::sync::RwLock<()>,
    collected: Mutex<Option<Instant>>,
    /// Pods whose DEL failed and that nobody else may ask for again.
    undone: Mutex<BTreeSet<String>>,
    retrying: AtomicBool,
}

#[derive(Debug)]
struct Answered {
    network: Arc<Network>,
    until: Instant,
    answer: std::result::Result<(), (Kind, String)>,
}

/// What plugins are told of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) netns: &'a Path,
    pub(crate) port_mappings: &'a [PortMapping],
    pub(crate) dns: Option<&'a DnsConfig>,
    pub(crate) cgroup_parent: &'a str,
    /// For `kubernetes.io/ingress-bandwidth` and its kind.
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

/// What a pod has: addresses of its `eth0`, the first one is the pod's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) ips: Vec<IpAddr>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cni {
    /// # Errors
    ///
    /// Its directories can't be used; a missing or wrong network is no error here (`ready`).
    pub(crate) fn open(config: &Config) -> Result<Self> {
        fs::create_dir_all(&config.root).with_context(|| format!("root: {}", config.root.display()))?;
        let (journal, attachments) =
            Journal::open(&config.root.join("attachments.journal"), Durability::Durable)?;
        let mut attachments: HashMap<String, Attachment> = attachments.into_iter().collect();
        let cache = Cache::new(&config.cni.cache_dir);
        for orphan in cache.orphans(&attachments) {
            log::warn(format_args!(
                "network of pod {}: not in the journal, taken from {}",
                orphan.pod,
                config.cni.cache_dir.display()
            ));
            attachments.insert(orphan.pod.clone(), orphan);
        }
        let pod_cidrs_file = config.root.join("pod-cidrs");
        let pod_cidrs = fs::read_to_string(&pod_cidrs_file)
            .ok()
            .and_then(|text| arguments::pod_cidrs(text.trim()).ok());
        Ok(Self {
            node: Arc::new(Networks {
                directory: config.cni.conf_dir.clone(),
                programs: Programs::new(&config.cni.bin_dirs),
                cache,
                time: Duration::from_secs(config.cni.timeout_seconds),
                pod_cidrs_file,
                pod_cidrs: Mutex::new(pod_cidrs.unwrap_or_default()),
                journal,
                attachments: Mutex::new(
                    attachments
                        .into_iter()
                        .map(|(pod, attachment)| (pod, Arc::new(attachment)))
                        .collect(),
                ),
                network: Mutex::default(),
                spoken: Mutex::default(),
                status: tokio::sync::Mutex::default(),
                turns: Turns::default(),
                in_use: tokio::sync::RwLock::default(),
                collected: Mutex::default(),
                undone: Mutex::default(),
                retrying: AtomicBool::new(false),
            }),
        })
    }

    /// Whether a pod can be made now (NetworkReady), or why not: no configuration, no plugin, or STATUS of one.
    ///
    /// # Errors
    ///
    /// The reason, for whoever looks at the node.
    pub(crate) async fn ready(&self) -> Result<()> {
        let network = self.node.network()?;
        for plugin in &network.plugins {
            self.node.programs.find(&plugin.program).map_err(|why| {
                Error::text(
                    Kind::Unavailable,
                    format_args!(
                        "network {:?}: CNI plugin {:?}: {why}",
                        network.name, plugin.program
                    ),
                )
            })?;
        }
        let version = self.node.speak(&network).await?;
        self.collect_sometimes();
        if version < Version::STATUS {
            return Ok(());
        }
        self.node.plugins_ready(&network, version).await
    }

    /// ADD. Recorded before it is begun.
    ///
    /// # Errors
    ///
    /// DEL was called: nothing is left, or it is tried again later.
    pub(crate) async fn add(&self, pod: &Pod<'_>) -> Result<Addresses> {
        let node = &self.node;
        let network = node.network()?;
        let version = node.speak(&network).await?;
        let attachment = Arc::new(node.attachment(pod, &network, version)?);
        let _turn = node.turns.of(pod.id).await;
        let _in_use = node.in_use.read().await;
        if node.attached(pod.id).is_some() {
            // Never ADD twice without a DEL between.
            self.delete_in_turn(pod.id).await?;
        }
        node.journal.put(pod.id, &attachment).await?;
        locked(&node.attachments).insert(pod.id.to_owned(), Arc::clone(&attachment));
        let chain = node.chain(&network, version);
        let added = match chain.add(&attachment).await {
            Ok(attached) => node.keep(&attachment, &attached, version).await,
            Err(failure) => Err(failure.into()),
        };
        let error = match added {
            Ok(addresses) => return Ok(addresses),
            Err(error) => error,
        };
        if let Err(undo) = self.delete_in_turn(pod.id).await {
            log::warn(format_args!("network of pod {}: what ADD left: {undo}", pod.id));
            self.delete_later(pod.id);
        }
        Err(error.context(format!("network {:?}", network.name)))
    }

    /// DEL with what was cached of ADD, once: a pod that has none is what is wanted. Its network namespace may be gone.
    ///
    /// # Errors
    ///
    /// A plugin failed: it is still recorded, call again. It is tried again in the background, too.
    pub(crate) async fn delete(&self, pod: &str) -> Result<()> {
        let _turn = self.node.turns.of(pod).await;
        let _in_use = self.node.in_use.read().await;
        let deleted = self.delete_in_turn(pod).await;
        if deleted.is_err() {
            self.delete_later(pod);
        }
        deleted
    }

    async fn delete_in_turn(&self, pod: &str) -> Result<()> {
        let node = &self.node;
        let Some(attachment) = node.attached(pod) else {
            return Ok(());
        };
        let context = || format!("network {:?} of pod {pod}", attachment.network);
        let network = config::of_text(&attachment.config)
            .map_err(|error| Error::text(Kind::Unknown, error).context(context()))?;
        let version = attachment.spoken();
        let result = node.cache.get(&attachment);
        let netns = if is_namespace(&attachment.netns) {
            attachment.netns.to_string_lossy()
        } else {
            "".into()
        };
        node.chain(&network, version)
            .delete(&attachment, &netns, result.as_ref())
            .await
            .map_err(|failure| Error::from(failure).context(context()))?;
        node.cache.remove(&attachment);
        locked(&node.attachments).remove(pod);
        locked(&node.undone).remove(pod);
        // One that comes back is deleted again, which plugins have to accept.
        node.journal.remove(pod).await
    }

    /// Tries DEL again until it succeeds, longer and longer apart.
    fn delete_later(&self, pod: &str) {
        locked(&self.node.undone).insert(pod.to_owned());
        if self.node.retrying.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = Arc::downgrade(&self.node);
        tokio::spawn(async move {
            let mut wait = RETRY_FIRST;
            loop {
                sleep(wait).await;
                let Some(node) = node.upgrade() else { return };
                let cni = Self { node };
                let pods = locked(&cni.node.undone).clone();
                cni.delete_all(pods).await;
                // Between a look and the flag another may come: the flag first.
                cni.node.retrying.store(false, Ordering::Release);
                if locked(&cni.node.undone).is_empty() || cni.node.retrying.swap(true, Ordering::AcqRel) {
                    return;
                }
                wait = RETRY_LAST.min(wait * 2);
            }
        });
    }

    /// DEL of several, a few at once.
    async fn delete_all(&self, pods: impl IntoIterator<Item = String>) {
        let mut tasks = tokio::task::JoinSet::new();
        for pod in pods {
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await;
            }
            let cni = self.clone();
            tasks.spawn(async move {
                if let Err(error) = cni.delete(&pod).await {
                    log::warn(error);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// At start: DEL of all that is attached to pods that are not among `living`, then GC. What is to be deleted is decided
    /// now, not when the future runs: pods that come later are not meant. After a reboot nothing lives.
    pub(crate) fn reconcile(&self, living: &HashSet<String>) -> impl Future<Output = ()> + Send + use<> {
        let mut dead: Vec<String> = locked(&self.node.attachments).keys().cloned().collect();
        dead.retain(|pod| !living.contains(pod));
        let cni = self.clone();
        async move {
            if !dead.is_empty() {
                log::info(format_args!(
                    "networks of {} pods that are no more: DEL",
                    dead.len()
                ));
            }
            cni.delete_all(dead).await;
            cni.collect().await;
        }
    }

    /// CHECK. `Ok(false)`: this network is not to be checked, or too old for it.
    ///
    /// # Errors
    ///
    /// What a plugin found, or that the pod has no network.
    pub(crate) async fn check(&self, pod: &str) -> Result<bool> {
        let node = &self.node;
        let _turn = node.turns.of(pod).await;
        let attachment = node
            .attached(pod)
            .ok_or_else(|| Error::not_found(format_args!("network of pod {pod}: has none")))?;
        let network =
            config::of_text(&attachment.config).map_err(|error| Error::text(Kind::Unknown, error))?;
        let version = attachment.spoken();
        if version < Version::CHECK || network.disable_check {
            return Ok(false);
        }
        let result = node.cache.get(&attachment).ok_or_else(|| {
            Error::text(
                Kind::Unknown,
                format_args!("network of pod {pod}: its result is lost"),
            )
        })?;
        node.chain(&network, version).check(&attachment, &result).await?;
        Ok(true)
    }

    /// What plugins said of name servers for a pod.
    pub(crate) fn name_servers(&self, pod: &str) -> Option<Dns> {
        let result = self.node.cache.get(&*self.node.attached(pod)?)?;
        Some(result.dns).filter(|dns| *dns != Dns::default())
    }

    /// UpdateRuntimeConfig: the ranges of the node's pods, for plugins that want `ipRanges`. Empty: they are kept.
    ///
    /// # Errors
    ///
    /// It is no range, or can't be kept.
    pub(crate) fn set_pod_cidrs(&self, text: &str) -> Result<()> {
        let cidrs = arguments::pod_cidrs(text)?;
        if cidrs.is_empty() {
            return Ok(());
        }
        let mut kept = locked(&self.node.pod_cidrs);
        if *kept != cidrs {
            let file = &self.node.pod_cidrs_file;
            let beside = file.with_added_extension("new");
            fs::write(&beside, cidrs.join(","))
                .and_then(|()| fs::rename(&beside, file))
                .with_context(|| file.display().to_string())?;
            *kept = cidrs;
        }
        Ok(())
    }

    /// GC of the network, where it has been long.
    fn collect_sometimes(&self) {
        let due = locked(&self.node.collected).is_some_and(|last| last.elapsed() >= GC_EVERY);
        if due {
            let cni = self.clone();
            tokio::spawn(async move { cni.collect().await });
        }
    }

    /// GC: plugins forget what is of no attachment that there is.
    async fn collect(&self) {
        let node = &self.node;
        *locked(&node.collected) = Some(Instant::now());
        let Ok(network) = node.network() else { return };
        let Ok(version) = node.speak(&network).await else {
            return;
        };
        if version < Version::STATUS || network.disable_gc {
            return;
        }
        // Nobody may add or delete meanwhile, and nobody is made to wait for who does.
        let Ok(_alone) = node.in_use.try_write() else {
            return;
        };
        let valid = node.valid(&network.name);
        if let Err(failures) = node.chain(&network, version).collect(&valid).await {
            for failure in failures {
                log::warn(format_args!("network {:?}: {failure}", network.name));
            }
        }
    }
}

impl Networks {
    /// The network as it is configured now.
    fn network(&self) -> Result<Arc<Network>> {
        let seen = config::look(&self.directory);
        let mut kept = locked(&self.network);
        let loaded = match &*kept {
            Some((then, loaded)) if seen.is_still(then) => loaded.clone(),
            before => {
                let loaded = config::load(&self.directory).map(Arc::new);
                let loaded = match before {
                    // The same network stays the same: its STATUS is known.
                    Some((_, before)) if *before == loaded => before.clone(),
                    _ => {
                        report(&loaded);
                        loaded
                    }
                };
                *kept = Some((seen, loaded.clone()));
                loaded
            }
        };
        loaded.map_err(|error| Error::text(Kind::Unavailable, error))
    }

    /// The version that a network is spoken in: the best of its configuration; where that leaves a choice, the best that all
    /// its plugins know.
    async fn speak(&self, network: &Network) -> Result<Version> {
        if let [version] = network.versions[..] {
            return Ok(version);
        }
        let mut versions = network.versions.clone();
        for plugin in &network.plugins {
            if let Some(spoken) = self.spoken(&plugin.program).await {
                versions.retain(|version| spoken.contains(version));
            }
        }
        versions.first().copied().ok_or_else(|| {
            Error::text(
                Kind::Unavailable,
                format_args!(
                    "network {:?}: cniVersions: none of {} is known to all of its plugins",
                    network.name,
                    network.versions_text()
                ),
            )
        })
    }

    /// What a plugin says it speaks (VERSION); `None`: it does not say. Asked once of each program.
    async fn spoken(&self, name: &str) -> Option<Vec<Version>> {
        let program = self.programs.find(name).ok()?;
        if let Some(spoken) = locked(&self.spoken).get(&program) {
            return spoken.clone();
        }
        let input = serde_json::json!({"cniVersion": Version::LAST.to_string()}).to_string();
        // Old ones want them even for this.
        let environment = Environment {
            netns: "dummy",
            interface: "dummy",
            ..Environment::default()
        };
        let deadline = Instant::now() + self.time;
        let answer = self
            .programs
            .run(Verb::Version, name, &environment, input.as_bytes(), deadline)
            .await;
        let spoken = answer.ok().and_then(|output| supported(&output));
        let mut all = locked(&self.spoken);
        all.retain(|other, _| other.path != program.path);
        all.insert(program, spoken.clone());
        spoken
    }

    async fn plugins_ready(&self, network: &Arc<Network>, version: Version) -> Result<()> {
        // One asks, others wait for its answer.
        let mut status = self.status.lock().await;
        if let Some(last) = &*status
            && Arc::ptr_eq(&last.network, network)
            && Instant::now() < last.until
        {
            return last
                .answer
                .clone()
                .map_err(|(kind, text)| Error::text(kind, text));
        }
        let answer = self.chain(network, version).status().await.map_err(|failure| {
            let text = format!("network {:?}: {failure}", network.name);
            (Error::from(failure).kind, text)
        });
        let good_for = if answer.is_ok() { STATUS_GOOD } else { STATUS_BAD };
        *status = Some(Answered {
            network: Arc::clone(network),
            until: Instant::now() + good_for,
            answer: answer.clone(),
        });
        answer.map_err(|(kind, text)| Error::text(kind, text))
    }

    fn chain<'a>(&'a self, network: &'a Network, version: Version) -> Chain<'a> {
        Chain {
            programs: &self.programs,
            network,
            version,
            deadline: Instant::now() + self.time,
        }
    }

    fn attached(&self, pod: &str) -> Option<Arc<Attachment>> {
        locked(&self.attachments).get(pod).cloned()
    }

    fn attachment(&self, pod: &Pod<'_>, network: &Network, version: Version) -> Result<Attachment> {
        let mut capabilities = arguments::capabilities(pod, &locked(&self.pod_cidrs))?;
        let wanted = |name: &str| {
            let mut plugins = network.plugins.iter();
            plugins.any(|plugin| plugin.capabilities.iter().any(|wanted| wanted == name))
        };
        if capabilities.contains_key("portMappings") && !wanted("portMappings") {
            log::warn(format_args!(
                "pod {}/{}: its host ports are not there: no plugin of network {:?} has the capability portMappings",
                pod.namespace, pod.name, network.name
            ));
        }
        capabilities.retain(|name, _| wanted(name));
        Ok(Attachment {
            pod: pod.id.to_owned(),
            netns: pod.netns.to_owned(),
            network: network.name.clone(),
            config: network.source.clone(),
            version: version.to_string(),
            arguments: arguments::pairs(pod)?,
            capabilities,
        })
    }

    /// Keeps a result, and gives the addresses in it.
    async fn keep(
        &self,
        attachment: &Attachment,
        attached: &Attached,
        version: Version,
    ) -> Result<Addresses> {
        let wrong =
            |why: String| Error::text(Kind::Unknown, format_args!("the result of its plugins: {why}"));
        let ips = attached.addresses(INTERFACE).map_err(wrong)?;
        if ips.is_empty() {
            return Err(wrong(format!("no address of {INTERFACE}")));
        }
        let value = attached.to_value(version).map_err(wrong)?;
        self.cache
            .put(attachment, value)
            .context("the result of its plugins can't be kept")?;
        Ok(Addresses { ips })
    }

    /// All attachments to a network: ours, and those of other runtimes whose namespaces are there.
    fn valid(&self, network: &str) -> Vec<(String, String)> {
        let mut valid: BTreeSet<(String, String)> = locked(&self.attachments)
            .values()
            .filter(|attachment| attachment.network == network)
            .map(|attachment| (attachment.pod.clone(), INTERFACE.to_owned()))
            .collect();
        valid.extend(
            self.cache
                .known()
                .into_iter()
                .filter(|known| known.network == network && is_namespace(&known.netns))
                .map(|known| (known.container, known.interface)),
        );
        valid.into_iter().collect()
    }
}

impl Attachment {
    /// The version of its ADD.
    fn spoken(&self) -> Version {
        Version::parse(&self.version)
            .ok()
            .flatten()
            .unwrap_or(Version::FIRST)
    }
}

fn report(loaded: &std::result::Result<Arc<Network>, String>) {
    match loaded {
        Ok(network) => log::info(format_args!(
            "network {:?}: CNI {}",
            network.name,
            network.versions_text()
        )),
        Err(error) => log::warn(error),
    }
}

/// What a plugin answers to VERSION: those of its versions that we know.
fn supported(output: &[u8]) -> Option<Vec<Version>> {
    let answer: Map<String, Value> = serde_json::from_slice(output).ok()?;
    let Some(Value::Array(versions)) = answer.get("supportedVersions") else {
        return None;
    };
    let versions = versions.iter().filter_map(Value::as_str);
    Some(
        versions
            .filter_map(|text| Version::parse(text).ok().flatten())
            .collect(),
    )
}

/// Whether there is a namespace at a path: a file that is left of one is none.
fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

#[cfg(test)]
mod tests;
