//! `rtc mounts`: adds mounts to a running container, or removes them, as crun does.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::Mount;
use rtc_runtime::{bundle, container};
use serde::Deserialize;

use super::arguments::{Parsed, utf8};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "mounts",
    summary: "add mounts to a running container, or remove them",
    arguments: "add|remove <container-id> <mounts.json>",
    description: "The file has mounts in the form of config.json's: a list, or an object with the list \"mounts\".\n   \
                  All are added, or none. To remove one, its destination is enough.",
    count: (3, 3),
    run,
    ..ON_ONE_CONTAINER
};

/// What a file may hold.
#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    List(Vec<Mount>),
    Object { mounts: Vec<Mount> },
}

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let [verb, id, file] = parsed.rest.as_slice() else {
        bail!("requires add or remove, a container id and a file");
    };
    let verb = utf8(verb)?;
    let apply = match verb {
        "add" => container::add_mounts,
        "remove" => container::remove_mounts,
        _ => bail!("mounts {verb:?}: must be add or remove"),
    };
    let id = utf8(id).context("container id")?.parse()?;
    let mounts = read(Path::new(file))?;
    apply(&global.state_root(), &id, &mounts)
        .with_context(|| format!("mounts {verb} container {:?}", id.as_str()))?;
    Ok(0)
}

fn read(path: &Path) -> Result<Vec<Mount>> {
    let raw = bundle::read_config(path, bundle::MAX_CONFIG_SIZE)?;
    let parsed = match raw.iter().find(|byte| !byte.is_ascii_whitespace()) {
        // Each by itself: an untagged enum would not say what is wrong.
        Some(b'[') => bundle::parse_json(&raw).map(File::List),
        _ => bundle::parse_json::<File>(&raw).map_err(|error| {
            anyhow!("{error:#}: must be a list of mounts, or an object with the list \"mounts\"")
        }),
    };
    let (File::List(mounts) | File::Object { mounts }) = parsed.with_context(|| format!("{path:?}"))?;
    if mounts.is_empty() {
        bail!("{path:?}: no mounts");
    }
    Ok(mounts)
}
