//! Waiting for a condition: polling with a deadline so generous that only a real failure meets it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take to come true. No test's outcome depends on less: machines that emulate are slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Calls `probe` until it gives `Some`. Fails after [`DEADLINE`], naming `what` was waited for.
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    within(DEADLINE, what, probe)
}

/// [`until`] with a deadline of the caller's.
pub(crate) fn within<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s in vain for: {what}", deadline.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
