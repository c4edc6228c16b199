//! Hooks: which run when and where, what they are told, and what their failure does.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::host::cgroup::knob;
use crate::host::process;
use crate::test;
use crate::test::Test;
use crate::wait::until;

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that runs a shell script. The same program path is good on the host and in the container.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

/// The directory hooks write to: under its own path on the host, as /tmp in the container.
fn with_shared_directory<'t>(t: &'t Test, directory: &Path) -> crate::registry::Result<Bundle<'t>> {
    fs::create_dir(directory)?;
    Ok(t.bundle()
        .mount("/tmp", "bind", &directory.to_string_lossy(), &["bind"]))
}

/// A script per kind of hook, with `DIR` for the shared directory as that hook sees it.
fn hooks_of(directory: &Path, script: impl Fn(&str) -> String) -> Value {
    let mut hooks = json!({});
    for kind in KINDS {
        let seen = if kind == "startContainer" {
            "/tmp".to_owned()
        } else {
            directory.to_string_lossy().into_owned()
        };
        hooks[kind] = json!([hook(&script(kind).replace("DIR", &seen))]);
    }
    hooks
}

test!(
    fn each_hook_runs_once_and_in_its_place(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?.sh("echo program >>/tmp/order; sleep 1000000");
        let bundle = bundle.set(
            "/hooks",
            hooks_of(&directory, |kind| format!("echo {kind} >>DIR/order")),
        );
        let order = || -> crate::registry::Result<Vec<String>> {
            Ok(fs::read_to_string(directory.join("order"))?
                .lines()
                .map(str::to_owned)
                .collect())
        };
        let container = bundle.create()?;
        ensure!(
            order()? == ["prestart", "createRuntime", "createContainer"],
            "{:?}",
            order()?
        );
        container.start()?.ok()?;
        let started = until("program and poststart", || {
            Ok(Some(order()?).filter(|order| order.len() >= 6))
        })?;
        ensure!(started[3] == "startContainer", "{started:?}");
        // Whether the program or poststart comes first is decided by the scheduler.
        ensure!(
            started[4..].contains(&"program".to_owned()) && started[4..].contains(&"poststart".to_owned()),
            "{started:?}"
        );
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(order()?[6..] == ["poststop"], "{:?}", order()?);
        Ok(())
    }
);

test!(
    fn several_hooks_of_one_kind_run_in_their_order(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let hooks: Vec<Value> = (0..4)
            .map(|n| hook(&format!("echo {n} >>{}/order", directory.display())))
            .collect();
        bundle
            .set("/hooks", json!({"createRuntime": hooks}))
            .run()?
            .ok()?;
        ensure!(fs::read_to_string(directory.join("order"))? == "0\n1\n2\n3\n");
        Ok(())
    }
);

test!(
    fn each_hook_reads_the_state_on_its_standard_input(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?
            .sleeper()
            .set("/annotations", json!({"org.example": "value"}));
        let bundle = bundle.set(
            "/hooks",
            hooks_of(&directory, |kind| {
                format!("cat >DIR/{kind}.part; mv DIR/{kind}.part DIR/{kind}")
            }),
        );
        let container = bundle.create()?;
        let pid = container.pid()?;
        container.start()?.ok()?;
        until("poststart", || {
            Ok(directory.join("poststart").exists().then_some(()))
        })?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        let running: &[&str] = &["running"];
        for (kind, statuses) in [
            ("prestart", &["creating"] as &[&str]),
            ("createRuntime", &["creating"]),
            ("createContainer", &["creating"]),
            ("startContainer", &["created", "running"]),
            ("poststart", running),
            ("poststop", &["stopped"]),
        ] {
            let text = fs::read_to_string(directory.join(kind)).with_context(|| kind)?;
            let state: Value = serde_json::from_str(&text).with_context(|| format!("{kind}: {text:?}"))?;
            ensure!(state["id"] == container.id.as_str(), "{kind}: {state}");
            ensure!(
                state["bundle"] == bundle.directory.to_string_lossy().as_ref(),
                "{kind}: {state}"
            );
            ensure!(state["annotations"]["org.example"] == "value", "{kind}: {state}");
            ensure!(
                state["ociVersion"]
                    .as_str()
                    .is_some_and(|version| version.starts_with("1.")),
                "{kind}: {state}"
            );
            ensure!(
                statuses.iter().any(|&status| state["status"] == status),
                "{kind}: {state}"
            );
            if matches!(kind, "prestart" | "createRuntime" | "poststart") {
                ensure!(state["pid"] == pid, "{kind}: {state}");
            }
        }
        Ok(())
    }
);

test!(
    fn hooks_of_the_runtime_run_outside_and_those_of_the_container_inside_its_mount_namespace(
        t: &Test,
    ) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?.sleeper();
        let bundle = bundle.set(
            "/hooks",
            hooks_of(&directory, |kind| {
                format!("readlink /proc/self/ns/mnt >DIR/{kind}")
            }),
        );
        let container = bundle.start()?;
        let inside = process::namespace(&container.pid()?.to_string(), "mnt")?;
        until("poststart", || {
            Ok(directory.join("poststart").exists().then_some(()))
        })?;
        container.verb("delete", &["--force"])?.ok()?;
        let outside = process::namespace("self", "mnt")?;
        for kind in KINDS {
            let expected = if kind.ends_with("Container") {
                &inside
            } else {
                &outside
            };
            let found = fs::read_to_string(directory.join(kind)).with_context(|| kind)?;
            ensure!(found.trim() == expected, "{kind}: {found}");
        }
        Ok(())
    }
);

test!(
    fn create_container_hooks_see_the_host_and_start_container_hooks_the_rootfs(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let host_file = t.path("on-the-host");
        fs::write(&host_file, "")?;
        let test = |kind: &str| {
            format!(
                "test -e {} && echo host >DIR/{kind} || echo container >DIR/{kind}",
                host_file.display()
            )
        };
        bundle.set("/hooks", hooks_of(&directory, test)).run()?.ok()?;
        ensure!(fs::read_to_string(directory.join("createContainer"))? == "host\n");
        ensure!(fs::read_to_string(directory.join("startContainer"))? == "container\n");
        Ok(())
    }
);

test!(
    fn a_hook_has_its_own_arguments_and_environment(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let script = format!("env >{0}/env; echo \"$0 $1\" >{0}/args", directory.display());
        let hook = json!({"path": "/bin/busybox", "args": ["sh", "-c", script, "zero", "one"], "env": ["PATH=/bin", "ONLY=this"]});
        bundle
            .set("/hooks", json!({"createRuntime": [hook]}))
            .run()?
            .ok()?;
        let mut env: Vec<String> = fs::read_to_string(directory.join("env"))?
            .lines()
            .map(str::to_owned)
            .collect();
        env.retain(|line| {
            !["PWD=", "SHLVL=", "OLDPWD=", "_="]
                .iter()
                .any(|own| line.starts_with(own))
        });
        env.sort();
        ensure!(env == ["ONLY=this", "PATH=/bin"], "{env:?}");
        ensure!(fs::read_to_string(directory.join("args"))? == "zero one\n");
        Ok(())
    }
);

test!(
    fn a_failing_hook_before_the_program_aborts_and_leaves_nothing(t: &Test) -> Result {
        for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
            let bundle = t.bundle().sh("echo ran").set(
                "/hooks",
                json!({kind: [hook("exit 0"), hook("echo broken >&2; exit 9")]}),
            );
            let output = bundle.run()?.fails_naming(&[kind, "9"]).with_context(|| kind)?;
            ensure!(
                !output.stdout.contains("ran"),
                "{kind}: the program ran\n{output}"
            );
            t.rtc(["state", &bundle.id])?
                .fails_naming(&["does not exist"])
                .with_context(|| kind)?;
        }
        Ok(())
    }
);

test!(
    fn what_a_failing_hook_wrote_is_in_the_error(t: &Test) -> Result {
        let bundle = t.bundle().set(
            "/hooks",
            json!({"createRuntime": [hook("echo the reason >&2; exit 1")]}),
        );
        bundle.run()?.fails_with(&["the reason"])?;
        Ok(())
    }
);

test!(
    fn a_hook_that_does_not_exist_aborts_and_is_named(t: &Test) -> Result {
        let bundle = t.bundle().set(
            "/hooks",
            json!({"createRuntime": [{"path": "/nonexistent/hook"}]}),
        );
        bundle.run()?.fails_with(&["/nonexistent/hook"])?;
        Ok(())
    }
);

test!(
    fn a_hook_beyond_its_timeout_is_killed_and_aborts(t: &Test) -> Result {
        let mut slow = hook("sleep 1000000");
        slow["timeout"] = json!(1);
        t.bundle()
            .set("/hooks", json!({"createRuntime": [slow]}))
            .run()?
            .fails_naming(&["createRuntime"])?;
        Ok(())
    }
);

test!(
    fn a_hook_within_its_timeout_is_left_alone(t: &Test) -> Result {
        let mut quick = hook("exit 0");
        quick["timeout"] = json!(100);
        t.bundle()
            .set("/hooks", json!({"createRuntime": [quick]}))
            .sh("echo ran")
            .run()?
            .prints("ran")?;
        Ok(())
    }
);

test!(
    fn a_failing_poststart_hook_is_reported_and_leaves_nothing_that_delete_does_not_remove(
        t: &Test,
    ) -> Result {
        let bundle = t
            .bundle()
            .sleeper()
            .set("/hooks", json!({"poststart": [hook("exit 9")]}));
        let container = bundle.create()?;
        let output = container.start()?;
        // The specification asks for a warning, runc ends the container: both must say something.
        ensure!(!output.stderr.is_empty(), "{output}");
        t.rtc(["delete", "--force", &container.id])?.ok()?;
        Ok(())
    }
);

test!(
    fn a_failing_poststop_hook_is_a_warning_and_the_others_still_run(t: &Test) -> Result {
        let directory = t.path("shared");
        let after = hook(&format!("echo after >{}/after", directory.display()));
        let bundle =
            with_shared_directory(t, &directory)?.set("/hooks", json!({"poststop": [hook("exit 9"), after]}));
        let container = bundle.start()?;
        container.wait("stopped")?;
        let output = container.delete()?.ok()?;
        ensure!(!output.stderr.is_empty(), "{output}");
        ensure!(fs::read_to_string(directory.join("after"))? == "after\n");
        Ok(())
    }
);

test!(
    fn a_start_container_hook_runs_with_the_containers_own_identity_of_namespaces(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?.set("/hostname", json!("hooked"));
        let hooks = json!({"startContainer": [hook("hostname >/tmp/name; cat /proc/1/comm >/tmp/init")]});
        bundle.set("/hooks", hooks).run()?.ok()?;
        ensure!(fs::read_to_string(directory.join("name"))? == "hooked\n");
        ensure!(!fs::read_to_string(directory.join("init"))?.is_empty());
        Ok(())
    }
);

test!(
    fn poststop_hooks_run_for_a_foreground_run_too(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let script = format!("echo stopped >{}/stopped", directory.display());
        bundle
            .set("/hooks", json!({"poststop": [hook(&script)]}))
            .run()?
            .ok()?;
        ensure!(fs::read_to_string(directory.join("stopped"))? == "stopped\n");
        Ok(())
    }
);

test!(
    fn a_start_container_hook_runs_under_the_seccomp_filter_of_the_program(t: &Test) -> Result {
        let seccomp = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}],
        });
        let made = json!({"path": "/bin/mkdir", "args": ["mkdir", "/dev/shm/made"]});
        for no_new_privileges in [true, false] {
            let bundle = t
                .bundle()
                .sh("echo ran")
                .set("/linux/seccomp", seccomp.clone())
                .set("/hooks", json!({"startContainer": [made]}))
                .set("/process/noNewPrivileges", json!(no_new_privileges));
            let output = bundle
                .run()?
                .fails_with(&["bad system call"])
                .with_context(|| format!("noNewPrivileges {no_new_privileges}"))?;
            ensure!(!output.stdout.contains("ran"), "{output}");
        }
        Ok(())
    }
);

test!(
    fn a_start_container_hook_without_an_environment_has_that_of_the_program(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let mut inheriting = hook("echo $MARK >/tmp/inherited");
        inheriting.as_object_mut().context("hook")?.remove("env");
        bundle
            .push("/process/env", json!("MARK=of the program"))
            .set(
                "/hooks",
                json!({"startContainer": [inheriting, hook("echo \"[$MARK]\" >/tmp/own")]}),
            )
            .run()?
            .ok()?;
        ensure!(fs::read_to_string(directory.join("inherited"))? == "of the program\n");
        ensure!(fs::read_to_string(directory.join("own"))? == "[]\n");
        Ok(())
    }
);

test!(
    fn a_create_container_hook_may_mount_into_the_rootfs(t: &Test) -> Result {
        let bundle = t.bundle().args(&["cat", "/home/file"]);
        let place = bundle.rootfs().join("home");
        let script = format!(
            "mount -t tmpfs tmpfs {0} && echo of the hook >{0}/file",
            place.display()
        );
        let output = bundle
            .set("/hooks", json!({"createContainer": [hook(&script)]}))
            .run()?;
        output.prints("of the hook")?;
        ensure!(!place.join("file").exists(), "mounted on the host");
        Ok(())
    }
);

test!(
    fn poststop_hooks_run_after_an_aborted_create(t: &Test) -> Result {
        for kind in ["createRuntime", "createContainer", "startContainer"] {
            let mark = t.path("stopped");
            let poststop = hook(&format!("echo stopped >{}", mark.display()));
            let bundle = t
                .bundle()
                .set("/hooks", json!({kind: [hook("exit 9")], "poststop": [poststop]}));
            bundle.run()?.fails_naming(&[kind])?;
            ensure!(mark.exists(), "{kind}");
        }
        Ok(())
    }
);

/// A hook that runs the runtime under test: each line is what follows `rtc --root ROOT`.
fn calling_hook(t: &Test, lines: &[String]) -> Value {
    let rtc = format!("{} --root {}", t.rtc.display(), t.root.display());
    let script: Vec<String> = lines.iter().map(|line| format!("{rtc} {line}")).collect();
    let mut hook = hook(&script.join(" && "));
    // Only for a runtime that waits for itself: less than the test's own limit, so that the hook is named.
    hook["timeout"] = json!(100);
    hook
}

test!(
    fn a_poststart_hook_may_look_at_its_container_and_change_it(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let directory = t.path("shared");
        fs::create_dir(&directory)?;
        for create in [true, false] {
            let bundle = t.bundle().sleeper();
            let id = bundle.id.clone();
            let lines = [
                format!("state {id} >{}/{id}", directory.display()),
                format!("exec {id} true"),
                format!("update --pids-limit 77 {id}"),
            ];
            let bundle = bundle.set("/hooks", json!({"poststart": [calling_hook(t, &lines)]}));
            let container = if create {
                let container = bundle.create()?;
                container.start()?.ok()?;
                container
            } else {
                bundle.start()?
            };
            let state: Value = serde_json::from_str(&fs::read_to_string(directory.join(&id))?)?;
            ensure!(state["status"] == "running", "{state}");
            ensure!(state["pid"] == container.pid()?, "{state}");
            ensure!(container.cgroup.read(knob::PIDS_LIMIT)? == "77");
            container.is("running")?;
        }
        Ok(())
    }
);

test!(
    fn a_poststop_hook_that_deletes_its_container_does_no_harm(t: &Test) -> Result {
        let directory = t.path("shared");
        fs::create_dir(&directory)?;
        for foreground in [true, false] {
            let bundle = t.bundle().args(&["true"]);
            let id = bundle.id.clone();
            let done = directory.join(&id);
            let line = format!("delete --force {id} && touch {}", done.display());
            let bundle = bundle.set("/hooks", json!({"poststop": [calling_hook(t, &[line])]}));
            let output = if foreground {
                bundle.run()?
            } else {
                let container = bundle.start()?;
                container.wait("stopped")?;
                container.delete()?
            };
            let output = output.ok()?;
            ensure!(output.stderr.is_empty(), "{output}");
            ensure!(done.exists(), "the hook failed: {output}");
            t.rtc(["state", &id])?.fails_naming(&["does not exist"])?;
        }
        Ok(())
    }
);

test!(
    fn hooks_of_the_runtime_run_in_the_bundles_directory(t: &Test) -> Result {
        let directory = t.path("shared");
        let bundle = with_shared_directory(t, &directory)?;
        let bundle = bundle.set(
            "/hooks",
            hooks_of(&directory, |kind| format!("readlink /proc/self/cwd >DIR/{kind}")),
        );
        bundle.run()?.ok()?;
        let expected = fs::canonicalize(&bundle.directory)?;
        for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
            let found = fs::read_to_string(directory.join(kind)).with_context(|| kind)?;
            ensure!(Path::new(found.trim_end()) == expected, "{kind}: {found}");
        }
        Ok(())
    }
);

test!(
    fn a_hook_that_does_not_read_a_large_state_breaks_nothing(t: &Test) -> Result {
        // More than a pipe holds (pipe(7)).
        let large = "x".repeat(200_000);
        for script in ["exit 0", "exec 0<&-; true"] {
            let mut hooks = json!({});
            for kind in KINDS {
                hooks[kind] = json!([hook(script)]);
            }
            let bundle = t
                .bundle()
                .sh("echo ran")
                .set("/annotations", json!({"org.example.large": large}))
                .set("/hooks", hooks);
            let output = bundle.run()?.prints("ran").with_context(|| script)?;
            ensure!(output.stderr.is_empty(), "{script}: {output}");
            let container = bundle.create()?;
            container.start()?.ok()?;
            container.wait("stopped")?;
            container.delete()?.ok()?;
        }
        Ok(())
    }
);
