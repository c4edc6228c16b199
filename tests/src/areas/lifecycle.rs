//! create, start, state, kill, delete, run, list: what is allowed when, and what each leaves.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::host::process;
use crate::test;
use crate::wait::until;

test!(
    fn run_returns_the_exit_status_of_the_program(t: &Test) -> Result {
        t.bundle().sh("exit 42").run()?.code(42)?;
        Ok(())
    }
);

test!(
    fn run_returns_128_plus_the_signal_that_killed_the_program(t: &Test) -> Result {
        // A shell that kills its child, because init of a PID namespace is spared its own signals.
        t.bundle()
            .without_namespace("pid")
            .sh("kill -KILL $$")
            .run()?
            .code(137)?;
        Ok(())
    }
);

test!(
    fn run_in_the_foreground_passes_both_output_streams(t: &Test) -> Result {
        let output = t.bundle().sh("echo to-out; echo to-err >&2").run()?.ok()?;
        ensure!(
            output.stdout == "to-out\n" && output.stderr == "to-err\n",
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn run_in_the_foreground_of_a_program_that_ends_at_once_never_hangs(t: &Test) -> Result {
        let bundle = t.bundle().args(&["true"]);
        for round in 0..50 {
            bundle.run()?.ok().with_context(|| format!("round {round}"))?;
        }
        Ok(())
    }
);

test!(
    fn a_created_container_waits_for_start_and_then_runs(t: &Test) -> Result {
        let container = t.bundle().sh("echo started; sleep 1000000").create()?;
        container.is("created")?;
        ensure!(container.stdout()?.is_empty(), "ran before start");
        container.start()?.ok()?;
        container.wait_for_output("started")?;
        container.is("running")
    }
);

test!(
    fn a_container_whose_program_ended_is_stopped_and_can_be_deleted(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).create()?;
        container.start()?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        container.verb("state", &[])?.fails_naming(&["does not exist"])?;
        Ok(())
    }
);

test!(
    fn state_shows_every_field_the_specification_names(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sleeper()
            .set("/annotations", json!({"org.example.key": "a value"}));
        let container = bundle.create()?;
        let state = container.state()?;
        ensure!(state["id"] == container.id.as_str(), "{state}");
        ensure!(state["status"] == "created", "{state}");
        ensure!(
            state["bundle"] == bundle.directory.to_string_lossy().as_ref(),
            "{state}"
        );
        ensure!(
            state["rootfs"] == bundle.rootfs().to_string_lossy().as_ref(),
            "{state}"
        );
        ensure!(state["annotations"]["org.example.key"] == "a value", "{state}");
        ensure!(
            state["ociVersion"]
                .as_str()
                .is_some_and(|version| version.starts_with("1.")),
            "{state}"
        );
        ensure!(
            state["created"].as_str().is_some_and(|time| time.contains('T')),
            "{state}"
        );
        ensure!(process::is_alive(container.pid()?), "{state}");
        Ok(())
    }
);

test!(
    fn state_of_a_stopped_container_has_pid_0(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).start()?;
        container.wait("stopped")?;
        ensure!(container.pid()? == 0, "{}", container.state()?);
        Ok(())
    }
);

test!(
    fn verbs_on_an_unknown_container_say_that_it_does_not_exist(t: &Test) -> Result {
        for verb in ["state", "start", "delete", "kill", "pause", "resume", "ps"] {
            t.rtc([verb, "nobody"])?
                .fails_naming(&["does not exist"])
                .with_context(|| verb)?;
        }
        t.rtc(["exec", "nobody", "true"])?
            .fails_naming(&["does not exist"])?;
        Ok(())
    }
);

test!(
    fn delete_with_force_of_an_unknown_container_succeeds(t: &Test) -> Result {
        t.rtc(["delete", "--force", "nobody"])?.ok()?;
        Ok(())
    }
);

test!(
    fn start_of_a_running_or_stopped_container_is_refused(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        container.start()?.ok()?;
        container.wait("running")?;
        container.start()?.fails_naming(&[&container.id, "running"])?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.start()?.fails_naming(&[&container.id, "stopped"])?;
        Ok(())
    }
);

test!(
    fn delete_of_a_running_container_is_refused_and_does_no_harm(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        container.delete()?.fails_with(&[&container.id])?;
        container.is("running")
    }
);

test!(
    fn delete_with_force_ends_a_running_container(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let pid = container.pid()?;
        container.verb("delete", &["--force"])?.ok()?;
        until("init to be gone", || Ok((!process::is_alive(pid)).then_some(())))?;
        container.verb("state", &[])?.fails_naming(&["does not exist"])?;
        Ok(())
    }
);

test!(
    fn delete_of_a_created_container_ends_its_waiting_init(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        let pid = container.pid()?;
        container.delete()?.ok()?;
        until("init to be gone", || Ok((!process::is_alive(pid)).then_some(())))
    }
);

test!(
    fn a_second_container_of_the_same_id_is_refused_and_the_first_lives_on(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let second = t.bundle().sleeper().named(&first.id);
        second
            .command("create", &[])?
            .run()?
            .fails_with(&["already exists"])?;
        second
            .command("run", &["--detach"])?
            .run()?
            .fails_with(&["already exists"])?;
        first.is("running")?;
        first.exec(&["true"])?.ok()?;
        Ok(())
    }
);

test!(
    fn an_id_can_be_used_again_after_delete(t: &Test) -> Result {
        let bundle = t.bundle().args(&["true"]);
        for _ in 0..5 {
            let container = bundle.start()?;
            container.wait("stopped")?;
            container.delete()?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn config_json_is_read_at_create_and_not_again(t: &Test) -> Result {
        let bundle = t.bundle().sh("echo as created");
        let container = bundle.create()?;
        fs::write(bundle.directory.join("config.json"), "{ not JSON any more")?;
        container.start()?.ok()?;
        ensure!(container.finish()? == "as created\n");
        Ok(())
    }
);

test!(
    fn concurrent_deletes_remove_the_container_and_at_least_one_succeeds(t: &Test) -> Result {
        for _ in 0..5 {
            let container = t.bundle().args(&["true"]).start()?;
            container.wait("stopped")?;
            let deletes: Vec<_> = (0..6)
                .map(|_| t.command(["delete", &container.id]).spawn())
                .collect::<crate::registry::Result<_>>()?;
            let mut succeeded = 0;
            for delete in deletes {
                let output = delete.wait()?;
                if output.code == 0 {
                    succeeded += 1;
                } else {
                    output.fails_naming(&["does not exist"])?;
                }
            }
            ensure!(succeeded >= 1, "no delete succeeded");
            container.verb("state", &[])?.fails_naming(&["does not exist"])?;
        }
        Ok(())
    }
);

test!(
    fn start_and_forced_delete_at_once_leave_nothing(t: &Test) -> Result {
        for _ in 0..10 {
            let container = t.bundle().args(&["true"]).create()?;
            let start = t.command(["start", &container.id]).spawn()?;
            let delete = t.command(["delete", "--force", &container.id]).spawn()?;
            let (start, delete) = (start.wait()?, delete.wait()?);
            ensure!(start.code == 0 || !start.stderr.is_empty(), "{start}");
            if delete.code != 0 {
                t.rtc(["delete", "--force", &container.id])?
                    .ok()
                    .with_context(|| format!("after {delete}"))?;
            }
        }
        Ok(())
    }
);

test!(
    fn start_and_kill_at_once_end_the_container(t: &Test) -> Result {
        for _ in 0..10 {
            let container = t.bundle().sleeper().create()?;
            let start = t.command(["start", &container.id]).spawn()?;
            container.kill("KILL")?.ok()?;
            let start = start.wait()?;
            ensure!(start.code == 0 || !start.stderr.is_empty(), "{start}");
            container.wait("stopped")?;
            container.delete()?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn two_creates_of_one_id_at_once_give_one_container(t: &Test) -> Result {
        for _ in 0..5 {
            let id = t.id();
            let bundles = [t.bundle().sleeper().named(&id), t.bundle().sleeper().named(&id)];
            let mut creates = Vec::new();
            for bundle in &bundles {
                creates.push(bundle.command("create", &[])?.spawn()?);
            }
            t.delete_at_end(&id);
            let mut succeeded = 0;
            for create in creates {
                let output = create.wait()?;
                if output.code == 0 {
                    succeeded += 1;
                } else {
                    output.fails_naming(&["exist"])?;
                }
            }
            ensure!(succeeded == 1, "{succeeded} creates of one id succeeded");
            t.rtc(["delete", "--force", &id])?.ok()?;
        }
        Ok(())
    }
);

fn read_pid(path: &Path) -> crate::registry::Result<i32> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.parse()
        .with_context(|| format!("{}: {text:?}", path.display()))
}

test!(
    fn the_pid_file_holds_the_host_pid_and_nothing_else(t: &Test) -> Result {
        let absolute = t.directory.join("absolute.pid");
        let created = t
            .bundle()
            .sleeper()
            .create_with(&["--pid-file", &absolute.to_string_lossy()])?;
        ensure!(read_pid(&absolute)? == created.pid()?);
        let bundle = t.bundle().sleeper();
        t.delete_at_end(&bundle.id);
        bundle
            .command("run", &["--detach", "--pid-file", "relative.pid"])?
            .run()?
            .ok()?;
        let state: Value = serde_json::from_str(&t.rtc(["state", &bundle.id])?.ok()?.stdout)?;
        ensure!(
            i64::from(read_pid(&t.directory.join("relative.pid"))?) == state["pid"],
            "{state}"
        );
        Ok(())
    }
);

test!(
    fn a_pid_file_that_cannot_be_written_fails_the_create_and_leaves_nothing(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        bundle
            .command("create", &["--pid-file", "/nonexistent/dir/pid"])?
            .run()?
            .fails_with(&["/nonexistent/dir"])?;
        t.rtc(["state", &bundle.id])?.fails_naming(&["does not exist"])?;
        Ok(())
    }
);

test!(
    fn the_bundle_is_the_current_directory_by_default(t: &Test) -> Result {
        let bundle = t.bundle().sh("echo from the bundle");
        bundle.write()?;
        t.command(["run", &bundle.id])
            .cwd(&bundle.directory)
            .run()?
            .prints("from the bundle")?;
        Ok(())
    }
);

test!(
    fn a_relative_bundle_path_is_taken_from_the_current_directory(t: &Test) -> Result {
        let bundle = t.bundle().sh("echo found");
        bundle.write()?;
        let parent = bundle.directory.parent().context("parent")?;
        let name = bundle.directory.file_name().context("name")?;
        t.command(["run", "-b"])
            .args([name])
            .args([&bundle.id])
            .cwd(parent)
            .run()?
            .prints("found")?;
        Ok(())
    }
);

test!(
    fn the_rootfs_may_be_the_bundle_itself_or_an_absolute_path(t: &Test) -> Result {
        let bundle = t.bundle().sh("echo absolute");
        let rootfs = bundle.rootfs();
        bundle
            .set("/root/path", json!(rootfs))
            .run()?
            .prints("absolute")?;
        let bundle = t.bundle().sh("echo dot").set("/root/path", json!("."));
        fs::write(bundle.rootfs().join("config.json"), bundle.config()?)?;
        t.command(["run", "-b"])
            .args([bundle.rootfs()])
            .args([&bundle.id])
            .run()?
            .prints("dot")?;
        Ok(())
    }
);

test!(
    fn run_of_a_bundle_directory_alone_takes_its_name_as_the_id(t: &Test) -> Result {
        let bundle = t.bundle().sh("hostname");
        let id = bundle
            .directory
            .file_name()
            .context("name")?
            .to_string_lossy()
            .into_owned();
        let bundle = bundle.named(&id).set("/hostname", json!("by-directory"));
        bundle.write()?;
        t.command(["run"])
            .args([&bundle.directory])
            .run()?
            .prints("by-directory")?;
        t.command(["run", "--detach"])
            .args([&bundle.directory])
            .run()?
            .ok()?;
        t.delete_at_end(&id);
        t.rtc(["state", &id])?.ok()?;
        Ok(())
    }
);

test!(
    fn list_shows_each_container_in_runcs_order_of_fields(t: &Test) -> Result {
        let first = t.bundle().sleeper().start()?;
        let second = t.bundle().sleeper().create()?;
        let output = t.rtc(["list", "--format", "json"])?.ok()?;
        let list: Value = serde_json::from_str(&output.stdout)?;
        let list = list.as_array().context("not an array")?;
        ensure!(list.len() == 2, "{output}");
        for (container, status) in [(&first, "running"), (&second, "created")] {
            let entry = list.iter().find(|entry| entry["id"] == container.id.as_str());
            ensure!(
                entry.with_context(|| output.to_string())?["status"] == status,
                "{output}"
            );
        }
        let fields = [
            "ociVersion",
            "id",
            "pid",
            "status",
            "bundle",
            "rootfs",
            "created",
            "owner",
        ];
        let places: Vec<_> = fields
            .iter()
            .map(|field| output.stdout.find(&format!("\"{field}\"")))
            .collect();
        ensure!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{output}"
        );

        let table = t.rtc(["list"])?.ok()?;
        let header: Vec<&str> = table.lines()[0].split_whitespace().collect();
        ensure!(
            header == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"],
            "{table}"
        );
        let mut quiet = t
            .rtc(["list", "-q"])?
            .ok()?
            .lines()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        quiet.sort();
        let mut expected = vec![first.id.clone(), second.id.clone()];
        expected.sort();
        ensure!(quiet == expected, "{quiet:?}");
        Ok(())
    }
);

test!(
    fn list_of_an_empty_root_succeeds_and_of_a_missing_one_fails(t: &Test) -> Result {
        let output = t.rtc(["list", "-f", "json"])?.ok()?;
        ensure!(matches!(output.stdout.trim(), "null" | "[]"), "{output}");
        // In the test's own directory: runc makes a root that it only looks for.
        let missing = t.path("missing").display().to_string();
        t.bare(["--root", &missing, "list"])
            .run()?
            .fails_with(&[missing.as_str()])?;
        Ok(())
    }
);

test!(
    fn containers_of_one_root_are_invisible_in_another(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let other = t.path("other-root");
        fs::create_dir(&other)?;
        t.bare(["--root"])
            .args([&other])
            .args(["state", &container.id])
            .run()?
            .fails_naming(&["does not exist"])?;
        t.bare(["--root"])
            .args([&other])
            .args(["list", "-q"])
            .run()?
            .prints("")?;
        Ok(())
    }
);

test!(
    fn create_without_a_process_succeeds_and_start_is_refused(t: &Test) -> Result {
        let bundle = t.bundle().unset("/process");
        let output = bundle.command("create", &[])?.run()?;
        if output.code != 0 {
            // The specification allows the property to be left out until start; runc refuses at once, so may we.
            output.fails_naming(&["process"])?;
            return Ok(());
        }
        t.delete_at_end(&bundle.id);
        t.rtc(["start", &bundle.id])?.fails_naming(&["process"])?;
        Ok(())
    }
);

test!(
    fn run_with_keep_leaves_the_stopped_container_until_delete(t: &Test) -> Result {
        let bundle = t.bundle().sh("exit 3");
        bundle.command("run", &["--keep"])?.run()?.code(3)?;
        let state: Value = serde_json::from_str(&t.rtc(["state", &bundle.id])?.ok()?.stdout)?;
        ensure!(state["status"] == "stopped", "{state}");
        t.rtc(["delete", &bundle.id])?.ok()?;
        Ok(())
    }
);

test!(
    fn init_outlives_the_runtime_and_its_parent_does_not_matter(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let pid = container.pid()?;
        let (parent, _) = process::parent_and_state(pid).context("init is gone")?;
        if process::describe(parent).contains("run --detach") {
            bail!("the runtime stays as parent of a detached container");
        }
        container.exec(&["true"])?.ok()?;
        Ok(())
    }
);

test!(
    fn run_with_keep_leaves_the_cgroup_until_delete(t: &Test) -> Result {
        let bundle = t.bundle().args(&["true"]);
        // systemd ends a scope with its last process.
        t.needs_cgroupfs_driver()?;
        let cgroup = t.cgroup_of(&bundle.id);
        bundle.command("run", &["--keep"])?.run()?.ok()?;
        ensure!(!cgroup.directories()?.is_empty());
        t.rtc(["delete", &bundle.id])?.ok()?;
        ensure!(cgroup.directories()?.is_empty(), "{:?}", cgroup.directories()?);
        Ok(())
    }
);
