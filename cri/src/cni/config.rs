//! The network of the node: the first configuration in the directory, as libcni and containerd find it.
//!
//! ```text
//! conf_dir/10-calico.conflist          a list of plugins; the first file by name of .conflist, .conf, .json counts
//! conf_dir/<network's name>/*.conf     more plugins of that list, but for `loadOnlyInlinedPlugins` (CNI 1.1)
//! conf_dir/99-bridge.conf              (or .json) a single plugin: a list of one
//! ```
//!
//! Nothing watches the directory: who needs the network looks whether the files are still those that were read (`Seen`),
//! which costs a few microseconds, misses nothing, and does not care whether the directory is there yet.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::result::kind;
use super::version::{self, Version};

/// No configuration is larger, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// A file that changed so shortly before it was read may change again without its time showing it.
const RACY: Duration = Duration::from_millis(50);

/// A network: plugins that are run one after another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    pub(super) name: String,
    /// What the configuration can be spoken in, the best first. At least one.
    pub(super) versions: Vec<Version>,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    /// At least one.
    pub(super) plugins: Vec<Plugin>,
    /// The configuration as a list with all its plugins in it, for the cache.
    pub(super) source: String,
}

/// A plugin in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    /// The name of its program.
    pub(super) program: String,
    /// What it wants to be told of (`runtimeConfig`).
    pub(super) capabilities: Vec<String>,
    /// What it gets, but for what is added.
    pub(super) config: Map<String, Value>,
}

/// What a directory looked like when it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    files: Vec<(PathBuf, Option<Stamp>)>,
    /// A file changed just before: what was read may be old, though nothing shows it.
    racy: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Seen {
    /// Whether nothing changed since `then`.
    pub(super) fn is_still(&self, then: &Self) -> bool {
        !then.racy && self.files == then.files
    }
}

/// What the directory looks like now. One that is not there has no files.
pub(super) fn look(directory: &Path) -> Seen {
    let mut files = Vec::new();
    let mut racy = false;
    let now = SystemTime::now();
    let mut add = |path: PathBuf, files: &mut Vec<_>| {
        // Follows links: kubelets and installers make some.
        let metadata = fs::metadata(&path).ok();
        if let Some(Ok(changed)) = metadata.as_ref().map(fs::Metadata::modified) {
            racy |= now.duration_since(changed).map_or(true, |age| age < RACY);
        }
        files.push((path, metadata.as_ref().map(Stamp::of)));
    };
    for (name, is_directory) in entries(directory) {
        let path = directory.join(&name);
        if is_directory {
            // Plugins of a network of that name.
            for (name, is_directory) in entries(&path) {
                if !is_directory && extension(&name) == Some("conf") {
                    add(path.join(&name), &mut files);
                }
            }
        } else if is_configuration(&name) {
            add(path, &mut files);
        }
    }
    Seen { files, racy }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The names in a directory, sorted, and whether each is a directory.
fn entries(directory: &Path) -> Vec<(String, bool)> {
    let Ok(read) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut entries: Vec<(String, bool)> = read
        .flatten()
        .filter_map(|entry| {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            Some((entry.file_name().into_string().ok()?, is_directory))
        })
        .collect();
    entries.sort();
    entries
}

fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, extension)| extension)
}

fn is_configuration(name: &str) -> bool {
    matches!(extension(name), Some("conflist" | "conf" | "json"))
}

/// The network of a directory.
///
/// # Errors
///
/// There is none, or the first one is wrong: which file, which key, and why.
pub(super) fn load(directory: &Path) -> Result<Network, String> {
    let names = entries(directory);
    let first = names
        .iter()
        .find(|(name, is_directory)| !is_directory && is_configuration(name));
    let Some((name, _)) = first else {
        return Err(format!(
            "no network configuration (.conflist, .conf, .json) in {}",
            directory.display()
        ));
    };
    let path = directory.join(name);
    let inside = |error: String| format!("{}: {error}", path.display());
    let object = read(&path).map_err(inside)?;
    if extension(name) == Some("conflist") {
        let more = |network: &str| more_plugins(&directory.join(network));
        of_list(object, more).map_err(inside)
    } else {
        of_plugin(object).map_err(inside)
    }
}

/// A configuration from the text of a list, as caches keep it.
///
/// # Errors
///
/// The key, and why.
pub(super) fn of_text(text: &str) -> Result<Network, String> {
    of_list(object(text)?, |_| Ok(Vec::new()))
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    // A FIFO would never end.
    if !metadata.is_file() {
        return Err("is no file".into());
    }
    if metadata.len() > SIZE_MAX {
        return Err(format!("has {} bytes, more than {SIZE_MAX}", metadata.len()));
    }
    object(&fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("is no JSON object but {}", kind(&other))),
        Err(error) => Err(format!("is no JSON: {error}")),
    }
}

/// The plugins that were put into the directory of a network, each in a file.
fn more_plugins(directory: &Path) -> Result<Vec<Value>, String> {
    let mut plugins = Vec::new();
    for (name, is_directory) in entries(directory) {
        if !is_directory && extension(&name) == Some("conf") {
            let path = directory.join(name);
            let inside = |error: String| format!("{}: {error}", path.display());
            let plugin = read(&path).map_err(inside)?;
            Plugin::parse(&plugin).map_err(inside)?;
            plugins.push(Value::Object(plugin));
        }
    }
    Ok(plugins)
}

fn of_list(
    mut list: Map<String, Value>,
    more: impl FnOnce(&str) -> Result<Vec<Value>, String>,
) -> Result<Network, String> {
    let name = network_name(&list)?;
    let versions = versions(&list)?;
    let only_inlined = flag(&list, "loadOnlyInlinedPlugins")?;
    let mut plugins = match list.remove("plugins") {
        None if only_inlined => {
            return Err("plugins: is missing, and loadOnlyInlinedPlugins lets no others in".into());
        }
        None => Vec::new(),
        Some(Value::Array(plugins)) if plugins.is_empty() => return Err("plugins: is empty".into()),
        Some(Value::Array(plugins)) => plugins,
        Some(other) => return Err(format!("plugins: is no list but {}", kind(&other))),
    };
    if !only_inlined {
        plugins.extend(more(&name)?);
    }
    if plugins.is_empty() {
        return Err("plugins: is missing".into());
    }
    let parsed: Result<Vec<Plugin>, String> = plugins
        .iter()
        .enumerate()
        .map(|(place, plugin)| {
            let inside = |error: String| format!("plugins[{place}].{error}");
            match plugin {
                Value::Object(plugin) => Plugin::parse(plugin).map_err(inside),
                other => Err(format!("plugins[{place}]: is no object but {}", kind(other))),
            }
        })
        .collect();
    let network = Network {
        versions,
        disable_check: flag(&list, "disableCheck")?,
        disable_gc: flag(&list, "disableGC")?,
        plugins: parsed?,
        source: {
            list.insert("plugins".into(), Value::Array(plugins));
            // Who reads it again has all plugins.
            list.insert("loadOnlyInlinedPlugins".into(), Value::Bool(true));
            Value::Object(list).to_string()
        },
        name,
    };
    Ok(network)
}

fn of_plugin(plugin: Map<String, Value>) -> Result<Network, String> {
    if plugin.contains_key("plugins") && !plugin.contains_key("type") {
        return Err("type: is missing; a list of plugins has a name that ends in .conflist".into());
    }
    let mut list = Map::new();
    for key in ["name", "cniVersion"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.into(), value.clone());
        }
    }
    Plugin::parse(&plugin)?;
    list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    of_list(list, |_| Ok(Vec::new()))
}

impl Plugin {
    fn parse(config: &Map<String, Value>) -> Result<Self, String> {
        let program = match config.get("type") {
            Some(Value::String(program)) => program,
            Some(other) => return Err(format!("type: is no string but {}", kind(other))),
            None => return Err("type: is missing: the name of the plugin's program".into()),
        };
        if program.is_empty() || program == "." || program == ".." || program.contains(['/', '\\', '\0']) {
            return Err(format!("type: {program:?} is no name of a program"));
        }
        let mut config = config.clone();
        // A request never has it (SPEC.md, "Deriving request configuration"), nor what is ours to add.
        let capabilities = match config.remove("capabilities") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(capabilities)) => enabled(capabilities)?,
            Some(other) => return Err(format!("capabilities: is no object but {}", kind(&other))),
        };
        config.retain(|key, _| key != "prevResult" && !key.starts_with("cni.dev/"));
        Ok(Self {
            program: program.clone(),
            capabilities,
            config,
        })
    }
}

fn enabled(capabilities: Map<String, Value>) -> Result<Vec<String>, String> {
    let mut enabled = Vec::new();
    for (name, value) in capabilities {
        match value {
            Value::Bool(true) => enabled.push(name),
            Value::Bool(false) => {}
            other => return Err(format!("capabilities.{name}: is no boolean but {}", kind(&other))),
        }
    }
    Ok(enabled)
}

fn network_name(list: &Map<String, Value>) -> Result<String, String> {
    let name = match list.get("name") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("name: is no string but {}", kind(other))),
        None => return Err("name: is missing".into()),
    };
    let first = name
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !first || !name.chars().all(allowed) {
        return Err(format!(
            "name: {name:?}: letters, digits, '_', '.' and '-' are allowed, a letter or digit first"
        ));
    }
    // It is a part of a file's name in the cache.
    if name.len() > 128 {
        return Err(format!("name: {name:?} is longer than 128 bytes"));
    }
    Ok(name.clone())
}

/// The versions of `cniVersion` and `cniVersions` that we speak, the best first.
fn versions(list: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let mut known = Vec::new();
    let mut newer = Vec::new();
    let mut add = |key: String, value: &Value| -> Result<(), String> {
        let Value::String(text) = value else {
            return Err(format!("{key}: is no string but {}", kind(value)));
        };
        match Version::parse(text).map_err(|error| format!("{key}: {error}"))? {
            Some(version) => known.push(version),
            None => newer.push(text.clone()),
        }
        Ok(())
    };
    match list.get("cniVersions") {
        None => {}
        Some(Value::Array(all)) => {
            for (place, value) in all.iter().enumerate() {
                add(format!("cniVersions[{place}]"), value)?;
            }
        }
        Some(other) => return Err(format!("cniVersions: is no list but {}", kind(other))),
    }
    if let Some(value) = list.get("cniVersion") {
        add("cniVersion".into(), value)?;
    }
    if known.is_empty() {
        if newer.is_empty() {
            return Ok(vec![Version::FIRST]);
        }
        return Err(format!(
            "cniVersion: {} is newer than {}, the last one known here",
            newer.join(", "),
            Version::LAST
        ));
    }
    known.sort_by(|one, other| other.cmp(one));
    known.dedup();
    Ok(known)
}

/// A boolean, or the string of one, as libcni takes it.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(Value::String(text)) => Err(format!("{key}: {text:?} is neither true nor false")),
        Some(other) => Err(format!("{key}: is no boolean but {}", kind(other))),
    }
}

impl Network {
    /// `0.4.0, 1.0.0`, for an error.
    pub(super) fn versions_text(&self) -> String {
        version::list(self.versions.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Directory;
    use super::*;

    fn loaded(files: &[(&str, &str)]) -> Result<Network, String> {
        let directory = Directory::new();
        for (name, text) in files {
            let path = directory.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        load(&directory.path)
    }

    #[test]
    fn the_first_file_by_name_counts_whatever_it_is_called() {
        let list = r#"{"name": "list", "cniVersion": "1.0.0", "plugins": [{"type": "a"}, {"type": "b"}]}"#;
        let single = r#"{"name": "single", "cniVersion": "0.4.0", "type": "c", "capabilities": {"mac": true, "ips": false}}"#;
        let network = loaded(&[
            ("20.conflist", list),
            ("10.json", single),
            ("00-README", "no"),
            ("01.conflist.bak", "{"),
        ]);
        let network = network.unwrap();
        assert_eq!(network.name, "single");
        assert_eq!(network.versions, [Version::CHECK]);
        assert_eq!(network.plugins[0].capabilities, ["mac"]);
        assert!(!network.plugins[0].config.contains_key("capabilities"));
        assert_eq!(
            loaded(&[("20.conflist", list), ("30.conf", single)])
                .unwrap()
                .plugins
                .len(),
            2
        );
    }

    #[test]
    fn plugins_are_added_from_the_directory_of_the_network_but_where_only_inlined_ones_are_wanted() {
        let list = r#"{"name": "net", "plugins": [{"type": "a"}]}"#;
        let more = [
            ("net/20.conf", r#"{"type": "c"}"#),
            ("net/10.conf", r#"{"type": "b"}"#),
            ("net/x.txt", "no"),
        ];
        let with = |list| [[("1.conflist", list)].as_slice(), &more].concat();
        let programs = |network: &Network| -> Vec<String> {
            network
                .plugins
                .iter()
                .map(|plugin| plugin.program.clone())
                .collect()
        };
        let network = loaded(&with(list)).unwrap();
        assert_eq!(programs(&network), ["a", "b", "c"]);
        // What is recorded of it has them all.
        assert_eq!(programs(&of_text(&network.source).unwrap()), ["a", "b", "c"]);
        assert_eq!(
            programs(&loaded(&with(r#"{"name": "net"}"#)).unwrap()),
            ["b", "c"]
        );
        let only = r#"{"name": "net", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "a"}]}"#;
        assert_eq!(programs(&loaded(&with(only)).unwrap()), ["a"]);
        let wrong = [("1.conflist", list), ("net/1.conf", r#"{"typo": "b"}"#)];
        let error = loaded(&wrong).unwrap_err();
        assert!(error.contains("net/1.conf: type: is missing"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file_and_key() {
        for (text, why) in [
            ("", "is no JSON"),
            ("[]", "a list"),
            (r#"{"plugins": [{"type": "a"}]}"#, "name: is missing"),
            (
                r#"{"name": "../etc", "plugins": [{"type": "a"}]}"#,
                "name: \"../etc\"",
            ),
            (r#"{"name": 1, "plugins": []}"#, "name: is no string but a number"),
            (r#"{"name": "n"}"#, "plugins: is missing"),
            (
                r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#,
                "plugins: is missing",
            ),
            (r#"{"name": "n", "plugins": []}"#, "plugins: is empty"),
            (
                r#"{"name": "n", "plugins": {}}"#,
                "plugins: is no list but an object",
            ),
            (
                r#"{"name": "n", "plugins": ["a"]}"#,
                "plugins[0]: is no object but a string",
            ),
            (
                r#"{"name": "n", "plugins": [{"type": "a"}, {}]}"#,
                "plugins[1].type: is missing",
            ),
            (
                r#"{"name": "n", "plugins": [{"type": "a/b"}]}"#,
                "plugins[0].type: \"a/b\"",
            ),
            (
                r#"{"name": "n", "plugins": [{"type": ".."}]}"#,
                "plugins[0].type: \"..\"",
            ),
            (
                r#"{"name": "n", "plugins": [{"type": "a", "capabilities": {"mac": "yes"}}]}"#,
                "plugins[0].capabilities.mac: is no boolean",
            ),
            (
                r#"{"name": "n", "cniVersion": "0.3.2", "plugins": [{"type": "a"}]}"#,
                "cniVersion: \"0.3.2\"",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.9.0", "plugins": [{"type": "a"}]}"#,
                "newer than 1.1.0",
            ),
            (
                r#"{"name": "n", "cniVersions": ["1.0.0", 1], "plugins": [{"type": "a"}]}"#,
                "cniVersions[1]",
            ),
            (
                r#"{"name": "n", "disableGC": "no", "plugins": [{"type": "a"}]}"#,
                "disableGC: \"no\"",
            ),
            (
                r#"{"name": "n", "disableCheck": 1, "plugins": [{"type": "a"}]}"#,
                "disableCheck: is no boolean",
            ),
        ] {
            let error = loaded(&[("10-net.conflist", text)]).unwrap_err();
            assert!(
                error.contains("10-net.conflist: ") && error.contains(why),
                "{text}: {error}"
            );
        }
        let error = loaded(&[("1.conf", r#"{"name": "n", "plugins": [{"type": "a"}]}"#)]).unwrap_err();
        assert!(
            error.contains("1.conf: type: is missing; a list of plugins"),
            "{error}"
        );
        assert!(
            load(Path::new("/nonexistent"))
                .unwrap_err()
                .contains("no network configuration")
        );
    }

    #[test]
    fn the_versions_of_a_network_are_those_we_speak_the_best_first() {
        let versions = |text: &str| of_text(text).map(|network| network.versions_text());
        let plugins = r#""plugins": [{"type": "a"}]"#;
        assert_eq!(
            versions(&format!(r#"{{"name": "n", {plugins}}}"#)).unwrap(),
            "0.1.0"
        );
        let several = format!(
            r#"{{"name": "n", "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "2.0.0", "1.0.0"], {plugins}}}"#
        );
        assert_eq!(versions(&several).unwrap(), "1.1.0, 1.0.0, 0.4.0");
        let flags = format!(r#"{{"name": "n", "disableCheck": true, "disableGC": "True", {plugins}}}"#);
        let flags = of_text(&flags).unwrap();
        assert!(flags.disable_check && flags.disable_gc);
    }

    #[test]
    fn keys_that_are_ours_to_add_are_not_taken_from_a_file() {
        let network = of_text(
            r#"{"name": "n", "plugins": [{"type": "a", "prevResult": {}, "cni.dev/attachments": [], "args": {"x": 1}}]}"#,
        );
        let config = network.unwrap().plugins.remove(0).config;
        assert_eq!(config.keys().collect::<Vec<_>>(), ["args", "type"]);
    }

    #[test]
    fn a_change_is_seen_even_where_times_are_coarse() {
        let directory = Directory::new();
        let path = directory.path.join("1.conflist");
        fs::write(&path, "a").unwrap();
        let first = look(&directory.path);
        fs::write(&path, "b").unwrap();
        assert!(!look(&directory.path).is_still(&first));
        std::thread::sleep(RACY * 2);
        let quiet = look(&directory.path);
        assert!(look(&directory.path).is_still(&quiet));
    }
}
