//! What rtc has of crun's beyond the specification and runc: hot mounts, mappings in options, annotations, `--regex`.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::PathBuf;

use anyhow::ensure;
use serde_json::{Value, json};

use super::namespaces::with_user_namespace;
use crate::container::Container;
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::test::Test;

/// Writes the mounts to a file and calls `mounts VERB` with it.
fn mounts(t: &Test, verb: &str, container: &Container<'_>, mounts: &Value) -> Result<Output> {
    let file = t.path("mounts.json");
    fs::write(&file, mounts.to_string())?;
    t.command(["mounts", verb, &container.id]).args([&file]).run()
}

/// A directory with a file `name`.
fn volume(t: &Test) -> Result<PathBuf> {
    let volume = t.path("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("name"), "volume")?;
    Ok(volume)
}

fn bind(source: &PathBuf, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

test!(
    fn mounts_are_added_to_a_running_container_and_removed_again(t: &Test) -> Result {
        let volume = volume(t)?;
        let container = t.bundle().writable().sleeper().start()?;
        let both = json!([
            bind(&volume, "/new/volume", &["rbind", "ro", "nosuid"]),
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=700"]},
            bind(&volume.join("name"), "/file", &["bind"]),
        ]);
        mounts(t, "add", &container, &both)?.ok()?;
        container
            .exec(&["cat", "/new/volume/name", "/file"])?
            .prints("volumevolume")?;
        container
            .exec(&[
                "sh",
                "-c",
                "touch /new/volume/x 2>&1; touch /scratch/x && stat -c %a /scratch",
            ])?
            .mentions("Read-only file system")?
            .mentions("700")?;
        let info = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?;
        let line = info
            .lines()
            .into_iter()
            .find(|line| line.contains(" /new/volume "));
        ensure!(line.is_some_and(|line| line.contains("ro,nosuid")), "{info}");
        mounts(t, "remove", &container, &json!({"mounts": both}))?.ok()?;
        let info = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?;
        for path in ["/new/volume", "/scratch", "/file"] {
            ensure!(!info.stdout.contains(&format!(" {path} ")), "{path}: {info}");
        }
        ensure!(fs::read_to_string(volume.join("name"))? == "volume");
        Ok(())
    }
);

test!(
    fn mounts_are_added_to_created_and_paused_containers_and_not_to_a_stopped_one(t: &Test) -> Result {
        let volume = volume(t)?;
        let bundle = t.bundle().writable().sh("cat /volume/name; sleep 1000000");
        let container = bundle.create()?;
        let one = json!([bind(&volume, "/volume", &["bind"])]);
        mounts(t, "add", &container, &one)?.ok()?;
        container.start()?.ok()?;
        container.wait_for_output("volume")?;
        container.verb("pause", &[])?.ok()?;
        mounts(t, "remove", &container, &one)?.ok()?;
        mounts(t, "add", &container, &one)?.ok()?;
        container.verb("resume", &[])?.ok()?;
        container.exec(&["cat", "/volume/name"])?.prints("volume")?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        for verb in ["add", "remove"] {
            mounts(t, verb, &container, &one)?.fails_naming(&["container not running"])?;
        }
        Ok(())
    }
);

test!(
    fn mounts_added_to_a_container_with_a_user_namespace_belong_to_it(t: &Test) -> Result {
        let volume = volume(t)?;
        // Only the host's root gets there.
        fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let container = with_user_namespace(t)?.writable().sleeper().start()?;
        let list = json!([
            {"destination": "/tmp/scratch", "type": "tmpfs", "source": "tmpfs"},
            bind(&volume, "/tmp/volume", &["bind"]),
        ]);
        mounts(t, "add", &container, &list)?.ok()?;
        let shown = ["stat", "-c", "%u %a", "/tmp/scratch", "/tmp/volume"];
        container.exec(&shown)?.prints("0 1777\n65534 700")?;
        container.exec(&["touch", "/tmp/scratch/x"])?.ok()?;
        mounts(t, "remove", &container, &list)?.ok()?;
        Ok(())
    }
);

test!(
    fn an_added_mount_stays_inside_the_root_whatever_the_container_makes_of_its_destination(
        t: &Test,
    ) -> Result {
        let (volume, outside) = (volume(t)?, t.path("outside"));
        fs::create_dir(&outside)?;
        let bundle = t.bundle().writable().sleeper();
        symlink(&outside, bundle.rootfs().join("link"))?;
        symlink("../../../../../..", bundle.rootfs().join("up"))?;
        let container = bundle.start()?;
        let inside = "/link/a";
        mounts(t, "add", &container, &json!([bind(&volume, inside, &["bind"])]))?.ok()?;
        ensure!(fs::read_dir(&outside)?.count() == 0, "it was made outside");
        container
            .exec(&["cat", &format!("{}/a/name", outside.display())])?
            .prints("volume")?;
        mounts(
            t,
            "add",
            &container,
            &json!([bind(&volume, "/up/etc/new", &["bind"])]),
        )?
        .ok()?;
        container.exec(&["cat", "/etc/new/name"])?.prints("volume")?;
        ensure!(!std::path::Path::new("/etc/new").exists());
        // Nothing covers the inside of /proc.
        mounts(
            t,
            "add",
            &container,
            &json!([bind(&volume, "/proc/sys", &["bind"])]),
        )?
        .fails_naming(&["/proc/sys"])?;
        container.exec(&["ln", "-s", "/proc/self/attr", "/attr"])?.ok()?;
        mounts(t, "add", &container, &json!([bind(&volume, "/attr", &["bind"])]))?
            .fails_naming(&["/attr"])?;
        Ok(())
    }
);

test!(
    fn what_confines_a_container_is_never_removed_wherever_it_leads(t: &Test) -> Result {
        let volume = volume(t)?;
        let container = t.bundle().writable().sleeper().start()?;
        let added = json!([bind(&volume, "/mnt/data", &["bind"])]);
        mounts(t, "add", &container, &added)?.ok()?;
        let script = "mv /mnt /old && mkdir /mnt && ln -s /proc /mnt/data";
        container.exec(&["sh", "-c", script])?.ok()?;
        let before = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        mounts(t, "remove", &container, &added)?.fails_naming(&["/mnt/data"])?;
        for path in ["/proc", "/proc/sys", "/sys", "/dev/pts"] {
            let list = json!([{"destination": path}]);
            mounts(t, "remove", &container, &list)?.fails_naming(&[path, "confines"])?;
        }
        let after = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        ensure!(before == after, "{before}\n{after}");
        Ok(())
    }
);

test!(
    fn of_mounts_that_cannot_all_be_added_none_stays(t: &Test) -> Result {
        let volume = volume(t)?;
        let container = t.bundle().writable().sleeper().start()?;
        let before = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        let good = bind(&volume, "/volume", &["bind"]);
        for (bad, named) in [
            (bind(&volume, "/etc/passwd", &["bind"]), "/etc/passwd"),
            (
                bind(&PathBuf::from("/no/such/source"), "/x", &["bind"]),
                "/no/such/source",
            ),
            (bind(&volume, "/", &["bind"]), "destination"),
            (bind(&volume, "/x", &["bind", "remount", "ro"]), "remount"),
            (bind(&volume, "/x", &["bind", "size=1m"]), "size=1m"),
            (
                json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]}),
                "tmpcopyup",
            ),
            (
                json!({"destination": "/x", "type": "proc", "source": "proc"}),
                "proc",
            ),
            (
                json!({"destination": "/x", "type": "sysfs", "source": "sysfs"}),
                "sysfs",
            ),
            (
                json!({"destination": "/x", "type": "nosuchfs", "source": "x"}),
                "nosuchfs",
            ),
            (json!({"destination": "/x", "type": "bind"}), "source"),
        ] {
            let list = json!([good, bad]);
            mounts(t, "add", &container, &list)?.fails_naming(&[named])?;
        }
        let after = container.exec(&["cat", "/proc/self/mountinfo"])?.ok()?.stdout;
        ensure!(before == after, "{before}\n{after}");
        for (bad, named) in [
            (json!([{"destination": "/volume"}]), "no mount point"),
            (json!([{"destination": "/not/there"}]), "/not/there"),
            (json!([{"destination": "/"}]), "root filesystem"),
        ] {
            mounts(t, "remove", &container, &bad)?.fails_naming(&[named])?;
        }
        for (text, named) in [
            ("{}", "list of mounts"),
            ("[]", "no mounts"),
            ("[{}]", "destination"),
            ("[", "ends too early"),
            ("", "empty"),
        ] {
            let file = t.path("bad.json");
            fs::write(&file, text)?;
            t.command(["mounts", "add", &container.id])
                .args([&file])
                .run()?
                .fails_naming(&[named])?;
        }
        t.rtc(["mounts", "list", &container.id, "/dev/null"])?
            .fails_naming(&["add or remove"])?;
        t.rtc(["mounts", "add", &container.id])?
            .fails_naming(&["3 argument"])?;
        Ok(())
    }
);

test!(
    fn an_idmap_option_may_have_a_mapping_of_its_own(t: &Test) -> Result {
        let volume = volume(t)?;
        chown(volume.join("name"), Some(7), Some(8))?;
        let stat = ["stat", "-c", "%u:%g", "/tmp/name"];
        let with = |bundle: crate::bundle::Bundle<'_>, option: &str| -> Result<Output> {
            bundle
                .push("/mounts", bind(&volume, "/tmp", &["bind", option]))
                .args(&stat)
                .run()
        };
        with(t.bundle(), "idmap=uids=0-1000-100;gids=0-2000-4#4-3000-100")?.prints("1007:3004")?;
        // Relative to a user namespace: what is 5 on the file system is 50 in the container.
        with(with_user_namespace(t)?, "idmap=uids=7-100050-1;gids=@8-60-1")?.prints("50:60")?;
        for (option, named) in [
            ("idmap=uids=0-0-1", "gids"),
            ("idmap=uids=@0-0-1;gids=0-0-1", "@0-0-1"),
            ("idmap=uids=a;gids=0-0-1", "three numbers"),
            ("ridmap=", "uids"),
        ] {
            with(t.bundle(), option)?.fails_naming(&["idmap", named])?;
        }
        Ok(())
    }
);

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}])
}

test!(
    fn the_output_of_hooks_goes_to_the_files_of_annotations(t: &Test) -> Result {
        let (out, err) = (t.path("out"), t.path("err"));
        fs::write(&out, "before\n")?;
        let hooks = json!({
            "createRuntime": hook("echo runtime; echo error >&2"),
            "createContainer": hook("echo container"),
            "poststart": hook("echo poststart"),
            "poststop": hook("echo poststop"),
        });
        let with = |out: &str, err: &str| {
            t.bundle().args(&["true"]).set("/hooks", hooks.clone()).set(
                "/annotations",
                json!({"run.oci.hooks.stdout": out, "run.oci.hooks.stderr": err}),
            )
        };
        with(&out.to_string_lossy(), &err.to_string_lossy()).run()?.ok()?;
        let text = fs::read_to_string(&out)?;
        ensure!(
            text == "before\nruntime\ncontainer\npoststart\npoststop\n",
            "{text}"
        );
        ensure!(fs::read_to_string(&err)? == "error\n");
        ensure!(fs::metadata(&err)?.mode() & 0o077 == 0, "others may read it");
        with("relative", "/tmp/x")
            .run()?
            .fails_naming(&["run.oci.hooks.stdout", "relative"])?;
        let missing = t.path("no-directory").join("file");
        with(&missing.to_string_lossy(), &err.to_string_lossy())
            .command("create", &[])?
            .run()?
            .fails_naming(&["output of hooks"])?;
        Ok(())
    }
);

test!(
    fn the_groups_of_the_caller_are_kept_where_so_asked(t: &Test) -> Result {
        nix::unistd::setgroups(&[4242.into(), 4343.into()])?;
        let bundle = t
            .bundle()
            .set("/annotations", json!({"run.oci.keep_original_groups": "1"}))
            .set(
                "/process/user",
                json!({"uid": 1000, "gid": 1000, "additionalGids": [5]}),
            )
            .sleeper();
        let container = bundle.start()?;
        let groups = ["grep", "Groups:", "/proc/self/status"];
        let kept = crate::host::process::status_field(container.pid()?, "Groups")?;
        ensure!(kept.split_whitespace().eq(["4242", "4343"]), "{kept}");
        container.exec(&groups)?.mentions("4242 4343")?;
        let with = t
            .bundle()
            .set("/annotations", json!({"run.oci.keep_original_groups": "perhaps"}));
        with.run()?
            .fails_naming(&["run.oci.keep_original_groups", "perhaps"])?;
        Ok(())
    }
);

test!(
    fn an_unknown_system_call_in_a_profile_is_refused_where_so_asked(t: &Test) -> Result {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO"}]
        });
        let bundle = |strict: &str| {
            t.bundle()
                .args(&["true"])
                .set("/linux/seccomp", profile.clone())
                .set(
                    "/annotations",
                    json!({"run.oci.seccomp_fail_unknown_syscall": strict}),
                )
        };
        bundle("0").run()?.ok()?;
        bundle("1").run()?.fails_naming(&["no_such_call"])?;
        Ok(())
    }
);

test!(
    fn a_mount_label_is_a_parameter_of_new_filesystems_and_refused_without_selinux(t: &Test) -> Result {
        if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            t.skip("this machine has SELinux")?;
        }
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        for (kind, option) in [("context", "\"context\""), ("rootcontext", "\"rootcontext\"")] {
            let bundle = t
                .bundle()
                .set("/linux/mountLabel", json!(label))
                .set("/annotations", json!({"run.oci.mount_context_type": kind}));
            bundle
                .command("create", &[])?
                .run()?
                .fails_naming(&["linux.mountLabel", option, label])?;
        }
        t.bundle()
            .set("/linux/mountLabel", json!(""))
            .args(&["true"])
            .run()?
            .ok()?;
        let bundle = t.bundle().set(
            "/annotations",
            json!({"run.oci.mount_context_type": "anycontext"}),
        );
        bundle
            .run()?
            .fails_naming(&["run.oci.mount_context_type", "anycontext"])?;
        Ok(())
    }
);

test!(
    fn what_is_not_followed_of_crun_is_a_warning(t: &Test) -> Result {
        let bundle = t.bundle().args(&["echo", "ran"]).set(
            "/annotations",
            json!({"run.oci.handler": "krun", "org.example": "x"}),
        );
        let output = bundle.run()?.ok()?;
        ensure!(output.stdout.trim() == "ran", "{output}");
        ensure!(output.stderr.contains("run.oci.handler"), "{output}");
        ensure!(!output.stderr.contains("org.example"), "{output}");
        Ok(())
    }
);

test!(
    fn kill_and_delete_take_a_regular_expression(t: &Test) -> Result {
        let start = |name: &str| {
            t.bundle()
                .sleeper()
                .named(&format!("{name}-{}", t.unique))
                .start()
        };
        let (one, two, other) = (start("web-1")?, start("web-2")?, start("db")?);
        let expression = format!("^web-[0-9]+-{}$", t.unique);
        t.rtc(["kill", "--regex", &expression, "KILL"])?.ok()?;
        one.wait("stopped")?;
        two.wait("stopped")?;
        other.is("running")?;
        // Both have stopped: the failure of each is told, by its id.
        let output = t.rtc(["kill", "--regex", &expression, "KILL"])?;
        output.fails_naming(&["web-1", "web-2", "container not running"])?;
        t.rtc(["delete", "--regex", &expression])?.ok()?;
        let left = t.rtc(["list", "-q"])?.ok()?;
        ensure!(left.lines() == [&other.id], "{left}");
        t.rtc(["delete", "--regex", "("])?
            .fails_naming(&["--regex", "("])?;
        t.rtc(["delete", "--regex", "^nothing-is-named-so$"])?.ok()?;
        other.is("running")?;
        Ok(())
    }
);

test!(
    fn the_manager_of_cgroups_may_be_named_as_for_crun(t: &Test) -> Result {
        let container = t.bundle().sleeper();
        container.write()?;
        t.delete_at_end(&container.id);
        t.command(["--cgroup-manager", "cgroupfs", "create", "--bundle"])
            .args([&container.directory])
            .args([&container.id])
            .run()?
            .ok()?;
        t.rtc(["--cgroup-manager", "disabled", "list"])?
            .fails_naming(&["--cgroup-manager", "disabled"])?;
        Ok(())
    }
);
