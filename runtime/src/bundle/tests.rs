//! What is refused, and in which words.

use serde_json::{Value, json};

use super::*;

fn minimal() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    })
}

/// The minimal configuration with the value at a JSON pointer replaced (or, where null, removed).
fn with(pointer: &str, value: Value) -> Value {
    let mut config = minimal();
    set(&mut config, pointer, value);
    config
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    if config.pointer(parent).is_none() {
        set(config, parent, json!({}));
    }
    let parent = config.pointer_mut(parent).unwrap();
    if value.is_null() {
        parent.as_object_mut().unwrap().remove(key);
    } else {
        parent[key] = value;
    }
}

fn check(config: &Value) -> Result<Vec<String>> {
    parse_spec(&mut config.to_string().into_bytes()).map(|(_, warnings)| warnings)
}

fn refused(pointer: &str, value: Value) -> String {
    let error = check(&with(pointer, value.clone()));
    match error {
        Ok(_) => panic!("{pointer} = {value} was accepted"),
        Err(error) => format!("{error:#}"),
    }
}

fn accepted(pointer: &str, value: Value) -> Vec<String> {
    check(&with(pointer, value.clone())).unwrap_or_else(|error| panic!("{pointer} = {value}: {error:#}"))
}

#[test]
fn the_minimal_configuration_is_accepted_without_warning() {
    assert!(check(&minimal()).unwrap().is_empty());
}

#[test]
fn unknown_keys_are_no_error() {
    accepted("/somethingNew", json!({"a": [1, {"b": null}]}));
    accepted("/process/somethingNew", json!(1));
    accepted("/linux/resources", json!({"miscellaneous": {"x": 1}}));
    accepted("/windows", json!({"layerFolders": []}));
}

#[test]
fn versions_are_semver_with_major_1() {
    for version in [
        "1.0.0",
        "1.3.0",
        "1.99.7",
        "1.0.2-dev",
        "1.2.0-rc.1+build.5",
        "1.1.0+dev",
    ] {
        accepted("/ociVersion", json!(version));
    }
    for version in [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "v1.0.0",
        "1.0.x",
        "1.0.0-",
        "1.0.0-rc 1",
        " 1.0.0",
        "1..0",
    ] {
        assert!(refused("/ociVersion", json!(version)).starts_with("ociVersion: "));
    }
    assert_eq!(
        refused("/ociVersion", json!("2.0.0")),
        "ociVersion: \"2.0.0\": major version 2 is not supported; rtc knows 1"
    );
    assert_eq!(refused("/ociVersion", Value::Null), "ociVersion: missing");
}

#[test]
fn a_root_is_needed() {
    assert_eq!(refused("/root", Value::Null), "root: missing");
    assert_eq!(refused("/root/path", Value::Null), "root.path: missing");
    assert_eq!(
        refused("/root/path", json!("a\0b")),
        "root.path: \"a\\0b\": must not contain a NUL byte"
    );
}

#[test]
fn what_the_parser_refuses_is_named_by_its_field() {
    assert!(
        refused(
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_FOO"}])
        )
        .starts_with(
            "process.rlimits[1].type: \"RLIMIT_FOO\": unknown rlimit; use one of RLIMIT_CPU, RLIMIT_FSIZE"
        )
    );
    assert_eq!(
        refused("/process/user/uid", json!(-1)),
        "process.user.uid: invalid value: integer `-1`, expected u32"
    );
    assert_eq!(
        refused("/process/user/uid", json!(4_294_967_296_u64)),
        "process.user.uid: invalid value: integer `4294967296`, expected u32"
    );
    assert_eq!(
        refused("/process/args", json!("sh")),
        "process.args: invalid type: string \"sh\", expected a sequence"
    );
    assert_eq!(
        refused("/process/cwd", Value::Null),
        "process: missing field `cwd`"
    );
    assert!(
        refused("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_FOO"}))
            .starts_with("linux.seccomp.defaultAction: \"SCMP_ACT_FOO\": unknown seccomp action; use one of")
    );
    assert!(
        refused(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86", "Z80"]})
        )
        .starts_with("linux.seccomp.architectures[1]: \"Z80\": unknown seccomp architecture; use one of")
    );
    assert!(
        refused("/linux/namespaces", json!([{"type": "pod"}]))
            .starts_with("linux.namespaces[0].type: \"pod\": unknown namespace; use one of")
    );
    assert!(
        refused("/process/scheduler", json!({"policy": "SCHED_FAST"}))
            .starts_with("process.scheduler.policy: \"SCHED_FAST\": unknown scheduler policy")
    );
}

#[test]
fn text_that_is_no_json_is_refused_with_its_place() {
    let error = |text: &str| format!("{:#}", parse_spec(&mut text.as_bytes().to_vec()).unwrap_err());
    assert_eq!(
        error("{\"process\": {\n\"args\": [\"a\""),
        "process.args[0]: ends too early at line 2 column 12"
    );
    assert!(error("{\"ociVersion\": 1.0.0}").starts_with("ociVersion: "));
    assert!(error("hello").starts_with("not valid JSON: "));
    assert_eq!(error("7"), "invalid type: integer `7`, expected struct Spec");
    assert!(error("{} x").contains("trailing characters"));
    assert!(error("{\"root\": {\"path\": \"\u{1}\"}}").contains("root.path: not valid JSON"));
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_line() {
    let error = parse_spec(&mut b"{\n\"a\": \"\xff\"}".to_vec()).unwrap_err();
    assert_eq!(error.to_string(), "not valid JSON: line 2 is not UTF-8");
}

#[test]
fn deep_nesting_neither_overflows_the_stack_nor_hangs() {
    let text = format!("{{\"x\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert!(parse_spec(&mut text.into_bytes()).is_err());
    let text = format!("{{\"process\": {{\"args\": {}", "[".repeat(1_000_000));
    assert!(parse_spec(&mut text.into_bytes()).is_err());
}

#[test]
fn unknown_capabilities_are_left_out_with_a_warning() {
    let sets = json!({"bounding": ["CAP_KILL", "CAP_FUTURE"], "effective": ["CAP_FUTURE"]});
    let mut raw = with("/process/capabilities", sets).to_string().into_bytes();
    let (spec, warnings) = parse_spec(&mut raw).unwrap();
    assert_eq!(
        warnings,
        ["process.capabilities: ignored, not known to rtc: CAP_FUTURE"]
    );
    let sets = spec
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .as_ref()
        .unwrap()
        .clone();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    assert_eq!(sets.effective().as_ref().unwrap().len(), 0);
    assert!(
        parse_kept(&raw).is_ok(),
        "the kept copy parses without the second attempt"
    );
}

#[test]
fn an_ambient_capability_that_cannot_be_raised_is_a_warning() {
    let sets = json!({"ambient": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
    let warnings = accepted("/process/capabilities", sets);
    assert!(
        warnings[0].contains("can't raise ambient capability CAP_CHOWN: "),
        "{warnings:?}"
    );
}

#[test]
fn a_process_needs_a_program_and_an_absolute_cwd() {
    assert_eq!(
        refused("/process/args", json!([])),
        "process.args: is empty; it names the program to run"
    );
    assert_eq!(
        refused("/process/args", Value::Null),
        "process.args: is empty; it names the program to run"
    );
    assert_eq!(
        refused("/process/args", json!([""])),
        "process.args[0]: is empty; it names the program to run"
    );
    assert_eq!(
        refused("/process/args", json!(["a", "\0"])),
        "process.args[1]: \"\\0\": must not contain a NUL byte"
    );
    assert_eq!(
        refused("/process/cwd", json!("")),
        "process.cwd: is empty; use \"/\""
    );
    assert_eq!(
        refused("/process/cwd", json!("tmp")),
        "process.cwd: \"tmp\": must be absolute"
    );
    assert_eq!(
        refused("/process/env", json!(["A=1", "B"])),
        "process.env[1]: \"B\": must be NAME=value"
    );
    assert_eq!(
        refused("/process/env", json!(["=1"])),
        "process.env[0]: \"=1\": must be NAME=value"
    );
    accepted("/process/env", json!(["A=", "B=a\nb=c"]));
}

#[test]
fn a_configuration_without_process_is_accepted() {
    accepted("/process", Value::Null);
}

#[test]
fn ids_that_mean_unchanged_are_refused() {
    assert_eq!(
        refused("/process/user/uid", json!(u32::MAX)),
        "process.user.uid: 4294967295: must be below 4294967295"
    );
    assert!(
        refused("/process/user/additionalGids", json!([1, u32::MAX]))
            .starts_with("process.user.additionalGids[1]: ")
    );
    assert!(refused("/process/user/umask", json!(0o1000)).starts_with("process.user.umask: 512: "));
    accepted("/process/user/uid", json!(u32::MAX - 1));
}

#[test]
fn rlimits_are_named_once_and_soft_is_within_hard() {
    let twice = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}, {"type": "RLIMIT_NOFILE", "soft": 2, "hard": 2}]);
    assert_eq!(
        refused("/process/rlimits", twice),
        "process.rlimits[1].type: \"RLIMIT_NOFILE\" is already there; name each rlimit once"
    );
    let above = json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]);
    assert_eq!(
        refused("/process/rlimits", above),
        "process.rlimits[0].soft: 2: must not be above hard, 1"
    );
}

#[test]
fn the_oom_score_is_within_the_kernels_range() {
    assert_eq!(
        refused("/process/oomScoreAdj", json!(1001)),
        "process.oomScoreAdj: 1001: must be between -1000 and 1000"
    );
    accepted("/process/oomScoreAdj", json!(-1000));
}

#[test]
fn scheduler_settings_fit_their_policy() {
    let is = |value, text: &str| assert!(refused("/process/scheduler", value).contains(text), "{text}");
    is(
        json!({"policy": "SCHED_OTHER", "nice": 20}),
        "process.scheduler.nice: 20: must be between",
    );
    is(
        json!({"policy": "SCHED_BATCH", "priority": 1}),
        "only SCHED_FIFO and SCHED_RR have a priority",
    );
    is(
        json!({"policy": "SCHED_FIFO"}),
        "process.scheduler.priority: 0: must be between 1 and 99",
    );
    is(
        json!({"policy": "SCHED_RR", "priority": 5, "runtime": 1}),
        "only SCHED_DEADLINE has it",
    );
    is(
        json!({"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 4}),
        "0 < runtime <= deadline <= period",
    );
    is(json!({"policy": "SCHED_ISO"}), "not implemented in Linux");
    accepted(
        "/process/scheduler",
        json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}),
    );
    accepted("/process/scheduler", json!({"policy": "SCHED_RR", "priority": 5}));
}

#[test]
fn io_priority_console_size_and_affinity_are_checked() {
    assert!(
        refused(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8})
        )
        .starts_with("process.ioPriority.priority: 8")
    );
    assert!(
        refused(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 1})
        )
        .contains("must be 0")
    );
    assert!(
        refused("/process/consoleSize", json!({"height": 70_000, "width": 1}))
            .starts_with("process.consoleSize.height: 70000")
    );
    assert_eq!(
        accepted("/process/consoleSize", json!({"height": 1, "width": 1})).len(),
        1
    );
    assert!(
        refused("/process/execCPUAffinity", json!({"initial": "3-1"}))
            .starts_with("process.execCPUAffinity.initial: \"3-1\"")
    );
    accepted(
        "/process/execCPUAffinity",
        json!({"initial": "0-3,7", "final": "1"}),
    );
}

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
        "linux.gidMappings[0].containerID: 5: overlaps linux.gidMappings[1]",
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
fn mounts_are_checked_one_by_one() {
    let one = |value: Value| refused("/mounts", json!([{"destination": "/a"}, value]));
    assert_eq!(one(json!({"destination": ""})), "mounts[1].destination: is empty");
    assert_eq!(
        one(json!({"type": "proc"})),
        "mounts[1]: missing field `destination`"
    );
    assert_eq!(
        one(json!({"destination": "/x", "options": ["bind"]})),
        "mounts[1].source: missing; the bind mount on \"/x\" needs it"
    );
    assert!(
        one(json!({"destination": "/x", "source": "/", "options": ["bind", "idmap"]}))
            .contains("idmap needs")
    );
    let half = json!({"destination": "/x", "source": "/", "options": ["bind"], "uidMappings": [{"size": 1}]});
    assert_eq!(one(half), "mounts[1].gidMappings: missing; uidMappings is given");
    let tmpfs = json!({"destination": "/x", "type": "tmpfs", "uidMappings": [{"size": 1}], "gidMappings": [{"size": 1}]});
    assert!(one(tmpfs).contains("only a bind mount can be idmapped"));
    assert_eq!(
        accepted("/mounts", json!([{"destination": "data", "type": "tmpfs"}])).len(),
        1
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
fn hooks_have_an_absolute_path_and_a_timeout_above_zero() {
    assert_eq!(
        refused("/hooks/poststop", json!([{"path": "a"}])),
        "hooks.poststop[0].path: \"a\": must be absolute"
    );
    assert_eq!(
        refused("/hooks/prestart", json!([{"path": "/a", "timeout": 0}])),
        "hooks.prestart[0].timeout: 0: must be above 0 seconds"
    );
    assert_eq!(
        refused("/hooks/createRuntime", json!([{"path": "/a", "env": ["X"]}])),
        "hooks.createRuntime[0].env[0]: \"X\": must be NAME=value"
    );
    accepted(
        "/hooks/startContainer",
        json!([{"path": "/a", "args": ["b"], "timeout": 1}]),
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

#[test]
fn what_rtc_cannot_do_yet_is_refused_by_name() {
    assert_eq!(
        refused("/linux/intelRdt", json!({"closID": "x"})),
        "linux.intelRdt: is not supported by rtc yet; remove it"
    );
    assert!(refused("/linux/netDevices", json!({"eth1": {}})).starts_with("linux.netDevices: "));
    assert!(refused("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"})).starts_with("linux.memoryPolicy: "));
    accepted("/linux/netDevices", json!({}));
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

/// A directory of one test, removed with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("rtc-bundle-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn load_error(&self) -> String {
        format!("{:#}", Bundle::load(&self.0).unwrap_err())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn a_bundle_is_loaded_with_absolute_paths() {
    let scratch = Scratch::new("good");
    std::fs::create_dir(scratch.0.join("rootfs")).unwrap();
    std::fs::write(scratch.0.join(CONFIG), minimal().to_string()).unwrap();
    let bundle = Bundle::load(&scratch.0).unwrap();
    assert_eq!(bundle.rootfs, scratch.0.join("rootfs"));
    assert_eq!(bundle.raw, minimal().to_string().into_bytes());
}

#[test]
fn a_config_that_cannot_be_read_is_refused_without_waiting() {
    let scratch = Scratch::new("unreadable");
    let config = scratch.0.join(CONFIG);
    assert!(scratch.load_error().contains("No such file"));
    std::fs::create_dir(&config).unwrap();
    assert!(scratch.load_error().ends_with("not a regular file"));
    std::fs::remove_dir(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(scratch.load_error().ends_with("not a regular file"));
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, " \n").unwrap();
    assert!(scratch.load_error().ends_with("is empty"));
    let huge = File::create(&config).unwrap();
    huge.set_len(MAX_CONFIG_SIZE + 1).unwrap();
    assert!(
        scratch
            .load_error()
            .ends_with("16777217 bytes: must be at most 16777216")
    );
}

#[test]
fn a_rootfs_must_be_a_directory() {
    let scratch = Scratch::new("rootfs");
    std::fs::write(scratch.0.join(CONFIG), minimal().to_string()).unwrap();
    assert!(
        scratch.load_error().starts_with("config.json: root.path: "),
        "{}",
        scratch.load_error()
    );
    std::fs::write(scratch.0.join("rootfs"), "").unwrap();
    assert!(scratch.load_error().ends_with("not a directory"));
    let dot = with("/root/path", json!(".")).to_string();
    std::fs::write(scratch.0.join(CONFIG), dot).unwrap();
    Bundle::load(&scratch.0).unwrap();
}
