//! Processor time per second, from two samples of what was used: nobody samples in between.

use std::sync::Mutex;

use crate::locked;

/// Samples that are closer than this say little: the older one stays. Nanoseconds.
const APART: i64 = 1_000_000_000;

/// The last samples of a container or a pod: they go with it.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<Option<Samples>>);

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

impl Rate {
    /// Takes a sample; gives nanoseconds used per second since the one before, where there is one.
    pub(super) fn sample(&self, used: u64, at: i64) -> Option<u64> {
        let now = Sample { used, at };
        let mut samples = locked(&self.0);
        let samples = samples.get_or_insert(Samples {
            last: now,
            before: None,
        });
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_two_samples_that_are_apart() {
        let rate = Rate::default();
        assert_eq!(rate.sample(100, 0), None);
        assert_eq!(rate.sample(100, SECOND / 10), None);
        assert_eq!(rate.sample(500_000_100, SECOND), Some(500_000_000));
        // Asked again at once: since the same sample.
        assert_eq!(rate.sample(1_000_000_100, SECOND * 3 / 2), Some(666_666_666));
        assert_eq!(rate.sample(2_500_000_100, SECOND * 3), Some(1_000_000_000));
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_yet() {
        let rate = Rate::default();
        rate.sample(100, 0);
        assert_eq!(rate.sample(50, SECOND), None);
        assert_eq!(rate.sample(150, SECOND * 2), Some(100));
    }
}
