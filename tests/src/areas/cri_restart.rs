//! A CRI server that ends and comes back: what it ran goes on, what ended meanwhile is told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::cri::proto::*;
use crate::cri::{Client, Code, Cri, Pod, check, only_ours, refused, with};
use crate::fuse::Hanging;
use crate::registry::Result;
use crate::test;
use crate::test::{Skip, Test};
use crate::wait::until;

/// Ends the server by this signal, does something meanwhile, and starts it again.
fn restart(cri: &Cri<'_>, signal: Signal, meanwhile: impl FnOnce() -> Result) -> Result {
    cri.signal(signal)?;
    meanwhile()?;
    cri.start_server()
}

test!(
    fn containers_go_on_over_a_restart(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "echo $$ >/pid; sleep 1000")?;
            let created = pod.create(pod.container_config("later", "echo later; sleep 1000")?)?;
            let (before, ip) = (web.status()?, pod.ip()?);
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                restart(cri, signal, || Ok(()))?;
                let after = web.status()?;
                ensure!(after == before, "{signal}: {after:?} was {before:?}");
                ensure!(pod.ip()? == ip);
                web.exec(&["cat", "/pid"])?.ok()?;
                created.is(ContainerState::ContainerCreated)?;
            }
            created.start()?;
            created.logged("later")?;
            pod.run("new", "sleep 1000")?.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn an_exit_during_the_down_time_is_told_with_its_code(t: &Test) -> Result {
        with(t, |cri| {
            let go = t.path("go");
            fs::create_dir(&go)?;
            let pod = cri.pod()?;
            let web = pod.run_with(
                "web",
                "while [ ! -e /go/now ]; do sleep 0.05; done; exit 6",
                |config| {
                    config.mounts = vec![Mount {
                        container_path: "/go".into(),
                        host_path: go.display().to_string(),
                        ..Mount::default()
                    }];
                },
            )?;
            let pid = pid_of(&web.full_status()?)?;
            restart(cri, Signal::SIGKILL, || {
                fs::write(go.join("now"), "")?;
                until("the container to end", || {
                    Ok((!crate::host::process::is_alive(pid)).then_some(()))
                })
            })?;
            let ended = web.ended()?;
            ensure!(ended.exit_code == 6, "{ended:?}");
            Ok(())
        })
    }
);

fn pid_of(status: &ContainerStatusResponse) -> Result<i32> {
    let info = status.info.get("info").context("no info")?;
    let info: serde_json::Value = serde_json::from_str(info)?;
    let pid = info["pid"].as_i64().context("no pid")?;
    Ok(i32::try_from(pid)?)
}

test!(
    fn logs_are_whole_over_a_restart(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let script =
                "i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done; echo last; sleep 1000";
            let web = pod.run("web", script)?;
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            let log = web.logged(" last\n")?;
            for i in [0, 1, 1500, 2999] {
                ensure!(log.contains(&format!(" line-{i}\n")), "line-{i} is missing");
            }
            ensure!(log.lines().count() == 3001, "{} lines", log.lines().count());
            Ok(())
        })
    }
);

test!(
    fn what_was_made_before_a_restart_is_stopped_and_removed_after_it(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let done = pod.run("done", "exit 4")?;
            done.ended()?;
            let stopped = cri.pod()?;
            stopped.stop()?;
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            ensure!(done.status()?.exit_code == 4, "{:?}", done.status()?);
            ensure!(stopped.status()?.state() == PodSandboxState::SandboxNotready);
            web.stop(0)?;
            web.remove()?;
            pod.stop()?;
            pod.remove()?;
            stopped.remove()
        })
    }
);

test!(
    fn images_are_there_after_a_restart(t: &Test) -> Result {
        with(t, |cri| {
            let image = cri.busybox()?;
            let list = |cri: &Cri<'_>| check("ListImages", cri.list_images(ListImagesRequest::default()));
            let before = list(cri)?.images.len();
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            ensure!(list(cri)?.images.len() == before, "an image of {image} is gone");
            cri.pod()?.run("web", "sleep 1000")?.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_restart_while_pods_are_made_loses_none_and_leaks_none(t: &Test) -> Result {
        with(t, |cri| {
            cri.busybox()?;
            let config = cri.pod_config()?;
            let other = cri.another_client()?;
            // Sent, and never answered: the server dies meanwhile.
            let request = RunPodSandboxRequest {
                config: Some(config.clone()),
                runtime_handler: String::new(),
            };
            other.wait(async {
                let mut client = other.runtime();
                let call = tokio::spawn(async move { client.run_pod_sandbox(request).await });
                tokio::time::sleep(std::time::Duration::from_millis(40)).await;
                call.abort();
            });
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            // The kubelet's next try.
            let id = check("RunPodSandbox", cri.run_pod(&config))?;
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: id,
                verbose: false,
            };
            let status = check("PodSandboxStatus", cri.pod_sandbox_status(request))?.status;
            ensure!(status.is_some_and(|status| status.state() == PodSandboxState::SandboxReady));
            Ok(())
        })
    }
);

/// A file system that hangs.
fn hanging(t: &Test) -> Result<Hanging> {
    Hanging::mount(t.path("hanging"))?.ok_or_else(|| Skip::because("no FUSE"))
}

/// A container that can't be made before a file system answers: what is to be mounted has its place there.
fn that_hangs_in_its_shim(pod: &Pod<'_, '_>, hang: &Hanging) -> Result<CreateContainerRequest> {
    let mut config = pod.container_config("stuck", "sleep 1000")?;
    config.mounts = [(hang.path.as_path(), "/data"), ("/tmp".as_ref(), "/data/hang")]
        .map(|(host, container)| Mount {
            container_path: container.into(),
            host_path: host.display().to_string(),
            ..Mount::default()
        })
        .to_vec();
    Ok(pod.creation(config))
}

/// Sends a call, and goes when it hangs, its answer unread.
fn until_it_hangs<T: Send + 'static>(
    client: &Client,
    hang: &Hanging,
    call: impl Future<Output = T> + Send + 'static,
) -> Result {
    client.wait(async {
        let call = tokio::spawn(call);
        while !hang.holds_somebody() && !call.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        call.abort();
    });
    client.hang_up();
    ensure!(hang.holds_somebody(), "it does not hang");
    Ok(())
}

test!(
    fn a_create_that_hangs_holds_up_no_restart(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let mut hang = hanging(t)?;
            let request = that_hangs_in_its_shim(&pod, &hang)?;
            let other = cri.another_client()?;
            let mut client = other.runtime();
            until_it_hangs(
                &other,
                &hang,
                async move { client.create_container(request).await },
            )?;
            // The shim waits for what hangs until it may delete it, and rtc-cri for the shim.
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            web.exec(&["true"])?.ok()?;
            ensure!(cri.containers()? == [web.id.clone()], "{:?}", cri.containers()?);
            pod.run("other", "sleep 1000")?.exec(&["true"])?.ok()?;
            hang.end();
            // The same name again: it waits until nothing is left of the first.
            let config = pod.container_config("stuck", "sleep 1000")?;
            let again = pod.create(config)?;
            again.start()?;
            again.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_start_that_hangs_over_a_restart_is_not_lost_sight_of(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut hang = hanging(t)?;
            // Only execve(2) looks for the interpreter.
            let script = t.path("script");
            fs::write(&script, "#!/data/hang\n")?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
            let mut config = pod.container_config("stuck", "")?;
            config.command = vec!["/script".into()];
            config.mounts = [(&hang.path, "/data"), (&script, "/script")]
                .map(|(host, container)| Mount {
                    container_path: container.into(),
                    host_path: host.display().to_string(),
                    ..Mount::default()
                })
                .to_vec();
            let stuck = pod.create(config)?;
            let other = cri.another_client()?;
            let mut client = other.runtime();
            let request = StartContainerRequest {
                container_id: stuck.id.clone(),
            };
            until_it_hangs(
                &other,
                &hang,
                async move { client.start_container(request).await },
            )?;
            restart(cri, Signal::SIGKILL, || Ok(()))?;
            stuck.is(ContainerState::ContainerCreated)?;
            // What nothing can kill is not said to have ended.
            let stop = StopContainerRequest {
                container_id: stuck.id.clone(),
                timeout: 0,
            };
            refused(cri.stop_container(stop), Code::DeadlineExceeded, &["SIGKILL"])?;
            stuck.is(ContainerState::ContainerCreated)?;
            hang.end();
            let ended = stuck.ended()?;
            ensure!(ended.exit_code == 137, "{ended:?}");
            Ok(())
        })
    }
);

test!(
    fn a_pod_whose_record_is_lost_is_removed_with_all_that_it_has(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let kept = cri.pod()?;
            let lost = cri.pod()?;
            let web = lost.run("web", "sleep 1000")?;
            restart(cri, Signal::SIGKILL, || {
                let path = cri.state().join("sandboxes.journal");
                let lines = fs::read_to_string(&path)?;
                let others = lines.lines().filter(|line| !line.contains(&lost.id));
                let others: String = others.flat_map(|line| [line, "\n"]).collect();
                Ok(fs::write(&path, others)?)
            })?;
            ensure!(kept.status()?.state() == PodSandboxState::SandboxReady);
            let list = check(
                "ListPodSandbox",
                cri.list_pod_sandbox(ListPodSandboxRequest::default()),
            )?;
            ensure!(list.items.len() == 1, "{list:?}");
            web.ended()?;
            web.remove()?;
            for left in [
                cri.state().join("sandboxes").join(&lost.id),
                cri.state().join("s").join(&lost.id[..24]),
                format!("/run/netns/rtc-{}", lost.id).into(),
            ] {
                until(&format!("{} to go", left.display()), || {
                    Ok((!left.exists()).then_some(()))
                })?;
            }
            ensure!(fs::exists(format!("/run/netns/rtc-{}", kept.id))?);
            Ok(())
        })
    }
);
