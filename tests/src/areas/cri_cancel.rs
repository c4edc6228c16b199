//! Clients that go in the middle of a call: what they began is done or undone, and their next try joins or finds it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cri::proto::*;
use crate::cri::{Client, Code, check, only_ours, place, with};
use crate::fuse::Hanging;
use crate::test;
use crate::test::Skip;

/// Sends a call, and goes after so many milliseconds, its answer unread.
fn and_go<T: Send + 'static>(
    client: &Client,
    milliseconds: u64,
    call: impl Future<Output = T> + Send + 'static,
) {
    client.wait(async {
        let call = tokio::spawn(call);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        call.abort();
        let _ = call.await;
    });
    client.hang_up();
}

/// After how many milliseconds clients go.
const MOMENTS: [u64; 5] = [0, 5, 20, 60, 150];

test!(
    fn a_pod_whose_client_went_is_found_by_the_next_try(t: &Test) -> Result {
        with(t, |cri| {
            let other = cri.another_client()?;
            for moment in MOMENTS {
                let config = cri.pod_config()?;
                let mut client = other.runtime();
                let request = RunPodSandboxRequest {
                    config: Some(config.clone()),
                    runtime_handler: String::new(),
                };
                and_go(
                    &other,
                    moment,
                    async move { client.run_pod_sandbox(request).await },
                );
                let id = check("RunPodSandbox, again", cri.run_pod(&config))?;
                let list = check(
                    "ListPodSandbox",
                    cri.list_pod_sandbox(ListPodSandboxRequest::default()),
                )?;
                ensure!(
                    list.items.len() == 1 && list.items[0].id == id,
                    "after {moment} ms: {list:?}"
                );
                let remove = RemovePodSandboxRequest { pod_sandbox_id: id };
                check("RemovePodSandbox", cri.remove_pod_sandbox(remove))?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_container_whose_client_went_is_found_by_the_next_try(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let other = cri.another_client()?;
            for (attempt, moment) in (0..).zip(MOMENTS) {
                let mut config = pod.container_config("web", "sleep 1000")?;
                config.metadata.get_or_insert_default().attempt = attempt;
                let mut client = other.runtime();
                let request = pod.creation(config.clone());
                and_go(
                    &other,
                    moment,
                    async move { client.create_container(request).await },
                );
                let web = pod.create(config)?;
                ensure!(
                    cri.containers()? == [web.id.clone()],
                    "after {moment} ms: {:?}",
                    cri.containers()?
                );
                let mut client = other.runtime();
                let request = StartContainerRequest {
                    container_id: web.id.clone(),
                };
                and_go(
                    &other,
                    moment,
                    async move { client.start_container(request).await },
                );
                // It runs already, or is started now.
                if web.start().is_err() {
                    web.is(ContainerState::ContainerRunning)?;
                }
                web.exec(&["true"])?.ok()?;
                web.remove()?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_stop_whose_client_went_goes_on(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let web = pod.run("web", "trap '' TERM; echo ready; while :; do sleep 1; done")?;
            web.logged("ready")?;
            let other = cri.another_client()?;
            let mut client = other.runtime();
            let request = StopContainerRequest {
                container_id: web.id.clone(),
                timeout: 1,
            };
            and_go(&other, 100, async move { client.stop_container(request).await });
            ensure!(web.ended()?.exit_code == 137);
            let mut client = other.runtime();
            let request = StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            };
            and_go(&other, 5, async move { client.stop_pod_sandbox(request).await });
            pod.stop()?;
            pod.remove()
        })
    }
);

test!(
    fn an_exec_whose_client_went_is_ended(t: &Test) -> Result {
        with(t, |cri| {
            let web = cri.pod()?.run("web", "sleep 1000")?;
            let other = cri.another_client()?;
            let mut client = other.runtime();
            let request = web.exec_request(&["sleep", "4321"], 0);
            and_go(&other, 300, async move { client.exec_sync(request).await });
            crate::wait::until("the exec to end", || {
                Ok((!web.sh("ps")?.contains("sleep 4321")).then_some(()))
            })
        })
    }
);

test!(
    fn a_pull_whose_client_went_can_be_pulled_again(t: &Test) -> Result {
        with(t, |cri| {
            cri.start_registry()?;
            let other = cri.another_client()?;
            for moment in MOMENTS {
                let mut client = other.images();
                let request = PullImageRequest {
                    image: Some(ImageSpec {
                        image: crate::cri::BUSYBOX.into(),
                        ..ImageSpec::default()
                    }),
                    ..PullImageRequest::default()
                };
                and_go(&other, moment, async move { client.pull_image(request).await });
            }
            cri.pull(crate::cri::BUSYBOX)?;
            cri.pod()?.run("web", "sleep 1000")?.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_create_that_hangs_does_not_keep_its_pod_from_being_stopped(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut hang = Hanging::mount(t.path("hanging"))?.ok_or_else(|| Skip::because("no FUSE"))?;
            let mut config = pod.container_config("stuck", "sleep 1000")?;
            config.mounts = vec![Mount {
                container_path: "/data".into(),
                host_path: hang.path.join("hang").display().to_string(),
                ..Mount::default()
            }];
            let other = cri.another_client()?;
            let mut client = other.runtime();
            let request = pod.creation(config);
            other.wait(async {
                let call = tokio::spawn(async move { client.create_container(request).await });
                while !hang.holds_somebody() && !call.is_finished() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            ensure!(hang.holds_somebody(), "it does not hang");
            pod.stop()?;
            ensure!(pod.status()?.state() == PodSandboxState::SandboxNotready);
            hang.end();
            pod.remove()
        })
    }
);

test!(
    fn what_a_failed_create_could_not_take_back_is_taken_back_by_the_next(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            let pod = cri.pod()?;
            let mut hang = Hanging::mount(t.path("hanging"))?.ok_or_else(|| Skip::because("no FUSE"))?;
            let mut config = pod.container_config("web", "sleep 1000")?;
            config.mounts = [(hang.path.as_path(), "/data"), ("/tmp".as_ref(), "/data/hang")]
                .map(|(host, container)| Mount {
                    container_path: container.into(),
                    host_path: host.display().to_string(),
                    ..Mount::default()
                })
                .to_vec();
            let other = cri.another_client()?;
            let mut client = other.runtime();
            let request = pod.creation(config);
            let bundles = cri.state().join("containers");
            let bundle = other.wait(async {
                let call = tokio::spawn(async move { client.create_container(request).await });
                while !hang.holds_somebody() && !call.is_finished() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let bundle = fs::read_dir(&bundles)?.next().context("no bundle")??.path();
                // Nobody can remove a mount point.
                fs::create_dir(bundle.join("busy"))?;
                place::busybox(&[
                    "mount",
                    "-t",
                    "tmpfs",
                    "busy",
                    &bundle.join("busy").to_string_lossy(),
                ])?;
                hang.end();
                let status = call.await?.err().context("it was created")?;
                ensure!(status.code() != Code::Cancelled, "{status:?}");
                Ok(bundle)
            })?;
            ensure!(cri.containers()?.is_empty());
            let again = || pod.create(pod.container_config("web", "sleep 1000")?);
            let error = again().err().map(|error| error.to_string()).unwrap_or_default();
            ensure!(error.contains("take back container"), "{error}");
            place::busybox(&["umount", &bundle.join("busy").to_string_lossy()])?;
            let web = again()?;
            web.start()?;
            ensure!(!bundle.exists(), "{} is there", bundle.display());
            web.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);
