//! GetContainerEvents: what happens, told to whoever listens, in order.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cri::proto::*;
use crate::cri::{Client, check, with};
use crate::registry::Result;
use crate::test;

type Events = tonic::Streaming<ContainerEventResponse>;

fn listen(client: &Client) -> Result<Events> {
    client.wait(async {
        let answer = client.runtime().get_container_events(GetEventsRequest {}).await;
        Ok(check("GetContainerEvents", answer)?.into_inner())
    })
}

/// The next event of this container or sandbox.
fn next(client: &Client, events: &mut Events, id: &str) -> Result<ContainerEventResponse> {
    client.wait(async {
        let wait = async {
            loop {
                let event = events.message().await?.context("no more events")?;
                if event.container_id == id {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .context("no event")?
    })
}

test!(
    fn the_life_of_a_container_is_told_in_order(t: &Test) -> Result {
        with(t, |cri| {
            let listener = cri.another_client()?;
            let mut events = listen(&listener)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "exit 3")?;
            let ended = web.ended()?;
            web.remove()?;
            for kind in [
                ContainerEventType::ContainerCreatedEvent,
                ContainerEventType::ContainerStartedEvent,
                ContainerEventType::ContainerStoppedEvent,
                ContainerEventType::ContainerDeletedEvent,
            ] {
                let event = next(&listener, &mut events, &web.id)?;
                ensure!(
                    event.container_event_type() == kind,
                    "expected {kind:?}: {event:?}"
                );
                ensure!(event.created_at > 0, "{event:?}");
                let sandbox = event.pod_sandbox_status.context("no status of the sandbox")?;
                ensure!(sandbox.id == pod.id);
                if kind == ContainerEventType::ContainerStoppedEvent {
                    let found = event
                        .containers_statuses
                        .iter()
                        .find(|status| status.id == web.id);
                    ensure!(
                        found.is_some_and(|status| status.exit_code == ended.exit_code),
                        "{found:?}"
                    );
                }
            }
            Ok(())
        })
    }
);

test!(
    fn the_life_of_a_pod_is_told_too(t: &Test) -> Result {
        with(t, |cri| {
            let listener = cri.another_client()?;
            let mut events = listen(&listener)?;
            let pod = cri.pod()?;
            let created = next(&listener, &mut events, &pod.id)?;
            ensure!(
                created.container_event_type() == ContainerEventType::ContainerCreatedEvent,
                "{created:?}"
            );
            pod.stop()?;
            pod.remove()?;
            loop {
                let event = next(&listener, &mut events, &pod.id)?;
                if event.container_event_type() == ContainerEventType::ContainerDeletedEvent {
                    return Ok(());
                }
            }
        })
    }
);

test!(
    fn several_listeners_are_told_and_one_that_goes_is_no_harm(t: &Test) -> Result {
        with(t, |cri| {
            let (one, other) = (cri.another_client()?, cri.another_client()?);
            let (mut of_one, of_other) = (listen(&one)?, listen(&other)?);
            drop(of_other);
            other.hang_up();
            let web = cri.pod()?.run("web", "true")?;
            next(&one, &mut of_one, &web.id)?;
            Ok(())
        })
    }
);

test!(
    fn who_listens_and_does_not_read_costs_bounded_memory_and_holds_up_nobody(t: &Test) -> Result {
        with(t, |cri| {
            let (slow, quick) = (cri.another_client()?, cri.another_client()?);
            let pod = cri.pod_with(|config| {
                // In each event of the pod: more than a connection takes unread.
                config.annotations.insert("large".into(), "x".repeat(100 << 10));
            })?;
            let resident = || -> Result<u64> {
                let status = fs::read_to_string(format!("/proc/{}/status", cri.pid()?))?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let number = line.and_then(|line| line.split_whitespace().next());
                Ok(number.context("VmRSS")?.parse()?)
            };
            pod.create(pod.container_config("first", "true")?)?.remove()?;
            let before = resident()?;
            let mut unread = listen(&slow)?;
            let mut read = listen(&quick)?;
            for number in 0..25 {
                let web = pod.create(pod.container_config(&format!("web{number}"), "true")?)?;
                web.remove()?;
                for _ in 0..2 {
                    next(&quick, &mut read, &web.id)?;
                }
            }
            let grown = resident()?.saturating_sub(before);
            ensure!(grown < 64 << 10, "{grown} KiB more");
            // What waited for it is there.
            let first = slow.wait(unread.message())?.context("no event")?;
            ensure!(
                first.container_event_type() == ContainerEventType::ContainerCreatedEvent,
                "{first:?}"
            );
            Ok(())
        })
    }
);
