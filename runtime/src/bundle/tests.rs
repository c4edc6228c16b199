//! What is refused, and in which words.

use serde_json::{Value, json};

use super::*;

mod linux;
mod process;

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

/// A configuration with something in each section.
fn full() -> Value {
    let mut config = minimal();
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    for (pointer, value) in [
        ("/hostname", json!("web")),
        (
            "/mounts",
            json!([{"destination": "/a", "source": "/b", "type": "bind", "options": ["bind", "ro"]}]),
        ),
        (
            "/hooks/prestart",
            json!([{"path": "/a", "args": ["b"], "env": ["A=1"], "timeout": 1}]),
        ),
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_KILL", "CAP_X"], "effective": ["CAP_X"]}),
        ),
        ("/process/env", json!(["A=1", "B=\u{e9}\n"])),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}]),
        ),
        ("/process/scheduler", json!({"policy": "SCHED_RR", "priority": 5})),
        ("/process/execCPUAffinity", json!({"initial": "0-3,7"})),
        (
            "/linux/namespaces",
            json!([{"type": "user"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]),
        ),
        ("/linux/uidMappings", mapping.clone()),
        ("/linux/gidMappings", mapping),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/x": "1"}),
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}]),
        ),
        (
            "/linux/resources",
            json!({"cpu": {"cpus": "0-1"}, "unified": {"memory.high": "1"}}),
        ),
        ("/linux/maskedPaths", json!(["/proc/kcore"])),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO"}]}),
        ),
    ] {
        set(&mut config, pointer, value);
    }
    config
}

#[test]
fn no_change_of_a_configuration_makes_the_checks_panic() {
    let base = full().to_string().into_bytes();
    parse_spec(&mut base.clone()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..4000 {
        let mut raw = base.clone();
        for _ in 0..=random(3) {
            let at = random(raw.len());
            match random(5) {
                0 => raw[at] = b"\"{}[]:,\\ 0-9.x\0\xff"[random(16)],
                1 => raw.truncate(at + 1),
                2 => drop(raw.remove(at)),
                3 => raw.insert(at, b"\"{}[]:,\\-0"[random(10)]),
                _ => raw[at] = u8::try_from(random(256)).unwrap(),
            }
            if raw.is_empty() {
                break;
            }
        }
        if let Ok((_, warnings)) = parse_spec(&mut raw) {
            assert!(warnings.iter().all(|warning| !warning.is_empty()));
            assert!(parse_kept(&raw).is_ok(), "what passed once is parsed again");
        }
    }
}
