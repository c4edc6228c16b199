//! What is attached: recorded before the first plugin runs, forgotten when DEL succeeded.
//!
//! ```text
//! <root>/attachments.journal              durable: outlives the boot, as addresses that plugins gave out do
//! <cache_dir>/results/<network>-<pod>-eth0    libcni's form (`cniCacheV1`): the result of ADD, for DEL, CHECK and other tools
//! ```

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::INTERFACE;
use super::result::Attached;
use super::version::Version;

/// No result is larger, in bytes: one of 1 MB, its configuration in base64, and their frame.
const SIZE_MAX: u64 = 4 << 20;

/// A pod's attachment: all that DEL needs, whatever the configuration has become since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Attachment {
    /// The sandbox's id.
    pub(super) pod: String,
    pub(super) netns: PathBuf,
    /// The network's name.
    pub(super) network: String,
    /// Its configuration, a list with all its plugins.
    pub(super) config: String,
    /// Of CNI, as it was spoken at ADD.
    pub(super) version: String,
    /// CNI_ARGS.
    pub(super) arguments: Vec<(String, String)>,
    /// What plugins of the network wanted to know.
    pub(super) capabilities: Map<String, Value>,
}

/// libcni's file of an attachment (`libcni/api.go`, `cachedInfo`).
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    kind: String,
    #[serde(rename = "containerId")]
    container_id: String,
    /// Base64.
    #[serde(default)]
    config: Option<String>,
    #[serde(rename = "ifName")]
    interface: String,
    #[serde(rename = "networkName")]
    network: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(rename = "cniArgs", default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Vec<(String, String)>>,
    #[serde(rename = "capabilityArgs", default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

const KIND: &str = "cniCacheV1";

/// The results of ADD.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
}

/// An attachment that the cache knows, ours or of another runtime.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Known {
    pub(super) container: String,
    pub(super) interface: String,
    pub(super) network: String,
    pub(super) netns: PathBuf,
}

impl Cache {
    /// In `<directory>/results`, which need not be there.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.join("results"),
        }
    }

    fn path(&self, network: &str, container: &str, interface: &str) -> PathBuf {
        self.directory.join(format!("{network}-{container}-{interface}"))
    }

    /// Keeps a result.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub(super) fn put(&self, attachment: &Attachment, result: Value) -> io::Result<()> {
        let cached = Cached {
            kind: KIND.into(),
            container_id: attachment.pod.clone(),
            config: Some(BASE64.encode(&attachment.config)),
            interface: INTERFACE.into(),
            network: attachment.network.clone(),
            netns: attachment.netns.to_string_lossy().into_owned(),
            arguments: Some(attachment.arguments.clone()),
            capabilities: Some(attachment.capabilities.clone()),
            result: Some(result),
        };
        let path = self.path(&attachment.network, &attachment.pod, INTERFACE);
        let text = serde_json::to_vec(&cached)?;
        if let Err(error) = self.write(&path, &text) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(&self.directory)?;
            self.write(&path, &text)?;
        }
        Ok(())
    }

    /// Whole or not at all. Not synced: a result that the machine's death takes is one DEL can do without.
    fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let beside = path.with_added_extension("new");
        let mut file = options.write(true).create(true).truncate(true).open(&beside)?;
        io::Write::write_all(&mut file, text)?;
        fs::rename(&beside, path)
    }

    /// The result of ADD, where it is there and whole.
    pub(super) fn get(&self, attachment: &Attachment) -> Option<Attached> {
        let cached = read(&self.path(&attachment.network, &attachment.pod, INTERFACE))?;
        let version = Version::parse(&attachment.version).ok()??;
        Attached::from_value(cached.result?, version).ok()
    }

    /// Forgets a result; one that is not there is what is wanted.
    pub(super) fn remove(&self, attachment: &Attachment) {
        let _ = fs::remove_file(self.path(&attachment.network, &attachment.pod, INTERFACE));
    }

    /// All that is attached, by whomever.
    pub(super) fn known(&self) -> Vec<Known> {
        self.files()
            .filter_map(|path| read(&path))
            .map(|cached| Known {
                container: cached.container_id,
                interface: cached.interface,
                network: cached.network,
                netns: cached.netns.into(),
            })
            .collect()
    }

    /// Attachments of ours that the journal does not know: it was lost. Ours have network namespaces that are named so.
    pub(super) fn orphans(&self, journal: &HashMap<String, Attachment>) -> Vec<Attachment> {
        let mut orphans = Vec::new();
        for cached in self.files().filter_map(|path| read(&path)) {
            let ours = Path::new(&cached.netns)
                .file_name()
                .is_some_and(|name| name.to_str() == Some(&format!("rtc-{}", cached.container_id)));
            if !ours || cached.interface != INTERFACE || journal.contains_key(&cached.container_id) {
                continue;
            }
            let config = cached
                .config
                .and_then(|config| BASE64.decode(config).ok())
                .and_then(|config| String::from_utf8(config).ok());
            let version = cached
                .result
                .as_ref()
                .and_then(|result| result.get("cniVersion")?.as_str().map(str::to_owned));
            if let (Some(config), Some(version)) = (config, version) {
                orphans.push(Attachment {
                    pod: cached.container_id,
                    netns: cached.netns.into(),
                    network: cached.network,
                    config,
                    version,
                    arguments: cached.arguments.unwrap_or_default(),
                    capabilities: cached.capabilities.unwrap_or_default(),
                });
            }
        }
        orphans
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    }
}

/// A file of the cache, where it is one.
fn read(path: &Path) -> Option<Cached> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > SIZE_MAX {
        return None;
    }
    let cached: Cached = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (cached.kind == KIND).then_some(cached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(pod: &str) -> Attachment {
        Attachment {
            pod: pod.into(),
            netns: format!("/run/netns/rtc-{pod}").into(),
            network: "net".into(),
            config: r#"{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}"#.into(),
            version: "1.0.0".into(),
            arguments: vec![("K8S_POD_NAME".into(), "web".into())],
            capabilities: Map::new(),
        }
    }

    #[test]
    fn a_result_is_kept_as_libcni_keeps_it() {
        let directory = super::super::tests::Directory::new();
        let cache = Cache::new(&directory.path);
        let kept = attachment("abc");
        let result = serde_json::json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8"}]});
        cache.put(&kept, result.clone()).unwrap();
        let text = fs::read(directory.path.join("results/net-abc-eth0")).unwrap();
        let file: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            file,
            serde_json::json!({
                "kind": "cniCacheV1", "containerId": "abc", "ifName": "eth0", "networkName": "net",
                "netns": "/run/netns/rtc-abc", "cniArgs": [["K8S_POD_NAME", "web"]], "capabilityArgs": {},
                "config": BASE64.encode(&kept.config), "result": result,
            })
        );
        assert_eq!(cache.get(&kept).unwrap().addresses("eth0").unwrap().len(), 1);
        assert_eq!(cache.orphans(&HashMap::new()), std::slice::from_ref(&kept));
        assert!(
            cache
                .orphans(&HashMap::from([("abc".into(), kept.clone())]))
                .is_empty()
        );
        cache.remove(&kept);
        cache.remove(&kept);
        assert!(cache.get(&kept).is_none());
    }

    #[test]
    fn attachments_of_another_runtime_are_known_and_not_ours() {
        let directory = super::super::tests::Directory::new();
        let cache = Cache::new(&directory.path);
        let theirs = Attachment {
            netns: "/var/run/netns/cni-1234".into(),
            ..attachment("def")
        };
        cache
            .put(&theirs, serde_json::json!({"cniVersion": "1.0.0"}))
            .unwrap();
        fs::write(directory.path.join("results/torn"), "{\"kind\": \"cni").unwrap();
        assert!(cache.orphans(&HashMap::new()).is_empty());
        let known = cache.known();
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].container, "def");
    }
}
