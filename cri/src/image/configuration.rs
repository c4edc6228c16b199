//! An image's configuration (image-spec, `config.md`), read once.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Untrusted;
use crate::error::{Error, Result};

/// What is used of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Configuration {
    pub(crate) config: Untrusted,
    /// `sha256:...` of each layer's plain tar, the lowest first.
    pub(crate) diff_ids: Vec<String>,
    pub(crate) os: String,
}

/// As it is written. What is `null` is as if it were not there: Docker writes both.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Whole {
    os: Option<String>,
    config: Option<Config>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Configuration {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// It is not one, or has a diff id that is no sha256 digest.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let whole: Whole = serde_json::from_slice(json)
            .map_err(|error| Error::invalid(format_args!("the image's configuration: {error}")))?;
        let config = whole.config.unwrap_or_default();
        let diff_ids = whole.rootfs.unwrap_or_default().diff_ids.unwrap_or_default();
        if let Some(wrong) = diff_ids.iter().find(|id| !is_sha256(id)) {
            return Err(Error::invalid(format_args!(
                "the image's configuration: rootfs.diff_ids: {wrong:?}: must be sha256:<64 hexadecimal digits>"
            )));
        }
        Ok(Self {
            config: Untrusted {
                user: config.user.unwrap_or_default(),
                env: config.env.unwrap_or_default(),
                entrypoint: config.entrypoint.unwrap_or_default(),
                cmd: config.cmd.unwrap_or_default(),
                working_dir: config.working_dir.unwrap_or_default(),
                stop_signal: config.stop_signal.unwrap_or_default(),
                volumes: config.volumes.unwrap_or_default().into_keys().collect(),
                labels: config.labels.unwrap_or_default(),
            },
            diff_ids,
            os: whole.os.unwrap_or_default(),
        })
    }
}

/// `sha256:` and 64 digits, in lower case.
pub(super) fn is_sha256(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(is_digits)
}

/// 64 hexadecimal digits, in lower case.
pub(super) fn is_digits(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_as_if_it_were_not_there() {
        let json = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],
            "Volumes":{"/data":{}},"Labels":null,"User":"1000:2000","Healthcheck":{"Test":[]}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[]}"#;
        let configuration = Configuration::parse(json).unwrap();
        assert_eq!(configuration.config.cmd, ["sh"]);
        assert_eq!(configuration.config.volumes, ["/data"]);
        assert_eq!(configuration.config.user, "1000:2000");
        assert!(configuration.config.env.is_empty() && configuration.diff_ids.is_empty());
        assert_eq!(configuration.os, "linux");
        assert!(Configuration::parse(b"{}").is_ok());
    }

    #[test]
    fn a_diff_id_that_is_no_digest_is_refused_by_its_value() {
        for wrong in ["", "sha256:ab", "md5:0", "sha256:../../../../etc/passwd"] {
            let json = format!(r#"{{"rootfs":{{"diff_ids":[{wrong:?}]}}}}"#);
            let error = Configuration::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
        assert!(Configuration::parse(b"[1]").is_err());
    }
}
