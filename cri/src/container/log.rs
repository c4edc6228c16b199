//! A container's log: where it is, and ReopenContainerLog.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::State;
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::{ReopenContainerLogRequest, ReopenContainerLogResponse};

/// ReopenContainerLog: the kubelet has renamed the file.
pub(crate) async fn reopen(
    node: &Arc<Node>,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse> {
    let container = node.container(&request.container_id)?;
    let record = container.record();
    if !matches!(record.state, State::Running { .. }) {
        return Err(Error::text(
            Kind::FailedPrecondition,
            format_args!(
                "container_id: {} does not run, it is {}",
                container.id,
                record.state.word()
            ),
        ));
    }
    if record.log_path.is_some() {
        node.shim_of(&record.sandbox)?.reopen_log(&container.id).await?;
    }
    Ok(ReopenContainerLogResponse {})
}

/// Where the log of a container is; `None` where none is wanted. It never leaves the directory (CVE-2025-0750).
///
/// # Errors
///
/// `InvalidArgument`: a path that can't be one.
pub(crate) fn path(directory: &str, path: &str) -> Result<Option<PathBuf>> {
    if directory.is_empty() || path.is_empty() {
        return Ok(None);
    }
    let plain = |text: &str| {
        let parts = || Path::new(text).components();
        !text.contains('\0') && !parts().any(|part| part == Component::ParentDir)
    };
    if !directory.starts_with('/') || !plain(directory) {
        return Err(Error::invalid(format_args!(
            "sandbox_config.log_directory: {directory:?}: must be absolute, without \"..\""
        )));
    }
    let joined = Path::new(directory).join(path);
    if path.starts_with('/') || !plain(path) || path.ends_with('/') || Path::new(path).file_name().is_none() {
        return Err(Error::invalid(format_args!(
            "config.log_path: {path:?}: must be a file below the pod's log directory: relative, without \"..\""
        )));
    }
    Ok(Some(joined))
}

/// What the shim is told: a log in CRI's format.
pub(crate) fn uri(path: &Path) -> String {
    let mut uri = String::from("cri://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            // A string takes all.
            _ => drop(write!(uri, "%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_below_its_directory() {
        let good = |directory, file| path(directory, file).unwrap();
        assert_eq!(
            good("/var/log/pods/a", "c/0.log"),
            Some("/var/log/pods/a/c/0.log".into())
        );
        assert_eq!(good("", "c/0.log"), None);
        assert_eq!(good("/var/log", ""), None);
    }

    #[test]
    fn cve_2025_0750_a_log_that_leads_elsewhere_is_refused() {
        for (directory, file) in [
            ("/var/log/pods/a", "../b/0.log"),
            ("/var/log/pods/a", "c/../../0.log"),
            ("/var/log/pods/a", "/etc/passwd"),
            ("/var/log/pods/a", ".."),
            ("/var/log/pods/a", "c/"),
            ("/var/log/pods/a", "."),
            ("/var/log/pods/a", "a\0b"),
            ("/var/log/../../etc", "0.log"),
            ("var/log", "0.log"),
        ] {
            let error = path(directory, file).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidArgument, "{directory} {file}");
        }
    }

    #[test]
    fn what_a_uri_can_t_have_is_escaped() {
        assert_eq!(
            uri(Path::new("/a b/ü?#%.log")),
            "cri:///a%20b/%C3%BC%3F%23%25.log"
        );
    }
}
