//! How far a pull has come: counted where bytes come, told by `rtc.cri.v1.Pulls` (`service/pulls.rs`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::proto::extension::ProgressResponse;

/// The counters of one pull.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    layers: AtomicU32,
    done: AtomicU32,
    /// Bytes, as the manifest says.
    size: AtomicU64,
    taken: AtomicU64,
}

impl Progress {
    /// The manifest was read: the sizes of its layers, in bytes.
    pub(super) fn begin(&self, sizes: impl Iterator<Item = u64>) {
        let (layers, size) = sizes.fold((0, 0_u64), |(layers, all), size| {
            (layers + 1, all.saturating_add(size))
        });
        self.size.store(size, Relaxed);
        self.layers.store(layers, Relaxed);
    }

    /// Bytes of a layer came.
    pub(super) fn came(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Relaxed);
    }

    /// Bytes that came were wrong: they come again.
    pub(super) fn lost(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Relaxed);
    }

    /// A layer of this size is here; so much of it came by this pull.
    pub(super) fn here(&self, size: u64, came: u64) {
        self.came(size.saturating_sub(came));
        self.done.fetch_add(1, Relaxed);
    }

    /// As it is now.
    pub(crate) fn now(&self) -> ProgressResponse {
        ProgressResponse {
            running: true,
            layers: self.layers.load(Relaxed),
            layers_done: self.done.load(Relaxed),
            size: self.size.load(Relaxed),
            taken: self.taken.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_came_again_or_not_at_all_counts_once() {
        let progress = Progress::default();
        progress.begin([100, 50].into_iter());
        progress.came(60);
        progress.lost(60);
        progress.came(100);
        progress.here(100, 100);
        progress.here(50, 0);
        let now = progress.now();
        assert_eq!((now.layers, now.layers_done), (2, 2));
        assert_eq!((now.size, now.taken), (150, 150));
    }
}
