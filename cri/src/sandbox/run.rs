//! RunPodSandbox.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use anyhow::Context as _;

use super::{Record, Sandbox, State, bundle, check, end, netns, options};
use crate::cni::{Addresses, Pod};
use crate::config::CgroupDriver;
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::proto::*;
use crate::shim::start::{self, Start};
use crate::spec::selinux;
use crate::{events, id, log};

/// RunPodSandbox. A retry, by the same name, uid, namespace and attempt, waits for the one that is on its way, or finds
/// what it made.
pub(crate) async fn run(node: &Arc<Node>, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse> {
    let config = request
        .config
        .ok_or_else(|| Error::invalid("config: must be given"))?;
    check::config(&config, node.config.driver() == CgroupDriver::Systemd)?;
    node.config.handler(&request.runtime_handler)?;
    start::program(&node.config.shim)?;
    let record = record_of(node, config, request.runtime_handler)?;
    loop {
        let sandbox = Arc::new(Sandbox::new(record.clone()));
        let _turn = sandbox.turn.lock().await;
        match node.insert_sandbox(&sandbox) {
            Ok(()) => {
                make(node, &sandbox).await?;
                return Ok(RunPodSandboxResponse {
                    pod_sandbox_id: sandbox.id.clone(),
                });
            }
            Err(other) => {
                let _turn = other.turn.lock().await;
                if let Some(found) = found(node, &other)? {
                    return Ok(found);
                }
            }
        }
    }
}

/// What became of one with the same name; `None`: it is gone.
fn found(node: &Node, other: &Sandbox) -> Result<Option<RunPodSandboxResponse>> {
    if node.sandbox(&other.id).is_err() {
        return Ok(None);
    }
    match other.record().state {
        State::Ready => Ok(Some(RunPodSandboxResponse {
            pod_sandbox_id: other.id.clone(),
        })),
        State::Making | State::Ended | State::Stopped => Err(Error::text(
            Kind::AlreadyExists,
            format_args!(
                "config.metadata: sandbox {} has this name, and is not ready: remove it, or ask with another attempt",
                other.id
            ),
        )),
    }
}

fn record_of(node: &Node, config: PodSandboxConfig, handler: String) -> Result<Record> {
    let id = id::new()?;
    let level = selinux_level(node, &config, &id);
    let mut record = Record {
        id,
        config,
        handler,
        created_at: events::now(),
        state: State::Making,
        shim: None,
        pid: 0,
        netns: None,
        addresses: Addresses::default(),
        selinux_level: level,
    };
    if !record.is_host_network() {
        record.netns = Some(netns::path(&record.id));
    }
    Ok(record)
}

/// What is asked for, else one that no other pod has; none where SELinux is off.
fn selinux_level(node: &Node, config: &PodSandboxConfig, id: &str) -> String {
    if node.facts.selinux.is_none() {
        return String::new();
    }
    let context = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.selinux_options.as_ref());
    match options {
        Some(options) if !options.level.is_empty() => options.level.clone(),
        _ => {
            let others = node.sandboxes();
            let taken: Vec<String> = others
                .iter()
                .map(|other| other.record().selinux_level.clone())
                .collect();
            selinux::level(id, &taken)
        }
    }
}

/// Makes it, or leaves nothing of it.
async fn make(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let made = steps(node, sandbox).await;
    let Err(error) = made else {
        return Ok(());
    };
    let error = error.context(format!("make sandbox {}", sandbox.id));
    if let Err(left) = end::undo(node, sandbox).await {
        // The kubelet sees it, and removes it.
        log::warn(format_args!("sandbox {}: clean up: {left}", sandbox.id));
        sandbox.change(|record| record.state = State::Ended);
        if let Err(unwritten) = node.record_sandbox(sandbox).await {
            log::warn(format_args!("sandbox {}: {unwritten}", sandbox.id));
        }
    }
    Err(error)
}

async fn steps(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<()> {
    // From here a kill -9 leaves what a record tells of.
    node.record_sandbox(sandbox).await?;
    let record = sandbox.record();
    let bundle = bundle(&node.config, &sandbox.id);
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&bundle)
        .with_context(|| format!("mkdir {}", bundle.display()))?;
    let shim = start::start(&Start {
        program: &start::program(&node.config.shim)?,
        id: &sandbox.id,
        bundle: &bundle,
        socket: &start::socket(&node.config.state, &sandbox.id),
        options: &options(&node.config, &record.handler)?,
        cgroup: &node.shims,
        debug: node.config.debug,
    })
    .await?;
    sandbox.set_shim(Some(Arc::clone(&shim)));
    sandbox.change(|record| record.shim = Some(shim.address.clone()));
    shim.create_sandbox(&bundle, &for_shim(&record.config)).await?;
    let pid = shim.start_sandbox().await?;
    sandbox.change(|record| record.pid = pid);
    if let Some(path) = &record.netns {
        if !shim.can("namespaces") {
            return Err(Error::text(
                Kind::FailedPrecondition,
                format_args!(
                    "the shim (release {}) is too old: install that of rtc-cri",
                    shim.release()
                ),
            ));
        }
        let namespaces = shim.namespaces().await?;
        let network = namespaces.iter().find(|namespace| namespace.kind == "network");
        netns::pin(network.context("the shim says of no network namespace")?, path)?;
        let addresses = add_network(node, &record).await?;
        sandbox.change(|record| record.addresses = addresses);
    }
    sandbox.change(|record| record.state = State::Ready);
    node.record_sandbox(sandbox).await?;
    end::watch(node, sandbox, shim);
    for kind in [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
    ] {
        events::send(node, &sandbox.id, &sandbox.id, kind).await;
    }
    Ok(())
}

/// A resolver configuration that says nothing is none: the host's is meant.
fn for_shim(config: &PodSandboxConfig) -> PodSandboxConfig {
    let mut config = config.clone();
    config.dns_config = config.dns_config.filter(|dns| *dns != DnsConfig::default());
    config
}

async fn add_network(node: &Node, record: &Record) -> Result<Addresses> {
    let Some(netns) = &record.netns else {
        return Ok(Addresses::default());
    };
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let annotations: BTreeMap<String, String> = record.config.annotations.clone().into_iter().collect();
    let linux = record.config.linux.as_ref();
    let pod = Pod {
        id: &record.id,
        name: &metadata.name,
        namespace: &metadata.namespace,
        uid: &metadata.uid,
        netns,
        port_mappings: &record.config.port_mappings,
        dns: record.config.dns_config.as_ref(),
        cgroup_parent: linux.map_or("", |linux| linux.cgroup_parent.as_str()),
        annotations: &annotations,
    };
    let added = node.cni.add(&pod).await;
    added.map_err(|error| error.context("the pod's network"))
}
