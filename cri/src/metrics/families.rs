//! The metrics that there are: cAdvisor's names, which dashboards know, as critest and the kubelet expect them from CRI.

use crate::proto::{MetricDescriptor, MetricType};

/// Labels that every metric has, in this order.
pub(super) const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// Metrics of one name.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: MetricType,
    /// Behind those that every metric has.
    pub(super) labels: &'static [&'static str],
}

impl Family {
    pub(super) fn descriptor(&self) -> MetricDescriptor {
        let labels = LABELS.iter().chain(self.labels);
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }
}

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(
            pub(super) const $constant: &Family = &Family {
                name: $name,
                help: $help,
                kind: MetricType::$kind,
                labels: &$labels,
            };
        )*
        /// All of them.
        pub(super) const ALL: &[&Family] = &[$($constant),*];
    };
}

families! {
    CPU_USAGE = Counter "container_cpu_usage_seconds_total" [], "Processor time used, in seconds.";
    CPU_USER = Counter "container_cpu_user_seconds_total" [], "Processor time used in user space, in seconds.";
    CPU_SYSTEM = Counter "container_cpu_system_seconds_total" [], "Processor time used in the kernel, in seconds.";
    CPU_PERIODS = Counter "container_cpu_cfs_periods_total" [], "Periods of the processor quota that have passed.";
    CPU_THROTTLED_PERIODS = Counter "container_cpu_cfs_throttled_periods_total" [],
        "Periods in which the processor quota was used up.";
    CPU_THROTTLED = Counter "container_cpu_cfs_throttled_seconds_total" [],
        "Time waited because the processor quota was used up, in seconds.";
    CPU_WAITING = Counter "container_pressure_cpu_waiting_seconds_total" [],
        "Time in which some task waited for a processor, in seconds.";
    CPU_STALLED = Counter "container_pressure_cpu_stalled_seconds_total" [],
        "Time in which all tasks waited for a processor, in seconds.";

    MEMORY_USAGE = Gauge "container_memory_usage_bytes" [], "Memory in use, whenever it was used last, in bytes.";
    MEMORY_MAX = Gauge "container_memory_max_usage_bytes" [], "The most memory that was in use, in bytes.";
    MEMORY_WORKING_SET = Gauge "container_memory_working_set_bytes" [],
        "Memory in use without the file cache that was not used lately, in bytes.";
    MEMORY_RSS = Gauge "container_memory_rss" [], "Anonymous memory, in bytes.";
    MEMORY_CACHE = Gauge "container_memory_cache" [], "Page cache, in bytes.";
    MEMORY_MAPPED = Gauge "container_memory_mapped_file" [], "Files mapped into memory, in bytes.";
    MEMORY_KERNEL = Gauge "container_memory_kernel_usage" [], "Memory of the kernel for the container, in bytes.";
    MEMORY_SWAP = Gauge "container_memory_swap" [], "Swap in use, in bytes.";
    MEMORY_ACTIVE_FILE = Gauge "container_memory_total_active_file_bytes" [],
        "Page cache that was used lately, in bytes.";
    MEMORY_INACTIVE_FILE = Gauge "container_memory_total_inactive_file_bytes" [],
        "Page cache that was not used lately, in bytes.";
    MEMORY_LIMIT_HITS = Counter "container_memory_failcnt" [], "How often the memory limit was met.";
    MEMORY_FAILURES = Counter "container_memory_failures_total" ["failure_type", "scope"], "Page faults.";
    MEMORY_WAITING = Counter "container_pressure_memory_waiting_seconds_total" [],
        "Time in which some task waited for memory, in seconds.";
    MEMORY_STALLED = Counter "container_pressure_memory_stalled_seconds_total" [],
        "Time in which all tasks waited for memory, in seconds.";
    OOM_EVENTS = Counter "container_oom_events_total" [], "Processes that were killed for want of memory.";
    HUGETLB_USAGE = Gauge "container_hugetlb_usage_bytes" ["pagesize"], "Huge pages in use, in bytes.";
    HUGETLB_MAX = Gauge "container_hugetlb_max_usage_bytes" ["pagesize"], "The most huge pages that were in use, in bytes.";

    FS_USAGE = Gauge "container_fs_usage_bytes" ["device"], "Size of the writable layer, in bytes.";
    FS_LIMIT = Gauge "container_fs_limit_bytes" ["device"], "Size of the file system of the writable layer, in bytes.";
    FS_INODES = Gauge "container_fs_inodes_total" ["device"], "Inodes of the file system of the writable layer.";
    FS_INODES_FREE = Gauge "container_fs_inodes_free" ["device"], "Free inodes of the file system of the writable layer.";
    FS_READ_BYTES = Counter "container_fs_reads_bytes_total" ["device"], "Bytes read from a block device.";
    FS_READS = Counter "container_fs_reads_total" ["device"], "Reads from a block device.";
    FS_WRITTEN_BYTES = Counter "container_fs_writes_bytes_total" ["device"], "Bytes written to a block device.";
    FS_WRITES = Counter "container_fs_writes_total" ["device"], "Writes to a block device.";
    BLKIO_USAGE = Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"],
        "Bytes to and from a block device, by operation.";
    IO_WAITING = Counter "container_pressure_io_waiting_seconds_total" [],
        "Time in which some task waited for a block device, in seconds.";
    IO_STALLED = Counter "container_pressure_io_stalled_seconds_total" [],
        "Time in which all tasks waited for a block device, in seconds.";

    NETWORK_RECEIVED_BYTES = Counter "container_network_receive_bytes_total" ["interface"], "Bytes received.";
    NETWORK_RECEIVED = Counter "container_network_receive_packets_total" ["interface"], "Packets received.";
    NETWORK_RECEIVE_DROPPED = Counter "container_network_receive_packets_dropped_total" ["interface"],
        "Packets that were dropped on receiving.";
    NETWORK_RECEIVE_ERRORS = Counter "container_network_receive_errors_total" ["interface"], "Errors on receiving.";
    NETWORK_SENT_BYTES = Counter "container_network_transmit_bytes_total" ["interface"], "Bytes sent.";
    NETWORK_SENT = Counter "container_network_transmit_packets_total" ["interface"], "Packets sent.";
    NETWORK_SEND_DROPPED = Counter "container_network_transmit_packets_dropped_total" ["interface"],
        "Packets that were dropped on sending.";
    NETWORK_SEND_ERRORS = Counter "container_network_transmit_errors_total" ["interface"], "Errors on sending.";

    PROCESSES = Gauge "container_processes" [], "Processes.";
    THREADS = Gauge "container_threads" [], "Threads.";
    THREADS_MAX = Gauge "container_threads_max" [], "The most threads that are allowed; 0: any number.";
    FILE_DESCRIPTORS = Gauge "container_file_descriptors" [], "Open file descriptors.";
    SOCKETS = Gauge "container_sockets" [], "Open sockets.";
    ULIMITS = Gauge "container_ulimits_soft" ["ulimit"], "Soft limits of the first process.";

    LAST_SEEN = Gauge "container_last_seen" [], "When this was read, in seconds since the epoch.";
    START_TIME = Gauge "container_start_time_seconds" [], "When the container was started, in seconds since the epoch.";

    SPEC_CPU_PERIOD = Gauge "container_spec_cpu_period" [], "Period of the processor quota, in microseconds.";
    SPEC_CPU_QUOTA = Gauge "container_spec_cpu_quota" [], "Processor time in each period, in microseconds.";
    SPEC_CPU_SHARES = Gauge "container_spec_cpu_shares" [], "Weight among those who want the processors.";
    SPEC_MEMORY_LIMIT = Gauge "container_spec_memory_limit_bytes" [], "Memory limit, in bytes; 0: none.";
    SPEC_MEMORY_RESERVATION = Gauge "container_spec_memory_reservation_limit_bytes" [],
        "Memory that is protected, in bytes; 0: none.";
    SPEC_MEMORY_SWAP = Gauge "container_spec_memory_swap_limit_bytes" [],
        "Limit of memory and swap together, in bytes; 0: none.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_is_there_once_with_its_help_and_labels() {
        let mut names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for family in ALL {
            let descriptor = family.descriptor();
            assert!(!descriptor.help.is_empty());
            assert_eq!(descriptor.label_keys.len(), LABELS.len() + family.labels.len());
            let counts = family.name.ends_with("_total") || family.name.ends_with("failcnt");
            let total = family.name == "container_fs_inodes_total";
            assert_eq!(
                family.kind == MetricType::Counter,
                counts && !total,
                "{}",
                family.name
            );
        }
    }
}
