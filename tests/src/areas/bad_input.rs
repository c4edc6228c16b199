//! Bad configurations: each is refused with an error that names field and value, and leaves nothing behind (which the
//! supervisor checks after each test).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::host::mounts;
use crate::test;
use crate::test::Test;

/// Both `create` and `run` refuse the bundle, naming each of the texts, and there is no container afterwards.
fn refused(t: &Test, bundle: &Bundle<'_>, naming: &[&str]) -> crate::registry::Result {
    for verb in ["create", "run"] {
        bundle.command(verb, &[])?.run()?.fails_naming(naming)?;
        t.rtc(["state", &bundle.id])?.fails_naming(&["does not exist"])?;
    }
    Ok(())
}

/// Refuses each of these values at a place of the configuration.
fn refused_values(t: &Test, pointer: &str, field: &str, values: &[(Value, &str)]) -> crate::registry::Result {
    for (value, named) in values {
        let bundle = t.bundle().set(pointer, value.clone());
        refused(t, &bundle, &[field, named]).with_context(|| format!("{pointer}: {value}"))?;
    }
    Ok(())
}

test!(
    fn a_bundle_without_config_json_is_refused(t: &Test) -> Result {
        let bundle = t.bundle();
        let run = t
            .command(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        run.run()?.fails_with(&["config.json"])?;
        Ok(())
    }
);

test!(
    fn a_bundle_directory_that_does_not_exist_is_refused(t: &Test) -> Result {
        t.rtc(["run", "--bundle", "/nonexistent/bundle", "x"])?
            .fails_with(&["/nonexistent/bundle"])?;
        Ok(())
    }
);

test!(
    fn config_json_that_is_not_json_is_refused(t: &Test) -> Result {
        for text in [
            "",
            " ",
            "{",
            "[]",
            "null",
            "42",
            "\"text\"",
            "{\"ociVersion\": \"1.0.0\"",
            "{}}",
            "\u{0}\u{1}\u{2}",
        ] {
            refused(t, &t.bundle().text(text), &["config.json"]).with_context(|| format!("{text:?}"))?;
        }
        Ok(())
    }
);

test!(
    fn config_json_that_is_cut_off_anywhere_is_refused(t: &Test) -> Result {
        let bundle = t.bundle();
        let whole = serde_json::to_vec(&bundle.spec)?;
        for part in 1..8 {
            let cut = whole[..whole.len() * part / 8].to_vec();
            refused(t, &t.bundle().text(cut), &["config.json"]).with_context(|| format!("{part}/8"))?;
        }
        Ok(())
    }
);

test!(
    fn config_json_that_is_a_directory_or_a_fifo_is_refused(t: &Test) -> Result {
        let bundle = t.bundle();
        fs::create_dir(bundle.directory.join("config.json"))?;
        let run = t
            .command(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        run.run()?.fails_naming(&["config.json"])?;
        Ok(())
    }
);

test!(
    fn config_json_nested_a_hundred_thousand_deep_is_refused_without_a_crash(t: &Test) -> Result {
        let depth = 100_000;
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for whole in [
            text.clone(),
            format!("{{\"ociVersion\": \"1.0.0\", \"annotations\": {text}}}"),
        ] {
            let output = t.bundle().text(whole).run()?;
            ensure!(output.code < 128, "died of a signal\n{output}");
            output.fails_naming(&["config.json"])?;
        }
        Ok(())
    }
);

test!(
    fn a_huge_config_json_is_refused_or_works_but_never_crashes(t: &Test) -> Result {
        let long = "x".repeat(8 << 20);
        let output = t.bundle().set("/annotations", json!({"long": long})).run()?;
        ensure!(output.code < 128, "died of a signal: {}", output.code);
        Ok(())
    }
);

test!(
    fn a_wrong_type_of_value_is_refused_by_field(t: &Test) -> Result {
        for (pointer, value) in [
            ("/process/args", json!("not a list")),
            ("/process/user/uid", json!("zero")),
            ("/process/user/uid", json!(-1)),
            ("/process/user/gid", json!(4_294_967_296_u64)),
            ("/mounts", json!({})),
            ("/linux/namespaces", json!("all")),
            ("/root/readonly", json!("yes")),
            ("/hostname", json!(7)),
            ("/linux/resources/memory", json!({"limit": "64M"})),
        ] {
            refused(t, &t.bundle().set(pointer, value), &["config.json"]).with_context(|| pointer)?;
        }
        Ok(())
    }
);

test!(
    fn unknown_fields_are_no_error(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/futureField", json!({"a": [1]}))
            .set("/linux/futureField", json!(true));
        bundle
            .set("/process/futureField", json!("x"))
            .sh("echo fine")
            .run()?
            .prints("fine")?;
        Ok(())
    }
);

test!(
    fn a_version_that_is_none_or_of_another_major_is_refused(t: &Test) -> Result {
        let values = [
            (json!("2.0.0"), "2.0.0"),
            (json!("0.9.0"), "0.9.0"),
            (json!("one"), "one"),
            (json!("1"), "1"),
            (json!(""), ""),
        ];
        refused_values(t, "/ociVersion", "ociVersion", &values)?;
        refused(t, &t.bundle().unset("/ociVersion"), &["ociVersion"])
    }
);

test!(
    fn every_version_1_is_accepted_even_a_newer_one(t: &Test) -> Result {
        for version in ["1.0.0", "1.0.2-dev", "1.1.0", "1.2.1", "1.3.0", "1.99.0"] {
            t.bundle()
                .set("/ociVersion", json!(version))
                .sh("echo fine")
                .run()?
                .prints("fine")
                .with_context(|| version)?;
        }
        Ok(())
    }
);

test!(
    fn a_missing_rootfs_is_refused_by_name(t: &Test) -> Result {
        refused(
            t,
            &t.bundle().set("/root/path", json!("no-such-rootfs")),
            &["no-such-rootfs"],
        )?;
        refused(
            t,
            &t.bundle().set("/root/path", json!("/nonexistent/rootfs")),
            &["/nonexistent/rootfs"],
        )?;
        refused(t, &t.bundle().unset("/root"), &["root"])?;
        refused(t, &t.bundle().set("/root/path", json!("")), &["root"])
    }
);

test!(
    fn a_rootfs_that_is_no_directory_is_refused(t: &Test) -> Result {
        let bundle = t.bundle().set("/root/path", json!("file"));
        fs::write(bundle.directory.join("file"), "")?;
        refused(t, &bundle, &["file"])
    }
);

test!(
    fn a_namespace_listed_twice_is_refused(t: &Test) -> Result {
        for kind in ["pid", "network", "mount", "uts", "ipc"] {
            let bundle = t.bundle().push("/linux/namespaces", json!({"type": kind}));
            refused(t, &bundle, &["linux.namespaces", kind]).with_context(|| kind)?;
        }
        Ok(())
    }
);

test!(
    fn an_unknown_namespace_is_refused_by_name(t: &Test) -> Result {
        refused(
            t,
            &t.bundle().push("/linux/namespaces", json!({"type": "space"})),
            &["space"],
        )?;
        refused(
            t,
            &t.bundle().push("/linux/namespaces", json!({"type": ""})),
            &["namespaces"],
        )
    }
);

test!(
    fn a_relative_namespace_path_is_refused(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .namespace(json!({"type": "network", "path": "proc/self/ns/net"}));
        refused(t, &bundle, &["proc/self/ns/net"])
    }
);

test!(
    fn empty_arguments_are_refused(t: &Test) -> Result {
        refused(t, &t.bundle().set("/process/args", json!([])), &["process.args"])?;
        refused(t, &t.bundle().unset("/process/args"), &["process.args"])?;
        refused(
            t,
            &t.bundle().set("/process/args", json!([""])),
            &["process.args"],
        )
    }
);

test!(
    fn a_nul_byte_in_a_string_is_refused(t: &Test) -> Result {
        refused(
            t,
            &t.bundle().set("/process/args", json!(["echo", "a\u{0}b"])),
            &["process.args"],
        )?;
        refused(
            t,
            &t.bundle().push("/process/env", json!("A=\u{0}")),
            &["process.env"],
        )?;
        refused(
            t,
            &t.bundle().set("/process/cwd", json!("/\u{0}")),
            &["process.cwd"],
        )
    }
);

test!(
    fn an_environment_entry_without_an_equals_sign_is_refused(t: &Test) -> Result {
        refused(
            t,
            &t.bundle().push("/process/env", json!("NOEQUALS")),
            &["process.env", "NOEQUALS"],
        )
    }
);

test!(
    fn unknown_and_repeated_resource_limits_are_refused(t: &Test) -> Result {
        let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
        let unknown = json!([limit("RLIMIT_TEST", 1, 1)]);
        refused(
            t,
            &t.bundle().set("/process/rlimits", unknown),
            &["process.rlimits", "RLIMIT_TEST"],
        )?;
        let twice = json!([limit("RLIMIT_NOFILE", 10, 20), limit("RLIMIT_NOFILE", 10, 20)]);
        refused(
            t,
            &t.bundle().set("/process/rlimits", twice),
            &["process.rlimits", "RLIMIT_NOFILE"],
        )
    }
);

test!(
    fn a_soft_limit_above_the_hard_one_is_refused(t: &Test) -> Result {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 100}]);
        refused(
            t,
            &t.bundle().set("/process/rlimits", limits),
            &["process.rlimits", "200", "100"],
        )
    }
);

test!(
    fn an_oom_score_out_of_range_is_refused(t: &Test) -> Result {
        refused_values(
            t,
            "/process/oomScoreAdj",
            "process.oomScoreAdj",
            &[(json!(1001), "1001"), (json!(-1001), "-1001")],
        )
    }
);

test!(
    fn a_relative_mount_destination_is_refused_or_taken_from_the_root(t: &Test) -> Result {
        let output = t
            .bundle()
            .mount("tmp", "tmpfs", "tmpfs", &["size=1m"])
            .sh("grep -c ' /tmp ' /proc/mounts")
            .run()?;
        if output.code == 0 {
            output.prints("1")?;
        } else {
            output.fails_naming(&["tmp"])?;
        }
        Ok(())
    }
);

test!(
    fn a_mount_without_a_destination_is_refused(t: &Test) -> Result {
        refused(t, &t.bundle().mount("", "tmpfs", "tmpfs", &[]), &["mounts"])
    }
);

test!(
    fn a_mount_over_the_root_is_refused_or_harmless(t: &Test) -> Result {
        let output = t.bundle().mount("/", "tmpfs", "tmpfs", &[]).run()?;
        ensure!(output.code < 128, "{output}");
        Ok(())
    }
);

test!(
    fn an_unknown_seccomp_action_is_refused_by_name(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_SHRUG"}));
        refused(t, &bundle, &["SCMP_ACT_SHRUG"])
    }
);

test!(
    fn an_unknown_propagation_of_the_root_is_refused(t: &Test) -> Result {
        refused(
            t,
            &t.bundle().set("/linux/rootfsPropagation", json!("sideways")),
            &["rootfsPropagation", "sideways"],
        )
    }
);

test!(
    fn a_relative_masked_or_read_only_path_is_refused_or_ignored(t: &Test) -> Result {
        for pointer in ["/linux/maskedPaths", "/linux/readonlyPaths"] {
            let output = t
                .bundle()
                .set(pointer, json!(["etc"]))
                .sh("cat /etc/group >/dev/null && echo readable")
                .run()?;
            if output.code == 0 {
                output.prints("readable")?;
            } else {
                output.fails_naming(&["etc"])?;
            }
        }
        Ok(())
    }
);

test!(
    fn container_ids_outside_runcs_characters_are_refused(t: &Test) -> Result {
        let long = "x".repeat(1025);
        for id in [
            "", ".", "..", "a/b", "../x", "a b", "\u{e4}", "a\nb", "a:b", "a@b", "/", "a*", &long,
        ] {
            let bundle = t.bundle();
            bundle.write()?;
            let run = t
                .command(["run", "--bundle"])
                .args([&bundle.directory])
                .args([id]);
            run.run()?.fails_with(&[]).with_context(|| format!("{id:?}"))?;
        }
        ensure!(
            fs::read_dir(&t.root)?.next().is_none(),
            "something was made in --root"
        );
        Ok(())
    }
);

test!(
    fn container_ids_of_runcs_characters_are_accepted(t: &Test) -> Result {
        for id in ["a", "A.b-c_d+e", ".hidden", "-dash", "0", &"x".repeat(200)] {
            // Not all of them are a name that systemd takes.
            let path = format!("{}/any", t.cgroup.path);
            let bundle = t.bundle().named(id).set("/linux/cgroupsPath", json!(path));
            bundle.write()?;
            let mut words = vec!["run"];
            if id.starts_with('-') {
                continue;
            }
            words.push("--bundle");
            t.command(words)
                .args([&bundle.directory])
                .args([id])
                .run()?
                .ok()
                .with_context(|| id.to_owned())?;
        }
        Ok(())
    }
);

test!(
    fn proc_or_sys_as_a_symlink_in_the_rootfs_never_mounts_outside(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        for name in ["proc", "sys", "dev"] {
            for target in [
                outside.clone(),
                Path::new("../../../../../..").join(outside.strip_prefix("/")?),
            ] {
                let bundle = t.bundle().sh("true");
                fs::remove_dir(bundle.rootfs().join(name))?;
                symlink(&target, bundle.rootfs().join(name))?;
                let output = bundle.run()?;
                ensure!(
                    fs::read_dir(&outside)?.next().is_none(),
                    "something is in {}\n{output}",
                    outside.display()
                );
                ensure!(
                    mounts::under(&outside)?.is_empty(),
                    "{:?}\n{output}",
                    mounts::under(&outside)?
                );
                if name != "dev" {
                    output
                        .fails_naming(&[name])
                        .with_context(|| format!("{name} -> {}", target.display()))?;
                }
            }
        }
        Ok(())
    }
);

test!(
    fn a_mount_destination_that_leads_out_by_a_symlink_stays_inside(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        let bundle = t.bundle().writable().mount("/link/made", "tmpfs", "tmpfs", &[]);
        symlink(&outside, bundle.rootfs().join("link"))?;
        bundle.run()?;
        ensure!(
            fs::read_dir(&outside)?.next().is_none(),
            "a directory was made outside the rootfs"
        );
        Ok(())
    }
);

test!(
    fn a_device_that_is_something_else_already_is_refused_or_replaced(t: &Test) -> Result {
        let device = json!({"path": "/home/x", "type": "c", "major": 1, "minor": 3});
        let bundle = t
            .bundle()
            .writable()
            .push("/linux/devices", device)
            .sh("stat -c %F /home/x");
        fs::write(bundle.rootfs().join("home/x"), "a file")?;
        let output = bundle.run()?;
        ensure!(
            output.code != 0 || output.stdout.contains("character special"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn resources_out_of_range_are_refused_by_field_and_value(t: &Test) -> Result {
        for (pointer, value, field, named) in [
            (
                "/linux/resources/memory",
                json!({"limit": -5}),
                "linux.resources.memory.limit",
                "-5",
            ),
            (
                "/linux/resources/pids",
                json!({"limit": -5}),
                "linux.resources.pids.limit",
                "-5",
            ),
            ("/linux/resources/cpu", json!({"cpus": "zero"}), "cpus", "zero"),
        ] {
            let bundle = t.bundle().set(pointer, value);
            let output = bundle.run()?;
            if t.is_ours() || output.code != 0 {
                output.fails_naming(&[field, named]).with_context(|| pointer)?;
            }
        }
        Ok(())
    }
);

test!(
    fn a_cgroups_path_that_climbs_is_refused_or_stays_below_the_root(t: &Test) -> Result {
        let path = format!("{}/../../../../{}-escaped", t.cgroup.path, t.unique);
        let bundle = t.bundle().set("/linux/cgroupsPath", json!(path));
        let output = bundle.run()?;
        ensure!(output.code < 128, "{output}");
        let escaped = crate::host::cgroup::Cgroup {
            path: format!("/{}-escaped", t.unique),
        };
        ensure!(escaped.directories()?.is_empty(), "{:?}", escaped.directories()?);
        Ok(())
    }
);

test!(
    fn a_hook_without_an_absolute_path_is_refused(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/hooks", json!({"createRuntime": [{"path": "relative/hook"}]}));
        refused(t, &bundle, &["hooks.createRuntime", "relative/hook"])
    }
);

test!(
    fn a_damaged_state_is_an_error_for_its_container_only(t: &Test) -> Result {
        let bad = t.bundle().sleeper().start()?;
        let good = t.bundle().sleeper().start()?;
        let pid = bad.pid()?;
        let directory = t.root.join(&bad.id);
        let file = directory.join("state.json");
        let text = fs::read(&file)?;
        fs::write(&file, &text[..text.len() / 2])?;
        bad.verb("state", &[])?.fails_naming(&[&bad.id])?;
        good.is("running")?;
        t.rtc(["list"])?;
        fs::write(&file, &text)?;
        ensure!(bad.pid()? == pid);
        Ok(())
    }
);
