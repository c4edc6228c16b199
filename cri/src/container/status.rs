//! ContainerStatus.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::{Record, State, clean};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::proto::{
    ContainerResources, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ImageSpec, Mount,
    Signal,
};

/// ContainerStatus.
pub(crate) async fn status(
    node: &Arc<Node>,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse> {
    let container = node.container(&request.container_id)?;
    let record = container.record();
    if record.state == State::Making {
        return Err(Error::not_found(format_args!(
            "container {:?} not found",
            request.container_id
        )));
    }
    Ok(ContainerStatusResponse {
        status: Some(of(node, &record)),
        info: match request.verbose {
            true => [("info".to_owned(), info(node, &record).await?)].into(),
            false => HashMap::new(),
        },
    })
}

/// What is known of a container.
pub(crate) fn of(node: &Node, record: &Record) -> ContainerStatus {
    let mut status = ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: record.state.cri().into(),
        created_at: record.created_at,
        image: Some(image(node, record)),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record
            .log_path
            .as_deref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: record.resources.clone().map(|linux| ContainerResources {
            linux: Some(linux),
            windows: None,
        }),
        user: record.user.clone(),
        stop_signal: stop_signal(record).into(),
        ..ContainerStatus::default()
    };
    match &record.state {
        State::Making | State::Created => {}
        State::Running { started_at, .. } => status.started_at = *started_at,
        State::Exited {
            started_at,
            finished_at,
            exit_code,
            reason,
            message,
        } => {
            status.started_at = *started_at;
            status.finished_at = *finished_at;
            status.exit_code = *exit_code;
            status.reason.clone_from(reason);
            status.message.clone_from(message);
        }
    }
    status
}

/// As it was given, with the name that a person knows it by: the kubelet shows that one.
fn image(node: &Node, record: &Record) -> ImageSpec {
    let mut spec = record.config.image.clone().unwrap_or_default();
    if let Some(image) = node.images.find(&record.image_id)
        && let Some(first) = image.tags.first()
    {
        let given = image
            .tags
            .iter()
            .find(|tag| **tag == spec.user_specified_image || **tag == spec.image);
        spec.image.clone_from(given.unwrap_or(first));
    }
    spec
}

fn mounts(record: &Record) -> Vec<Mount> {
    let mut mounts = record.config.mounts.clone();
    for (mount, digest) in mounts.iter_mut().zip(&record.mounted_images) {
        if let (Some(image), Some(digest)) = (&mut mount.image, digest) {
            image.image_ref.clone_from(digest);
        }
    }
    mounts
}

/// The request's, or else Linux's number by its name in CRI.
fn stop_signal(record: &Record) -> Signal {
    match record.config.stop_signal() {
        Signal::RuntimeDefault => by_number(record.stop_signal).unwrap_or(Signal::Sigterm),
        given => given,
    }
}

/// CRI numbers signals by the alphabet.
fn by_number(number: i32) -> Option<Signal> {
    let name = match number {
        34 => "SIGRTMIN".to_owned(),
        35..=49 => format!("SIGRTMINPLUS{}", number - 34),
        50..=63 => format!("SIGRTMAXMINUS{}", 64 - number),
        64 => "SIGRTMAX".to_owned(),
        _ => nix::sys::signal::Signal::try_from(number)
            .ok()?
            .as_str()
            .to_owned(),
    };
    Signal::from_str_name(&name)
}

/// What `crictl inspect` shows, in containerd's words. JSON.
async fn info(node: &Node, record: &Record) -> Result<String> {
    let path = clean::bundle(node, &record.id).join("config.json");
    // It is gone with a container that is being removed.
    let spec = tokio::fs::read(&path).await.ok();
    let spec: Option<Box<serde_json::value::RawValue>> =
        spec.and_then(|text| serde_json::from_slice(&text).ok());
    let pid = match record.state {
        State::Running { pid, .. } => pid,
        _ => 0,
    };
    let info = json!({
        "sandboxID": record.sandbox,
        "pid": pid,
        "removing": false,
        "snapshotKey": record.id,
        "snapshotter": "overlayfs",
        "runtimeType": "io.containerd.rtc.v2",
        "cgroupsPath": record.cgroup,
        "config": record.config,
        "runtimeSpec": spec,
    });
    Ok(serde_json::to_string(&info).map_err(anyhow::Error::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_linux_has_its_name_in_cri() {
        for (number, signal) in [
            (1, Signal::Sighup),
            (9, Signal::Sigkill),
            (15, Signal::Sigterm),
            (34, Signal::Sigrtmin),
            (37, Signal::Sigrtminplus3),
            (50, Signal::Sigrtmaxminus14),
            (64, Signal::Sigrtmax),
        ] {
            assert_eq!(by_number(number), Some(signal), "{number}");
        }
        for number in (1..=31).chain(34..=64) {
            assert!(by_number(number).is_some(), "{number}");
        }
        assert_eq!(by_number(0), None);
        assert_eq!(by_number(65), None);
    }
}
