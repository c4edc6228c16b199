//! `rtc-cri pod rm`.
//!
//! ```text
//! containers, sidecars stopped ── StopPodSandbox ── containers, volumes, logs removed ── RemovePodSandbox
//! a step fails: the pod is still there, which alone says where its directories are, and can be removed again
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use rtc_cri::proto::{
    Container, ContainerState, PodSandbox, RemoveContainerRequest, RemovePodSandboxRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

use super::arguments::{Arguments, Flag, Usage};
use super::connection::{Server, answer};
use super::request::{DATA, GRACE, LOGS, Place, ROLE, ROLES};
use super::terminal::{harmless, say};
use super::{Verb, find, volumes};

pub(super) const RM: Verb = Verb {
    object: "pod",
    name: "rm",
    operands: "POD...",
    about: "Stops and removes pods, their volumes and logs. POD: a name, NAMESPACE/NAME, or the first digits of an id.",
    flags: &[
        Flag::value(
            "time",
            Some('t'),
            "SECONDS",
            "how long containers have for their end; default: the manifest's terminationGracePeriodSeconds",
        ),
        Flag::switch("all", Some('a'), "all pods"),
    ],
};

/// Seconds for a container that was made by others.
const GRACE_DEFAULT: i64 = 30;

/// `pod rm`.
pub(super) async fn rm(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    let grace = arguments.number("time")?.map(i64::from);
    let mut pods = Vec::new();
    let mut failed = false;
    let mut told = |what: &str, error: anyhow::Error| {
        failed = true;
        eprintln!("rtc-cri: {}", harmless(&format!("{what}{error:#}")));
    };
    if arguments.has("all") {
        if let [name, ..] = &arguments.names[..] {
            return Err(Usage(format!("{name:?}: takes no names with --all")).into());
        }
        pods = find::pods(&server).await?;
    } else {
        for name in arguments.some("POD")? {
            match find::pod(&server, name).await {
                Ok(pod) => pods.push(pod),
                Err(error) => told("", error),
            }
        }
    }
    for pod in pods {
        match remove(&server, &pod, grace).await {
            Ok(()) => say(&format!("{}\n", harmless(&find::name(&pod)))),
            Err(error) => told(&format!("pod {}: ", find::name(&pod)), error),
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Stops a pod and removes it with all that `pod run` made for it. `grace`: seconds, in place of the manifest's.
///
/// # Errors
///
/// The server's; what is left of its directories. The pod is still there: call again.
pub(super) async fn remove(server: &Server, pod: &PodSandbox, grace: Option<i64>) -> Result<()> {
    stop_all(server, pod, grace).await?;
    let mut removed = Vec::new();
    for container in find::containers(server, pod).await? {
        let request = RemoveContainerRequest {
            container_id: container.id,
        };
        let answered = server.runtime().remove_container(request).await;
        removed.push(answer("RemoveContainer", answered).map(drop));
    }
    removed.push(data(pod.annotations.get(DATA).map(Path::new)));
    removed.push(logs(logs_of(pod).as_deref()));
    all(removed)?;
    let request = RemovePodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let answered = server.runtime().remove_pod_sandbox(request).await;
    answer("RemovePodSandbox", answered).map(drop)
}

/// One error for all that there are.
///
/// # Errors
///
/// What failed, each told.
pub(super) fn all(results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failed = results.into_iter().filter_map(Result::err);
    let told: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    ensure!(told.is_empty(), "{}", told.join("; "));
    Ok(())
}

/// Stops the containers, each in its time, then the pod.
async fn stop_all(server: &Server, pod: &PodSandbox, grace: Option<i64>) -> Result<()> {
    let containers = find::containers(server, pod).await?;
    let running = containers.into_iter().filter(|container| {
        matches!(
            ContainerState::try_from(container.state),
            Ok(ContainerState::ContainerRunning)
        )
    });
    let sidecar = |container: &Container| {
        container
            .annotations
            .get(ROLE)
            .is_some_and(|role| role == ROLES[1])
    };
    let (sidecars, others): (Vec<_>, Vec<_>) = running.partition(sidecar);
    // Together; then those that the others may need, in the reverse order of their start.
    let mut stops = tokio::task::JoinSet::new();
    for container in others {
        let server = server.clone();
        stops.spawn(async move { stop(&server, &container, grace).await });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped??;
    }
    for container in sidecars.iter().rev() {
        stop(server, container, grace).await?;
    }
    let request = StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    answer("StopPodSandbox", server.runtime().stop_pod_sandbox(request).await).map(drop)
}

async fn stop(server: &Server, container: &Container, grace: Option<i64>) -> Result<()> {
    let own = container
        .annotations
        .get(GRACE)
        .and_then(|grace| grace.parse().ok());
    let request = StopContainerRequest {
        container_id: container.id.clone(),
        timeout: grace.or(own).unwrap_or(GRACE_DEFAULT),
    };
    answer("StopContainer", server.runtime().stop_container(request).await).map(drop)
}

/// The directory of a pod's logs, where `pod run` made it: it has the pod's name.
fn logs_of(pod: &PodSandbox) -> Option<PathBuf> {
    let logs = PathBuf::from(pod.annotations.get(LOGS)?);
    let metadata = pod.metadata.as_ref()?;
    let name = Place::log_name(&metadata.namespace, &metadata.name, &metadata.uid);
    (logs.is_absolute() && logs.file_name()?.to_str()? == name).then_some(logs)
}

/// Removes a pod's directory of volumes, where it has one.
///
/// # Errors
///
/// Those of [`volumes::remove`].
pub(super) fn data(data: Option<&Path>) -> Result<()> {
    data.map_or(Ok(()), volumes::remove)
}

/// Removes a pod's logs, where it has any.
///
/// # Errors
///
/// What can't be removed.
pub(super) fn logs(logs: Option<&Path>) -> Result<()> {
    let Some(logs) = logs else {
        return Ok(());
    };
    match std::fs::remove_dir_all(logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow::anyhow!("remove {}: {error}", logs.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rtc_cri::proto::PodSandboxMetadata;

    use super::*;

    #[test]
    fn all_that_failed_is_told() {
        all([Ok(()), Ok(())]).unwrap();
        let failed = |text: &'static str| Err(anyhow::anyhow!(text));
        let error = all([failed("a"), Ok(()), failed("b")]).unwrap_err();
        assert_eq!(error.to_string(), "a; b");
    }

    #[test]
    fn only_a_directory_that_has_the_pod_s_name_is_its_logs() {
        let pod = |path: &str| PodSandbox {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "a".into(),
                uid: "u".into(),
                attempt: 0,
            }),
            annotations: [(LOGS.to_owned(), path.to_owned())].into(),
            ..PodSandbox::default()
        };
        assert_eq!(
            logs_of(&pod("/var/log/pods/a_web_u")),
            Some("/var/log/pods/a_web_u".into())
        );
        for path in [
            "/etc",
            "/",
            "",
            "a_web_u",
            "/var/log/pods/a_web_v",
            "/var/log/pods/a_web_u/..",
        ] {
            assert_eq!(logs_of(&pod(path)), None, "{path}");
        }
    }
}
