//! `rtc run`: creates a container, starts it, and waits for its end unless told to detach.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rtc_runtime::bundle;
use rtc_runtime::container::{self, ContainerId, RunOptions};

use super::arguments::{Flag, Parsed, utf8};
use super::create;
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "run",
    summary: "create and run a container",
    arguments: "<container-id> | <bundle>",
    description: "The argument is the id of the new container. Where it is a directory with a config.json, no --bundle is\n   \
                  given and the current directory holds no config.json, it is the bundle, and its last component the id.",
    flags: &[
        create::BUNDLE,
        create::CONSOLE_SOCKET,
        create::PIDFD_SOCKET,
        Flag::switch("detach", "detach from the container's process").or('d'),
        Flag::switch("keep", "do not delete the container after it exits"),
        create::PID_FILE,
        Flag::switch("no-subreaper", "do not reap reparented processes"),
        create::NO_PIVOT,
        create::NO_NEW_KEYRING,
        create::PRESERVE_FDS,
    ],
    meets_container: true,
    run,
    ..ON_ONE_CONTAINER
};

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let (id, bundle) = id_and_bundle(parsed)?;
    let detach = parsed.is_on("detach");
    let mut options = create::options(global, parsed, id, &bundle)?;
    let run = RunOptions {
        detach,
        keep: parsed.is_on("keep"),
        no_subreaper: parsed.is_on("no-subreaper"),
    };
    container::run(&global.state_root(), &mut options, run)
}

fn id_and_bundle(parsed: &Parsed) -> Result<(ContainerId, PathBuf)> {
    let argument = parsed.rest.first().map_or(OsStr::new(""), |a| a.as_os_str());
    let name = match parsed.path("bundle") {
        Some(bundle) => return Ok((super::id(parsed)?, bundle)),
        None => bundle_name(Path::new("."), Path::new(argument)),
    };
    let Some(name) = name else {
        return Ok((super::id(parsed)?, PathBuf::from(".")));
    };
    let id = utf8(&name).and_then(str::parse::<ContainerId>);
    let id = id.with_context(|| {
        format!("the bundle's name as container id; give one with: rtc run -b {argument:?} <container-id>")
    })?;
    Ok((id, PathBuf::from(argument)))
}

/// The last component of `argument` if it is a bundle and `current` is none.
fn bundle_name(current: &Path, argument: &Path) -> Option<std::ffi::OsString> {
    if argument.as_os_str().is_empty() || current.join(bundle::CONFIG).exists() {
        return None;
    }
    let candidate = current.join(argument);
    if !candidate.join(bundle::CONFIG).exists() {
        return None;
    }
    match argument.file_name() {
        Some(name) => Some(name.to_os_string()),
        // `..`, `/`: named by where it leads.
        None => candidate
            .canonicalize()
            .ok()?
            .file_name()
            .map(OsStr::to_os_string),
    }
}

#[cfg(test)]
mod tests {
    use super::bundle_name;
    use std::path::Path;

    #[test]
    fn a_directory_with_a_config_is_a_bundle_where_the_current_one_is_none() {
        let top = std::env::temp_dir().join(format!("rtc-run-{}", std::process::id()));
        std::fs::create_dir_all(top.join("bundles/web")).unwrap();
        std::fs::create_dir_all(top.join("empty")).unwrap();
        std::fs::write(top.join("bundles/web/config.json"), "{}").unwrap();
        let name = |current: &str, argument: &str| {
            bundle_name(&top.join(current), Path::new(argument)).map(|n| n.into_string().unwrap())
        };
        assert_eq!(name("bundles", "web").as_deref(), Some("web"));
        assert_eq!(name("", "bundles/web/").as_deref(), Some("web"));
        assert_eq!(name("empty", "../bundles/web/.").as_deref(), Some("web"));
        assert_eq!(
            name("bundles/web", "../web"),
            None,
            "the current directory is a bundle"
        );
        assert_eq!(name("", "empty"), None);
        assert_eq!(name("", "web"), None);
        assert_eq!(name("", ""), None);
        std::fs::remove_dir_all(top).unwrap();
    }
}
