//! What a registry says of an image, read: the index, the manifest for this machine, its layers. Pure.
//!
//! ```text
//! index (OCI) or manifest list (Docker) --> the manifest for linux and this processor --> configuration, layers
//! ```

use std::fmt;

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os, Platform};
use serde::Deserialize;

use super::Failure;

/// Bytes of a manifest, an index or a configuration (distribution-spec's least that must be taken, and the usual most).
pub(crate) const MAX_DOCUMENT: usize = 4 << 20;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What manifests may be asked for as.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// What is behind a digest of a repository.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// The fields that tell documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads one. What it says itself counts, not the header it came with (image-spec, CVE-2021-41190).
    ///
    /// # Errors
    ///
    /// It is neither an index nor a manifest, or one that can be read as both.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Failure> {
        let wrong = |why: &dyn fmt::Display| Failure::wrong(format_args!("manifest: {why}"));
        let shape: Shape = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
        if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
            return Err(wrong(
                &"Docker's schema 1 is not taken: push the image again with a tool of this decade",
            ));
        }
        let is_index = match shape.media_type.as_deref() {
            Some(OCI_INDEX | DOCKER_LIST) => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            None | Some("") => shape.manifests.is_some(),
            Some(other) => return Err(wrong(&format_args!("mediaType {other:?} is not an image's"))),
        };
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(wrong(
                &"it has manifests, and layers too: it can be read in two ways",
            ));
        }
        Ok(if is_index {
            Self::Index(serde_json::from_slice(bytes).map_err(|error| wrong(&error))?)
        } else {
            Self::Manifest(serde_json::from_slice(bytes).map_err(|error| wrong(&error))?)
        })
    }
}

/// What this machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    architecture: &'static str,
    /// Of x86-64 (psABI, "micro-architecture levels"): 1 to 4.
    level: u8,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        Self {
            // As Go calls them.
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            level: level(),
        }
    }

    /// How well a platform fits: more is better, `None` does not run here.
    fn rank(self, platform: &Platform) -> Option<u8> {
        if *platform.os() != Os::Linux {
            return None;
        }
        let variant = platform.variant().as_deref().unwrap_or_default();
        let architecture = platform.architecture();
        if architecture.to_string() != self.architecture {
            // As containerd: last, programs of 32 bits.
            return (self.architecture == "amd64" && *architecture == Arch::i386).then_some(1);
        }
        if self.architecture != "amd64" {
            return matches!(variant, "" | "v8").then_some(10);
        }
        let level = match variant {
            "" => 1,
            variant => variant.strip_prefix('v')?.parse::<u8>().ok()?,
        };
        (1..=self.level).contains(&level).then_some(10 + level)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    if !has!("cmpxchg16b" "popcnt" "sse3" "ssse3" "sse4.1" "sse4.2") {
        1
    } else if !has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe") {
        2
    } else if !has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
        3
    } else {
        4
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    1
}

/// The manifest of an index for a machine; of several that fit as well the first.
///
/// # Errors
///
/// There is none: what there is.
pub(crate) fn choose(index: &ImageIndex, machine: Machine) -> Result<&Descriptor, Failure> {
    let entries = index.manifests();
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in entries.iter().filter(|entry| may_be_image(entry.media_type())) {
        // Whoever left the platform out has one for all (and what can't run here is seen when it is started).
        let rank = match entry.platform() {
            Some(platform) => machine.rank(platform),
            None => Some(0),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let there: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform().as_ref())
            .map(told)
            .take(20)
            .collect();
        let there = if there.is_empty() {
            "nothing".into()
        } else {
            there.join(", ")
        };
        Failure::Absent(format!("no image for {machine}: the index has {there}"))
    })
}

fn told(platform: &Platform) -> String {
    let (os, architecture) = (platform.os(), platform.architecture());
    match platform.variant() {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    }
}

fn may_be_image(kind: &MediaType) -> bool {
    matches!(kind, MediaType::ImageIndex | MediaType::ImageManifest)
        || matches!(kind.as_ref(), DOCKER_MANIFEST | DOCKER_LIST)
}

/// Checks that a manifest is an image's that can be unpacked here.
///
/// # Errors
///
/// The field and what it is.
pub(crate) fn check(manifest: &ImageManifest) -> Result<(), Failure> {
    let kind = manifest.config().media_type();
    // Builders of old said nothing better.
    let known = matches!(kind, MediaType::ImageConfig)
        || matches!(kind.as_ref(), DOCKER_CONFIG | "application/octet-stream");
    if !known {
        return Err(Failure::wrong(format_args!(
            "manifest: config.mediaType {kind}: it is an artifact, not an image"
        )));
    }
    if manifest.config().size() > MAX_DOCUMENT as u64 {
        return Err(Failure::wrong(format_args!(
            "manifest: config.size {}: more than {MAX_DOCUMENT} bytes",
            manifest.config().size()
        )));
    }
    for (at, layer) in manifest.layers().iter().enumerate() {
        let kind = layer.media_type().as_ref();
        let refused = if kind.contains("nondistributable") || kind.contains(".foreign.") {
            "foreign and non-distributable layers are not taken"
        } else if kind.contains("+encrypted") || kind.ends_with(".enc") {
            "encrypted layers are not taken"
        } else {
            continue;
        };
        return Err(Failure::wrong(format_args!(
            "manifest: layers[{at}].mediaType {kind}: {refused}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const AMD64: Machine = Machine {
        architecture: "amd64",
        level: 3,
    };

    fn index(platforms: &[&str]) -> ImageIndex {
        let entries: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(at, platform)| {
                let mut entry = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": at});
                let parts: Vec<&str> = platform.split('/').collect();
                if let [os, architecture, ..] = parts[..] {
                    entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                    if let Some(variant) = parts.get(2) {
                        entry["platform"]["variant"] = (*variant).into();
                    }
                }
                entry
            })
            .collect();
        let json = serde_json::json!({"schemaVersion": 2, "manifests": entries});
        match Document::read(json.to_string().as_bytes()).unwrap() {
            Document::Index(index) => *index,
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn the_manifest_that_fits_this_machine_best_is_chosen() {
        for (platforms, expected) in [
            (&["linux/arm64", "linux/amd64"][..], Some(1)),
            (&["linux/amd64", "linux/amd64"], Some(0)),
            (
                &[
                    "linux/amd64",
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/amd64/v4",
                ],
                Some(1),
            ),
            (&["linux/amd64/v4", "linux/amd64/v1"], Some(1)),
            (&["linux/386", "linux/amd64"], Some(1)),
            (&["linux/arm64", "linux/386"], Some(1)),
            (&["unknown/unknown", "linux/amd64", "unknown/unknown"], Some(1)),
            (&["", "linux/amd64"], Some(1)),
            (&["linux/arm64", ""], Some(1)),
            (
                &["windows/amd64", "linux/arm/v7", "linux/amd64/v9", "linux/amd64/x"],
                None,
            ),
            (&[], None),
        ] {
            let index = index(platforms);
            let chosen = choose(&index, AMD64).ok().map(Descriptor::size);
            assert_eq!(chosen, expected, "{platforms:?}");
        }
    }

    #[test]
    fn an_index_without_this_machine_says_what_it_has() {
        let error = choose(&index(&["windows/amd64", "linux/arm/v7"]), AMD64).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::NotFound);
        let expected = "no image for linux/amd64: the index has windows/amd64, linux/arm/v7";
        assert_eq!(error.to_string(), expected);
    }

    fn manifest(config: &str, layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{DIGEST}","size":3}},
               "layers":[{{"mediaType":"{layer}","digest":"{DIGEST}","size":4}}]}}"#
        )
    }

    fn refused(json: &str) -> String {
        match Document::read(json.as_bytes()) {
            Ok(Document::Manifest(manifest)) => check(&manifest).unwrap_err().to_string(),
            Ok(Document::Index(_)) => panic!("a manifest"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn manifests_of_docker_and_of_oci_are_read() {
        for (config, layer) in [
            (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
            (DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ] {
            match Document::read(manifest(config, layer).as_bytes()).unwrap() {
                Document::Manifest(manifest) => check(&manifest).unwrap(),
                Document::Index(_) => panic!("a manifest"),
            }
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let config = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let with = |field: &str| manifest(config, layer).replacen('{', &format!("{{{field},"), 1);
        for (json, expected) in [
            ("{", "manifest: EOF"),
            ("[]", "manifest: "),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1 is not taken"),
            (
                &with(r#""mediaType":"application/vnd.cncf.helm""#),
                "mediaType \"application/vnd.cncf.helm\"",
            ),
            (&with(r#""manifests":[]"#), "two ways"),
            (
                &manifest("application/vnd.oci.empty.v1+json", layer),
                "an artifact, not an image",
            ),
            (
                &manifest(
                    config,
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                ),
                "layers[0].mediaType application/vnd.docker.image.rootfs.foreign.diff.tar.gzip: foreign",
            ),
            (
                &manifest(
                    config,
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                ),
                "non-distributable",
            ),
            (
                &manifest(config, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
                "encrypted",
            ),
            (
                &manifest(config, layer).replace("\"size\":3", "\"size\":9999999"),
                "config.size 9999999",
            ),
            (
                &manifest(config, layer).replace("\"size\":4", "\"size\":-4"),
                "manifest: ",
            ),
            (
                &manifest(config, layer).replace("sha256:01", "sha256:/../"),
                "manifest: ",
            ),
        ] {
            let error = refused(json);
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
