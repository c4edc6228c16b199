//! What a process' stdio depends on in its configuration: rules on paths hold for a named FIFO, and not for a pipe.
//!
//! The configuration is on the tmpfs that containerd keeps bundles on; of it, only two words are kept.

use std::path::Path;

use rtc_runtime::bundle::{self, CONFIG, MAX_CONFIG_SIZE};
use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::io::fifo;

/// The words of a process that say how it is confined.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Confinement {
    selinux_label: Option<String>,
    apparmor_profile: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Config {
    process: Option<Confinement>,
}

impl Confinement {
    fn needs_pipes(&self) -> bool {
        fifo::needs_pipes(self.selinux_label.as_deref(), self.apparmor_profile.as_deref())
    }
}

/// Whether the init of a bundle gets pipes instead of FIFOs.
///
/// # Errors
///
/// There is no configuration that could be read: nothing could be created of it either.
pub(crate) fn of_bundle(directory: &Path) -> Result<bool> {
    let read = || {
        let raw = bundle::read_config(&directory.join(CONFIG), MAX_CONFIG_SIZE)?;
        bundle::parse_json::<Config>(&raw)
    };
    let config = read().map_err(|error| Error::new(Kind::InvalidArgument, error))?;
    Ok(config
        .process
        .is_some_and(|confinement| confinement.needs_pipes()))
}

/// Whether a process of exec, as JSON, gets pipes instead of FIFOs.
///
/// # Errors
///
/// It is no process.
pub(crate) fn of_process(json: &[u8]) -> Result<bool> {
    let confinement: Confinement =
        bundle::parse_json(json).map_err(|error| Error::new(Kind::InvalidArgument, error.context("spec")))?;
    Ok(confinement.needs_pipes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_or_a_strict_profile_asks_for_pipes() {
        assert!(!of_process(br#"{"args": ["a"], "cwd": "/"}"#).unwrap());
        assert!(of_process(br#"{"apparmorProfile": "strict"}"#).unwrap());
        assert!(of_process(br#"{"selinuxLabel": "a:b:c"}"#).unwrap());
        assert_eq!(of_process(b"[").unwrap_err().kind, Kind::InvalidArgument);
    }
}
