//! `containerd-shim-rtc-v2 -info`: what the runtime of a handler can do (OCI runtime specification, features.md).

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use serde::Deserialize;
use tokio::process::Command;

use super::Options;
use super::start::talk;
use crate::error::Result;
use crate::proto::RuntimeHandlerFeatures;

const DEADLINE: Duration = Duration::from_secs(10);

/// What we look for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    namespaces: Vec<String>,
    mount_extensions: MountExtensions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountExtensions {
    idmap: Enabled,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Enabled {
    enabled: Option<bool>,
}

/// Asks the shim, which asks its runtime.
///
/// # Errors
///
/// It can't be run, or is not understood.
pub(crate) async fn features(program: &Path, options: &Options) -> Result<RuntimeHandlerFeatures> {
    let asking = async {
        let options = options.to_any().write_to_bytes()?;
        let output = talk(Command::new(program).arg("-info"), &options, DEADLINE).await?;
        let info = RuntimeInfo::parse_from_bytes(&output.stdout).context("its answer")?;
        let features = info.features.into_option().unwrap_or_default().value;
        parse(&features)
    };
    Ok(asking
        .await
        .with_context(|| format!("{} -info", program.display()))?)
}

/// A runtime that knows not the question says nothing.
fn parse(json: &[u8]) -> anyhow::Result<RuntimeHandlerFeatures> {
    if json.is_empty() {
        return Ok(RuntimeHandlerFeatures::default());
    }
    let features: Features = serde_json::from_slice(json).context("features")?;
    let linux = features.linux;
    let users = linux.namespaces.iter().any(|namespace| namespace == "user");
    Ok(RuntimeHandlerFeatures {
        recursive_read_only_mounts: features.mount_options.iter().any(|option| option == "rro"),
        user_namespaces: users && linux.mount_extensions.idmap.enabled == Some(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_users_of_its_own_needs_idmapped_mounts() {
        let with = br#"{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["user"],
            "mountExtensions": {"idmap": {"enabled": true}}}}"#;
        let features = parse(with).unwrap();
        assert!(features.user_namespaces && features.recursive_read_only_mounts);
        let without = parse(br#"{"mountOptions": ["ro"], "linux": {"namespaces": ["user"]}}"#).unwrap();
        assert_eq!(without, RuntimeHandlerFeatures::default());
        assert_eq!(parse(b"").unwrap(), RuntimeHandlerFeatures::default());
        assert!(parse(b"{").is_err());
    }
}
