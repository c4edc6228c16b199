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
mod network;
mod result;
mod turns;
mod upkeep;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::attachment::{Attachment, Cache};
use self::chain::Chain;
use self::config::{Network, Seen};
use self::exec::{Program, Programs};
use self::network::Answered;
use self::result::{Attached, Dns};
use self::turns::Turns;
use self::version::Version;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::journal::{Durability, Journal};
use crate::locked;
use crate::log;
use crate::proto::{DnsConfig, PortMapping};

/// The interface of a pod (the kubelet and its plugins expect it).
const INTERFACE: &str = "eth0";

/// The networks of the node.
#[derive(Debug, Clone)]
pub(crate) struct Cni {
    node: Arc<Networks>,
}

/// A configuration as it was read, or what is wrong with it.
type Loaded = std::result::Result<Arc<Network>, String>;

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
    network: Mutex<Option<(Seen, Loaded)>>,
    /// What programs said they speak.
    spoken: Mutex<HashMap<Program, Option<Vec<Version>>>>,
    /// The last answer of STATUS.
    status: tokio::sync::Mutex<Option<Answered>>,
    turns: Turns,
    /// Read: who adds or deletes. Written: GC.
    in_use: tokio::sync::RwLock<()>,
    /// When the next GC is due; `None`: that of the start was not yet.
    collect_at: Mutex<Option<Instant>>,
    /// Pods whose DEL failed and that nobody else may ask for again.
    undone: Mutex<BTreeSet<String>>,
    retrying: AtomicBool,
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
                collect_at: Mutex::default(),
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
        // The administrator may have disabled it since.
        let now = node.network().ok().filter(|now| now.name == network.name);
        if version < Version::CHECK || network.disable_check || now.is_some_and(|now| now.disable_check) {
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

    /// The network, for a person who asks (`crictl info`).
    pub(crate) fn describe(&self) -> Value {
        let attached = locked(&self.node.attachments).len();
        match self.node.network() {
            Ok(network) => serde_json::json!({
                "name": network.name,
                "cniVersions": network.versions_text(),
                "plugins": network.plugins.iter().map(|plugin| &plugin.program).collect::<Vec<_>>(),
                "attachments": attached,
            }),
            Err(error) => serde_json::json!({"error": error.to_string(), "attachments": attached}),
        }
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
}

impl Networks {
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

/// Whether there is a namespace at a path: a file that is left of one is none.
fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

#[cfg(test)]
mod tests;
