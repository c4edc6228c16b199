//! Requests that can't be right: refused with the code a kubelet understands and a text that names the field and the value,
//! and nothing stays of them. The look for leaks is the harness's.

use std::os::unix::fs::symlink;

use anyhow::{Context, ensure};

use crate::cri::proto::*;
use crate::cri::{Code, Cri, Pod, namespaces, only_ours, refused, security, with};
use crate::registry::Result;
use crate::test;

/// RunPodSandbox refuses this change of the usual pod.
fn no_pod(cri: &Cri<'_>, code: Code, texts: &[&str], change: impl FnOnce(&mut PodSandboxConfig)) -> Result {
    let mut config = cri.pod_config()?;
    change(&mut config);
    refused(cri.run_pod(&config), code, texts).with_context(|| format!("{texts:?}"))?;
    let list = cri.list_pod_sandbox(ListPodSandboxRequest::default())?;
    ensure!(list.items.is_empty(), "{texts:?}: a pod is left: {list:?}");
    Ok(())
}

/// CreateContainer refuses this change of the usual container.
fn no_container(
    pod: &Pod<'_, '_>,
    code: Code,
    texts: &[&str],
    change: impl FnOnce(&mut ContainerConfig),
) -> Result {
    let mut config = pod.container_config("web", "sleep 1000")?;
    change(&mut config);
    let result = pod.cri.create_container(pod.creation(config));
    refused(result, code, texts).with_context(|| format!("{texts:?}"))?;
    ensure!(pod.cri.containers()?.is_empty(), "{texts:?}: a container is left");
    Ok(())
}

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default()
}

test!(
    fn a_pod_without_what_it_must_have_is_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let request = RunPodSandboxRequest::default();
            refused(cri.run_pod_sandbox(request), Code::InvalidArgument, &["config"])?;
            let invalid = Code::InvalidArgument;
            no_pod(cri, invalid, &["metadata"], |config| config.metadata = None)?;
            no_pod(cri, invalid, &["metadata", "name"], |config| {
                config.metadata.get_or_insert_default().name.clear();
            })?;
            no_pod(cri, invalid, &["metadata", "uid"], |config| {
                config.metadata.get_or_insert_default().uid.clear();
            })?;
            no_pod(cri, invalid, &["metadata", "namespace"], |config| {
                config.metadata.get_or_insert_default().namespace.clear();
            })
        })
    }
);

test!(
    fn a_pod_with_values_that_cannot_be_is_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let invalid = Code::InvalidArgument;
            no_pod(cri, invalid, &["hostname"], |config| {
                config.hostname = "x".repeat(65);
            })?;
            no_pod(cri, invalid, &["hostname"], |config| {
                config.hostname = "a/b".into();
            })?;
            no_pod(cri, invalid, &["log_directory", "relative/path"], |config| {
                config.log_directory = "relative/path".into();
            })?;
            no_pod(cri, invalid, &["cgroup_parent"], |config| {
                config.linux.get_or_insert_default().cgroup_parent = "/a/../../b".into();
            })?;
            no_pod(cri, invalid, &["sysctl", "kernel/../x"], |config| {
                let linux = config.linux.get_or_insert_default();
                linux.sysctls.insert("kernel/../x".into(), "1".into());
            })?;
            no_pod(cri, invalid, &["port", "70000"], |config| {
                config.port_mappings = vec![PortMapping {
                    container_port: 70000,
                    host_port: 80,
                    ..PortMapping::default()
                }];
            })?;
            no_pod(cri, invalid, &["port", "-1"], |config| {
                config.port_mappings = vec![PortMapping {
                    container_port: 80,
                    host_port: -1,
                    ..PortMapping::default()
                }];
            })
        })
    }
);

test!(
    fn namespaces_that_contradict_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let invalid = Code::InvalidArgument;
            no_pod(cri, invalid, &["network"], |config| {
                namespaces(config).network = NamespaceMode::Container.into();
            })?;
            no_pod(cri, invalid, &["network", "99"], |config| {
                namespaces(config).network = 99;
            })?;
            no_pod(cri, invalid, &["pid", "-3"], |config| namespaces(config).pid = -3)?;
            no_pod(cri, invalid, &["ipc"], |config| {
                namespaces(config).ipc = NamespaceMode::Target.into();
            })?;
            // An id map that begins elsewhere than at 0.
            no_pod(cri, invalid, &["userns_options"], |config| {
                let map = IdMapping {
                    host_id: 100_000,
                    container_id: 1,
                    length: 65536,
                };
                namespaces(config).userns_options = Some(UserNamespace {
                    mode: NamespaceMode::Pod.into(),
                    uids: vec![map],
                    gids: vec![map],
                });
            })
        })
    }
);

test!(
    fn a_handler_that_is_not_there_is_refused_with_those_that_are(t: &Test) -> Result {
        with(t, |cri| {
            let request = RunPodSandboxRequest {
                config: Some(cri.pod_config()?),
                runtime_handler: "kata".into(),
            };
            let result = cri.run_pod_sandbox(request);
            if cri.is_ours() {
                refused(result, Code::InvalidArgument, &["runtime_handler", "kata", "rtc"])
            } else {
                ensure!(result.is_err(), "a pod of an unknown handler");
                Ok(())
            }
        })
    }
);

test!(
    fn a_pod_without_a_network_configuration_says_where_it_was_looked_for(t: &Test) -> Result {
        only_ours(t)?;
        let setup = crate::cri::Setup {
            network: None,
            ..Default::default()
        };
        setup.with(t, |cri| {
            let status = cri.status(StatusRequest::default())?.status.unwrap_or_default();
            let network = status
                .conditions
                .iter()
                .find(|condition| condition.r#type == "NetworkReady");
            let network = network.context("no condition NetworkReady")?;
            ensure!(
                !network.status && network.message.contains("net.d"),
                "{network:?}"
            );
            no_pod(cri, Code::Unavailable, &["net.d"], |_| {})?;
            // One in the host's network needs none.
            let pod = cri.pod_with(|config| {
                config.hostname.clear();
                namespaces(config).network = NamespaceMode::Node.into();
            })?;
            pod.remove()
        })
    }
);

test!(
    fn a_container_without_what_it_must_have_is_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let invalid = Code::InvalidArgument;
            let mut request = pod.creation(pod.container_config("web", "true")?);
            request.config = None;
            refused(cri.create_container(request), invalid, &["config"])?;
            let mut request = pod.creation(pod.container_config("web", "true")?);
            request.pod_sandbox_id.clear();
            refused(cri.create_container(request), invalid, &["sandbox"])?;
            no_container(&pod, invalid, &["metadata"], |config| config.metadata = None)?;
            no_container(&pod, invalid, &["metadata", "name"], |config| {
                config.metadata.get_or_insert_default().name.clear();
            })?;
            no_container(&pod, invalid, &["image"], |config| config.image = None)?;
            no_container(&pod, invalid, &["image"], |config| {
                config.image.get_or_insert_default().image.clear();
            })
        })
    }
);

test!(
    fn a_container_of_an_image_that_is_not_here_is_refused(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            no_container(
                &pod,
                Code::NotFound,
                &["registry.example/nothing:here"],
                |config| {
                    config.image.get_or_insert_default().image = "registry.example/nothing:here".into();
                },
            )
        })
    }
);

test!(
    fn a_container_of_a_pod_that_is_not_there_is_refused(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut request = pod.creation(pod.container_config("web", "true")?);
            request.pod_sandbox_id = "e".repeat(64);
            let id = request.pod_sandbox_id.clone();
            if cri.is_ours() {
                refused(cri.create_container(request), Code::NotFound, &[&id])
            } else {
                ensure!(cri.create_container(request).is_err());
                Ok(())
            }
        })
    }
);

test!(
    fn a_container_in_a_stopped_pod_is_refused(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let late = pod.create(pod.container_config("late", "sleep 1000")?)?;
            pod.stop()?;
            let request = pod.creation(pod.container_config("web", "true")?);
            if cri.is_ours() {
                refused(
                    cri.create_container(request),
                    Code::FailedPrecondition,
                    &[&pod.id[..12]],
                )?;
            } else {
                ensure!(cri.create_container(request).is_err());
            }
            ensure!(late.start().is_err(), "a container of a stopped pod starts");
            Ok(())
        })
    }
);

test!(
    fn mounts_that_cannot_be_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let mount = |container: &str, host: &str| Mount {
                container_path: container.into(),
                host_path: host.into(),
                ..Mount::default()
            };
            let invalid = Code::InvalidArgument;
            no_container(&pod, invalid, &["mounts", "container_path"], |config| {
                config.mounts = vec![mount("", "/tmp")];
            })?;
            no_container(&pod, invalid, &["mounts", "host_path"], |config| {
                config.mounts = vec![mount("/data", "")];
            })?;
            no_container(&pod, invalid, &["mounts", "host_path", "relative"], |config| {
                config.mounts = vec![mount("/data", "relative")];
            })?;
            no_container(&pod, invalid, &["mounts", "propagation", "7"], |config| {
                let mut wrong = mount("/data", "/tmp");
                wrong.propagation = 7;
                config.mounts = vec![wrong];
            })?;
            no_container(&pod, invalid, &["mounts", "recursive_read_only"], |config| {
                let mut wrong = mount("/data", "/tmp");
                wrong.recursive_read_only = true;
                config.mounts = vec![wrong];
            })?;
            let loops = t.path("loop");
            symlink(&loops, &loops)?;
            let mut config = pod.container_config("web", "true")?;
            config.mounts = vec![mount("/data", &loops.to_string_lossy())];
            let result = cri.create_container(pod.creation(config));
            let status = result.err().context("a mount of a link to itself")?;
            crate::cri::names(status.message(), &[&loops.to_string_lossy()])
        })
    }
);

test!(
    fn devices_that_cannot_be_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let device = |host: &str, permissions: &str| Device {
                container_path: "/dev/it".into(),
                host_path: host.into(),
                permissions: permissions.into(),
            };
            let invalid = Code::InvalidArgument;
            no_container(&pod, invalid, &["devices", "/no/such/device"], |config| {
                config.devices = vec![device("/no/such/device", "rwm")];
            })?;
            no_container(&pod, invalid, &["devices", "permissions", "rwx"], |config| {
                config.devices = vec![device("/dev/null", "rwx")];
            })?;
            no_container(&pod, invalid, &["devices"], |config| {
                config.cdi_devices = vec![CdiDevice {
                    name: "vendor.example/gpu=none".into(),
                }];
                config.devices = vec![device("", "rwm")];
            })?;
            no_container(&pod, invalid, &["vendor.example/gpu=none"], |config| {
                config.cdi_devices = vec![CdiDevice {
                    name: "vendor.example/gpu=none".into(),
                }];
            })
        })
    }
);

test!(
    fn users_that_cannot_be_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let invalid = Code::InvalidArgument;
            // CVE-2024-40635: a number that does not fit is no other number.
            no_container(&pod, invalid, &["run_as_user", "4294967296"], |config| {
                security(config).run_as_user = Some(Int64Value { value: 4_294_967_296 });
            })?;
            no_container(&pod, invalid, &["run_as_user", "-1"], |config| {
                security(config).run_as_user = Some(Int64Value { value: -1 });
            })?;
            no_container(&pod, invalid, &["run_as_group"], |config| {
                security(config).run_as_group = Some(Int64Value { value: 1000 });
            })?;
            no_container(&pod, invalid, &["run_as_username", "nobody-has-this"], |config| {
                security(config).run_as_username = "nobody-has-this".into();
            })?;
            no_container(&pod, invalid, &["supplemental_groups", "-5"], |config| {
                security(config).supplemental_groups = vec![-5];
            })
        })
    }
);

test!(
    fn profiles_and_capabilities_that_are_not_there_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let invalid = Code::InvalidArgument;
            no_container(&pod, invalid, &["capabilities", "CAP_FLY"], |config| {
                let capabilities = security(config).capabilities.get_or_insert_default();
                capabilities.add_capabilities = vec!["CAP_FLY".into()];
            })?;
            no_container(&pod, invalid, &["seccomp", "/no/such/profile.json"], |config| {
                security(config).seccomp = Some(SecurityProfile {
                    profile_type: security_profile::ProfileType::Localhost.into(),
                    localhost_ref: "/no/such/profile.json".into(),
                });
            })?;
            let profile = t.path("profile");
            std::fs::write(&profile, "{ \"defaultAction\": \"SCMP_ACT_WRONG\" }")?;
            no_container(&pod, invalid, &["seccomp", "SCMP_ACT_WRONG"], |config| {
                security(config).seccomp = Some(SecurityProfile {
                    profile_type: security_profile::ProfileType::Localhost.into(),
                    localhost_ref: profile.display().to_string(),
                });
            })?;
            no_container(&pod, invalid, &["seccomp", "9"], |config| {
                security(config).seccomp = Some(SecurityProfile {
                    profile_type: 9,
                    localhost_ref: String::new(),
                });
            })
        })
    }
);

test!(
    fn limits_that_cannot_be_are_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let invalid = Code::InvalidArgument;
            no_container(&pod, invalid, &["oom_score_adj", "1001"], |config| {
                resources(config).oom_score_adj = 1001;
            })?;
            no_container(&pod, invalid, &["cpu_period", "-7"], |config| {
                resources(config).cpu_period = -7;
            })?;
            no_container(&pod, invalid, &["cpuset_cpus", "1-x"], |config| {
                resources(config).cpuset_cpus = "1-x".into();
            })?;
            no_container(&pod, invalid, &["log_path", ".."], |config| {
                config.log_path = "../../../etc/passwd".into();
            })?;
            no_container(&pod, invalid, &["stop_signal", "99"], |config| {
                config.stop_signal = 99;
            })
        })
    }
);

test!(
    fn every_call_refuses_an_id_that_is_empty_or_unknown(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let unknown = "d".repeat(64);
            for (id, code) in [("", Code::InvalidArgument), (unknown.as_str(), Code::NotFound)] {
                let id = id.to_owned();
                let named = [if id.is_empty() { "_id" } else { &id }];
                let start = StartContainerRequest {
                    container_id: id.clone(),
                };
                refused(cri.start_container(start), code, &named)?;
                let status = ContainerStatusRequest {
                    container_id: id.clone(),
                    verbose: false,
                };
                refused(cri.container_status(status), code, &named)?;
                let status = PodSandboxStatusRequest {
                    pod_sandbox_id: id.clone(),
                    verbose: false,
                };
                refused(cri.pod_sandbox_status(status), code, &named)?;
                let update = UpdateContainerResourcesRequest {
                    container_id: id.clone(),
                    linux: Some(LinuxContainerResources::default()),
                    ..Default::default()
                };
                refused(cri.update_container_resources(update), code, &named)?;
                let reopen = ReopenContainerLogRequest {
                    container_id: id.clone(),
                };
                refused(cri.reopen_container_log(reopen), code, &named)?;
                let exec = ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: vec!["true".into()],
                    timeout: 0,
                };
                refused(cri.exec_sync(exec), code, &named)?;
                let stats = ContainerStatsRequest {
                    container_id: id.clone(),
                };
                refused(cri.container_stats(stats), code, &named)?;
                let stats = PodSandboxStatsRequest {
                    pod_sandbox_id: id.clone(),
                };
                refused(cri.pod_sandbox_stats(stats), code, &named)?;
                let update = UpdatePodSandboxResourcesRequest {
                    pod_sandbox_id: id.clone(),
                    ..Default::default()
                };
                refused(cri.update_pod_sandbox_resources(update), code, &named)?;
            }
            Ok(())
        })
    }
);

test!(
    fn an_id_that_several_begin_with_names_none(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            // 17 ids of 16 first digits: two of them have one in common.
            let ids: Vec<String> = (0..17).map(|_| Ok(host_pod(cri)?.id)).collect::<Result<_>>()?;
            let first = |id: &String| id[..1].to_owned();
            let digit = ids
                .iter()
                .map(first)
                .find(|digit| ids.iter().filter(|id| first(id) == *digit).count() > 1);
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: digit.context("no digit twice")?,
                verbose: false,
            };
            refused(
                cri.pod_sandbox_status(request),
                Code::InvalidArgument,
                &["several"],
            )
        })
    }
);

fn host_pod<'c, 't>(cri: &'c Cri<'t>) -> Result<Pod<'c, 't>> {
    cri.pod_with(|config| {
        config.hostname.clear();
        namespaces(config).network = NamespaceMode::Node.into();
    })
}

test!(
    fn an_exec_without_a_command_or_in_what_does_not_run_is_refused(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.create(pod.container_config("web", "exit 0")?)?;
            refused(
                cri.exec_sync(web.exec_request(&[], 0)),
                Code::InvalidArgument,
                &["cmd"],
            )?;
            refused(
                cri.exec_sync(web.exec_request(&["true"], -1)),
                Code::InvalidArgument,
                &["timeout", "-1"],
            )?;
            let request = web.exec_request(&["true"], 0);
            refused(
                cri.exec_sync(request.clone()),
                Code::FailedPrecondition,
                &[&web.id[..12]],
            )?;
            web.start()?;
            web.ended()?;
            refused(cri.exec_sync(request), Code::FailedPrecondition, &[&web.id[..12]])
        })
    }
);

test!(
    fn a_container_is_started_only_once(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let done = pod.run("done", "exit 0")?;
            done.ended()?;
            for container in [&web, &done] {
                let request = StartContainerRequest {
                    container_id: container.id.clone(),
                };
                let result = cri.start_container(request);
                if cri.is_ours() {
                    refused(result, Code::FailedPrecondition, &[&container.id[..12]])?;
                } else {
                    ensure!(result.is_err(), "it started again");
                }
            }
            web.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_program_that_cannot_be_run_is_named_and_its_container_can_go(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut config = pod.container_config("web", "")?;
            config.command = vec!["/no/such/program".into()];
            let web = pod.create(config);
            let error = match web {
                Err(error) => error,
                Ok(web) => {
                    let error = web.start().err().context("it started")?;
                    let status = web.status()?;
                    ensure!(status.state() == ContainerState::ContainerExited, "{status:?}");
                    ensure!(status.exit_code != 0 && !status.message.is_empty(), "{status:?}");
                    web.remove()?;
                    error
                }
            };
            crate::cri::names(&error.to_string(), &["/no/such/program"])
        })
    }
);

test!(
    fn what_comes_with_the_next_issue_says_that_it_is_not_there(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let checkpoint = CheckpointContainerRequest {
                container_id: web.id.clone(),
                location: "/tmp/x.tar".into(),
                timeout: 0,
            };
            refused(
                cri.checkpoint_container(checkpoint),
                Code::Unimplemented,
                &["heckpoint"],
            )
        })
    }
);
