//! Against directories that look like cgroups.

use super::*;

#[test]
fn idle_devices_of_io_stat_do_no_harm() {
    let all = v2_io("7:0 7:1 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 \n");
    let expected = Io {
        device: (8, 0),
        read_bytes: 1,
        written_bytes: 2,
        reads: 3,
        writes: 4,
    };
    assert_eq!(all, [expected]);
}

#[test]
fn bytes_and_counts_of_v1_meet_in_a_device() {
    let mut all = Vec::new();
    assert!(v1_io_file(
        "8:0 Read 100\n8:0 Write 5\n8:0 Total 105\nTotal 105\n",
        true,
        &mut all
    ));
    assert!(v1_io_file("8:0 Read 2\n8:16 Write 1\n", false, &mut all));
    assert!(!v1_io_file("Total 0\n", false, &mut all));
    assert_eq!(
        (all[0].read_bytes, all[0].written_bytes, all[0].reads),
        (100, 5, 2)
    );
    assert_eq!((all[1].device, all[1].writes), ((8, 16), 1));
}

#[test]
fn pressure_is_in_nanoseconds() {
    let text =
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
    let stats = pressure(text).unwrap();
    let some = stats.some.unwrap();
    assert_eq!((some.total, some.avg10.to_bits()), (12_000, 1.5f64.to_bits()));
    assert_eq!(stats.full.unwrap().total, 3_000);
    assert!(pressure("").is_none());
}

#[test]
fn huge_pages_are_named_as_their_files() {
    assert_eq!(page_size("hugepages-2048kB").as_deref(), Some("2MB"));
    assert_eq!(page_size("hugepages-1048576kB").as_deref(), Some("1GB"));
    assert_eq!(page_size("hugepages-64kB").as_deref(), Some("64KB"));
    assert_eq!(page_size("free"), None);
}

#[test]
fn the_cgroup_of_this_process_has_used_something() {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let machine = Machine::get();
    let line = match machine {
        Machine::V2 => text.lines().find_map(|line| line.strip_prefix("0::")),
        Machine::V1 { .. } => text
            .lines()
            .find(|line| line.contains(":cpuacct") || line.contains(",cpuacct"))
            .and_then(|line| line.rsplit(':').next()),
    };
    let used = machine
        .used(line.unwrap(), Depth::Metrics, &mut Vec::new())
        .unwrap();
    assert!(used.cpu.unwrap().total > 0);
    assert!(
        machine
            .used("/rtc-no-such-cgroup", Depth::Statistics, &mut Vec::new())
            .is_none()
    );
}
