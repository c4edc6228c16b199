//! The upper layer of a container.

/// What a directory takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Nanoseconds since the epoch: when it was measured.
    pub(crate) timestamp: i64,
}
