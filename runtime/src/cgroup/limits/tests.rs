//! What `linux.resources` comes to on each version.

use oci_spec::runtime::LinuxResources;

use super::{Memory, v1, v2};

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// `file=value` of each write, on v1 where `limit` of memory is set now.
fn on_v1_with(json: &str, limit: u64) -> Vec<String> {
    let writes = v1::writes(&resources(json), || limit).unwrap();
    writes
        .iter()
        .map(|write| format!("{}={}", write.file, write.value))
        .collect()
}

fn on_v1(json: &str) -> Vec<String> {
    on_v1_with(json, u64::MAX)
}

fn on_v2(json: &str) -> Vec<String> {
    let writes = v2::writes(&resources(json)).unwrap();
    writes
        .iter()
        .map(|write| format!("{}={}", write.file, write.value))
        .collect()
}

fn v1_error(json: &str) -> String {
    v1::writes(&resources(json), || u64::MAX).unwrap_err().to_string()
}

fn v2_error(json: &str) -> String {
    v2::writes(&resources(json)).unwrap_err().to_string()
}

#[test]
fn nothing_said_is_nothing_written() {
    assert!(on_v1("{}").is_empty() && on_v2("{}").is_empty());
    let zeros = r#"{"memory":{"limit":0,"swap":0,"reservation":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""},
        "blockIO":{"weight":0},"network":{"classID":0}}"#;
    assert!(on_v1(zeros).is_empty() && on_v2(zeros).is_empty());
}

#[test]
fn swap_is_counted_with_memory_on_v1_and_alone_on_v2() {
    let json = r#"{"memory":{"limit":1000,"swap":3000,"reservation":500}}"#;
    assert_eq!(
        on_v1(json),
        [
            "memory.limit_in_bytes=1000",
            "memory.memsw.limit_in_bytes=3000",
            "memory.soft_limit_in_bytes=500"
        ]
    );
    assert_eq!(
        on_v2(json),
        ["memory.swap.max=2000", "memory.max=1000", "memory.low=500"]
    );
    assert_eq!(
        on_v2(r#"{"memory":{"limit":1000,"swap":1000}}"#)[0],
        "memory.swap.max=0"
    );
}

#[test]
fn the_larger_memory_limit_of_v1_goes_first() {
    let json = r#"{"memory":{"limit":2000,"swap":3000}}"#;
    let swap_first = ["memory.memsw.limit_in_bytes=3000", "memory.limit_in_bytes=2000"];
    assert_eq!(on_v1_with(json, 1000), swap_first);
    let limit_first = ["memory.limit_in_bytes=2000", "memory.memsw.limit_in_bytes=3000"];
    assert_eq!(on_v1_with(json, 9000), limit_first);
    let unlimited = r#"{"memory":{"limit":2000,"swap":-1}}"#;
    assert_eq!(on_v1_with(unlimited, 9000)[0], "memory.memsw.limit_in_bytes=-1");
}

#[test]
fn no_limit_of_memory_is_no_limit_of_swap() {
    let json = r#"{"memory":{"limit":-1}}"#;
    assert_eq!(
        on_v1(json),
        ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"]
    );
    assert_eq!(on_v2(json), ["memory.swap.max=max", "memory.max=max"]);
}

#[test]
fn impossible_memory_is_refused_by_name() {
    assert!(v2_error(r#"{"memory":{"limit":-5}}"#).starts_with("linux.resources.memory.limit: -5: must be"));
    assert!(
        v1_error(r#"{"memory":{"limit":9,"swap":8}}"#)
            .contains("memory+swap limit should be >= memory limit")
    );
    assert!(v2_error(r#"{"memory":{"swap":8}}"#).contains("unable to set swap limit without memory limit"));
    assert!(v1_error(r#"{"memory":{"swappiness":101}}"#).contains("invalid memory swappiness value: 101"));
}

#[test]
fn limits_below_what_is_used_are_rejected_before_an_update() {
    let memory = |json: &str| Memory::of(resources(json).memory().as_ref().unwrap()).unwrap();
    let text = |json| memory(json).check_before_update(100).unwrap_err().to_string();
    assert!(text(r#"{"memory":{"limit":100}}"#).contains("rejecting memory limit 100 <= usage 100"));
    assert!(
        text(r#"{"memory":{"limit":50,"swap":90}}"#).contains("rejecting memory+swap limit 90 <= usage 100")
    );
    memory(r#"{"memory":{"limit":101,"swap":-1}}"#)
        .check_before_update(100)
        .unwrap();
}

#[test]
fn shares_become_weight_along_runcs_curve() {
    let expected = [
        (0, 0),
        (1, 1),
        (2, 1),
        (5, 2),
        (10, 4),
        (100, 17),
        (512, 59),
        (1000, 99),
        (1024, 100),
        (2048, 174),
        (4096, 303),
        (10_000, 627),
        (22_000, 1204),
        (65_536, 3023),
        (262_144, 10_000),
        (1 << 40, 10_000),
    ];
    let found = expected.map(|(shares, _)| (shares, v2::weight(shares)));
    assert_eq!(found, expected);
}

#[test]
fn the_cpu_of_v2_is_one_file() {
    assert_eq!(
        on_v2(r#"{"cpu":{"quota":5000,"period":20000}}"#),
        ["cpu.max=5000 20000"]
    );
    assert_eq!(on_v2(r#"{"cpu":{"quota":5000}}"#), ["cpu.max=5000 100000"]);
    assert_eq!(on_v2(r#"{"cpu":{"quota":-1}}"#), ["cpu.max=max 100000"]);
    assert_eq!(on_v2(r#"{"cpu":{"period":20000}}"#), ["cpu.max=max 20000"]);
    assert_eq!(
        on_v2(r#"{"cpu":{"shares":1024,"burst":7,"quota":9,"idle":0,"cpus":"0-1","mems":"0"}}"#),
        [
            "cpu.idle=0",
            "cpu.weight=100",
            "cpu.max.burst=7",
            "cpu.max=9 100000",
            "cpuset.cpus=0-1",
            "cpuset.mems=0"
        ]
    );
    assert_eq!(on_v2(r#"{"cpu":{"shares":1024,"idle":1}}"#), ["cpu.idle=1"]);
}

#[test]
fn the_cpu_of_v1_is_many_files() {
    assert_eq!(
        on_v1(
            r#"{"cpu":{"shares":1024,"quota":9,"period":8,"burst":7,"idle":1,"realtimeRuntime":5,"realtimePeriod":6,
            "cpus":"0","mems":"0"}}"#
        ),
        [
            "cpuset.cpus=0",
            "cpuset.mems=0",
            "cpu.shares=1024",
            "cpu.cfs_period_us=8",
            "cpu.cfs_burst_us=7",
            "cpu.cfs_quota_us=9",
            "cpu.idle=1",
            "cpu.rt_period_us=6",
            "cpu.rt_runtime_us=5",
        ]
    );
    assert!(v1_error(r#"{"cpu":{"shares":300000}}"#).contains("the maximum allowed cpu-shares is 262144"));
    assert!(v1_error(r#"{"cpu":{"shares":1}}"#).contains("the minimum allowed cpu-shares is 2"));
}

#[test]
fn pids_follow_runc() {
    for (limit, value) in [(0, "1"), (-1, "max"), (-7, "max"), (20, "20")] {
        let json = format!(r#"{{"pids":{{"limit":{limit}}}}}"#);
        assert_eq!(on_v1(&json), [format!("pids.max={value}")]);
        assert_eq!(on_v2(&json), on_v1(&json));
    }
}

#[test]
fn block_io_is_translated() {
    let json = r#"{"blockIO":{"weight":1000,"leafWeight":20,
        "weightDevice":[{"major":8,"minor":0,"weight":500,"leafWeight":30}],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
        "throttleWriteBpsDevice":[{"major":8,"minor":16,"rate":2}],
        "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":3}],
        "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":4}]}}"#;
    assert_eq!(
        on_v1(json),
        [
            "blkio.weight=1000",
            "blkio.leaf_weight=20",
            "blkio.weight_device=8:0 500",
            "blkio.leaf_weight_device=8:0 30",
            "blkio.throttle.read_bps_device=8:0 1",
            "blkio.throttle.write_bps_device=8:16 2",
            "blkio.throttle.read_iops_device=8:0 3",
            "blkio.throttle.write_iops_device=8:0 4",
        ]
    );
    assert_eq!(
        on_v2(json),
        [
            "io.bfq.weight=1000",
            "io.bfq.weight=8:0 500",
            "io.max=8:0 rbps=1",
            "io.max=8:16 wbps=2",
            "io.max=8:0 riops=3",
            "io.max=8:0 wiops=4",
        ]
    );
    let fallback = |json| v2::writes(&resources(json)).unwrap()[0].otherwise.clone();
    assert_eq!(
        fallback(r#"{"blockIO":{"weight":1000}}"#),
        super::Otherwise::Instead("io.weight", "10000".to_owned())
    );
    assert_eq!(
        fallback(r#"{"blockIO":{"weight":10}}"#),
        super::Otherwise::Instead("io.weight", "1".to_owned())
    );
}

#[test]
fn the_other_controllers_are_translated() {
    let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}],
        "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":1000}}}"#;
    assert_eq!(
        on_v2(json),
        [
            "hugetlb.2MB.max=4096",
            "hugetlb.2MB.rsvd.max=4096",
            "rdma.max=mlx4_0 hca_object=1000",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
        ]
    );
    assert_eq!(on_v1(json)[1], "hugetlb.2MB.rsvd.limit_in_bytes=4096");
    assert_eq!(
        on_v1(r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#),
        ["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"]
    );
    for size in ["2mb", "/../x", "MB", "0MB", "2", "2M"] {
        let json = format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":1}}]}}"#);
        assert!(
            v2_error(&json).contains("must be like 64KB, 2MB or 1GB"),
            "{size}"
        );
    }
}

#[test]
fn unified_comes_last_and_only_on_v2() {
    let json = r#"{"pids":{"limit":5},"unified":{"pids.max":"6","io.max":"8:0 rbps=1\n8:16 rbps=2\n","memory.high":"7"}}"#;
    assert_eq!(
        on_v2(json),
        [
            "pids.max=5",
            "io.max=8:0 rbps=1",
            "io.max=8:16 rbps=2",
            "memory.high=7",
            "pids.max=6"
        ]
    );
    assert!(v1_error(json).contains("invalid configuration"));
    assert!(v2_error(r#"{"unified":{"a/b.c":"1"}}"#).contains("must be a file name (no slashes)"));
    assert!(v2_error(r#"{"unified":{"nodot":"1"}}"#).contains("must be in the form CONTROLLER.PARAMETER"));
}
