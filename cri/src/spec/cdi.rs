//! Devices by name (Container Device Interface): what their vendor's specification adds to a container.
//!
//! ```text
//! CDI_devices, annotations cdi.k8s.io/*  -> names: vendor.com/class=name
//! /etc/cdi, /var/run/cdi: *.json, *.yaml -> Registry -> Edits of each name, of its specification once
//! ```
//!
//! Only the request's own annotations count, never those of an image or a checkpoint (CVE-2026-53492). Directories are read
//! when a container asks for such a device, so that there is nothing to reload.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Number, Value};
use yaml_rust2::{Yaml, YamlLoader};

use super::devices::{self, Node};
use crate::error::{Error, Kind, Result};
use crate::proto::ContainerConfig;

/// Where specifications are, the stronger directory last.
pub(super) const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The most bytes of one file.
const MOST: u64 = 16 << 20;
const ANNOTATION: &str = "cdi.k8s.io/";

/// What devices add to a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    /// `vendor.com/class`.
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// The names that a container asks for, each once: those of the field, then those of annotations in the order of their keys.
///
/// # Errors
///
/// `InvalidArgument`: a name that is none.
pub(super) fn names(config: &ContainerConfig) -> Result<Vec<String>> {
    let mut annotations: Vec<_> = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .collect();
    annotations.sort();
    let of_field = config
        .cdi_devices
        .iter()
        .map(|device| ("CDI_devices".to_owned(), &*device.name));
    let of_annotations = annotations.into_iter().flat_map(|(key, names)| {
        names
            .split(',')
            .map(move |name| (format!("annotations[{key:?}]"), name))
    });
    let mut seen = Vec::new();
    for (field, name) in of_field.chain(of_annotations) {
        if split(name).is_none() {
            return Err(Error::invalid(format_args!(
                "config.{field}: {name:?}: must be a device's full name, as vendor.com/class=name"
            )));
        }
        if !seen.iter().any(|known| known == name) {
            seen.push(name.to_owned());
        }
    }
    Ok(seen)
}

/// `vendor.com/class` and the device's name.
fn split(name: &str) -> Option<(&str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let good = |part: &str, first: fn(&u8) -> bool, more: &[u8]| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(first)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || more.contains(byte))
    };
    let known = good(vendor, u8::is_ascii_alphabetic, b"_-.")
        && good(class, u8::is_ascii_alphabetic, b"_-")
        && good(device, u8::is_ascii_alphanumeric, b"_-.:");
    known.then_some((kind, device))
}

/// All specifications of the node.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// With the place of their directory: of two devices of a name that of the later directory counts.
    specifications: Vec<(usize, PathBuf, Specification)>,
    /// Files that could not be read, and why.
    broken: Vec<String>,
}

impl Registry {
    /// Reads the directories; one that is not there is empty, a file that is none is remembered.
    pub(super) fn read(directories: &[&str]) -> Self {
        let mut registry = Self::default();
        for (at, directory) in directories.iter().enumerate() {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let Some(extension) = path.extension().and_then(|extension| extension.to_str()) else {
                    continue;
                };
                if !matches!(extension, "json" | "yaml" | "yml") {
                    continue;
                }
                match read(&path).and_then(|text| parse(&text, extension == "json")) {
                    Ok(specification) => registry.specifications.push((at, path, specification)),
                    Err(error) => registry.broken.push(format!("{}: {error:#}", path.display())),
                }
            }
        }
        registry
    }

    /// What these devices add, in order.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: there is no such device; `FailedPrecondition`: there are two.
    pub(super) fn edits(&self, names: &[String]) -> Result<Vec<Edits>> {
        let mut edits = Vec::new();
        let mut used = HashSet::new();
        for name in names {
            let (path, specification, device) = self.find(name)?;
            if used.insert(path) {
                edits.push(specification.container_edits.clone());
            }
            edits.push(device.container_edits.clone());
        }
        Ok(edits)
    }

    fn find(&self, name: &str) -> Result<(&Path, &Specification, &Device)> {
        let (kind, device) = split(name).unwrap_or_default();
        let mut found: Vec<_> = self
            .specifications
            .iter()
            .filter(|(.., specification)| specification.kind == kind)
            .flat_map(|(at, path, specification)| {
                let named = specification.devices.iter().filter(|known| known.name == device);
                named.map(move |device| (*at, path, specification, device))
            })
            .collect();
        let strongest = found.iter().map(|(at, ..)| *at).max();
        found.retain(|(at, ..)| Some(*at) == strongest);
        match &*found {
            [] => Err(Error::invalid(format_args!(
                "config.CDI_devices: {name:?}: no specification in {} has it{}{}",
                DIRECTORIES.join(" or "),
                if self.broken.is_empty() {
                    ""
                } else {
                    "; not readable: "
                },
                self.broken.join("; ")
            ))),
            [(_, path, specification, device)] => Ok((path, specification, device)),
            [(_, first, ..), (_, second, ..), ..] => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!(
                    "config.CDI_devices: {name:?}: is in {} and in {}: remove one",
                    first.display(),
                    second.display()
                ),
            )),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MOST + 1)
        .read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= MOST, "is longer than {MOST} bytes");
    Ok(text)
}

fn parse(text: &str, json: bool) -> anyhow::Result<Specification> {
    if json {
        return Ok(serde_json::from_str(text)?);
    }
    let documents = YamlLoader::load_from_str(text)?;
    let first = documents.into_iter().next().unwrap_or(Yaml::Null);
    Ok(serde_json::from_value(as_json(first))?)
}

/// Keys that are no text are left out: no field of a specification has them.
fn as_json(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Real(text) => text
            .parse()
            .ok()
            .and_then(Number::from_f64)
            .map_or(Value::Null, Value::Number),
        Yaml::Integer(number) => number.into(),
        Yaml::String(text) => text.into(),
        Yaml::Boolean(is) => is.into(),
        Yaml::Array(all) => all.into_iter().map(as_json).collect(),
        Yaml::Hash(fields) => {
            let fields = fields.into_iter().filter_map(|(key, value)| match key {
                Yaml::String(key) => Some((key, as_json(value))),
                _ => None,
            });
            fields.collect::<Map<_, _>>().into()
        }
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => Value::Null,
    }
}

impl DeviceNode {
    /// Takes from the host's node what the specification leaves out.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition`: the host has no such device.
    pub(super) fn fill(&mut self) -> Result<()> {
        let whole = !self.kind.is_empty() && self.major.is_some();
        let host = self.host_path.clone().unwrap_or_else(|| self.path.clone());
        let missing = |error: &dyn std::fmt::Display| {
            Error::text(
                Kind::FailedPrecondition,
                format_args!("config.CDI_devices: deviceNodes: {}: {error}", host.display()),
            )
        };
        match devices::node(&host, &self.path) {
            Ok(Some(node)) => {
                self.file_mode.get_or_insert(node.mode);
                if !whole {
                    (if node.block { "b" } else { "c" }).clone_into(&mut self.kind);
                    (self.major, self.minor) = (Some(node.major), Some(node.minor));
                }
                Ok(())
            }
            _ if whole => Ok(()),
            Ok(None) => Err(missing(&"is no device")),
            Err(error) => Err(missing(&error)),
        }
    }

    /// As one that was found; of the container's user where it says nothing.
    pub(super) fn node(&self, uid: u32, gid: u32) -> Node {
        Node {
            path: self.path.clone(),
            block: self.kind == "b",
            major: self.major.unwrap_or(0),
            minor: self.minor.unwrap_or(0),
            mode: self.file_mode.unwrap_or(0o660),
            uid: self.uid.unwrap_or(uid),
            gid: self.gid.unwrap_or(gid),
        }
    }
}
