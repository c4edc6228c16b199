//! `containerd-shim-rtc-v2 start`, as containerd 2.3 and later call it: parameters on standard input, `BootstrapResult` on
//! standard output.

use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension, LogLevel};
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message as _, MessageField};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::cgroup::ShimCgroup;
use super::{Options, Shim, messages};
use crate::error::{Error, Kind, Result};

/// containerd's namespace for Kubernetes: part of names only.
pub(super) const NAMESPACE: &str = "k8s.io";

/// How long `start` may take. It copies nothing and waits for no disk, but a machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a path of a Unix socket may be long at most, in bytes (unix(7), without the NUL).
const PATH_MAX: usize = 107;

/// So many digits of a sandbox's id are in the name of its socket, which must be short (unix(7)).
const DIGITS: usize = 24;

/// A shim that is to be.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// The sandbox's id.
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// Where it listens (`socket`).
    pub(crate) socket: &'a Path,
    pub(crate) options: &'a Options,
    /// Where it shall be.
    pub(crate) cgroup: &'a ShimCgroup,
    pub(crate) debug: bool,
}

/// Where the shim of a sandbox listens.
pub(crate) fn socket(state: &Path, id: &str) -> PathBuf {
    state.join("s").join(id.get(..DIGITS).unwrap_or(id))
}

/// The longest state directory, in bytes, that has room for the sockets of shims.
pub(crate) const STATE_MAX: usize = PATH_MAX - "/s/".len() - DIGITS;

/// The program of a shim: a path; or a name, which is looked for beside this program, then in PATH.
///
/// # Errors
///
/// It is nowhere.
pub(crate) fn program(name: &Path) -> Result<PathBuf> {
    if name.components().count() > 1 {
        return match name.is_file() {
            true => Ok(name.to_owned()),
            false => Err(Error::text(
                Kind::FailedPrecondition,
                format_args!("shim: {name:?}: there is no such file: install it, or change `shim`"),
            )),
        };
    }
    let own = std::env::current_exe().ok();
    let beside = own
        .as_deref()
        .and_then(Path::parent)
        .map(|directory| directory.join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join(name));
    let found = beside
        .into_iter()
        .chain(in_path)
        .find(|program| program.is_file());
    found.ok_or_else(|| {
        Error::text(
            Kind::FailedPrecondition,
            format_args!(
                "shim: {name:?}: is neither beside rtc-cri nor in PATH: install it, or set `shim` to its path"
            ),
        )
    })
}

/// Starts the shim of a sandbox, and connects to it.
///
/// # Errors
///
/// Why it does not start, in the shim's words; there is none then.
pub(crate) async fn start(start: &Start<'_>) -> Result<Arc<Shim>> {
    messages::make(start.bundle)?;
    let mut cgroup = start.cgroup.to_join();
    let mut started = run(start, cgroup.clone()).await;
    if started.is_err() && cgroup.is_some() && start.cgroup.to_join().is_none() {
        // The scope ended with its last shim meanwhile.
        cgroup = None;
        started = run(start, None).await;
    }
    let address = started.with_context(|| format!("start {}", start.program.display()))?;
    messages::relay(start.id, start.bundle);
    let shim = Shim::connect(&address, start.id).await?;
    if cgroup.is_none() {
        start.cgroup.admit(shim.pid()).await;
    }
    Ok(shim)
}

/// Returns the address.
async fn run(start: &Start<'_>, cgroup: Option<PathBuf>) -> anyhow::Result<String> {
    if let Some(directory) = start.socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("mkdir {}", directory.display()))?;
    }
    let mut command = command(start.program, start.id, start.bundle);
    command.arg("-socket").arg(start.socket);
    if start.debug {
        command.arg("-debug");
    }
    let answer = talk(command.arg("start"), &parameters(start, cgroup)?, DEADLINE).await?;
    let result = BootstrapResult::parse_from_bytes(&answer.stdout).context("its answer")?;
    if result.protocol != "ttrpc" || result.version != 3 {
        bail!(
            "it speaks {:?}, version {}: must be \"ttrpc\", version 3",
            result.protocol,
            result.version
        );
    }
    Ok(result.address)
}

/// Runs a command of a shim's to its end, with this on its standard input.
///
/// # Errors
///
/// It can't be run, fails (in its own words) or does not end in time.
pub(super) async fn talk(command: &mut Command, input: &[u8], deadline: Duration) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    let talking = async {
        // One that ends early says why.
        let _ = pipe.write_all(input).await;
        drop(pipe);
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(deadline, talking).await {
        Ok(output) => output?,
        Err(_) => bail!("it does not end within {deadline:?}"),
    };
    if !output.status.success() {
        bail!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

/// What all actions have in common.
pub(super) fn command(program: &Path, id: &str, bundle: &Path) -> Command {
    let mut command = Command::new(program);
    // Ours has addresses of systemd's, which are for us alone.
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
        .args(["-namespace", NAMESPACE, "-id", id, "-bundle"])
        .arg(bundle);
    command
}

fn parameters(start: &Start<'_>, shim_cgroup: Option<PathBuf>) -> anyhow::Result<Vec<u8>> {
    let options = Options {
        shim_cgroup,
        ..start.options.clone()
    };
    let level = if start.debug {
        LogLevel::LOG_LEVEL_DEBUG
    } else {
        LogLevel::LOG_LEVEL_INFO
    };
    let parameters = BootstrapParams {
        instance_id: start.id.to_owned(),
        namespace: NAMESPACE.into(),
        log_level: EnumOrUnknown::new(level),
        extensions: vec![Extension {
            value: MessageField::some(options.to_any()),
            ..Extension::default()
        }],
        ..BootstrapParams::default()
    };
    Ok(parameters.write_to_bytes()?)
}

/// Removes a socket that nobody listens on, of a `start` that was killed.
pub(crate) fn remove_socket(path: &Path) {
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // One that is gone is what is wanted.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_room_in_the_longest_state_directory() {
        let state = PathBuf::from("/".to_owned() + &"x".repeat(STATE_MAX - 1));
        let socket = socket(&state, &"a".repeat(64));
        assert_eq!(socket.as_os_str().len(), PATH_MAX);
    }

    #[test]
    fn a_program_that_is_nowhere_is_told_by_its_key() {
        let error = program(Path::new("/no/such/shim")).unwrap_err().to_string();
        assert!(
            error.starts_with("shim: \"/no/such/shim\": there is no such file"),
            "{error}"
        );
        let error = program(Path::new("no-such-shim-at-all")).unwrap_err().to_string();
        assert!(error.contains("neither beside rtc-cri nor in PATH"), "{error}");
    }
}
