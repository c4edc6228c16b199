//! Signals to the shim itself.
//!
//! ```text
//! SIGTERM, SIGINT, SIGHUP   ends when none of its containers runs any more: at once, or later
//! SIGUSR1                   says in the log what it has
//! ```
//!
//! containerd's own shim ends at SIGTERM, and its containers are killed by the `delete` that follows. But who sends it is
//! systemd: to all processes at the end of the machine, whose containers get it too; or to a service's, where an
//! administrator forgot `KillMode=process`, and then the pods should stay. In both cases this is what is wanted.

use std::os::fd::OwnedFd;

use nix::libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use rtc_runtime::sys::signals;
use tokio::io::Interest;

use crate::log;
use crate::pollable::wait_for;
use crate::shim::Shim;

/// Returns when the shim was asked to end and has nothing to live for.
pub(crate) async fn end_asked_for(shim: &Shim) -> anyhow::Result<()> {
    let pipe = wait_for(
        signals::to_pipe(&[SIGTERM, SIGINT, SIGHUP, SIGUSR1])?,
        Interest::READABLE,
    )?;
    loop {
        let mut ready = pipe.readable().await?;
        if let Some(signal) = last(&pipe.get_ref().0) {
            if signal != SIGUSR1 {
                log::info(format_args!("signal {signal}: ends when no container runs"));
                break;
            }
            report(shim);
        }
        ready.clear_ready();
    }
    // One may come while the others end.
    while let Some(running) = shim
        .containers()
        .into_iter()
        .find(|container| container.init.phase().ended().is_none())
    {
        running.init.wait().await;
    }
    Ok(())
}

/// The last signal that came, where one asks for the end that one.
fn last(pipe: &OwnedFd) -> Option<i32> {
    let mut numbers = [0; 64];
    let length = nix::unistd::read(pipe, &mut numbers).ok()?;
    let came = numbers.get(..length)?.iter().copied().map(i32::from);
    came.max_by_key(|signal| *signal != SIGUSR1)
}

fn report(shim: &Shim) {
    let containers = shim.containers();
    log::info(format_args!("{} containers", containers.len()));
    for container in containers {
        let init = &container.init;
        let text = format!("{:?}, pid {}", init.phase(), init.pid());
        log::info(format_args!("container {}: {text}", container.id));
        for exec in container.execs() {
            let text = format!("{:?}, pid {}", exec.phase(), exec.pid());
            log::info(format_args!(
                "container {}: exec {}: {text}",
                container.id, exec.exec_id
            ));
        }
    }
}
