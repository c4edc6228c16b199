//! The network as it is configured now, the version it is spoken in, and whether its plugins are ready.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::config::{self, Network};
use super::exec::{Environment, Verb};
use super::version::Version;
use super::{Loaded, Networks, locked};
use crate::error::{Error, Kind, Result};
use crate::log;

/// Answers of STATUS are good for so long: the kubelet asks for the node's every five seconds.
const STATUS_GOOD: Duration = Duration::from_secs(15);
const STATUS_BAD: Duration = Duration::from_secs(2);

/// An answer of STATUS, of which network, and until when it is good.
#[derive(Debug)]
pub(super) struct Answered {
    network: Arc<Network>,
    until: Instant,
    answer: std::result::Result<(), (Kind, String)>,
}

impl Networks {
    /// The network as it is configured now.
    pub(super) fn network(&self) -> Result<Arc<Network>> {
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
    pub(super) async fn speak(&self, network: &Network) -> Result<Version> {
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

    pub(super) async fn plugins_ready(&self, network: &Arc<Network>, version: Version) -> Result<()> {
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
}

fn report(loaded: &Loaded) {
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
