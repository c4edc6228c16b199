//! What is refused in `linux`.

use super::*;

#[test]
fn namespaces_are_named_once_and_joined_by_absolute_path() {
    let twice = json!([{"type": "pid"}, {"type": "pid", "path": "/proc/1/ns/pid"}]);
    assert_eq!(
        refused("/linux/namespaces", twice),
        "linux.namespaces[1]: \"pid\" is already there; name each type once"
    );
    let relative = json!([{"type": "network", "path": "ns/net"}]);
    assert_eq!(
        refused("/linux/namespaces", relative),
        "linux.namespaces[0].path: \"ns/net\": must be absolute"
    );
    accepted("/linux/namespaces", json!([{"type": "network", "path": ""}]));
}

#[test]
fn names_need_a_uts_namespace() {
    assert_eq!(
        refused("/hostname", json!("web")),
        "hostname: \"web\": needs a namespace of type \"uts\" in linux.namespaces"
    );
    assert!(refused("/domainname", json!("web")).starts_with("domainname: "));
    let mut config = with("/linux/namespaces", json!([{"type": "uts"}]));
    config["hostname"] = json!("a".repeat(65));
    assert!(format!("{:#}", check(&config).unwrap_err()).contains("at most 64 bytes"));
    config["hostname"] = json!("a".repeat(64));
    check(&config).unwrap();
    accepted("/hostname", json!(""));
}

fn user_namespace(uids: Value, gids: Value) -> Value {
    let mut config = with("/linux/namespaces", json!([{"type": "user"}, {"type": "mount"}]));
    set(&mut config, "/linux/uidMappings", uids);
    set(&mut config, "/linux/gidMappings", gids);
    config
}

#[test]
fn mappings_are_checked_before_the_kernel_says_einval() {
    let one = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let is = |uids: &Value, gids: &Value, text: &str| {
        let error = format!(
            "{:#}",
            check(&user_namespace(uids.clone(), gids.clone())).unwrap_err()
        );
        assert_eq!(error, text);
    };
    check(&user_namespace(one.clone(), one.clone())).unwrap();
    is(
        &one,
        &Value::Null,
        "linux.gidMappings: missing; a new namespace of type \"user\" needs it",
    );
    is(
        &json!([{"size": 0}]),
        &one,
        "linux.uidMappings[0].size: 0: must be at least 1",
    );
    let past = json!([{"containerID": 0, "hostID": 4_294_967_290_u32, "size": 10}]);
    is(
        &past,
        &one,
        "linux.uidMappings[0]: hostID 4294967290 and size 10: goes past the largest id",
    );
    let overlap =
        json!([{"containerID": 5, "hostID": 1, "size": 2}, {"containerID": 0, "hostID": 10, "size": 6}]);
    is(
        &one,
        &overlap,
        "linux.gidMappings[1].containerID: 0: overlaps linux.gidMappings[0]",
    );
    let many: Vec<Value> = (0..341)
        .map(|i| json!({"containerID": i, "hostID": i, "size": 1}))
        .collect();
    is(
        &json!(many),
        &one,
        "linux.uidMappings: 341 entries: must be at most 340",
    );
    assert_eq!(
        refused("/linux/uidMappings", one),
        "linux.uidMappings: needs a namespace of type \"user\" in linux.namespaces"
    );
}

#[test]
fn mappings_beside_a_joined_user_namespace_are_left_to_the_join() {
    let mut config = with(
        "/linux/namespaces",
        json!([{"type": "user", "path": "/proc/1/ns/user"}]),
    );
    check(&config).unwrap();
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    check(&config).unwrap();
}

#[test]
fn time_offsets_need_a_new_time_namespace() {
    let offsets = json!({"monotonic": {"secs": 5, "nanosecs": 1}});
    assert_eq!(
        refused("/linux/timeOffsets", offsets.clone()),
        "linux.timeOffsets: needs a namespace of type \"time\" in linux.namespaces"
    );
    let mut config = with("/linux/namespaces", json!([{"type": "time"}]));
    config["linux"]["timeOffsets"] = offsets.clone();
    check(&config).unwrap();
    config["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    assert!(format!("{:#}", check(&config).unwrap_err()).contains("use monotonic or boottime"));
    config["linux"]["timeOffsets"] = json!({"boottime": {"nanosecs": 1_000_000_000}});
    assert!(format!("{:#}", check(&config).unwrap_err()).contains("must be below 1000000000"));
    config["linux"]["namespaces"] = json!([{"type": "time", "path": "/proc/1/ns/time"}]);
    config["linux"]["timeOffsets"] = offsets;
    assert!(format!("{:#}", check(&config).unwrap_err()).contains("joined by path"));
}

#[test]
fn sysctls_belong_to_a_namespace_of_the_container() {
    let all = json!([{"type": "ipc"}, {"type": "network"}, {"type": "uts"}, {"type": "user"}]);
    let mut config = with("/linux/namespaces", all);
    config["linux"]["uidMappings"] = json!([{"size": 1}]);
    config["linux"]["gidMappings"] = json!([{"size": 1}]);
    for name in [
        "kernel.shmmax",
        "fs.mqueue.msg_max",
        "fs/mqueue/msg_max",
        "net.ipv4.ip_forward",
        "net/ipv4/conf/eth0.1/forwarding",
        "kernel.domainname",
        "user.max_net_namespaces",
    ] {
        config["linux"]["sysctl"] = json!({name: "1"});
        check(&config).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    for name in [
        "kernel.core_pattern",
        "vm.swappiness",
        "kernel.hostname",
        "net/../kernel/core_pattern",
        "net.//.kernel",
        "net..x",
        "",
        "net.",
        "network.x",
        "net./.x",
        "fs.file-max",
    ] {
        config["linux"]["sysctl"] = json!({name: "1"});
        let error = check(&config).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("linux.sysctl["), "{name}: {error}");
    }
    for (name, kind) in [
        ("kernel.sem", "ipc"),
        ("net.core.somaxconn", "network"),
        ("kernel/domainname", "uts"),
        ("user.max_x", "user"),
    ] {
        let text = format!("linux.sysctl[{name:?}]: needs a namespace of type {kind:?} in linux.namespaces");
        assert_eq!(refused("/linux/sysctl", json!({name: "1"})), text);
    }
}

#[test]
fn devices_have_an_absolute_path_a_type_and_numbers_in_range() {
    let is = |value: Value, text: &str| {
        assert_eq!(
            refused("/linux/devices", json!([value])),
            format!("linux.devices[0].{text}")
        );
    };
    is(
        json!({"path": "dev/x", "type": "c"}),
        "path: \"dev/x\": must be absolute",
    );
    is(json!({"type": "c"}), "path: is empty");
    is(
        json!({"path": "/dev/x", "type": "a"}),
        "type: \"a\": must be c, b, u or p",
    );
    is(
        json!({"path": "/dev/x", "type": "c", "major": 4096}),
        "major: 4096: must be between 0 and 4095",
    );
    is(
        json!({"path": "/dev/x", "type": "b", "minor": -1}),
        "minor: -1: must be between 0 and 1048575",
    );
    is(
        json!({"path": "/dev/x", "type": "b", "fileMode": 1 << 17}),
        "fileMode: 131072: must be at most 4095 (octal 07777)",
    );
    accepted(
        "/linux/devices",
        json!([{"path": "/dev/fifo", "type": "p", "fileMode": 0o10666}]),
    );
    let error = refused("/linux/devices", json!([{"path": "/dev/x", "type": "z"}]));
    assert!(
        error.starts_with("linux.devices[0].type: \"z\": unknown device type; use one of"),
        "{error}"
    );
}

#[test]
fn masked_paths_need_a_mount_namespace() {
    let mut config = with("/linux/namespaces", json!([{"type": "pid"}]));
    config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    assert_eq!(
        format!("{:#}", check(&config).unwrap_err()),
        "linux.maskedPaths: needs a namespace of type \"mount\" in linux.namespaces"
    );
    assert_eq!(
        accepted("/linux/readonlyPaths", json!(["proc/sys", "/proc/bus"])).len(),
        1
    );
}

#[test]
fn limits_out_of_range_are_named() {
    let is = |pointer: &str, value: Value, text: &str| {
        assert_eq!(
            refused(&format!("/linux/resources/{pointer}"), value),
            format!("linux.resources.{text}")
        );
    };
    is(
        "pids/limit",
        json!(-5),
        "pids.limit: -5: must be -1 (no limit) or more",
    );
    is(
        "memory/limit",
        json!(-2),
        "memory.limit: -2: must be -1 (no limit) or more",
    );
    is(
        "memory",
        json!({"limit": 10, "swap": 5}),
        "memory.swap: 5: is memory plus swap, must not be below memory.limit, 10",
    );
    is(
        "memory/swappiness",
        json!(101),
        "memory.swappiness: 101: must be at most 100",
    );
    is(
        "cpu/cpus",
        json!("0-"),
        "cpu.cpus: \"0-\": must be a list such as 0-3,7",
    );
    is("cpu/idle", json!(2), "cpu.idle: 2: must be 0 or 1");
    is(
        "blockIO/weight",
        json!(5),
        "blockIO.weight: 5: must be between 10 and 1000",
    );
    is(
        "hugepageLimits",
        json!([{"pageSize": "2", "limit": 1}]),
        "hugepageLimits[0].pageSize: \"2\": must be a size such as 2MB",
    );
    is(
        "unified",
        json!({"../x.y": "1"}),
        "unified[\"../x.y\"]: must be the name of a cgroup v2 file such as memory.high",
    );
    is(
        "devices",
        json!([{"allow": true, "access": "rx"}]),
        "devices[0].access: \"rx\": must be made of r, w and m",
    );
    is(
        "devices",
        json!([{"allow": true, "type": "u"}]),
        "devices[0].type: \"u\": must be a, b or c",
    );
}

/// A configuration whose container has a network namespace of its own, and these devices.
fn net_devices(devices: Value) -> Result<(), String> {
    let mut config = with(
        "/linux/namespaces",
        json!([{"type": "network"}, {"type": "mount"}]),
    );
    set(&mut config, "/linux/netDevices", devices);
    check(&config).map(drop).map_err(|error| format!("{error:#}"))
}

#[test]
fn network_devices_need_a_namespace_and_names_the_kernel_takes() {
    accepted("/linux/netDevices", json!({}));
    assert_eq!(
        refused("/linux/netDevices", json!({"eth1": {}})),
        "linux.netDevices: needs a namespace of type \"network\" in linux.namespaces"
    );
    net_devices(json!({"eth1": {"name": "net%d"}, "eth2": {"name": "net%d"}, "eth3": {"name": ""}, "é": {}}))
        .unwrap();
    for (devices, error) in [
        (json!({"": {}}), "linux.netDevices[\"\"]: the name is empty"),
        (
            json!({"eth1": {"name": "a234567890123456"}}),
            "linux.netDevices[\"eth1\"].name: \"a234567890123456\": must be at most 15 bytes",
        ),
        (
            json!({"..": {}}),
            "linux.netDevices[\"..\"]: the name must not be . or ..",
        ),
        (
            json!({"eth1": {"name": "a/b"}}),
            "linux.netDevices[\"eth1\"].name: \"a/b\": must not contain \"/\", \":\" or blanks",
        ),
        (
            json!({"eth1": {"name": "a%sb"}}),
            "linux.netDevices[\"eth1\"].name: \"a%sb\": \"%\" stands only in \"%d\", once, for a number",
        ),
        (
            json!({"eth1": {"name": "x"}, "x": {}}),
            "linux.netDevices[\"x\"].name: \"x\": is the new name of \"eth1\" too",
        ),
    ] {
        assert_eq!(net_devices(devices).unwrap_err(), error);
    }
}

#[test]
fn a_memory_policy_has_the_nodes_its_mode_takes() {
    let policy = |mode: &str, nodes: &str| json!({"mode": mode, "nodes": nodes});
    accepted("/linux/memoryPolicy", policy("MPOL_BIND", "0"));
    accepted("/linux/memoryPolicy", policy("MPOL_PREFERRED", ""));
    accepted("/linux/memoryPolicy", json!({"mode": "MPOL_DEFAULT"}));
    for (policy, error) in [
        (
            policy("MPOL_LOCAL", "0-7"),
            "linux.memoryPolicy.nodes: \"0-7\": memory policy mode requires 0 nodes but got 8: MPOL_LOCAL",
        ),
        (
            policy("MPOL_BIND", ""),
            "linux.memoryPolicy.nodes: memory policy mode requires at least one node but got 0: MPOL_BIND",
        ),
        (
            policy("MPOL_BIND", "0-"),
            "linux.memoryPolicy.nodes: \"0-\": invalid memory policy nodes: must be a list such as 0-3,7",
        ),
        (
            policy("MPOL_BIND", "1024"),
            "linux.memoryPolicy.nodes: \"1024\": invalid memory policy nodes: the last node is 1023",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
            "linux.memoryPolicy.flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        ),
    ] {
        assert_eq!(refused("/linux/memoryPolicy", policy), error);
    }
    let error = refused("/linux/memoryPolicy", json!({"mode": "MPOL_WHERE"}));
    assert!(
        error.starts_with(
            "linux.memoryPolicy.mode: \"MPOL_WHERE\": unknown memory policy mode; use one of MPOL_DEFAULT"
        ),
        "{error}"
    );
    let error = refused(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]}),
    );
    assert!(
        error
            .starts_with("linux.memoryPolicy.flags[0]: \"MPOL_F_X\": unknown memory policy flag; use one of"),
        "{error}"
    );
}

#[test]
fn a_resctrl_group_is_a_name_and_its_schemata_are_lines() {
    accepted("/linux/intelRdt", json!({"closID": "/", "schemata": ["L3:0=f"]}));
    accepted(
        "/linux/intelRdt",
        json!({"closID": "gold", "memBwSchema": "MB:0=20", "enableMonitoring": true}),
    );
    for name in ["..", ".", "a/b", "/a", "info"] {
        let error = refused("/linux/intelRdt", json!({"closID": name}));
        assert!(
            error.starts_with(&format!(
                "linux.intelRdt.closID: {name:?}: must be the name of a group"
            )),
            "{error}"
        );
    }
    for (rdt, error) in [
        (
            json!({"memBwSchema": "L3:0=f"}),
            "linux.intelRdt.memBwSchema: \"L3:0=f\": must start with \"MB:\"",
        ),
        (
            json!({"schemata": ["L3:0=f", "MB:0=1\nL3:1=f"]}),
            "linux.intelRdt.schemata[1]: \"MB:0=1\\nL3:1=f\": must be one line",
        ),
        (
            json!({"schemata": ["f"]}),
            "linux.intelRdt.schemata[0]: \"f\": must be a line such as \"L3:0=f;1=f\"",
        ),
    ] {
        assert_eq!(refused("/linux/intelRdt", rdt), error);
    }
}

#[test]
fn seccomp_rules_have_names_and_arguments_0_to_5() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let bad = rule(
        json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
    );
    assert_eq!(
        refused("/linux/seccomp", bad),
        "linux.seccomp.syscalls[0].args[0].index: 6: must be between 0 and 5"
    );
    assert!(
        refused(
            "/linux/seccomp",
            rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"}))
        )
        .contains("names: is empty")
    );
}
