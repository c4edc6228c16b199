//! What is refused in `process`.

use super::*;

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
        "process.rlimits[0].soft: 2: must not be above hard, 1 (RLIMIT_NOFILE)"
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
