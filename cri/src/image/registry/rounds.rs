//! In which order hosts are asked, and when again. Pure.
//!
//! ```text
//! round 1: host 1 .. host n    the first that has it
//! pause, longer each time, or what the hosts ask for (Retry-After)
//! round 2: the hosts whose failure may pass
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use super::Failure;

/// Rounds in a row in which no byte came.
const MOST: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Of one that can't be reached: its name was asked for more than once, and the kubelet tries again too.
const MOST_UNREACHABLE: u32 = 3;
/// A host that wants to be left alone for longer has failed.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The hosts by number, for one thing that is wanted of them.
#[derive(Debug)]
pub(super) struct Rounds {
    left: VecDeque<usize>,
    again: Vec<usize>,
    round: u32,
    pause: Duration,
    /// Asked for by a host of this round.
    asked: Duration,
    /// The last failure of each.
    pub(super) told: Vec<(usize, Failure)>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(usize),
    Pause(Duration),
    GiveUp,
}

impl Rounds {
    pub(super) fn new(hosts: Vec<usize>) -> Self {
        Self {
            left: hosts.into(),
            again: Vec::new(),
            round: 1,
            pause: FIRST_PAUSE,
            asked: Duration::ZERO,
            told: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> Step {
        if let Some(host) = self.left.pop_front() {
            return Step::Ask(host);
        }
        if self.again.is_empty() || self.round >= MOST {
            return Step::GiveUp;
        }
        self.round += 1;
        self.left = std::mem::take(&mut self.again).into();
        let pause = self.pause.max(std::mem::take(&mut self.asked));
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Step::Pause(pause)
    }

    /// Something came before it failed.
    pub(super) fn progressed(&mut self) {
        (self.round, self.pause) = (1, FIRST_PAUSE);
    }

    pub(super) fn failed(&mut self, host: usize, failure: Failure) {
        match &failure {
            Failure::Busy(_, Some(wait)) if *wait > MAX_PAUSE => {}
            Failure::Busy(_, wait) => {
                self.asked = self.asked.max(wait.unwrap_or_default());
                self.again.push(host);
            }
            Failure::Unreachable(_) if self.round >= MOST_UNREACHABLE => {}
            failure if failure.passes() => self.again.push(host),
            // No other host helps.
            Failure::Ours(..) => {
                self.left.clear();
                self.again.clear();
            }
            _ => {}
        }
        self.told.retain(|(other, _)| *other != host);
        self.told.push((host, failure));
        self.told.sort_by_key(|(host, _)| *host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn busy(seconds: Option<u64>) -> Failure {
        Failure::Busy("503".into(), seconds.map(Duration::from_secs))
    }

    #[test]
    fn every_host_is_asked_once_where_none_may_answer_later() {
        let mut rounds = Rounds::new(vec![0, 2]);
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, Failure::Absent("404".into()));
        assert_eq!(rounds.next(), Step::Ask(2));
        rounds.failed(2, Failure::Denied("403".into()));
        assert_eq!(rounds.next(), Step::GiveUp);
        let told: Vec<_> = rounds
            .told
            .iter()
            .map(|(host, failure)| (*host, failure.to_string()))
            .collect();
        assert_eq!(told, [(0, "404".to_owned()), (2, "403".to_owned())]);
    }

    #[test]
    fn only_hosts_that_may_answer_later_are_asked_again_and_pauses_grow() {
        let mut rounds = Rounds::new(vec![0, 1]);
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, Failure::Absent("404".into()));
        let mut pauses = Vec::new();
        loop {
            match rounds.next() {
                Step::Ask(host) => {
                    assert_eq!(host, 1);
                    rounds.failed(1, Failure::Broken("reset".into()));
                }
                Step::Pause(pause) => pauses.push(pause.as_millis()),
                Step::GiveUp => break,
            }
        }
        assert_eq!(pauses, [250, 500, 1000, 2000]);
    }

    #[test]
    fn a_host_is_left_alone_as_long_as_it_asks_for_but_not_for_ever() {
        let mut rounds = Rounds::new(vec![0]);
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, busy(Some(7)));
        assert_eq!(rounds.next(), Step::Pause(Duration::from_secs(7)));
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, busy(None));
        assert_eq!(rounds.next(), Step::Pause(Duration::from_millis(500)));
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, busy(Some(3600)));
        assert_eq!(rounds.next(), Step::GiveUp);
    }

    #[test]
    fn as_long_as_bytes_come_it_is_not_given_up() {
        let mut rounds = Rounds::new(vec![0]);
        for _ in 0..50 {
            assert_eq!(rounds.next(), Step::Ask(0));
            rounds.progressed();
            rounds.failed(0, Failure::Broken("reset".into()));
            assert_eq!(rounds.next(), Step::Pause(FIRST_PAUSE));
        }
    }

    #[test]
    fn a_host_that_is_not_there_is_given_up_sooner() {
        let mut rounds = Rounds::new(vec![0]);
        let mut asked = 0;
        while rounds.next() != Step::GiveUp {
            if rounds.left.is_empty() {
                asked += 1;
                rounds.failed(0, Failure::Unreachable("no route".into()));
            }
        }
        assert_eq!(asked, 3);
    }

    #[test]
    fn no_other_host_is_asked_when_the_disk_is_full() {
        let mut rounds = Rounds::new(vec![0, 1]);
        assert_eq!(rounds.next(), Step::Ask(0));
        rounds.failed(0, Failure::Ours(Kind::ResourceExhausted, "full".into()));
        assert_eq!(rounds.next(), Step::GiveUp);
    }
}
