//! Pulls under way: one for all who want the same image with the same credentials, and none when nobody waits any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::progress::Progress;
use super::registry::auth::Given;
use crate::error::{Error, Kind, Result};
use crate::locked;

/// What makes two pulls the same. Who has other credentials has to show them himself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) reference: String,
    pub(crate) given: Given,
}

/// The id of the image, or why not.
type Outcome = std::result::Result<String, (Kind, String)>;

/// The node's pulls.
#[derive(Default)]
pub(crate) struct Pulls(Mutex<HashMap<Key, Weak<Pull>>>);

impl std::fmt::Debug for Pulls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pulls")
    }
}

/// One, which ends with the last who waits for it.
struct Pull {
    progress: Arc<Progress>,
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pulls {
    /// Waits for a pull that is under way, or starts it.
    ///
    /// # Errors
    ///
    /// The pull's.
    pub(crate) async fn join<W>(&self, key: Key, work: impl FnOnce(Arc<Progress>) -> W) -> Result<String>
    where
        W: Future<Output = Result<String>> + Send + 'static,
    {
        let pull = self.find_or_start(key, work);
        let mut outcome = pull.outcome.clone();
        let found = outcome
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::text(Kind::Unknown, "the pull ended by a defect of ours"))?;
        match &*found {
            Some(Ok(id)) => Ok(id.clone()),
            Some(Err((kind, text))) => Err(Error::text(*kind, text)),
            None => Err(Error::text(Kind::Unknown, "the pull has no outcome")),
        }
    }

    /// How far a pull of this has come, whoever wants it; `None`: there is none.
    pub(crate) fn progress(&self, reference: &str) -> Option<Arc<Progress>> {
        let pulls = locked(&self.0);
        let mut running = pulls.iter().filter(|(key, _)| key.reference == reference);
        running.find_map(|(_, pull)| {
            let pull = pull.upgrade()?;
            let runs = pull.outcome.borrow().is_none();
            runs.then(|| Arc::clone(&pull.progress))
        })
    }

    fn find_or_start<W>(&self, key: Key, work: impl FnOnce(Arc<Progress>) -> W) -> Arc<Pull>
    where
        W: Future<Output = Result<String>> + Send + 'static,
    {
        let mut pulls = locked(&self.0);
        pulls.retain(|_, pull| pull.strong_count() > 0);
        // One that is over says nothing of the registry as it is now.
        if let Some(pull) = pulls.get(&key).and_then(Weak::upgrade)
            && pull.outcome.borrow().is_none()
        {
            return pull;
        }
        let (sender, outcome) = watch::channel(None);
        let progress = Arc::new(Progress::default());
        let work = work(Arc::clone(&progress));
        let task = tokio::spawn(async move {
            let outcome = work.await.map_err(|error| (error.kind, error.to_string()));
            sender.send_replace(Some(outcome));
        });
        let pull = Arc::new(Pull {
            progress,
            outcome,
            task: task.abort_handle(),
        });
        pulls.insert(key, Arc::downgrade(&pull));
        pull
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn key(reference: &str, user: &str) -> Key {
        let auth = crate::proto::AuthConfig {
            username: user.into(),
            ..Default::default()
        };
        Key {
            reference: reference.into(),
            given: Given::read(Some(&auth)).unwrap_or_else(|error| panic!("{error}")),
        }
    }

    /// Counts how often it was begun and brought to its end.
    #[derive(Default)]
    struct Count {
        begun: AtomicU32,
        ended: AtomicU32,
    }

    fn work(count: &Arc<Count>, milliseconds: u64) -> impl FnOnce(Arc<Progress>) -> Work {
        let count = Arc::clone(count);
        move |_| {
            Box::pin(async move {
                count.begun.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                count.ended.fetch_add(1, Ordering::Relaxed);
                Ok("sha256:1".to_owned())
            })
        }
    }

    type Work = std::pin::Pin<Box<dyn Future<Output = Result<String>> + Send>>;

    #[tokio::test]
    async fn the_same_pull_runs_once_and_another_users_for_itself() {
        let (pulls, count) = (Pulls::default(), Arc::new(Count::default()));
        let (one, two, other) = tokio::join!(
            pulls.join(key("a", "ann"), work(&count, 50)),
            pulls.join(key("a", "ann"), work(&count, 50)),
            pulls.join(key("a", "bob"), work(&count, 50)),
        );
        for outcome in [one, two, other] {
            assert_eq!(outcome.unwrap_or_else(|error| panic!("{error}")), "sha256:1");
        }
        assert_eq!(count.begun.load(Ordering::Relaxed), 2);
        let again = pulls.join(key("a", "ann"), work(&count, 1)).await;
        assert!(again.is_ok());
        assert_eq!(count.begun.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_pull_ends_when_nobody_waits_for_it_and_not_before() {
        let (pulls, count) = (Pulls::default(), Arc::new(Count::default()));
        let soon = Duration::from_millis(20);
        let (gone, stays) = tokio::join!(
            tokio::time::timeout(soon, pulls.join(key("a", ""), work(&count, 60))),
            pulls.join(key("a", ""), work(&count, 60)),
        );
        assert!(gone.is_err() && stays.is_ok());
        assert_eq!(count.ended.load(Ordering::Relaxed), 1);
        let gone = tokio::time::timeout(soon, pulls.join(key("a", ""), work(&count, 60))).await;
        assert!(gone.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(count.ended.load(Ordering::Relaxed), 1);
    }
}
