//! Annotations of the OCI configuration: ours, by the names that shims and tools of the field know, and those that the
//! administrator lets through. A runtime obeys annotations, so none of a pod is let through by itself (CVE-2024-3154).

use std::collections::HashMap;

use super::Asked;

/// The sandbox that a container is grouped with by its shim.
const PREFIX: &str = "io.kubernetes.cri.";

pub(super) fn of(asked: &Asked<'_>) -> HashMap<String, String> {
    let mut annotations = HashMap::new();
    let (pod, container) = (&asked.pod.annotations, &asked.config.annotations);
    for (allowed, given) in [
        (&asked.handler.pod_annotations, pod),
        (&asked.handler.container_annotations, container),
    ] {
        let passed = given
            .iter()
            .filter(|(name, _)| allowed.iter().any(|pattern| matches(pattern, name)));
        annotations.extend(passed.map(|(name, value)| (name.clone(), value.clone())));
    }
    let metadata = asked.pod.metadata.clone().unwrap_or_default();
    let image = asked.config.image.clone().unwrap_or_default();
    let image_name = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };
    // Last, so that none is overridden.
    annotations.extend(
        [
            ("container-type", "container".to_owned()),
            ("sandbox-id", asked.sandbox.to_owned()),
            ("sandbox-name", metadata.name),
            ("sandbox-namespace", metadata.namespace),
            ("sandbox-uid", metadata.uid),
            (
                "container-name",
                asked.config.metadata.clone().unwrap_or_default().name,
            ),
            ("image-name", image_name),
        ]
        .map(|(name, value)| (format!("{PREFIX}{name}"), value)),
    );
    annotations
}

/// A name, or the beginning of one and `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}
