//! Seccomp: actions, error numbers, argument comparisons, architectures, flags.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::host::process;
use crate::test;
use crate::test::Test;

/// Exit status of a program killed by SIGSYS.
const KILLED_BY_SIGSYS: i32 = 128 + 31;

/// A profile that allows all but what the rules say.
fn profile(rules: &Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules})
}

fn with_rules<'t>(t: &'t Test, rules: &Value) -> Bundle<'t> {
    t.bundle().writable().set("/linux/seccomp", profile(rules))
}

/// Denies mkdir in each of its forms by this action.
fn deny_mkdir(action: &str) -> Value {
    json!([{"names": ["mkdir", "mkdirat"], "action": action}])
}

test!(
    fn a_denied_call_fails_with_eperm(t: &Test) -> Result {
        let output = with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO"))
            .sh("mkdir /tmp/new || echo refused")
            .run()?;
        let output = output.prints("refused")?;
        ensure!(output.stderr.contains("Operation not permitted"), "{output}");
        Ok(())
    }
);

test!(
    fn a_denied_call_fails_with_the_configured_error(t: &Test) -> Result {
        for (errno, text) in [
            (28, "No space left on device"),
            (38, "Function not implemented"),
            (13, "Permission denied"),
        ] {
            let rules = json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]);
            let output = with_rules(t, &rules)
                .sh("mkdir /tmp/new || echo refused")
                .run()?
                .prints("refused")?;
            ensure!(output.stderr.contains(text), "{output}");
        }
        Ok(())
    }
);

test!(
    fn error_number_0_makes_the_call_do_nothing_and_succeed(t: &Test) -> Result {
        let rules = json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]);
        with_rules(t, &rules)
            .sh("mkdir /tmp/new && { test -d /tmp/new || echo nothing done; }")
            .run()?
            .prints("nothing done")?;
        Ok(())
    }
);

test!(
    fn other_calls_are_untouched(t: &Test) -> Result {
        with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO"))
            .sh("touch /tmp/f && rm /tmp/f && echo fine")
            .run()?
            .prints("fine")?;
        Ok(())
    }
);

test!(
    fn the_kill_actions_end_the_program_with_sigsys(t: &Test) -> Result {
        for action in [
            "SCMP_ACT_KILL",
            "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_TRAP",
        ] {
            let script = "mkdir /tmp/new; echo $?";
            let expected = KILLED_BY_SIGSYS.to_string();
            with_rules(t, &deny_mkdir(action))
                .sh(script)
                .run()?
                .prints(&expected)
                .with_context(|| action)?;
        }
        Ok(())
    }
);

test!(
    fn the_log_action_lets_the_call_through(t: &Test) -> Result {
        with_rules(t, &deny_mkdir("SCMP_ACT_LOG"))
            .sh("mkdir /tmp/new && echo made")
            .run()?
            .prints("made")?;
        Ok(())
    }
);

test!(
    fn the_trace_action_without_a_tracer_is_enosys(t: &Test) -> Result {
        let output = with_rules(t, &deny_mkdir("SCMP_ACT_TRACE"))
            .sh("mkdir /tmp/new || echo refused")
            .run()?
            .prints("refused")?;
        ensure!(output.stderr.contains("Function not implemented"), "{output}");
        Ok(())
    }
);

const MODES: [u64; 6] = [0o400, 0o444, 0o500, 0o600, 0o644, 0o700];

/// Tries chmod with each of the modes; prints those that are refused.
fn refused_modes(t: &Test, comparison: &Value) -> crate::registry::Result<Vec<u64>> {
    let rules = json!([{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": comparison}]);
    let words: Vec<String> = MODES.iter().map(|mode| format!("{mode:o}")).collect();
    let script = format!(
        "touch /tmp/f; for m in {}; do chmod $m /tmp/f 2>/dev/null || echo $m; done",
        words.join(" ")
    );
    let output = with_rules(t, &rules).sh(&script).run()?.ok()?;
    output
        .lines()
        .iter()
        .map(|line| Ok(u64::from_str_radix(line, 8)?))
        .collect()
}

test!(
    fn arguments_are_compared_by_each_operator(t: &Test) -> Result {
        type Decide = fn(u64) -> bool;
        let table: [(&str, Decide); 6] = [
            ("SCMP_CMP_EQ", |mode| mode == 0o500),
            ("SCMP_CMP_NE", |mode| mode != 0o500),
            ("SCMP_CMP_LT", |mode| mode < 0o500),
            ("SCMP_CMP_LE", |mode| mode <= 0o500),
            ("SCMP_CMP_GT", |mode| mode > 0o500),
            ("SCMP_CMP_GE", |mode| mode >= 0o500),
        ];
        for (operator, decide) in table {
            let refused = refused_modes(t, &json!([{"index": 1, "value": 0o500, "op": operator}]))?;
            let expected: Vec<u64> = MODES.into_iter().filter(|&mode| decide(mode)).collect();
            ensure!(
                refused == expected,
                "{operator}: refused {refused:?}, not {expected:?}"
            );
        }
        Ok(())
    }
);

test!(
    fn the_masked_comparison_looks_at_the_masked_bits(t: &Test) -> Result {
        let refused = refused_modes(
            t,
            &json!([{"index": 1, "value": 0o700, "valueTwo": 0o400, "op": "SCMP_CMP_MASKED_EQ"}]),
        )?;
        let expected: Vec<u64> = MODES.into_iter().filter(|mode| mode & 0o700 == 0o400).collect();
        ensure!(refused == expected, "refused {refused:?}, not {expected:?}");
        Ok(())
    }
);

test!(
    fn conditions_on_one_argument_are_alternatives(t: &Test) -> Result {
        let refused = refused_modes(
            t,
            &json!([{"index": 1, "value": 0o400, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0o600, "op": "SCMP_CMP_EQ"}]),
        )?;
        ensure!(refused == [0o400, 0o600], "refused {refused:?}");
        Ok(())
    }
);

test!(
    fn conditions_on_different_arguments_must_all_hold(t: &Test) -> Result {
        let args = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]);
        let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args}]);
        let script = "kill -0 1 2>/dev/null || echo refused; kill -CONT 1 && echo sent; sleep 9 & kill -0 $! && echo other; kill -9 $!";
        with_rules(t, &rules)
            .sh(script)
            .run()?
            .prints("refused\nsent\nother")?;
        Ok(())
    }
);

test!(
    fn several_rules_for_one_call_are_alternatives(t: &Test) -> Result {
        let rule = |mode: u64| json!({"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": mode, "op": "SCMP_CMP_EQ"}]});
        let script = "touch /tmp/f; for m in 400 500 600; do chmod $m /tmp/f 2>/dev/null || echo $m; done";
        with_rules(t, &json!([rule(0o400), rule(0o600)]))
            .sh(script)
            .run()?
            .prints("400\n600")?;
        Ok(())
    }
);

test!(
    fn all_64_bits_of_an_argument_count(t: &Test) -> Result {
        // Lengths that differ in the upper half only.
        let rule = json!({
            "names": ["ftruncate"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 0x1_0000_0005_u64, "op": "SCMP_CMP_EQ"}],
        });
        let script =
            "truncate -s 4294967301 /tmp/f 2>/dev/null || echo refused; truncate -s 5 /tmp/f && echo allowed";
        with_rules(t, &json!([rule]))
            .sh(script)
            .run()?
            .prints("refused\nallowed")?;
        Ok(())
    }
);

/// Calls that a static busybox and the start of a program need.
const BASIC: &[&str] = &[
    "read",
    "write",
    "open",
    "openat",
    "close",
    "stat",
    "fstat",
    "lstat",
    "newfstatat",
    "poll",
    "lseek",
    "mmap",
    "mprotect",
    "munmap",
    "brk",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "ioctl",
    "access",
    "faccessat",
    "dup",
    "dup2",
    "getpid",
    "getppid",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "execve",
    "exit",
    "exit_group",
    "wait4",
    "fcntl",
    "getcwd",
    "chdir",
    "readlink",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getpgrp",
    "setpgid",
    "setsid",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "getrandom",
    "futex",
    "tgkill",
    "gettid",
    "uname",
    "prctl",
    "capget",
    "capset",
    "setgroups",
    "setgid",
    "setuid",
    "getdents64",
    "pread64",
    "writev",
    "close_range",
    "umask",
    "statx",
    "seccomp",
    "pipe2",
    "sendmsg",
    "recvmsg",
];

test!(
    fn a_profile_that_denies_by_default_allows_what_it_lists(t: &Test) -> Result {
        let seccomp = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": BASIC, "action": "SCMP_ACT_ALLOW"}],
        });
        let bundle = t.bundle().writable().set("/linux/seccomp", seccomp);
        let output = bundle
            .sh("mkdir /tmp/new || echo refused")
            .run()?
            .prints("refused")?;
        ensure!(output.stderr.contains("Permission denied"), "{output}");
        Ok(())
    }
);

test!(
    fn names_of_calls_nobody_knows_are_ignored(t: &Test) -> Result {
        let rules = json!([{"names": ["no_such_call", "mkdir"], "action": "SCMP_ACT_ERRNO"}]);
        with_rules(t, &rules)
            .sh("mkdir /tmp/new 2>/dev/null || echo refused")
            .run()?
            .prints("refused")?;
        Ok(())
    }
);

test!(
    fn without_architectures_the_machines_own_is_meant(t: &Test) -> Result {
        let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": deny_mkdir("SCMP_ACT_ERRNO")});
        let bundle = t.bundle().writable().set("/linux/seccomp", seccomp);
        bundle
            .sh("mkdir /tmp/new 2>/dev/null || echo refused")
            .run()?
            .prints("refused")?;
        Ok(())
    }
);

test!(
    fn a_rule_that_repeats_the_default_action_does_no_harm(t: &Test) -> Result {
        with_rules(t, &deny_mkdir("SCMP_ACT_ALLOW"))
            .sh("mkdir /tmp/new && echo made")
            .run()?
            .prints("made")?;
        Ok(())
    }
);

test!(
    fn the_filter_is_there_with_and_without_no_new_privileges_and_as_any_user(t: &Test) -> Result {
        for no_new_privileges in [true, false] {
            for uid in [0, 1000] {
                let bundle = with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO"))
                    .set("/process/noNewPrivileges", json!(no_new_privileges));
                let bundle = bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
                let output = bundle
                    .sh("grep Seccomp: /proc/self/status; mkdir /tmp/new 2>&1")
                    .run()?;
                let right = output.stdout.contains("Seccomp:\t2") && output.stdout.contains("not permitted");
                ensure!(
                    right,
                    "no new privileges {no_new_privileges}, uid {uid}\n{output}"
                );
            }
        }
        Ok(())
    }
);

test!(
    fn without_a_profile_there_is_no_filter(t: &Test) -> Result {
        t.bundle()
            .args(&["grep", "Seccomp:", "/proc/self/status"])
            .run()?
            .prints("Seccomp:\t0")?;
        Ok(())
    }
);

test!(
    fn exec_gets_the_same_filter(t: &Test) -> Result {
        let container = with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO")).sleeper().start()?;
        container
            .exec(&["sh", "-c", "mkdir /tmp/new 2>/dev/null || echo refused"])?
            .prints("refused")?;
        ensure!(process::status_field(container.pid()?, "Seccomp")? == "2");
        Ok(())
    }
);

test!(
    fn the_flags_of_the_filter_are_accepted(t: &Test) -> Result {
        for flags in [
            json!(["SECCOMP_FILTER_FLAG_LOG"]),
            json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
            json!([]),
        ] {
            let bundle =
                with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO")).set("/linux/seccomp/flags", flags.clone());
            bundle
                .sh("mkdir /tmp/new 2>/dev/null || echo refused")
                .run()?
                .prints("refused")
                .with_context(|| flags.to_string())?;
        }
        Ok(())
    }
);

test!(
    fn a_filter_applies_to_the_programs_the_program_starts(t: &Test) -> Result {
        let script = "sh -c 'sh -c \"mkdir /tmp/new 2>/dev/null || echo refused\"'";
        with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO"))
            .sh(script)
            .run()?
            .prints("refused")?;
        Ok(())
    }
);

test!(
    fn a_large_profile_with_many_rules_works(t: &Test) -> Result {
        let rules: Vec<Value> = (0..200)
            .map(|mode| json!({"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 1, "value": mode * 2, "op": "SCMP_CMP_EQ"}]}))
            .collect();
        let script =
            "touch /tmp/f; chmod 400 /tmp/f 2>/dev/null || echo refused; chmod 401 /tmp/f && echo allowed";
        // 0o400 is 256, an even number below 400: refused; 0o401 is odd: allowed.
        with_rules(t, &json!(rules))
            .sh(script)
            .run()?
            .prints("refused\nallowed")?;
        Ok(())
    }
);

test!(
    fn unknown_actions_operators_architectures_and_flags_are_refused_by_name(t: &Test) -> Result {
        let rule = json!([{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_LIKE"}]}]);
        for (name, seccomp) in [
            ("SCMP_ACT_SHRUG", json!({"defaultAction": "SCMP_ACT_SHRUG"})),
            ("SCMP_ACT_HIDE", profile(&deny_mkdir("SCMP_ACT_HIDE"))),
            ("SCMP_CMP_LIKE", profile(&rule)),
            (
                "SCMP_ARCH_PDP11",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"], "syscalls": deny_mkdir("SCMP_ACT_ERRNO")}),
            ),
        ] {
            t.bundle()
                .set("/linux/seccomp", seccomp)
                .run()?
                .fails_with(&[name])?;
        }
        Ok(())
    }
);

test!(
    fn an_unknown_filter_flag_is_refused_by_name(t: &Test) -> Result {
        let bundle = with_rules(t, &deny_mkdir("SCMP_ACT_ERRNO"))
            .set("/linux/seccomp/flags", json!(["SECCOMP_FILTER_FLAG_NONE_SUCH"]));
        bundle.run()?.fails_with(&["SECCOMP_FILTER_FLAG_NONE_SUCH"])?;
        Ok(())
    }
);
