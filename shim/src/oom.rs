//! Telling containerd that the kernel killed a process of a container for want of memory; rtc-cri asks (`extension.rs`).
//!
//! Noted while the cgroup is there: systemd removes a scope's as soon as nothing runs in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics;
use rtc_runtime::cgroup::{Cgroup, OomEvent, OomWatch};
use tokio::io::Interest;

use crate::container::Container;
use crate::events::Events;
use crate::log;
use crate::pollable::wait_for;

/// Watches a container, whose init waits for its start, until its cgroup has no process any more.
pub(crate) fn watch(container: &Arc<Container>, events: &Events) {
    match container.with_cgroup(Cgroup::oom_watch) {
        Ok(watch) => {
            let (id, events) = (container.id.to_string(), events.clone());
            let noted = Arc::clone(&container.out_of_memory);
            tokio::spawn(async move {
                if let Err(error) = tell(watch, &id, &events, &noted).await {
                    log::warn(format_args!("container {id}: watch for oom: {error:#}"));
                }
            });
        }
        // A machine without the memory controller; or it has ended already.
        Err(error) => log::debug(|| format!("container {}: {error}", container.id)),
    }
}

async fn tell(watch: OomWatch, id: &str, events: &Events, noted: &AtomicBool) -> anyhow::Result<()> {
    let mut watch = wait_for(watch, Interest::READABLE)?;
    loop {
        let mut ready = watch.readable_mut().await?;
        while let Some(event) = ready.get_inner_mut().0.look()? {
            if event != OomEvent::Oom {
                return Ok(());
            }
            noted.store(true, Ordering::Relaxed);
            let message = TaskOOM {
                container_id: id.to_owned(),
                ..TaskOOM::default()
            };
            events.send(topics::TASK_OOM_EVENT_TOPIC, &message);
        }
        ready.clear_ready();
    }
}
