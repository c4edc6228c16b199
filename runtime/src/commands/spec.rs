//! `rtc spec`: a configuration to start from, the same as runc's.
//!
//! It differs where it must: the newest version of the specification, rtc's hostname, and no ambient capabilities (they
//! need inheritable ones, which runc's has not had since CVE-2022-29162).

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rtc_runtime::bundle::CONFIG;

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER, create};

pub(super) static COMMAND: Command = Command {
    name: "spec",
    summary: "create a new specification file",
    arguments: "",
    description: "Writes config.json into the bundle; it runs \"sh\" on a terminal, in the root filesystem \"rootfs\".\n   \
                  An existing file is not overwritten.",
    flags: &[
        create::BUNDLE,
        Flag::switch("rootless", "generate a configuration for a rootless container"),
    ],
    count: (0, 0),
    run,
    ..ON_ONE_CONTAINER
};

static DEFAULT: &str = include_str!("spec/default.json.in");
static ROOTLESS: &str = include_str!("spec/rootless.json.in");

/// Where the configuration will run.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// cgroup v2 alone: a container then has a cgroup namespace of its own, as runc's has.
    unified_cgroup: bool,
    uid: u32,
    gid: u32,
}

fn run(_: &Global, parsed: &Parsed) -> Result<i32> {
    let host = Host {
        unified_cgroup: statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    };
    let path = parsed.path("bundle").unwrap_or_default().join(CONFIG);
    write_new(&path, &text(parsed.is_on("rootless"), host))?;
    Ok(0)
}

fn text(rootless: bool, host: Host) -> String {
    let cgroup = if host.unified_cgroup {
        ",\n\t\t\t{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t}"
    } else {
        ""
    };
    let template = if rootless { ROOTLESS } else { DEFAULT };
    template
        .replace("@CGROUP_NAMESPACE@", cgroup)
        .replace("@UID@", &host.uid.to_string())
        .replace("@GID@", &host.gid.to_string())
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{path:?}: File config.json exists. Remove it first");
        }
        opened => opened.with_context(|| format!("create {path:?}"))?,
    };
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_runtime::bundle::parse_spec;
    use serde_json::Value;

    fn parsed(rootless: bool, unified_cgroup: bool) -> Value {
        let host = Host {
            unified_cgroup,
            uid: 1000,
            gid: 100,
        };
        let text = text(rootless, host);
        let (_, warnings) = parse_spec(&mut text.clone().into_bytes()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        serde_json::from_str(&text).unwrap()
    }

    fn namespaces(spec: &Value) -> Vec<&str> {
        spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn the_default_passes_our_own_checks() {
        let spec = parsed(false, true);
        assert_eq!(
            namespaces(&spec),
            ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        );
        assert_eq!(spec["process"]["terminal"], true);
        assert_eq!(
            namespaces(&parsed(false, false)),
            ["pid", "network", "ipc", "uts", "mount"]
        );
    }

    #[test]
    fn the_rootless_one_maps_the_caller_to_root() {
        let spec = parsed(true, true);
        assert_eq!(
            namespaces(&spec),
            ["pid", "ipc", "uts", "mount", "cgroup", "user"]
        );
        assert_eq!(spec["linux"]["uidMappings"][0]["hostID"], 1000);
        assert_eq!(spec["linux"]["gidMappings"][0]["hostID"], 100);
        assert!(spec["linux"].get("resources").is_none());
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let path = std::env::temp_dir().join(format!("rtc-spec-{}", std::process::id()));
        write_new(&path, "1").unwrap();
        let error = write_new(&path, "2").unwrap_err().to_string();
        assert!(
            error.contains("File config.json exists. Remove it first"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1");
        std::fs::remove_file(&path).unwrap();
    }
}
