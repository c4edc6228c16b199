//! A process of a container: its init, or one of exec; and the table of what may be asked of it when.
//!
//! ```text
//! init   Creating -> Created -> Starting -> Running <-> Pausing, Paused     exec   Added -> Starting -> Running
//!                       |          |           |             |                       |        |           |
//!                       `----------+-----------+-------------+--> Stopped <----------+--------+-----------'
//!                                                                    `--> Deleted
//! ```
//!
//! The phase is the one thing that others wait for: whoever waits for the end waits for [`Phase::Stopped`], and whoever
//! reports the end waits first until [`Phase::Starting`] is over, so that its event comes behind that of the start.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use rtc_runtime::sys::clone::Child;
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::io::Io;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As a shell shows it: the exit code, or 128 and the signal.
    pub(crate) status: u32,
    /// When it was collected; `None` where it never ran.
    pub(crate) at: Option<SystemTime>,
}

impl Ended {
    /// The time as containerd has it.
    pub(crate) fn timestamp(self) -> MessageField<Timestamp> {
        self.at.map(timestamp).into()
    }
}

/// A time as containerd has it.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Create has not finished.
    Creating,
    /// Init waits for Start.
    Created,
    /// A process of exec, known but not made.
    Added,
    /// Start is on its way.
    Starting,
    /// The program runs.
    Running,
    /// Pause is on its way.
    Pausing,
    /// The container is frozen.
    Paused,
    /// It has ended, and its exit was told.
    Stopped(Ended),
    /// Nothing is left of it.
    Deleted(Ended),
}

/// What is asked of a process, or of a container by its init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    /// Make a process of exec known.
    Exec,
    /// Start one.
    StartExec,
    Pause,
    Resume,
    Update,
    Checkpoint,
    Kill,
    Delete,
    Resize,
    CloseIo,
    Pids,
    Stats,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exec | Self::StartExec => "exec in",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::Kill => "kill",
            Self::Delete => "delete",
            Self::Resize => "resize",
            Self::CloseIo => "close the input of",
            Self::Pids => "list",
            Self::Stats => "measure",
        }
    }
}

impl Phase {
    /// The rules. Where containerd's own shim for runc refuses, so does this one; it says `Unknown` to most of what is
    /// `FailedPrecondition` here, which its callers do not tell apart.
    ///
    /// # Errors
    ///
    /// `NotFound` for a process that has ended (what containerd takes for done, after a kill), else `FailedPrecondition`.
    pub(crate) fn allows(self, verb: Verb) -> Result<()> {
        use Phase as P;
        use Verb as V;
        let kind = match (verb, self) {
            (V::Start, P::Created | P::Added)
            | (V::Exec | V::StartExec, P::Created | P::Running)
            | (V::Pause, P::Running)
            | (V::Resume, P::Paused)
            | (V::Update, P::Created | P::Starting | P::Running | P::Pausing | P::Paused)
            | (V::Checkpoint, P::Running | P::Paused)
            | (V::Kill, P::Created | P::Starting | P::Running | P::Pausing | P::Paused)
            | (V::Delete, P::Created | P::Added | P::Stopped(_))
            | (
                V::Resize | V::CloseIo,
                P::Created | P::Added | P::Starting | P::Running | P::Pausing | P::Paused,
            )
            // Those who empty and measure a container that has just ended find it empty.
            | (V::CloseIo, P::Stopped(_))
            | (V::Pids, P::Created | P::Starting | P::Running | P::Pausing | P::Paused | P::Stopped(_))
            | (V::Stats, P::Created | P::Starting | P::Running | P::Pausing | P::Paused | P::Stopped(_)) => {
                return Ok(());
            }
            (V::Kill, P::Stopped(_)) => return Err(Error::text(Kind::NotFound, "process already finished")),
            (V::Kill, P::Added) => {
                return Err(Error::text(Kind::FailedPrecondition, "process not created"));
            }
            (_, P::Deleted(_)) => Kind::NotFound,
            _ => Kind::FailedPrecondition,
        };
        Err(Error::text(
            kind,
            format_args!("cannot {} a {} process", verb.name(), self.name()),
        ))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Creating => "half created",
            Self::Created | Self::Added => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
            Self::Deleted(_) => "deleted",
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(self) -> Option<Ended> {
        match self {
            Self::Stopped(ended) | Self::Deleted(ended) => Some(ended),
            _ => None,
        }
    }
}

/// Where its standard input and output go, as the request said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    /// Of an exec; init's is empty.
    pub(crate) exec_id: String,
    pub(crate) stdio: Stdio,
    phase: watch::Sender<Phase>,
    live: Mutex<Live>,
}

/// What there is of it in the kernel.
#[derive(Debug, Default)]
struct Live {
    pid: u32,
    pidfd: Option<Arc<OwnedFd>>,
    io: Option<Arc<Io>>,
    /// CloseIO was called, perhaps before there was an `io`: a client's input may end while its process is being made.
    input_ended: bool,
    /// The name of an exec's own cgroup.
    cgroup: Option<String>,
}

impl Process {
    pub(crate) fn new(exec_id: String, stdio: Stdio, phase: Phase) -> Self {
        Self {
            exec_id,
            stdio,
            phase: watch::Sender::new(phase),
            live: Mutex::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to another phase; one that has ended stays so.
    pub(crate) fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let moves = match *phase {
                Phase::Deleted(_) => false,
                Phase::Stopped(_) => matches!(to, Phase::Deleted(_)),
                _ => true,
            };
            if moves {
                *phase = to;
            }
            moves
        });
    }

    /// Begins what the verb asks for, if it is allowed now, by going on to the phase that stands for it.
    ///
    /// # Errors
    ///
    /// As [`Phase::allows`].
    pub(crate) fn begin(&self, verb: Verb, to: Phase) -> Result<()> {
        self.phase().allows(verb)?;
        self.advance(to);
        Ok(())
    }

    /// Waits until no Start is on its way.
    pub(crate) async fn settled(&self) {
        let mut phases = self.phase.subscribe();
        // The sender is ours: it does not end.
        let _ = phases.wait_for(|phase| *phase != Phase::Starting).await;
    }

    /// Waits for the end, which was told by then.
    pub(crate) async fn wait(&self) -> Ended {
        let mut phases = self.phase.subscribe();
        let ended = phases.wait_for(|phase| phase.ended().is_some()).await;
        ended.ok().and_then(|phase| phase.ended()).unwrap_or(Ended {
            status: UNKNOWN_STATUS,
            at: None,
        })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its pid; 0 before there is one. Stays after the end.
    pub(crate) fn pid(&self) -> u32 {
        self.live().pid
    }

    /// A descriptor of it, while it is there.
    pub(crate) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.live().pidfd.clone()
    }

    pub(crate) fn io(&self) -> Option<Arc<Io>> {
        self.live().io.clone()
    }

    /// The name of its own cgroup below the container's, where it was started by exec and has one.
    pub(crate) fn own_cgroup(&self) -> Option<String> {
        self.live().cgroup.clone()
    }

    /// It was born, in a cgroup of its own or the container's. Returns what to wait with.
    pub(crate) fn born(&self, child: Child, cgroup: Option<String>) -> Arc<OwnedFd> {
        let pidfd = Arc::new(child.pidfd);
        let mut live = self.live();
        live.pid = child.pid.as_raw().cast_unsigned();
        live.pidfd = Some(Arc::clone(&pidfd));
        live.cgroup = cgroup;
        pidfd
    }

    /// It was collected.
    pub(crate) fn collected(&self) {
        self.live().pidfd = None;
    }

    pub(crate) fn connect(&self, io: Arc<Io>) {
        let mut live = self.live();
        if live.input_ended {
            io.close_stdin();
        }
        live.io = Some(io);
    }

    /// Nothing more comes on its standard input.
    pub(crate) fn close_stdin(&self) {
        let mut live = self.live();
        live.input_ended = true;
        if let Some(io) = &live.io {
            io.close_stdin();
        }
    }

    /// Lets go of its standard input and output.
    pub(crate) fn disconnect(&self) {
        let io = self.live().io.take();
        if let Some(io) = io {
            io.close();
        }
    }
}

/// What is told of a process whose status is lost.
pub(crate) const UNKNOWN_STATUS: u32 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    const END: Ended = Ended {
        status: 137,
        at: None,
    };

    fn refusals(phase: Phase) -> Vec<(Verb, Kind)> {
        use Verb as V;
        let verbs = [
            V::Start,
            V::Exec,
            V::StartExec,
            V::Pause,
            V::Resume,
            V::Update,
            V::Checkpoint,
            V::Kill,
            V::Delete,
            V::Resize,
            V::CloseIo,
            V::Pids,
            V::Stats,
        ];
        let refused = |verb: Verb| phase.allows(verb).err().map(|error| (verb, error.kind));
        verbs.into_iter().filter_map(refused).collect()
    }

    #[test]
    fn a_running_container_can_only_not_be_started_resumed_or_deleted() {
        let refused: Vec<Verb> = refusals(Phase::Running)
            .into_iter()
            .map(|(verb, _)| verb)
            .collect();
        assert_eq!(refused, [Verb::Start, Verb::Resume, Verb::Delete]);
    }

    #[test]
    fn killing_what_has_ended_is_not_found_and_killing_what_was_not_made_is_too_early() {
        let kind = |phase: Phase| phase.allows(Verb::Kill).unwrap_err().kind;
        assert_eq!(kind(Phase::Stopped(END)), Kind::NotFound);
        assert_eq!(kind(Phase::Deleted(END)), Kind::NotFound);
        assert_eq!(kind(Phase::Added), Kind::FailedPrecondition);
    }

    #[test]
    fn nothing_is_found_of_a_deleted_process() {
        let refused = refusals(Phase::Deleted(END));
        assert_eq!(refused.len(), 13);
        assert!(refused.iter().all(|(_, kind)| *kind == Kind::NotFound));
    }

    #[test]
    fn a_hanging_start_leaves_kill_working() {
        assert!(Phase::Starting.allows(Verb::Kill).is_ok());
        assert_eq!(
            Phase::Starting.allows(Verb::Delete).unwrap_err().kind,
            Kind::FailedPrecondition
        );
    }

    #[test]
    fn a_process_that_has_ended_does_not_come_back() {
        let process = Process::new(String::new(), Stdio::default(), Phase::Running);
        process.advance(Phase::Stopped(END));
        process.advance(Phase::Running);
        assert_eq!(process.phase(), Phase::Stopped(END));
        process.advance(Phase::Deleted(END));
        process.advance(Phase::Stopped(END));
        assert_eq!(process.phase(), Phase::Deleted(END));
    }

    #[test]
    fn a_refusal_names_the_verb_and_the_phase() {
        let error = Phase::Running.allows(Verb::Delete).unwrap_err();
        assert_eq!(error.to_string(), "cannot delete a running process");
        assert_eq!(error.kind, Kind::FailedPrecondition);
    }
}
