//! Pods and containers as a kubelet makes them, and their verbs.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use rtc_cri::proto::*;

use super::client::check;
use super::server::{Cri, image_spec};
use crate::output::Output;
use crate::registry::Result;
use crate::wait::until;

/// A pod sandbox.
pub(crate) struct Pod<'c, 't> {
    pub(crate) cri: &'c Cri<'t>,
    pub(crate) id: String,
    /// As it was asked for.
    pub(crate) config: PodSandboxConfig,
}

/// A container.
pub(crate) struct Container<'c, 't> {
    pub(crate) cri: &'c Cri<'t>,
    pub(crate) id: String,
    /// Its log.
    pub(crate) log: PathBuf,
}

impl fmt::Debug for Pod<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pod").field(&self.id).finish()
    }
}

impl fmt::Debug for Container<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Container").field(&self.id).finish()
    }
}

impl<'t> Cri<'t> {
    /// The usual pod: a network of its own, one process tree for each container.
    pub(crate) fn pod_config(&self) -> Result<PodSandboxConfig> {
        let name = format!("pod-{}", self.t.number());
        let logs = self.directory.join("logs").join(&name);
        fs::create_dir_all(&logs)?;
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("uid-{name}-{}", self.t.unique),
                namespace: "tests".into(),
                name: name.clone(),
                attempt: 0,
            }),
            hostname: name,
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.t.cgroup.path.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: NamespaceMode::Pod.into(),
                        pid: NamespaceMode::Container.into(),
                        ipc: NamespaceMode::Pod.into(),
                        ..NamespaceOption::default()
                    }),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        })
    }

    /// RunPodSandbox with this configuration.
    pub(crate) fn run_pod(&self, config: &PodSandboxConfig) -> std::result::Result<String, tonic::Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        self.run_pod_sandbox(request).map(|answer| answer.pod_sandbox_id)
    }

    /// Ids of all containers in this list.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        let list = check(
            "ListContainers",
            self.list_containers(ListContainersRequest::default()),
        )?;
        Ok(list
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect())
    }
}

/// The namespaces of a pod's configuration, to be changed.
pub(crate) fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default()
}

/// The security context of a container's configuration, to be changed.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

impl<'c, 't> Pod<'c, 't> {
    pub(crate) fn run_sandbox(cri: &'c Cri<'t>, config: PodSandboxConfig) -> Result<Self> {
        let id = check("RunPodSandbox", cri.run_pod(&config))?;
        Ok(Self { cri, id, config })
    }

    /// The usual container: busybox that runs this script.
    pub(crate) fn container_config(&self, name: &str, script: &str) -> Result<ContainerConfig> {
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(image_spec(self.cri.busybox()?)),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                // As the kubelet always has it: those of the pod.
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: self.namespace_options(),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        })
    }

    fn namespace_options(&self) -> Option<NamespaceOption> {
        let linux = self.config.linux.as_ref()?;
        linux.security_context.as_ref()?.namespace_options.clone()
    }

    /// CreateContainer's request for this configuration.
    pub(crate) fn creation(&self, config: ContainerConfig) -> CreateContainerRequest {
        CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        }
    }

    /// CreateContainer.
    pub(crate) fn create(&self, config: ContainerConfig) -> Result<Container<'c, 't>> {
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        let answer = check(
            "CreateContainer",
            self.cri.create_container(self.creation(config)),
        )?;
        Ok(Container {
            cri: self.cri,
            id: answer.container_id,
            log,
        })
    }

    /// CreateContainer and StartContainer of the usual container.
    pub(crate) fn run(&self, name: &str, script: &str) -> Result<Container<'c, 't>> {
        self.run_with(name, script, |_| {})
    }

    /// [`Self::run`], its configuration changed first.
    pub(crate) fn run_with(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<Container<'c, 't>> {
        let mut config = self.container_config(name, script)?;
        change(&mut config);
        let container = self.create(config)?;
        container.start()?;
        Ok(container)
    }

    /// StopPodSandbox.
    pub(crate) fn stop(&self) -> Result {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        check("StopPodSandbox", self.cri.stop_pod_sandbox(request))?;
        Ok(())
    }

    /// RemovePodSandbox.
    pub(crate) fn remove(&self) -> Result {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        check("RemovePodSandbox", self.cri.remove_pod_sandbox(request))?;
        Ok(())
    }

    /// PodSandboxStatus, with what verbose adds.
    pub(crate) fn full_status(&self) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: true,
        };
        check("PodSandboxStatus", self.cri.pod_sandbox_status(request))
    }

    /// PodSandboxStatus.
    pub(crate) fn status(&self) -> Result<PodSandboxStatus> {
        self.full_status()?.status.context("PodSandboxStatus: no status")
    }

    /// Its first address.
    pub(crate) fn ip(&self) -> Result<String> {
        Ok(self.status()?.network.context("PodSandboxStatus: no network")?.ip)
    }
}

impl Container<'_, '_> {
    /// StartContainer.
    pub(crate) fn start(&self) -> Result {
        let request = StartContainerRequest {
            container_id: self.id.clone(),
        };
        check("StartContainer", self.cri.start_container(request))?;
        Ok(())
    }

    /// StopContainer, with seconds until SIGKILL.
    pub(crate) fn stop(&self, timeout: i64) -> Result {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
        };
        check("StopContainer", self.cri.stop_container(request))?;
        Ok(())
    }

    /// RemoveContainer.
    pub(crate) fn remove(&self) -> Result {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        check("RemoveContainer", self.cri.remove_container(request))?;
        Ok(())
    }

    /// ContainerStatus, with what verbose adds.
    pub(crate) fn full_status(&self) -> Result<ContainerStatusResponse> {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: true,
        };
        check("ContainerStatus", self.cri.container_status(request))
    }

    /// ContainerStatus.
    pub(crate) fn status(&self) -> Result<ContainerStatus> {
        self.full_status()?.status.context("ContainerStatus: no status")
    }

    /// It is in this state now.
    pub(crate) fn is(&self, state: ContainerState) -> Result {
        let found = self.status()?.state();
        ensure!(found == state, "expected {state:?}, found {found:?}");
        Ok(())
    }

    /// Waits until it has ended; how.
    pub(crate) fn ended(&self) -> Result<ContainerStatus> {
        until("the container to end", || {
            Ok(Some(self.status()?).filter(|status| status.state() == ContainerState::ContainerExited))
        })
    }

    /// ExecSync's request for this command, in seconds; 0: as long as it takes.
    pub(crate) fn exec_request(&self, args: &[&str], timeout: i64) -> ExecSyncRequest {
        ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
            timeout,
        }
    }

    /// ExecSync, its answer as of a command.
    pub(crate) fn exec(&self, args: &[&str]) -> Result<Output> {
        let answer = check("ExecSync", self.cri.exec_sync(self.exec_request(args, 0)))?;
        Ok(Output {
            command: format!("ExecSync {args:?}"),
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            ours: self.cri.is_ours(),
        })
    }

    /// What this script prints in it.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        Ok(self.exec(&["sh", "-c", script])?.ok()?.stdout.trim().to_owned())
    }

    /// Its log, once it has this text.
    pub(crate) fn logged(&self, wanted: &str) -> Result<String> {
        until(&format!("{wanted:?} in the log"), || {
            let text = fs::read_to_string(&self.log).ok();
            Ok(text.filter(|text| text.contains(wanted)))
        })
    }
}
