//! `rtc-cri pod ls`.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use rtc_cri::proto::{Container, ContainerState, PodSandbox, PodSandboxState, PodSandboxStatusRequest};

use super::arguments::{Arguments, Flag, Usage};
use super::connection::{Server, answer};
use super::terminal::{age, say, table};
use super::{Verb, find, image};

pub(super) const LS: Verb = Verb {
    object: "pod",
    name: "ls",
    operands: "",
    about: "Lists pods: their addresses, and their containers with what became of each.",
    flags: &[Flag::switch("quiet", Some('q'), "ids only")],
};

/// `pod ls`.
pub(super) async fn ls(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    if let [name, ..] = &arguments.names[..] {
        return Err(Usage(format!("{name:?}: takes no names")).into());
    }
    let pods = find::pods(&server).await?;
    if arguments.has("quiet") {
        say(&pods.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>());
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for pod in &pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        // One that was removed meanwhile has none.
        let ips = addresses(&server, pod).await.unwrap_or_default();
        let containers = find::containers(&server, pod).await?;
        let containers: Vec<String> = containers.iter().map(state).collect();
        let ready = pod.state == i32::from(PodSandboxState::SandboxReady);
        rows.push(vec![
            pod.id.chars().take(image::SHORT).collect(),
            metadata.namespace,
            metadata.name,
            if ready { "ready" } else { "ended" }.to_owned(),
            age(pod.created_at, SystemTime::now()),
            if ips.is_empty() {
                "-".to_owned()
            } else {
                ips.join(",")
            },
            containers.join(", "),
        ]);
    }
    let headings = ["ID", "NAMESPACE", "NAME", "STATE", "AGE", "IP", "CONTAINERS"];
    say(&table(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

/// A pod's addresses; none: the host's.
///
/// # Errors
///
/// The server's.
pub(super) async fn addresses(server: &Server, pod: &PodSandbox) -> Result<Vec<String>> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let answered = answer(
        "PodSandboxStatus",
        server.runtime().pod_sandbox_status(request).await,
    )?;
    let network = answered
        .status
        .and_then(|status| status.network)
        .unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|more| more.ip);
    Ok(std::iter::once(network.ip)
        .chain(more)
        .filter(|ip| !ip.is_empty())
        .collect())
}

fn state(container: &Container) -> String {
    let state = match ContainerState::try_from(container.state) {
        Ok(ContainerState::ContainerCreated) => "created",
        Ok(ContainerState::ContainerRunning) => "running",
        Ok(ContainerState::ContainerExited) => "ended",
        _ => "unknown",
    };
    format!("{} {state}", find::container_name(container))
}
