//! The container's process: identity, environment, working directory, capabilities, limits.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host;
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

const CHOWN: u64 = 1 << 0;
const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;
const AUDIT_WRITE: u64 = 1 << 29;

/// A capability set in what `cat /proc/self/status` printed.
fn set(output: &Output, name: &str) -> Result<u64> {
    u64::from_str_radix(output.value_of(name)?, 16).with_context(|| output.to_string())
}

fn sets_are(output: &Output, expected: [(&str, u64); 5]) -> Result {
    for (name, mask) in expected {
        ensure!(set(output, name)? == mask, "{name} is not {mask:x}\n{output}");
    }
    Ok(())
}

test!(
    fn user_group_and_additional_groups_are_those_of_the_configuration(t: &Test) -> Result {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [10, 20]});
        let bundle = t
            .bundle()
            .set("/process/user", user)
            .args(&["cat", "/proc/self/status"]);
        let output = bundle.run()?.ok()?;
        ensure!(
            output.value_of("Uid")?.split_whitespace().all(|id| id == "1000"),
            "{output}"
        );
        ensure!(
            output.value_of("Gid")?.split_whitespace().all(|id| id == "1001"),
            "{output}"
        );
        let mut groups: Vec<&str> = output.value_of("Groups")?.split_whitespace().collect();
        groups.retain(|&group| group != "1001");
        ensure!(groups == ["10", "20"], "{output}");
        Ok(())
    }
);

test!(
    fn groups_of_the_caller_are_dropped(t: &Test) -> Result {
        let output = t.bundle().args(&["cat", "/proc/self/status"]).run()?.ok()?;
        ensure!(matches!(output.value_of("Groups")?, "" | "0"), "{output}");
        Ok(())
    }
);

test!(
    fn the_largest_uid_and_gid_are_themselves_and_not_root(t: &Test) -> Result {
        // u32::MAX is "no change" for setuid(2); the largest usable id is one less.
        let user = json!({"uid": 4_294_967_294_u32, "gid": 4_294_967_294_u32});
        let output = t
            .bundle()
            .set("/process/user", user)
            .args(&["cat", "/proc/self/status"])
            .run()?
            .ok()?;
        ensure!(output.value_of("Uid")?.starts_with("4294967294"), "{output}");
        ensure!(output.value_of("Gid")?.starts_with("4294967294"), "{output}");
        Ok(())
    }
);

test!(
    fn umask_is_the_configured_one_and_022_otherwise(t: &Test) -> Result {
        t.bundle()
            .set("/process/user/umask", json!(0o077))
            .sh("umask")
            .run()?
            .prints("0077")?;
        t.bundle().sh("umask").run()?.prints("0022")?;
        Ok(())
    }
);

test!(
    fn the_environment_is_exactly_the_configured_one_and_home(t: &Test) -> Result {
        let bundle = t.bundle().set(
            "/process/env",
            json!(["PATH=/bin", "ONE=1", "EMPTY=", "EQUALS=a=b"]),
        );
        let output = bundle.args(&["env"]).run()?.ok()?;
        let mut lines = output.lines();
        lines.sort_unstable();
        ensure!(
            lines == ["EMPTY=", "EQUALS=a=b", "HOME=/root", "ONE=1", "PATH=/bin"],
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn of_two_values_for_one_variable_the_last_wins(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/env", json!(["PATH=/bin", "A=first", "B=b", "A=last"]));
        let output = bundle.args(&["env"]).run()?.ok()?;
        let lines = output.lines();
        let of_a: Vec<_> = lines.iter().filter(|line| line.starts_with("A=")).collect();
        ensure!(of_a == [&"A=last"], "{output}");
        Ok(())
    }
);

test!(
    fn values_with_newlines_and_bytes_beyond_ascii_arrive_unchanged(t: &Test) -> Result {
        let value = "first\nsecond \"quoted\" \u{e4}\u{1f980}";
        let env = json!(["PATH=/bin", format!("LONG={value}")]);
        t.bundle()
            .set("/process/env", env)
            .sh("echo \"$LONG\"")
            .run()?
            .prints(value)?;
        Ok(())
    }
);

test!(
    fn home_is_looked_up_in_the_containers_passwd_if_unset_or_empty(t: &Test) -> Result {
        for (uid, env, home) in [
            (0, json!(["PATH=/bin"]), "/root"),
            (1000, json!(["PATH=/bin"]), "/home/user"),
            (1000, json!(["PATH=/bin", "HOME="]), "/home/user"),
            (4242, json!(["PATH=/bin"]), "/"),
            (1000, json!(["PATH=/bin", "HOME=/chosen"]), "/chosen"),
        ] {
            let bundle = t.bundle().set("/process/user", json!({"uid": uid, "gid": uid}));
            let bundle = bundle.set("/process/env", env.clone()).sh("echo $HOME");
            bundle
                .run()?
                .prints(home)
                .with_context(|| format!("uid {uid}, {env}"))?;
        }
        Ok(())
    }
);

test!(
    fn home_is_the_root_directory_where_there_is_no_passwd(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/env", json!(["PATH=/bin"]))
            .sh("echo $HOME");
        fs::remove_file(bundle.rootfs().join("etc/passwd"))?;
        bundle.run()?.prints("/")?;
        Ok(())
    }
);

test!(
    fn the_working_directory_is_the_configured_one(t: &Test) -> Result {
        t.bundle()
            .set("/process/cwd", json!("/tmp"))
            .args(&["pwd"])
            .run()?
            .prints("/tmp")?;
        Ok(())
    }
);

test!(
    fn a_missing_working_directory_is_created(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .writable()
            .set("/process/cwd", json!("/made/by/the runtime"));
        bundle.args(&["pwd"]).run()?.prints("/made/by/the runtime")?;
        Ok(())
    }
);

test!(
    fn a_working_directory_only_its_user_may_enter_is_entered(t: &Test) -> Result {
        let bundle = t.bundle().set("/process/user", json!({"uid": 1000, "gid": 1000}));
        let home = bundle.rootfs().join("home/user");
        fs::create_dir(&home)?;
        chown(&home, Some(1000), Some(1000))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        let bundle = bundle.capabilities(&[]).set("/process/cwd", json!("/home/user"));
        bundle.args(&["pwd"]).run()?.prints("/home/user")?;
        Ok(())
    }
);

test!(
    fn a_working_directory_the_user_may_not_enter_is_entered_with_the_runtimes_rights(t: &Test) -> Result {
        let bundle = t.bundle().set("/process/user", json!({"uid": 1000, "gid": 1000}));
        fs::set_permissions(bundle.rootfs().join("root"), fs::Permissions::from_mode(0o700))?;
        bundle
            .set("/process/cwd", json!("/root"))
            .args(&["pwd"])
            .run()?
            .prints("/root")?;
        Ok(())
    }
);

test!(
    fn a_relative_working_directory_is_refused(t: &Test) -> Result {
        t.bundle()
            .set("/process/cwd", json!("tmp"))
            .run()?
            .fails_naming(&["process.cwd", "tmp"])?;
        Ok(())
    }
);

test!(
    fn a_user_without_ambient_capabilities_gets_none_but_the_bounding_set(t: &Test) -> Result {
        let user = json!({"uid": 1000, "gid": 1000});
        let output = t
            .bundle()
            .set("/process/user", user)
            .args(&["cat", "/proc/self/status"])
            .run()?
            .ok()?;
        let bounding = AUDIT_WRITE | KILL | NET_BIND_SERVICE;
        sets_are(
            &output,
            [
                ("CapInh", 0),
                ("CapPrm", 0),
                ("CapEff", 0),
                ("CapBnd", bounding),
                ("CapAmb", 0),
            ],
        )
    }
);

test!(
    fn root_gets_the_bounding_set_as_permitted_and_effective(t: &Test) -> Result {
        let output = t.bundle().args(&["cat", "/proc/self/status"]).run()?.ok()?;
        let all = AUDIT_WRITE | KILL | NET_BIND_SERVICE;
        sets_are(
            &output,
            [
                ("CapInh", 0),
                ("CapPrm", all),
                ("CapEff", all),
                ("CapBnd", all),
                ("CapAmb", 0),
            ],
        )
    }
);

test!(
    fn each_of_the_five_capability_sets_is_its_own(t: &Test) -> Result {
        let sets = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        });
        let bundle = t.bundle().set("/process/user", json!({"uid": 1000, "gid": 1000}));
        let output = bundle
            .set("/process/capabilities", sets)
            .args(&["cat", "/proc/self/status"])
            .run()?
            .ok()?;
        // What execve(2) makes of them for a user other than root: permitted and effective become the ambient set.
        sets_are(
            &output,
            [
                ("CapInh", KILL | NET_BIND_SERVICE),
                ("CapPrm", NET_BIND_SERVICE),
                ("CapEff", NET_BIND_SERVICE),
                ("CapBnd", CHOWN | KILL | NET_BIND_SERVICE),
                ("CapAmb", NET_BIND_SERVICE),
            ],
        )
    }
);

test!(
    fn without_capabilities_in_the_configuration_there_are_none(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .unset("/process/capabilities")
            .args(&["cat", "/proc/self/status"]);
        let output = bundle.run()?.ok()?;
        sets_are(
            &output,
            [
                ("CapInh", 0),
                ("CapPrm", 0),
                ("CapEff", 0),
                ("CapBnd", 0),
                ("CapAmb", 0),
            ],
        )
    }
);

test!(
    fn an_unknown_capability_is_a_warning_and_the_known_ones_hold(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .capabilities(&["CAP_CHOWN", "CAP_FLY"])
            .args(&["cat", "/proc/self/status"]);
        let output = bundle.run()?.ok()?;
        ensure!(set(&output, "CapBnd")? == CHOWN, "{output}");
        ensure!(output.stderr.contains("CAP_FLY"), "{output}");
        Ok(())
    }
);

test!(
    fn no_new_privileges_is_set_only_where_asked(t: &Test) -> Result {
        let status = ["grep", "NoNewPrivs", "/proc/self/status"];
        t.bundle().args(&status).run()?.prints("NoNewPrivs:\t1")?;
        t.bundle()
            .set("/process/noNewPrivileges", json!(false))
            .args(&status)
            .run()?
            .prints("NoNewPrivs:\t0")?;
        t.bundle()
            .unset("/process/noNewPrivileges")
            .args(&status)
            .run()?
            .prints("NoNewPrivs:\t0")?;
        Ok(())
    }
);

test!(
    fn resource_limits_are_the_configured_ones(t: &Test) -> Result {
        let limits = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 4_194_304, "hard": u64::MAX},
            {"type": "RLIMIT_NPROC", "soft": 77, "hard": 777},
        ]);
        let output = t
            .bundle()
            .set("/process/rlimits", limits)
            .args(&["cat", "/proc/self/limits"])
            .run()?
            .ok()?;
        for (name, soft, hard) in [
            ("Max open files", "100", "200"),
            ("Max core file size", "0", "0"),
            ("Max stack size", "4194304", "unlimited"),
            ("Max processes", "77", "777"),
        ] {
            let values: Vec<&str> = output.value_of(name)?.split_whitespace().collect();
            ensure!(values[..2] == [soft, hard], "{name}\n{output}");
        }
        Ok(())
    }
);

test!(
    fn oom_score_adj_is_the_configured_one(t: &Test) -> Result {
        for score in [500, 0, 1000] {
            let bundle = t.bundle().set("/process/oomScoreAdj", json!(score));
            bundle
                .args(&["cat", "/proc/self/oom_score_adj"])
                .run()?
                .prints(&score.to_string())?;
        }
        Ok(())
    }
);

test!(
    fn oom_score_adj_may_be_below_the_callers(t: &Test) -> Result {
        const SYS_RESOURCE: u64 = 1 << 24;
        let own = host::process::status_field(std::process::id().cast_signed(), "CapEff")?;
        if u64::from_str_radix(&own, 16)? & SYS_RESOURCE == 0 {
            t.skip("no CAP_SYS_RESOURCE")?;
        }
        let bundle = t.bundle().set("/process/oomScoreAdj", json!(-500));
        bundle
            .args(&["cat", "/proc/self/oom_score_adj"])
            .run()?
            .prints("-500")?;
        Ok(())
    }
);

test!(
    fn a_program_is_found_through_the_configured_path_only(t: &Test) -> Result {
        let elsewhere = t
            .bundle()
            .set("/process/env", json!(["PATH=/nowhere:/home"]))
            .args(&["true"]);
        elsewhere
            .run()?
            .fails_with(&["executable file not found in $PATH"])?;
        let found = t.bundle().set("/process/env", json!(["PATH=/nowhere:/bin"]));
        found.args(&["echo", "found"]).run()?.prints("found")?;
        Ok(())
    }
);

test!(
    fn a_program_that_is_in_no_path_directory_is_an_error_that_says_so(t: &Test) -> Result {
        let bundle = t.bundle().args(&["no-such-program"]);
        bundle
            .run()?
            .fails_with(&["no-such-program", "executable file not found in $PATH"])?;
        Ok(())
    }
);

test!(
    fn a_program_path_that_does_not_exist_is_an_error_that_says_so(t: &Test) -> Result {
        let bundle = t.bundle().args(&["/bin/no-such-program"]);
        bundle
            .run()?
            .fails_with(&["/bin/no-such-program", "no such file or directory"])?;
        Ok(())
    }
);

test!(
    fn a_file_that_is_not_executable_is_an_error_that_says_so(t: &Test) -> Result {
        let bundle = t.bundle().args(&["/etc/passwd"]);
        bundle.run()?.fails_with(&["/etc/passwd", "permission denied"])?;
        Ok(())
    }
);

test!(
    fn a_script_whose_interpreter_is_missing_is_an_error_that_names_the_script(t: &Test) -> Result {
        let bundle = t.bundle().args(&["/run.sh"]);
        let script = bundle.rootfs().join("run.sh");
        fs::write(&script, "#!/no/such/interpreter\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        bundle
            .run()?
            .fails_with(&["exec /run.sh: no such file or directory"])?;
        Ok(())
    }
);

test!(
    fn a_relative_program_path_is_taken_from_the_working_directory(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/cwd", json!("/bin"))
            .args(&["./busybox", "echo", "relative"]);
        bundle.run()?.prints("relative")?;
        Ok(())
    }
);

test!(
    fn no_signal_is_blocked_or_ignored(t: &Test) -> Result {
        let output = t.bundle().args(&["cat", "/proc/self/status"]).run()?.ok()?;
        for name in ["SigBlk", "SigIgn"] {
            // Real-time signals (32 and up) may come ignored from whoever started these tests.
            let mask = u64::from_str_radix(output.value_of(name)?, 16)?;
            ensure!(mask & 0x7fff_ffff == 0, "{name}\n{output}");
        }
        Ok(())
    }
);

test!(
    fn the_program_leads_its_own_session_and_has_no_parent(t: &Test) -> Result {
        let output = t.bundle().args(&["cat", "/proc/self/stat"]).run()?.ok()?;
        let fields: Vec<&str> = output.stdout.split_whitespace().collect();
        // pid, (name), state, ppid, pgrp, session: proc(5).
        ensure!(fields[0] == "1" && fields[3..6] == ["0", "1", "1"], "{output}");
        Ok(())
    }
);

test!(
    fn standard_input_of_a_foreground_run_reaches_the_program(t: &Test) -> Result {
        let input = t.path("input");
        fs::write(&input, "line one\nline two\n")?;
        let command = t.bundle().args(&["cat"]).command("run", &[])?;
        command
            .stdin(fs::File::open(&input)?)
            .run()?
            .prints("line one\nline two")?;
        Ok(())
    }
);

test!(
    fn a_pipe_given_as_a_stream_can_be_opened_again_by_the_user(t: &Test) -> Result {
        let piped = || -> Result<std::io::PipeReader> {
            let (read, mut write) = std::io::pipe()?;
            write.write_all(b"typed\n")?;
            Ok(read)
        };
        let read = "read line < /dev/stdin && echo $line";
        let bundle = t
            .bundle()
            .set("/process/user", json!({"uid": 1000, "gid": 1000}))
            .sh(read);
        bundle
            .command("run", &[])?
            .stdin(piped()?)
            .run()?
            .prints("typed")?;
        let container = t.bundle().sleeper().start()?;
        let exec = container.exec_command(&["--user", "1000:1000"], &["sh", "-c", read]);
        exec.stdin(piped()?).run()?.prints("typed")?;
        Ok(())
    }
);

test!(
    fn streams_keep_owner_and_mode_whoever_the_program_runs_as(t: &Test) -> Result {
        let input = t.path("input");
        fs::write(&input, "typed\n")?;
        let attributes = |path: &Path| -> Result<(u32, u32, u32)> {
            let found = fs::metadata(path)?;
            Ok((found.uid(), found.gid(), found.mode()))
        };
        let null = attributes(Path::new("/dev/null"))?;
        let before = attributes(&input)?;
        for verb in ["run", "create"] {
            let bundle = t
                .bundle()
                .set("/process/user", json!({"uid": 1000, "gid": 1000}))
                .sh("cat; id -u");
            t.delete_at_end(&bundle.id);
            let running = bundle
                .command(verb, &[])?
                .stdin(fs::File::open(&input)?)
                .spawn()?;
            let stdout = running.stdout.clone();
            running.wait()?.ok()?;
            if verb == "create" {
                t.rtc(["start", &bundle.id])?.ok()?;
            }
            until("the program's output", || {
                Ok((fs::read_to_string(&stdout)? == "typed\n1000\n").then_some(()))
            })?;
            ensure!(attributes(&input)? == before, "{verb}: standard input");
            ensure!(attributes(&stdout)?.0 == 0, "{verb}: standard output");
            let bundle = t.bundle().set("/process/user", json!({"uid": 1000, "gid": 1000}));
            bundle.run()?.ok()?;
            ensure!(attributes(Path::new("/dev/null"))? == null, "{verb}: /dev/null");
        }
        Ok(())
    }
);
