//! A turn for each pod: who has it is the only one who adds or deletes that pod's network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use crate::locked;

type Locks = Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>;

/// The turns of all pods. A pod for which nobody waits costs nothing.
#[derive(Debug, Default)]
pub(super) struct Turns {
    locks: Locks,
}

/// A pod's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pod: String,
    locks: Locks,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn of a pod.
    pub(super) async fn of(&self, pod: &str) -> Turn {
        let lock = {
            let mut locks = locked(&self.locks);
            Arc::clone(locks.entry(pod.to_owned()).or_default())
        };
        Turn {
            pod: pod.to_owned(),
            locks: Arc::clone(&self.locks),
            guard: Some(lock.lock_owned().await),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut locks = locked(&self.locks);
        self.guard = None;
        // Who waits has the lock, too.
        if locks
            .get(&self.pod)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&self.pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_pod_waits_for_itself_and_not_for_another() {
        let turns = Turns::default();
        let first = turns.of("a").await;
        let other = turns.of("b").await;
        let mut second = Box::pin(turns.of("a"));
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(20), &mut second)
                .await
                .is_err()
        );
        drop(first);
        let second = second.await;
        drop((second, other));
        assert!(turns.locks.lock().unwrap().is_empty());
    }
}
