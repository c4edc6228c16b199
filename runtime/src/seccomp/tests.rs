//! What is refused and with which words, and what a filter carries beside its program. What filters decide is tested in
//! `tests/seccomp`, against libseccomp.

use serde_json::{Value, json};

use super::*;

fn profile(fields: Value) -> LinuxSeccomp {
    let mut profile = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    for (name, value) in fields.as_object().unwrap() {
        profile[name] = value.clone();
    }
    serde_json::from_value(profile).unwrap()
}

fn error(fields: Value) -> String {
    format!("{:#}", compile(&profile(fields)).unwrap_err())
}

fn rule(names: &[&str], action: &str) -> Value {
    json!({"names": names, "action": action})
}

#[test]
fn an_argument_index_over_five_is_refused_by_field_and_value() {
    let args =
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]);
    let rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args});
    assert_eq!(
        error(json!({"syscalls": [rule]})),
        "linux.seccomp.syscalls[0].args[1].index: 6: must be 0 to 5"
    );
}

#[test]
fn an_errno_over_4095_is_refused_by_field_and_value() {
    let rule = json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096});
    assert_eq!(
        error(json!({"syscalls": [rule]})),
        "linux.seccomp.syscalls[0].errnoRet: 4096: must be at most 4095 for SCMP_ACT_ERRNO"
    );
    assert_eq!(
        error(json!({"defaultErrnoRet": 5000})),
        "linux.seccomp.defaultErrnoRet: 5000: must be at most 4095 for SCMP_ACT_ERRNO"
    );
}

#[test]
fn a_tracer_may_be_told_16_bits() {
    let rule = |data: u32| json!({"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": data});
    assert!(compile(&profile(json!({"syscalls": [rule(0xffff)]}))).is_ok());
    assert!(error(json!({"syscalls": [rule(0x1_0000)]})).contains("errnoRet: 65536: must be at most 65535"));
}

#[test]
fn notify_is_refused_as_default_action_and_for_write() {
    assert_eq!(
        error(json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action"
    );
    assert_eq!(
        error(json!({"syscalls": [rule(&["read", "write"], "SCMP_ACT_NOTIFY")]})),
        "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY cannot be used for the write syscall"
    );
}

#[test]
fn an_empty_name_is_refused() {
    let message =
        error(json!({"syscalls": [rule(&["read"], "SCMP_ACT_ALLOW"), rule(&[""], "SCMP_ACT_ALLOW")]}));
    assert_eq!(
        message,
        "linux.seccomp.syscalls[1].names: an empty string is not the name of a system call"
    );
}

#[test]
fn rules_that_contradict_each_other_are_refused_by_call() {
    let conditional = |action: &str| {
        json!({"names": ["personality"], "action": action,
            "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]})
    };
    let message = error(json!({"syscalls": [conditional("SCMP_ACT_ALLOW"), conditional("SCMP_ACT_KILL")]}));
    assert!(
        message.starts_with("linux.seccomp.syscalls[1]: personality ("),
        "{message}"
    );
    assert!(
        message.contains("an earlier rule has another action under the same conditions"),
        "{message}"
    );
}

#[test]
fn a_filter_that_the_kernel_would_not_take_is_refused_with_its_limit() {
    let args = |value: u64| json!([{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": value, "op": "SCMP_CMP_GT"}]);
    let rules: Vec<Value> = (0..3000)
        .map(|value| json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args(value << 32 | value)}))
        .collect();
    let message = error(json!({"syscalls": rules}));
    assert!(message.contains("more than the 4096 instructions"), "{message}");
}

#[test]
fn unknown_names_are_ignored_and_reported() {
    let names = ["read", "no_such_call", "send", "socketcall"];
    let filter = compile(&profile(json!({"syscalls": [rule(&names, "SCMP_ACT_ALLOW")]}))).unwrap();
    assert_eq!(filter.unknown.first().map(String::as_str), Some("no_such_call"));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(filter.unknown.len(), 1, "send and socketcall are x86's");
}

#[test]
fn flags_are_the_kernels_and_none_given_is_spec_allow() {
    let flags = |fields: Value| compile(&profile(fields)).unwrap().flags;
    assert_eq!(flags(json!({})), FLAG_SPEC_ALLOW);
    assert_eq!(flags(json!({"flags": []})), 0);
    assert_eq!(
        flags(json!({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]})),
        FLAG_LOG
    );
    let killable = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    assert_eq!(flags(json!({"flags": killable})), 0, "nobody is asked");
    let notify = rule(&["mkdir"], "SCMP_ACT_NOTIFY");
    assert_eq!(
        flags(json!({"flags": killable, "syscalls": [notify]})),
        FLAG_WAIT_KILLABLE_RECV
    );
}

#[test]
fn a_profile_without_rules_is_its_default_action() {
    let filter = compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}))).unwrap();
    assert!(!filter.notify);
    assert_eq!(
        filter.program.last().map(|insn| insn.code),
        Some(0x06),
        "a return"
    );
    assert!(filter.program.len() < 16, "{:?}", filter.program);
}

#[test]
fn equal_decisions_by_arguments_are_written_once() {
    let rule = |names: &[&str]| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_GE"}]});
    let length = |names: &[&str]| {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [rule(names)]}));
        compile(&profile).unwrap().program.len()
    };
    let (one, two) = (length(&["ioctl"]), length(&["ioctl", "fcntl"]));
    assert!(two <= one + 4, "{one} instructions, {two} for two calls");
}
