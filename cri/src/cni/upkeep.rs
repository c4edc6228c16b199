//! What nobody asks for by name: DEL that failed is tried again, pods that are no more lose their network, GC.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::version::Version;
use super::{Cni, INTERFACE, Networks, is_namespace, locked};
use crate::log;

/// GC at start, and then no more often than so.
const GC_EVERY: Duration = Duration::from_secs(24 * 3600);
/// One that could not be, as pods came and went, or as there was no network yet, is tried again after this.
const GC_RETRY: Duration = Duration::from_secs(5 * 60);
/// A DEL that failed is tried again after this, then twice that ...
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// ... and no later than this.
const RETRY_LAST: Duration = Duration::from_secs(600);
/// So many DELs at once.
const AT_ONCE: usize = 4;

impl Cni {
    /// Tries DEL again until it succeeds, longer and longer apart.
    pub(super) fn delete_later(&self, pod: &str) {
        locked(&self.node.undone).insert(pod.to_owned());
        if self.node.retrying.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = Arc::downgrade(&self.node);
        tokio::spawn(async move {
            let mut wait = RETRY_FIRST;
            loop {
                sleep(wait).await;
                let Some(node) = node.upgrade() else { return };
                let cni = Self { node };
                let pods = locked(&cni.node.undone).clone();
                cni.delete_all(pods).await;
                // Between a look and the flag another may come: the flag first.
                cni.node.retrying.store(false, Ordering::Release);
                if locked(&cni.node.undone).is_empty() || cni.node.retrying.swap(true, Ordering::AcqRel) {
                    return;
                }
                wait = RETRY_LAST.min(wait * 2);
            }
        });
    }

    /// DEL of several, a few at once.
    async fn delete_all(&self, pods: impl IntoIterator<Item = String>) {
        let mut tasks = tokio::task::JoinSet::new();
        for pod in pods {
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await;
            }
            let cni = self.clone();
            tasks.spawn(async move {
                if let Err(error) = cni.delete(&pod).await {
                    log::warn(error);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// At start: DEL of all that is attached to pods that are not among `living`, then GC. What is to be deleted
    /// is decided now, not when the future runs: pods that come later are not meant. After a reboot nothing lives.
    pub(crate) fn reconcile(&self, living: &HashSet<String>) -> impl Future<Output = ()> + Send + use<> {
        let mut dead: Vec<String> = locked(&self.node.attachments).keys().cloned().collect();
        dead.retain(|pod| !living.contains(pod));
        let cni = self.clone();
        async move {
            if !dead.is_empty() {
                log::info(format_args!(
                    "networks of {} pods that are no more: DEL",
                    dead.len()
                ));
            }
            cni.delete_all(dead).await;
            cni.collect().await;
        }
    }

    /// GC of the network, where it has been long.
    pub(super) fn collect_sometimes(&self) {
        let due = locked(&self.node.collect_at).is_some_and(|at| Instant::now() >= at);
        if due {
            // Nobody else's meanwhile.
            self.node.collect_in(GC_RETRY);
            let cni = self.clone();
            tokio::spawn(async move { cni.collect().await });
        }
    }

    /// GC: plugins forget what is of no attachment that there is.
    async fn collect(&self) {
        let node = &self.node;
        node.collect_in(GC_RETRY);
        let Ok(network) = node.network() else { return };
        let Ok(version) = node.speak(&network).await else {
            return;
        };
        if version < Version::STATUS || network.disable_gc {
            return;
        }
        // Nobody may add or delete meanwhile, and nobody is made to wait for who does.
        let Ok(_alone) = node.in_use.try_write() else {
            return;
        };
        node.collect_in(GC_EVERY);
        let valid = node.valid(&network.name);
        if let Err(failures) = node.chain(&network, version).collect(&valid).await {
            for failure in failures {
                log::warn(format_args!("network {:?}: {failure}", network.name));
            }
        }
    }
}

impl Networks {
    fn collect_in(&self, time: Duration) {
        *locked(&self.collect_at) = Some(Instant::now() + time);
    }

    /// All attachments to a network: ours, and those of other runtimes whose namespaces are there.
    fn valid(&self, network: &str) -> Vec<(String, String)> {
        let mut valid: BTreeSet<(String, String)> = locked(&self.attachments)
            .values()
            .filter(|attachment| attachment.network == network)
            .map(|attachment| (attachment.pod.clone(), INTERFACE.to_owned()))
            .collect();
        valid.extend(
            self.cache
                .known()
                .into_iter()
                .filter(|known| known.network == network && is_namespace(&known.netns))
                .map(|known| (known.container, known.interface)),
        );
        valid.into_iter().collect()
    }
}
