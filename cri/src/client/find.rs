//! Pods and containers by what a person calls them: a name, `namespace/name`, the first digits of an id.

use anyhow::{Result, anyhow, bail};
use rtc_cri::proto::{
    Container, ContainerFilter, ContainerStatus, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox,
};

use super::connection::{Server, answer};
use super::request::{ROLE, ROLES};

/// A pod's `namespace/name`.
pub(super) fn name(pod: &PodSandbox) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}

/// All pods, the newest last.
///
/// # Errors
///
/// The server's.
pub(super) async fn pods(server: &Server) -> Result<Vec<PodSandbox>> {
    let request = ListPodSandboxRequest::default();
    let mut pods = answer("ListPodSandbox", server.runtime().list_pod_sandbox(request).await)?.items;
    pods.sort_by_key(|pod| pod.created_at);
    Ok(pods)
}

/// The pod that is meant.
///
/// # Errors
///
/// There is none, or there are several; the server's.
pub(super) async fn pod(server: &Server, wanted: &str) -> Result<PodSandbox> {
    choose(pods(server).await?, wanted)
}

fn choose(pods: Vec<PodSandbox>, wanted: &str) -> Result<PodSandbox> {
    let named = |pod: &&PodSandbox| {
        let metadata = pod.metadata.as_ref();
        name(pod) == wanted || metadata.is_some_and(|metadata| metadata.name == wanted)
    };
    let mut found: Vec<&PodSandbox> = pods.iter().filter(named).collect();
    if found.is_empty() && !wanted.is_empty() {
        found = pods.iter().filter(|pod| pod.id.starts_with(wanted)).collect();
    }
    match &found[..] {
        [] => Err(anyhow!(
            "pod {wanted:?}: there is none: rtc-cri pod ls shows those that there are"
        )),
        [pod] => Ok((*pod).clone()),
        several => {
            let shown = several.iter().map(|pod| {
                let id: String = pod.id.chars().take(super::image::SHORT).collect();
                format!("{} ({id})", name(pod))
            });
            let shown: Vec<String> = shown.collect();
            bail!(
                "pod {wanted:?}: there are several: {}: say which by its id",
                shown.join(", ")
            )
        }
    }
}

/// The containers of a pod, in the order in which they were made.
///
/// # Errors
///
/// The server's.
pub(super) async fn containers(server: &Server, pod: &PodSandbox) -> Result<Vec<Container>> {
    let filter = ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..ContainerFilter::default()
    };
    let request = ListContainersRequest { filter: Some(filter) };
    let list = answer("ListContainers", server.runtime().list_containers(request).await)?;
    let mut containers = list.containers;
    containers.sort_by_key(|container| container.created_at);
    Ok(containers)
}

/// A container's name.
pub(super) fn container_name(container: &Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// The container that is meant; where none is named, the first that is neither an init container nor a sidecar.
///
/// # Errors
///
/// There is none, and which there are; the server's.
pub(super) async fn container(server: &Server, pod: &PodSandbox, wanted: Option<&str>) -> Result<Container> {
    let all = containers(server, pod).await?;
    let (container, others) = choose_container(&all, wanted)
        .ok_or_else(|| anyhow!("pod {}: {}", name(pod), missing(&all, wanted)))?;
    if others {
        let names = names(&all);
        eprintln!(
            "rtc-cri: container {:?} of {names} (choose with -c)",
            container_name(container)
        );
    }
    Ok(container.clone())
}

/// Also, whether others could have been meant. Of several of one name, the last is.
fn choose_container<'a>(all: &'a [Container], wanted: Option<&str>) -> Option<(&'a Container, bool)> {
    if let Some(wanted) = wanted {
        let found = all
            .iter()
            .rev()
            .find(|container| container_name(container) == wanted)?;
        return Some((found, false));
    }
    let main = |container: &&Container| {
        let role = container.annotations.get(ROLE);
        role.is_none_or(|role| role == ROLES[2])
    };
    let name = container_name(all.iter().find(main)?);
    let others = all.iter().any(|container| container_name(container) != name);
    let last = all
        .iter()
        .rev()
        .find(|container| container_name(container) == name)?;
    Some((last, others))
}

fn names(all: &[Container]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for container in all {
        if !names.contains(&container_name(container)) {
            names.push(container_name(container));
        }
    }
    names.join(", ")
}

fn missing(all: &[Container], wanted: Option<&str>) -> String {
    match (wanted, all) {
        (_, []) => "has no container".into(),
        (Some(wanted), _) => format!(
            "container {wanted:?}: there is none: choose one of {}",
            names(all)
        ),
        (None, _) => format!("choose a container with -c: {}", names(all)),
    }
}

/// A container's status.
///
/// # Errors
///
/// The server's.
pub(super) async fn status(server: &Server, id: &str) -> Result<ContainerStatus> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let status = answer(
        "ContainerStatus",
        server.runtime().container_status(request).await,
    )?
    .status;
    status.ok_or_else(|| anyhow!("ContainerStatus: the server said nothing of container {id}"))
}

#[cfg(test)]
mod tests {
    use rtc_cri::proto::{ContainerMetadata, PodSandboxMetadata};

    use super::*;

    fn a_pod(id: &str, namespace: &str, name: &str) -> PodSandbox {
        PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..PodSandboxMetadata::default()
            }),
            ..PodSandbox::default()
        }
    }

    fn a_container(name: &str, role: &str) -> Container {
        Container {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            annotations: [(ROLE.to_owned(), role.to_owned())].into(),
            ..Container::default()
        }
    }

    #[test]
    fn a_pod_is_found_by_name_or_by_the_first_digits_of_its_id() {
        let pods = || {
            vec![
                a_pod("abc1", "a", "web"),
                a_pod("abd2", "b", "web"),
                a_pod("f00", "b", "abc1"),
            ]
        };
        let found = |wanted: &str| choose(pods(), wanted).map(|pod| pod.id);
        assert_eq!(found("a/web").unwrap(), "abc1");
        assert_eq!(found("abc1").unwrap(), "f00", "a name goes before an id");
        assert_eq!(found("abd").unwrap(), "abd2");
        let error = found("web").unwrap_err().to_string();
        assert!(error.contains("a/web (abc1), b/web (abd2)"), "{error}");
        assert!(found("ab").is_err());
        let error = found("no").unwrap_err().to_string();
        assert!(error.contains("pod ls"), "{error}");
        assert!(found("").is_err());
    }

    #[test]
    fn the_container_that_is_not_named_is_the_first_main_one() {
        let all = [
            a_container("i", "init"),
            a_container("s", "sidecar"),
            a_container("m", "main"),
            a_container("n", "main"),
        ];
        let chosen =
            |wanted| choose_container(&all, wanted).map(|(found, others)| (container_name(found), others));
        assert_eq!(chosen(None), Some(("m", true)));
        assert_eq!(chosen(Some("i")), Some(("i", false)));
        assert_eq!(chosen(Some("x")), None);
        assert_eq!(
            missing(&all, Some("x")),
            "container \"x\": there is none: choose one of i, s, m, n"
        );
        assert_eq!(
            choose_container(&all[2..3], None).map(|(_, others)| others),
            Some(false)
        );
    }
}
