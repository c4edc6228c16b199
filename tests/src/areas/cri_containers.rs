//! Containers of a CRI server: their states, commands, logs, limits, mounts and ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cri::proto::*;
use crate::cri::{Code, Container, Cri, check, refused, security, with};
use crate::host::cgroup::{Cgroup, knob};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// The container's cgroup, as cgroupfs names it.
fn cgroup_of(container: &Container<'_, '_>) -> Cgroup {
    Cgroup {
        path: format!("{}/{}", container.cri.t.cgroup.path, container.id),
    }
}

fn limits(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default()
}

fn update(container: &Container<'_, '_>, linux: LinuxContainerResources) -> UpdateContainerResourcesRequest {
    UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    }
}

fn listed(cri: &Cri<'_>, filter: ContainerFilter) -> Result<Vec<String>> {
    let request = ListContainersRequest { filter: Some(filter) };
    let list = check("ListContainers", cri.list_containers(request))?;
    let mut ids: Vec<_> = list
        .containers
        .into_iter()
        .map(|container| container.id)
        .collect();
    ids.sort();
    Ok(ids)
}

test!(
    fn a_container_is_created_running_exited_and_gone(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut config = pod.container_config("web", "echo hello; exit 7")?;
            config.labels.insert("app".into(), "web".into());
            config.annotations.insert("note".into(), "kept".into());
            let web = pod.create(config.clone())?;
            let created = web.status()?;
            ensure!(created.state() == ContainerState::ContainerCreated, "{created:?}");
            ensure!(
                created.created_at > 0 && created.started_at == 0 && created.finished_at == 0,
                "{created:?}"
            );
            ensure!(created.metadata == config.metadata, "{created:?}");
            ensure!(
                created.labels.get("app").is_some_and(|app| app == "web"),
                "{created:?}"
            );
            ensure!(
                created.annotations.get("note").is_some_and(|note| note == "kept"),
                "{created:?}"
            );
            ensure!(
                created
                    .image
                    .as_ref()
                    .is_some_and(|image| image.image.contains("busybox")),
                "{created:?}"
            );
            ensure!(created.log_path == web.log.to_string_lossy(), "{created:?}");
            web.start()?;
            let ended = web.ended()?;
            ensure!(ended.exit_code == 7 && ended.reason == "Error", "{ended:?}");
            ensure!(
                created.created_at <= ended.started_at && ended.started_at <= ended.finished_at,
                "{ended:?}"
            );
            web.remove()?;
            let request = ContainerStatusRequest {
                container_id: web.id.clone(),
                verbose: false,
            };
            refused(cri.container_status(request), Code::NotFound, &[&web.id])
        })
    }
);

test!(
    fn a_container_that_ends_well_is_completed(t: &Test) -> Result {
        with(t, |cri| {
            let ended = cri.pod()?.run("web", "true")?.ended()?;
            ensure!(ended.exit_code == 0 && ended.reason == "Completed", "{ended:?}");
            Ok(())
        })
    }
);

test!(
    fn output_is_in_the_log_in_the_form_of_cri(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri
                .pod()?
                .run("web", "echo out; echo err >&2; printf part; sleep 1000")?;
            let log = web.logged("stderr F err")?;
            let line = log
                .lines()
                .find(|line| line.ends_with("stdout F out"))
                .context("no line of stdout")?;
            let time = line.split(' ').next().unwrap_or_default();
            ensure!(time.len() >= 20 && time.contains('T'), "{line}");
            web.stop(0)?;
            web.logged("part")?;
            Ok(())
        })
    }
);

test!(
    fn a_log_that_was_moved_away_is_made_anew(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "while :; do echo line; sleep 0.05; done")?;
            web.logged("line")?;
            let old = web.log.with_extension("old");
            fs::rename(&web.log, &old)?;
            let request = ReopenContainerLogRequest {
                container_id: web.id.clone(),
            };
            check("ReopenContainerLog", cri.reopen_container_log(request))?;
            web.logged("line")?;
            Ok(())
        })
    }
);

test!(
    fn the_log_of_what_does_not_run_is_not_reopened(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.create(pod.container_config("web", "true")?)?;
            let request = ReopenContainerLogRequest {
                container_id: web.id.clone(),
            };
            ensure!(
                cri.reopen_container_log(request).is_err(),
                "a container that never ran"
            );
            Ok(())
        })
    }
);

test!(
    fn an_exec_gives_both_streams_and_the_exit_code(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let output = web
                .exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])?
                .code(3)?;
            ensure!(output.stdout == "out\n" && output.stderr == "err\n", "{output}");
            Ok(())
        })
    }
);

test!(
    fn an_exec_that_takes_too_long_is_ended_and_leaves_nothing(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let slow = web.exec_request(&["sh", "-c", "sleep 4321 & sleep 4321"], 1);
            refused(cri.exec_sync(slow), Code::DeadlineExceeded, &["1"])?;
            until("the exec to end", || {
                Ok((!web.sh("ps")?.contains("sleep 4321")).then_some(()))
            })
        })
    }
);

test!(
    fn an_exec_of_what_is_not_there_says_so(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let status = cri
                .exec_sync(web.exec_request(&["/no/such/program"], 0))
                .err()
                .context("it ran")?;
            crate::cri::names(status.message(), &["/no/such/program"])
        })
    }
);

test!(
    fn a_megabyte_of_output_comes_back_whole(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let output = web
                .exec(&["sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x"])?
                .ok()?;
            ensure!(output.stdout.len() == 1 << 20, "{} bytes", output.stdout.len());
            Ok(())
        })
    }
);

test!(
    fn the_grace_period_is_kept_and_then_it_is_killed(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let polite = pod.run("polite", "trap 'exit 5' TERM; while :; do sleep 0.05; done")?;
            polite.logged("").ok();
            polite.exec(&["true"])?.ok()?;
            polite.stop(60)?;
            ensure!(polite.status()?.exit_code == 5, "{:?}", polite.status()?);
            let deaf = pod.run("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done")?;
            deaf.logged("ready")?;
            deaf.stop(1)?;
            ensure!(deaf.status()?.exit_code == 137, "{:?}", deaf.status()?);
            Ok(())
        })
    }
);

test!(
    fn a_shorter_grace_period_ends_a_stop_that_is_under_way(t: &Test) -> Result {
        with(t, |cri| {
            let deaf = cri
                .pod()?
                .run("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done")?;
            deaf.logged("ready")?;
            cri.wait(async {
                let mut client = cri.runtime();
                let request = StopContainerRequest {
                    container_id: deaf.id.clone(),
                    timeout: 100_000,
                };
                let slow = tokio::spawn(async move { client.stop_container(request).await });
                tokio::time::sleep(Duration::from_millis(300)).await;
                let mut client = cri.runtime();
                let request = StopContainerRequest {
                    container_id: deaf.id.clone(),
                    timeout: 0,
                };
                check("StopContainer", client.stop_container(request).await)?;
                check("the first StopContainer", slow.await?)
            })?;
            ensure!(deaf.status()?.exit_code == 137);
            Ok(())
        })
    }
);

test!(
    fn a_container_that_never_started_stops_at_once_and_goes(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.create(pod.container_config("web", "true")?)?;
            web.stop(100_000)?;
            web.remove()
        })
    }
);

test!(
    fn a_running_container_is_removed_with_its_processes(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "trap '' TERM; sleep 1000 & sleep 1000")?;
            web.remove()?;
            ensure!(cri.containers()?.is_empty());
            Ok(())
        })
    }
);

test!(
    fn the_stop_signal_is_the_requests(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let script = "trap 'exit 9' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
            let web = pod.run_with("web", script, |config| {
                config.stop_signal = Signal::Sigusr1.into();
            })?;
            web.logged("ready")?;
            ensure!(
                web.status()?.stop_signal() == Signal::Sigusr1,
                "{:?}",
                web.status()?
            );
            web.stop(60)?;
            ensure!(web.status()?.exit_code == 9, "{:?}", web.status()?);
            Ok(())
        })
    }
);

test!(
    fn the_next_attempt_is_another_container(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let first = pod.run("web", "exit 1")?;
            first.ended()?;
            let second = pod.run_with("web", "sleep 1000", |config| {
                config.metadata.get_or_insert_default().attempt = 1;
            })?;
            ensure!(first.id != second.id);
            second.exec(&["true"])?.ok()?;
            ensure!(cri.containers()?.len() == 2);
            Ok(())
        })
    }
);

test!(
    fn containers_are_listed_by_pod_state_and_label(t: &Test) -> Result {
        with(t, |cri| {
            let (one, other) = (cri.pod()?, cri.pod()?);
            let web = one.run_with("web", "sleep 1000", |config| {
                config.labels.insert("app".into(), "web".into());
            })?;
            let done = other.run("done", "true")?;
            done.ended()?;
            let by_pod = ContainerFilter {
                pod_sandbox_id: one.id.clone(),
                ..ContainerFilter::default()
            };
            ensure!(listed(cri, by_pod)? == std::slice::from_ref(&web.id));
            let by_state = ContainerFilter {
                state: Some(ContainerStateValue {
                    state: ContainerState::ContainerExited.into(),
                }),
                ..ContainerFilter::default()
            };
            ensure!(listed(cri, by_state)? == std::slice::from_ref(&done.id));
            let by_label = ContainerFilter {
                label_selector: [("app".to_owned(), "web".to_owned())].into(),
                ..ContainerFilter::default()
            };
            ensure!(listed(cri, by_label)? == std::slice::from_ref(&web.id));
            let by_id = ContainerFilter {
                id: done.id.clone(),
                ..ContainerFilter::default()
            };
            ensure!(listed(cri, by_id)? == std::slice::from_ref(&done.id));
            Ok(())
        })
    }
);

test!(
    fn limits_are_set_and_changed_and_told(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with(t, |cri| {
            let web = cri.pod()?.run_with("web", "sleep 1000", |config| {
                *limits(config) = LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_quota: 50_000,
                    cpu_shares: 512,
                    memory_limit_in_bytes: 64 << 20,
                    ..LinuxContainerResources::default()
                };
            })?;
            let cgroup = cgroup_of(&web);
            ensure!(cgroup.read(knob::MEMORY_LIMIT)? == (64 << 20).to_string());
            ensure!(cgroup.cpu_bandwidth()? == (Some(50_000), 100_000));
            let more = LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 70_000,
                memory_limit_in_bytes: 96 << 20,
                ..LinuxContainerResources::default()
            };
            check(
                "UpdateContainerResources",
                cri.update_container_resources(update(&web, more)),
            )?;
            ensure!(cgroup.read(knob::MEMORY_LIMIT)? == (96 << 20).to_string());
            ensure!(cgroup.cpu_bandwidth()? == (Some(70_000), 100_000));
            let told = web
                .status()?
                .resources
                .and_then(|resources| resources.linux)
                .context("no resources")?;
            ensure!(
                told.memory_limit_in_bytes == 96 << 20 && told.cpu_quota == 70_000,
                "{told:?}"
            );
            ensure!(told.cpu_shares == 512, "what was not changed stays: {told:?}");
            Ok(())
        })
    }
);

test!(
    fn limits_of_a_created_container_can_be_changed(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.create(pod.container_config("web", "sleep 1000")?)?;
            let limit = LinuxContainerResources {
                memory_limit_in_bytes: 32 << 20,
                ..LinuxContainerResources::default()
            };
            check(
                "UpdateContainerResources",
                cri.update_container_resources(update(&web, limit)),
            )?;
            web.start()?;
            ensure!(cgroup_of(&web).read(knob::MEMORY_LIMIT)? == (32 << 20).to_string());
            Ok(())
        })
    }
);

test!(
    fn an_oom_kill_is_the_reason_told(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with(t, |cri| {
            let script = "head -c 100000000 /dev/zero | tail >/dev/null; exit 1";
            let web = cri
                .pod()?
                .run_with("web", &format!("exec sh -c '{script}'"), |config| {
                    let limits = limits(config);
                    limits.memory_limit_in_bytes = 16 << 20;
                    limits.memory_swap_limit_in_bytes = 16 << 20;
                })?;
            let ended = web.ended()?;
            ensure!(ended.reason == "OOMKilled", "{ended:?}");
            Ok(())
        })
    }
);

test!(
    fn statistics_count_memory_and_processor(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run(
                "web",
                "i=0; while :; do i=$((i+1)); [ $((i%100000)) != 0 ] || sleep 0.01; done",
            )?;
            until("statistics", || {
                let request = ContainerStatsRequest {
                    container_id: web.id.clone(),
                };
                let stats = check("ContainerStats", cri.container_stats(request))?
                    .stats
                    .context("no stats")?;
                let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
                let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds);
                let counted =
                    memory.is_some_and(|bytes| bytes.value > 0) && cpu.is_some_and(|time| time.value > 0);
                Ok(counted.then_some(()))
            })?;
            let list = check(
                "ListContainerStats",
                cri.list_container_stats(ListContainerStatsRequest::default()),
            )?;
            ensure!(list.stats.len() == 1, "{list:?}");
            let request = PodSandboxStatsRequest {
                pod_sandbox_id: pod.id.clone(),
            };
            let stats = check("PodSandboxStats", cri.pod_sandbox_stats(request))?
                .stats
                .context("no stats")?;
            let linux = stats.linux.context("no linux")?;
            ensure!(linux.containers.len() == 1, "{linux:?}");
            let interfaces = linux.network.context("no network")?;
            ensure!(interfaces.default_interface.is_some_and(|eth| eth.name == "eth0"));
            Ok(())
        })
    }
);

test!(
    fn a_pod_that_is_not_privileged_has_no_privileged_containers(t: &Test) -> Result {
        with(t, |cri| {
            let volume = t.path("volume");
            fs::create_dir_all(volume.join("inner"))?;
            let pod = cri.pod()?;
            let run = |name: &str, propagation: MountPropagation| {
                pod.run_with(name, "sleep 1000", |config| {
                    security(config).privileged = true;
                    config.mounts = vec![Mount {
                        container_path: "/volume".into(),
                        host_path: volume.display().to_string(),
                        propagation: propagation.into(),
                        ..Mount::default()
                    }];
                })
            };
            let private = run("private", MountPropagation::PropagationPrivate);
            // A pod that is not privileged has no privileged containers.
            ensure!(private.is_err(), "a privileged container in a pod that is not");
            Ok(())
        })
    }
);

test!(
    fn environment_arguments_and_directory_are_the_requests_over_the_images(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run_with("web", "", |config| {
                config.command = vec!["sh".into(), "-c".into()];
                config.args = vec!["echo \"$WHO in $(pwd)\"; sleep 1000".into()];
                config.envs = vec![KeyValue {
                    key: "WHO".into(),
                    value: "me".into(),
                }];
                config.working_dir = "/made/for/it".into();
            })?;
            web.logged("me in /made/for/it")?;
            Ok(())
        })
    }
);

test!(
    fn a_terminal_is_one(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri
                .pod()?
                .run_with("web", "tty; sleep 1000", |config| config.tty = true)?;
            web.logged("/dev/pts/0")?;
            Ok(())
        })
    }
);

test!(
    fn a_device_of_the_host_can_be_used_where_it_was_asked_for(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let device = |permissions: &str| Device {
                container_path: "/dev/the-device".into(),
                host_path: "/dev/zero".into(),
                permissions: permissions.into(),
            };
            let web = pod.run_with("web", "sleep 1000", |config| config.devices = vec![device("r")])?;
            web.exec(&["head", "-c", "1", "/dev/the-device"])?.ok()?;
            let other = pod.run("other", "sleep 1000")?;
            ensure!(other.exec(&["ls", "/dev/the-device"])?.code != 0);
            Ok(())
        })
    }
);

test!(
    fn what_the_root_file_system_got_goes_with_the_container(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            web.sh("echo mine >/file; rm -rf /home")?;
            let other = pod.run("other", "sleep 1000")?;
            ensure!(
                other.exec(&["ls", "/file"])?.code != 0,
                "another container sees it"
            );
            web.stop(0)?;
            web.remove()
        })
    }
);

test!(
    fn twenty_five_short_containers_leave_nothing(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            for attempt in 0..25 {
                let web = pod.run_with("web", "exit 3", |config| {
                    config.metadata.get_or_insert_default().attempt = attempt;
                })?;
                ensure!(web.ended()?.exit_code == 3);
                web.remove()?;
                ensure!(
                    !Path::new(&cgroup_of(&web).directory("freezer")?).exists(),
                    "its cgroup is left"
                );
            }
            Ok(())
        })
    }
);

test!(
    fn hundreds_of_stops_in_their_grace_hold_up_no_other_call(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "trap '' TERM; echo ready; while :; do sleep 1; done")?;
            web.logged("ready")?;
            let other = cri.another_client()?;
            let client = other.runtime();
            other.wait(async {
                let mut stops = tokio::task::JoinSet::new();
                for _ in 0..400 {
                    let mut client = client.clone();
                    let request = StopContainerRequest {
                        container_id: web.id.clone(),
                        timeout: 1000,
                    };
                    stops.spawn(async move { client.stop_container(request).await });
                }
                // They are all sent before it.
                tokio::time::sleep(Duration::from_millis(500)).await;
                let status = client.clone();
                let status =
                    tokio::spawn(async move { status.clone().status(StatusRequest::default()).await });
                let status = tokio::time::timeout(Duration::from_secs(20), status).await;
                status.context("Status waits for the stops")???;
                Ok::<(), anyhow::Error>(())
            })?;
            other.hang_up();
            web.stop(0)
        })
    }
);
