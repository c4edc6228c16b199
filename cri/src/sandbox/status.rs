//! PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::{Record, Sandbox, State};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::proto::*;
use crate::{container, events};

/// PodSandboxStatus, with the statuses of its containers as they are at `timestamp`.
pub(crate) async fn status(
    node: &Arc<Node>,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let record = sandbox.record();
    if record.state == State::Making {
        return Err(Error::not_found(format_args!(
            "sandbox {:?} not found: it is being made",
            record.id
        )));
    }
    let timestamp = events::now();
    let containers_statuses = node
        .containers_of(&record.id)
        .iter()
        .map(|container| container.record())
        .filter(|record| record.state != container::State::Making)
        .map(|record| container::status::of(node, &record))
        .collect();
    let info = if request.verbose {
        info(node, &sandbox, &record).await
    } else {
        HashMap::new()
    };
    Ok(PodSandboxStatusResponse {
        status: Some(of(&record)),
        info,
        containers_statuses,
        timestamp,
    })
}

/// What is known of a sandbox, in CRI's words.
pub(crate) fn of(record: &Record) -> PodSandboxStatus {
    // After the stop they may be another pod's.
    let held = record.state != State::Stopped;
    let mut ips = record
        .addresses
        .ips
        .iter()
        .filter(|_| held)
        .map(ToString::to_string);
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: record.state.cri().into(),
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(record.namespaces()),
            }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// For people and their tools (`crictl inspectp`): JSON, in names of containerd's where it has them.
async fn info(node: &Node, sandbox: &Sandbox, record: &Record) -> HashMap<String, String> {
    let shim = sandbox.shim();
    let of_shim = match &shim {
        Some(shim) => shim.sandbox_status(true).await.ok(),
        None => None,
    };
    let pod = of_shim
        .as_ref()
        .and_then(|status| status.info.get("pod"))
        .and_then(|pod| serde_json::from_str::<serde_json::Value>(pod).ok());
    let handler = match record.handler.as_str() {
        "" => &node.config.default_handler,
        name => name,
    };
    let binary = node
        .config
        .handler(handler)
        .ok()
        .and_then(|handler| handler.binary.clone());
    let info = json!({
        "pid": record.pid,
        "processStatus": if record.state == State::Ready { "running" } else { "deleted" },
        "netnsPath": record.netns,
        "netNamespaceClosed": record.state == State::Stopped,
        "runtimeHandler": handler,
        "runtimeType": "io.containerd.rtc.v2",
        "runtimeBinary": binary,
        "shim": {
            "address": record.shim,
            "pid": shim.as_ref().map(|shim| shim.pid()),
            "release": shim.as_ref().map(|shim| shim.release()),
        },
        "pod": pod,
        "state": record.state,
        "ips": record.addresses.ips,
        "network": network(node, record).await,
        "config": record.config,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// What CNI says of it now: CHECK, and the name servers that the network told of.
async fn network(node: &Node, record: &Record) -> Option<serde_json::Value> {
    if record.state != State::Ready || record.netns.is_none() {
        return None;
    }
    let check = match node.cni.check(&record.id).await {
        Ok(true) => "as it was made".to_owned(),
        Ok(false) => "not looked at: the network has no CHECK".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(json!({ "check": check, "dns": node.cni.name_servers(&record.id) }))
}
