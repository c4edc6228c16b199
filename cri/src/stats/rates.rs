//! Processor time per second, from two samples of what was used: nobody samples in between.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Samples that are closer than this say little: the older one stays. Nanoseconds.
const APART: i64 = 1_000_000_000;

/// The last samples of containers and pods, by id.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    samples: Mutex<HashMap<String, Samples>>,
}

#[derive(Debug, Clone, Copy)]
struct Samples {
    last: Sample,
    before: Option<Sample>,
}

/// Nanoseconds used, at a time in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    used: u64,
    at: i64,
}

impl Rates {
    /// Takes a sample; gives nanoseconds used per second since the one before, where there is one.
    pub(super) fn sample(&self, id: &str, used: u64, at: i64) -> Option<u64> {
        let mut all = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Sample { used, at };
        let Some(samples) = all.get_mut(id) else {
            all.insert(
                id.to_owned(),
                Samples {
                    last: now,
                    before: None,
                },
            );
            return None;
        };
        // A cgroup that is new counts from zero.
        if used < samples.last.used || at < samples.last.at {
            *samples = Samples {
                last: now,
                before: None,
            };
            return None;
        }
        if at - samples.last.at >= APART {
            samples.before = Some(samples.last);
            samples.last = now;
        }
        let before = samples.before?;
        let time = u128::try_from(at - before.at).ok().filter(|time| *time > 0)?;
        let rate = u128::from(used.saturating_sub(before.used)) * 1_000_000_000 / time;
        u64::try_from(rate).ok()
    }

    /// Forgets all but these.
    pub(super) fn keep(&self, ids: &HashSet<&str>) {
        let mut all = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|id, _| ids.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_two_samples_that_are_apart() {
        let rates = Rates::default();
        assert_eq!(rates.sample("a", 100, 0), None);
        assert_eq!(rates.sample("a", 100, SECOND / 10), None);
        assert_eq!(rates.sample("a", 500_000_100, SECOND), Some(500_000_000));
        // Asked again at once: since the same sample.
        assert_eq!(
            rates.sample("a", 1_000_000_100, SECOND * 3 / 2),
            Some(666_666_666)
        );
        assert_eq!(rates.sample("a", 2_500_000_100, SECOND * 3), Some(1_000_000_000));
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_yet() {
        let rates = Rates::default();
        rates.sample("a", 100, 0);
        assert_eq!(rates.sample("a", 50, SECOND), None);
        assert_eq!(rates.sample("a", 150, SECOND * 2), Some(100));
        rates.keep(&HashSet::from(["b"]));
        assert_eq!(rates.sample("a", 200, SECOND * 3), None);
    }
}
