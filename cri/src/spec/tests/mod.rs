//! What a configuration says of whole requests.

mod cdi;
mod devices;
mod mounts;
mod whole;

use std::collections::HashMap;

use super::*;
use crate::proto;
use crate::proto::{LinuxContainerConfig, LinuxPodSandboxConfig, NamespaceOption, PodSandboxMetadata};

/// A request and what was found for it, to be changed by a test.
#[derive(Debug, Default)]
struct Case {
    facts: Option<Facts>,
    pod: PodSandboxConfig,
    config: ContainerConfig,
    context: LinuxContainerSecurityContext,
    pod_context: LinuxSandboxSecurityContext,
    handler: Handler,
    image: Untrusted,
    files: Files,
    image_mounts: Vec<Option<PathBuf>>,
    volumes: Vec<(PathBuf, PathBuf)>,
    target_pid: Option<u32>,
    found: Found,
}

impl Case {
    fn new() -> Self {
        let mut case = Self::default();
        case.config.command = vec!["sh".into()];
        case.pod.metadata = Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 0,
        });
        case
    }

    fn with<T>(&self, use_it: impl FnOnce(&Facts, &Asked<'_>) -> T) -> T {
        let facts = self.facts.clone().unwrap_or_else(Facts::for_tests);
        let mut config = self.config.clone();
        let linux = config.linux.get_or_insert_with(LinuxContainerConfig::default);
        linux.security_context = Some(self.context.clone());
        let mut pod = self.pod.clone();
        let linux = pod.linux.get_or_insert_with(LinuxPodSandboxConfig::default);
        linux.security_context = Some(self.pod_context.clone());
        use_it(
            &facts,
            &Asked {
                id: "c1",
                sandbox: "p1",
                sandbox_pid: 77,
                target_pid: self.target_pid,
                pod: &pod,
                config: &config,
                handler: &self.handler,
                image: &self.image,
                files: &self.files,
                image_mounts: &self.image_mounts,
                volumes: &self.volumes,
                selinux_level: "",
            },
        )
    }

    fn translate(&self) -> Result<Made> {
        self.with(|facts, asked| translate(facts, asked, &self.found))
    }

    fn spec(&self) -> Spec {
        self.translate().unwrap().spec
    }

    /// What the error says.
    fn refused(&self) -> String {
        self.translate().unwrap_err().to_string()
    }

    fn privileged(mut self) -> Self {
        self.context.privileged = true;
        self.pod_context.privileged = true;
        self
    }
}

fn options(mode: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        pid: mode.into(),
        ..Default::default()
    }
}

fn text_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}
