//! `run`: create and start in one, and in the foreground wait for the end and delete.

use std::os::fd::AsFd;

use anyhow::{Result, anyhow, bail};
use oci_spec::runtime::Process;

use crate::container::create::{HandedOver, Unfinished};
use crate::container::plan::{CreateOptions, check_terminal};
use crate::container::start::{remove_if_same, run_poststart_hooks};
use crate::container::state::StateRoot;
use crate::log;
use crate::process::channel::Message;
use crate::process::foreground::{self, Signals};
use crate::process::spawn::Spawned;
use crate::sys::process;

/// What `run` is asked for beyond `create`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Return once the program runs.
    pub detach: bool,
    /// Leave the ended container to `delete`.
    pub keep: bool,
    /// Leave orphans of the container to the next subreaper above.
    pub no_subreaper: bool,
}

/// Runs a container. Returns the status of its program, or 0 with `detach`.
///
/// # Errors
///
/// As [`super::create`]; nothing is left behind.
pub fn run(root: &StateRoot, options: &mut CreateOptions<'_>, run: RunOptions) -> Result<i32> {
    let terminal = options
        .bundle
        .spec
        .process()
        .as_ref()
        .and_then(Process::terminal)
        .unwrap_or(false);
    check_terminal(terminal, options.console_socket.is_some(), run.detach)?;
    let signals = (!run.detach).then(Signals::block).transpose()?;
    if !run.detach && !run.no_subreaper {
        process::set_child_subreaper()?;
    }
    let mut unfinished = Unfinished::begin(root, options, false)?;
    let started = unfinished.finish();
    let started = started.and_then(|handed_over| unfinished.wait_for_program().map(|()| handed_over));
    let handed_over = match started {
        Ok(handed_over) => handed_over,
        Err(error) => return Err(unfinished.undo(error)),
    };
    let (directory, record, Spawned { child, .. }) = unfinished.into_parts()?;
    // Others may look at it, exec into it and delete it while it runs.
    let id = directory.id().clone();
    run_poststart_hooks(root, directory, &record)?;
    let Some(signals) = signals else {
        if let Some(notify) = handed_over.notify {
            notify.wait(&child.pidfd, record.pid)?;
        }
        return Ok(0);
    };
    let HandedOver { master, notify } = handed_over;
    let main_pid = std::process::id().cast_signed();
    let reported = notify
        .as_ref()
        .map(|notify| (notify.as_fd(), || notify.turn(main_pid)));
    let exit = foreground::wait(&child, &signals, master, reported)?;
    if !run.keep
        && let Err(error) = remove_if_same(root, &id, &record)
    {
        log::warn(format_args!("delete the container: {error:#}"));
    }
    Ok(exit.status())
}

impl Unfinished<'_> {
    /// Waits until init executes its program: its end of the channel closes.
    fn wait_for_program(&mut self) -> Result<()> {
        let Some(Spawned { channel, .. }) = self.spawned() else {
            bail!("no child")
        };
        let mut executing = false;
        loop {
            match channel.receive()? {
                Some(Message::Executing) => executing = true,
                None if executing => return self.set_up(),
                None => bail!("the container's init was ended before it could run the program"),
                Some(Message::Failed(text)) => return Err(anyhow!(text)),
                Some(other) => bail!("an unexpected message from the container's process: {other:?}"),
            }
        }
    }
}
