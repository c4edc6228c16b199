//! The command line: help, version, flags, logging, spec, features.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::test;

const VERBS: [&str; 14] = [
    "create", "delete", "events", "exec", "kill", "list", "pause", "ps", "resume", "run", "spec", "start",
    "state", "update",
];

test!(
    fn help_of_the_program_names_it_and_lists_the_commands(t: &Test) -> Result {
        for flag in ["-h", "--help", "help"] {
            let output = t.bare([flag]).run()?.ok()?;
            let first: Vec<&str> = output.lines();
            ensure!(first[0] == "NAME:", "{output}");
            ensure!(first[1].contains("Open Container Initiative runtime"), "{output}");
            for verb in VERBS {
                ensure!(
                    output.lines().iter().any(|line| line.starts_with(verb)),
                    "no {verb}\n{output}"
                );
            }
        }
        Ok(())
    }
);

test!(
    fn help_of_each_command_names_it(t: &Test) -> Result {
        let program = t.rtc.file_name().context("name")?.to_string_lossy().into_owned();
        for verb in VERBS {
            for flag in ["-h", "--help"] {
                let output = t.bare([verb, flag]).run()?.ok()?;
                let lines = output.lines();
                ensure!(
                    lines[0] == "NAME:" && lines[1].contains(&format!("{program} {verb}")),
                    "{output}"
                );
            }
        }
        Ok(())
    }
);

test!(
    fn help_of_an_unknown_command_fails(t: &Test) -> Result {
        let output = t.bare(["foo", "-h"]).run()?;
        let text = format!("{}{}", output.stdout, output.stderr);
        ensure!(
            output.code != 0 && text.contains("No help topic for 'foo'"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn an_unknown_command_or_flag_is_refused_by_name(t: &Test) -> Result {
        for words in [
            vec!["frobnicate"],
            vec!["--frobnicate", "list"],
            vec!["run", "--frobnicate", "x"],
            vec!["list", "--frobnicate"],
        ] {
            let output = t.bare(words).run()?;
            ensure!(output.code != 0, "{output}");
            ensure!(
                format!("{}{}", output.stdout, output.stderr).contains("frobnicate"),
                "{output}"
            );
        }
        Ok(())
    }
);

test!(
    fn too_few_or_too_many_arguments_are_refused(t: &Test) -> Result {
        for words in [
            vec!["state"],
            vec!["start"],
            vec!["kill"],
            vec!["delete"],
            vec!["state", "a", "b"],
            vec!["create", "a", "b"],
        ] {
            let output = t.command(words.clone()).run()?;
            ensure!(output.code != 0, "{words:?} {output}");
        }
        Ok(())
    }
);

test!(
    fn the_version_names_program_commit_and_specification(t: &Test) -> Result {
        for flag in ["--version", "-v"] {
            let output = t.bare([flag]).run()?.ok()?;
            ensure!(output.lines()[0].contains(" version "), "{output}");
            ensure!(output.value_of("spec:")?.starts_with("1."), "{output}");
            if t.is_ours() {
                output.value_of("commit:")?;
            }
        }
        Ok(())
    }
);

test!(
    fn flags_are_taken_before_and_after_the_id(t: &Test) -> Result {
        if !t.is_ours() {
            return Ok(());
        }
        let bundle = t.bundle().sleeper();
        bundle.write()?;
        t.delete_at_end(&bundle.id);
        t.command(["run", &bundle.id, "--detach", "--bundle"])
            .args([&bundle.directory])
            .run()?
            .ok()?;
        t.rtc(["delete", &bundle.id, "--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn what_follows_the_id_of_exec_is_the_command_and_its_flags(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container
            .exec(&["echo", "-n", "--user", "--help"])?
            .prints("--user --help")?;
        Ok(())
    }
);

test!(
    fn an_error_goes_to_standard_error_as_one_line(t: &Test) -> Result {
        let output = t.rtc(["state", "nobody"])?.code(1)?;
        ensure!(
            output.stdout.is_empty() && output.stderr.trim().lines().count() == 1,
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn a_json_log_has_the_fields_engines_read(t: &Test) -> Result {
        let log = t.path("log.json");
        let log_text = log.to_string_lossy();
        t.rtc(["--log", &*log_text, "--log-format", "json", "state", "nobody"])?
            .code(1)?;
        let text = fs::read_to_string(&log)?;
        let last: Value = serde_json::from_str(text.lines().last().context("empty log")?)?;
        ensure!(last["level"] == "error", "{text}");
        ensure!(
            last["msg"]
                .as_str()
                .is_some_and(|message| message.contains("does not exist")),
            "{text}"
        );
        ensure!(
            last["time"].as_str().is_some_and(|time| time.contains('T')),
            "{text}"
        );
        Ok(())
    }
);

test!(
    fn the_log_file_is_appended_to(t: &Test) -> Result {
        let log = t.path("log");
        fs::write(&log, "before\n")?;
        t.rtc(["--log", &*log.to_string_lossy(), "state", "nobody"])?
            .code(1)?;
        let text = fs::read_to_string(&log)?;
        ensure!(
            text.starts_with("before\n") && text.contains("does not exist"),
            "{text}"
        );
        Ok(())
    }
);

test!(
    fn debug_messages_appear_only_where_asked(t: &Test) -> Result {
        let bundle = t.bundle();
        let quiet = bundle.run()?.ok()?;
        ensure!(quiet.stderr.is_empty(), "{quiet}");
        bundle.write()?;
        let noisy = t
            .command(["--debug", "run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id])
            .run()?
            .ok()?;
        ensure!(noisy.stderr.contains("level=debug"), "{noisy}");
        let log = t.path("log");
        let noisy = t.command(["--debug", "--log", &*log.to_string_lossy(), "run", "--bundle"]);
        let noisy = noisy.args([&bundle.directory]).args([&bundle.id]).run()?.ok()?;
        ensure!(
            noisy.stderr.is_empty() && fs::read_to_string(&log)?.contains("level=debug"),
            "{noisy}"
        );
        Ok(())
    }
);

test!(
    fn a_bad_log_format_or_an_unwritable_log_is_refused(t: &Test) -> Result {
        t.rtc(["--log-format", "xml", "list"])?.fails_with(&["xml"])?;
        t.rtc(["--log", "/nonexistent/dir/log", "list"])?
            .fails_with(&["/nonexistent/dir/log"])?;
        Ok(())
    }
);

test!(
    fn spec_writes_a_configuration_that_runs(t: &Test) -> Result {
        let bundle = t.bundle();
        let config = bundle.directory.join("config.json");
        t.command(["spec"]).cwd(&bundle.directory).run()?.ok()?;
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        ensure!(
            spec["process"]["terminal"] == true && spec["root"]["readonly"] == true,
            "{spec}"
        );
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["echo", "from spec"]);
        let path = format!("{}/{}", t.cgroup.path, bundle.id);
        spec["linux"]["cgroupsPath"] = json!(t.cgroups_path(&path));
        let text = spec.to_string();
        bundle.text(text).run()?.prints("from spec")?;
        Ok(())
    }
);

test!(
    fn spec_does_not_overwrite_and_takes_a_bundle(t: &Test) -> Result {
        let directory = t.path("somewhere");
        fs::create_dir(&directory)?;
        t.command(["spec", "--bundle"]).args([&directory]).run()?.ok()?;
        let before = fs::read(directory.join("config.json"))?;
        t.command(["spec", "--bundle"])
            .args([&directory])
            .run()?
            .fails_with(&["config.json", "exists"])?;
        ensure!(fs::read(directory.join("config.json"))? == before);
        Ok(())
    }
);

test!(
    fn features_says_what_the_runtime_can(t: &Test) -> Result {
        let output = t.bare(["features"]).run()?.ok()?;
        let features: Value = serde_json::from_str(&output.stdout)?;
        ensure!(features["ociVersionMin"] == "1.0.0", "{output}");
        ensure!(
            features["ociVersionMax"]
                .as_str()
                .is_some_and(|version| version.starts_with("1.")),
            "{output}"
        );
        let has = |pointer: &str, word: &str| {
            let list = features.pointer(pointer).and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|entry| entry == word))
        };
        for (pointer, word) in [
            ("/hooks", "createRuntime"),
            ("/mountOptions", "rbind"),
            ("/linux/namespaces", "user"),
            ("/linux/capabilities", "CAP_SYS_ADMIN"),
            ("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
            ("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"),
            ("/linux/seccomp/archs", "SCMP_ARCH_X86_64"),
        ] {
            ensure!(has(pointer, word), "{pointer}: no {word}\n{output}");
        }
        ensure!(
            features["linux"]["cgroup"]["v1"] == true && features["linux"]["cgroup"]["v2"] == true,
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn features_says_of_each_field_what_the_other_tests_show(t: &Test) -> Result {
        let output = t.bare(["features"]).run()?.ok()?;
        let features: Value = serde_json::from_str(&output.stdout)?;
        for pointer in [
            "/linux/apparmor/enabled",
            "/linux/selinux/enabled",
            "/linux/intelRdt/enabled",
            "/linux/intelRdt/schemata",
            "/linux/intelRdt/monitoring",
            "/linux/mountExtensions/idmap/enabled",
            "/linux/netDevices/enabled",
            "/linux/cgroup/systemd",
            "/linux/cgroup/rdma",
            "/linux/seccomp/enabled",
        ] {
            ensure!(
                features.pointer(pointer) == Some(&json!(true)),
                "{pointer}: {output}"
            );
        }
        let policy = &features["linux"]["memoryPolicy"];
        ensure!(
            policy["modes"].as_array().is_some_and(|modes| modes.len() == 7),
            "{policy}"
        );
        ensure!(
            policy["flags"].as_array().is_some_and(|flags| flags.len() == 3),
            "{policy}"
        );
        let unsafe_ones = &features["potentiallyUnsafeConfigAnnotations"];
        for prefix in ["org.systemd.property.", "run.oci."] {
            let listed = unsafe_ones
                .as_array()
                .is_some_and(|list| list.contains(&json!(prefix)));
            ensure!(listed, "{prefix}: {unsafe_ones}");
        }
        Ok(())
    }
);

test!(
    fn the_root_directory_is_made_where_it_is_missing(t: &Test) -> Result {
        let root = t.path("new").join("deep/root");
        let bundle = t.bundle().sh("echo made");
        bundle.write()?;
        let run = t
            .bare(["--root"])
            .args([&root])
            .args(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        run.run()?.prints("made")?;
        Ok(())
    }
);

test!(
    fn the_systemd_driver_wants_a_path_of_three_parts(t: &Test) -> Result {
        let bundle = t.bundle().set("/linux/cgroupsPath", json!("/not/three"));
        bundle.write()?;
        let run = t
            .command(["--systemd-cgroup", "run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        // Without systemd, or with a path that is not slice:prefix:name: a clear error either way.
        run.run()?.fails_naming(&["systemd"])?;
        Ok(())
    }
);
