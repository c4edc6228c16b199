//! Being told that the kernel killed a process of a container for want of memory.
//!
//! ```text
//! v2  memory.events: poll(POLLPRI), then read "oom_kill"      the end: cgroup.events "populated 0"
//! v1  an eventfd registered for memory.oom_control            the end: the eventfd fires, and the cgroup is gone
//! ```
//!
//! Both become one descriptor that is readable when there is something to look at: on v2 an epoll instance over the two
//! files, for which it makes POLLIN of their POLLPRI.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::watch::Watched;
use super::{Cgroup, dir::Dir};
use crate::sys::{Errno, Named as _};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// The kernel ran out of the container's memory, and killed (v2), or killed or would have (v1).
    Oom,
    /// The container's cgroup has no process left, or is gone: nothing will happen any more.
    End,
    /// Nothing, in the time given.
    Timeout,
}

/// A source of [`OomEvent`]s.
#[derive(Debug)]
pub struct OomWatch(Source);

#[derive(Debug)]
enum Source {
    V2 {
        memory: Watched,
        cgroup: Watched,
        ready: Epoll,
        kills: u64,
    },
    V1 {
        event: EventFd,
        dir: std::path::PathBuf,
        _control: OwnedFd,
    },
}

impl Cgroup {
    /// Watches for the kernel's killing in this cgroup, from now on.
    ///
    /// # Errors
    ///
    /// Where there is no memory controller, or the cgroup is gone.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let dir = self.tree("memory")?.dir()?;
        let source = if self.is_v2() {
            watch_v2(dir)
        } else {
            watch_v1(dir)
        };
        Ok(OomWatch(source.with_context(|| {
            format!("watch for oom: cgroup {:?}", dir.path())
        })?))
    }
}

fn watch_v2(dir: &Dir) -> Result<Source> {
    let memory = Watched::open(dir, "memory.events")?;
    let cgroup = Watched::open(dir, "cgroup.events")?;
    let kills = memory.value("oom_kill")?.unwrap_or(0);
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).call(|| "epoll_create1".to_owned())?;
    for file in [&memory, &cgroup] {
        ready
            .add(file, EpollEvent::new(EpollFlags::EPOLLPRI, 0))
            .call(|| "epoll_ctl(EPOLL_CTL_ADD)".to_owned())?;
    }
    Ok(Source::V2 {
        memory,
        cgroup,
        ready,
        kills,
    })
}

fn watch_v1(dir: &Dir) -> Result<Source> {
    let control = dir.file("memory.oom_control", OFlag::O_RDONLY)?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let event = EventFd::from_value_and_flags(0, flags).call(|| "eventfd()".to_owned())?;
    dir.write(
        "cgroup.event_control",
        &format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd()),
    )?;
    Ok(Source::V1 {
        event,
        dir: dir.path().to_owned(),
        _control: control,
    })
}

impl AsFd for OomWatch {
    /// Readable when there is something to [`OomWatch::look`] at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Source::V2 { ready, .. } => ready.0.as_fd(),
            Source::V1 { event, .. } => event.as_fd(),
        }
    }
}

impl OomWatch {
    /// What has happened since the last look, without waiting: `Oom`, `End` or nothing. Whoever is told of readiness by its
    /// edges looks until there is nothing.
    ///
    /// # Errors
    ///
    /// Where the kernel's files can't be read.
    pub fn look(&mut self) -> Result<Option<OomEvent>> {
        self.0.look()
    }

    /// Waits for the next event, at most so long.
    ///
    /// # Errors
    ///
    /// Where the kernel's files can't be read.
    pub fn wait(&mut self, timeout: Duration) -> Result<OomEvent> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.0.look()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(OomEvent::Timeout);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call(|| "poll(oom)".to_owned())?,
            }
        }
    }
}

impl Source {
    /// What has happened since the last look.
    fn look(&mut self) -> Result<Option<OomEvent>> {
        match self {
            Self::V2 {
                memory,
                cgroup,
                kills,
                ..
            } => {
                let now = match memory.value("oom_kill") {
                    Err(error) if error.errno == Errno::ENODEV => return Ok(Some(OomEvent::End)),
                    now => now?.unwrap_or(0),
                };
                if std::mem::replace(kills, now) < now {
                    return Ok(Some(OomEvent::Oom));
                }
                match cgroup.value("populated") {
                    Err(error) if error.errno == Errno::ENODEV => Ok(Some(OomEvent::End)),
                    populated => Ok((populated? == Some(0)).then_some(OomEvent::End)),
                }
            }
            Self::V1 { event, dir, .. } => match event.read() {
                // The kernel also fires when the cgroup is removed.
                Ok(_) => Ok(Some(if dir.exists() {
                    OomEvent::Oom
                } else {
                    OomEvent::End
                })),
                Err(Errno::EAGAIN) => Ok(None),
                Err(errno) => Err(errno).call(|| "read(eventfd)".to_owned())?,
            },
        }
    }
}
