//! Cgroups of an ordinary user's containers: none, or a subtree of cgroup v2 that was delegated to the user.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use super::rootless::leaves_nothing;
use crate::host::cgroup;
use crate::host::process;
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::user::User;
use crate::wait::until;

test!(
    fn without_a_cgroup_limits_and_a_path_are_refused_by_name(t: &Test) -> Result {
        let user = User::new(t)?;
        for (field, value) in [
            ("pids", json!({"limit": 10})),
            ("memory", json!({"limit": 100_000_000})),
        ] {
            let bundle = user.bundle(t)?.set(&format!("/linux/resources/{field}"), value);
            bundle.run()?.fails_naming(&[
                &format!("linux.resources.{field}.limit"),
                "rootless needs no limits + no cgrouppath when no permission is granted for cgroups",
            ])?;
            leaves_nothing(t)?;
        }
        let bundle = user
            .bundle(t)?
            .set("/linux/cgroupsPath", json!(format!("{}/x", t.cgroup.path)));
        let output = bundle.run()?.fails_with(&[])?;
        if t.is_ours() {
            output
                .fails_with(&["unable to apply cgroup configuration"])?
                .fails_with(&["ermission denied"])?;
        }
        leaves_nothing(t)
    }
);

test!(
    fn with_rootless_false_a_missing_cgroup_is_an_error(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user.bundle(t)?.args(&["true"]);
        bundle.write()?;
        let run = |flag: &str| {
            let command = t.command([flag, "run", "--bundle"]).args([&bundle.directory]);
            command.args([&bundle.id]).run()
        };
        if t.is_ours() {
            run("--rootless=false")?.fails_with(&["unable to apply cgroup configuration"])?;
            leaves_nothing(t)?;
            run("--rootless=auto")?.ok()?;
            run("--rootless=true")?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn what_needs_a_cgroup_says_so_and_the_rest_works_without(t: &Test) -> Result {
        if !t.is_ours() {
            // runc gives events of nothing, and finds no process.
            return Ok(());
        }
        let user = User::new(t)?;
        let container = user.bundle(t)?.sh("sleep 1000000 & wait").start()?;
        for verb in [&["pause"][..], &["events", "--stats"]] {
            container
                .verb(verb[0], &verb[1..])?
                .fails_with(&["has no cgroup"])?;
        }
        container
            .verb("update", &["--pids-limit", "10"])?
            .fails_with(&["linux.resources.pids.limit"])?;
        container.is("running")?;
        let count = || -> Result<_> {
            let output = container.verb("ps", &["--format", "json"])?.ok()?;
            Ok(serde_json::from_str::<Vec<i32>>(&output.stdout)?.len())
        };
        until("both processes", || Ok((count()? == 2).then_some(())))?;
        container.verb("kill", &["--all"])?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        leaves_nothing(t)
    }
);

test!(
    fn without_a_cgroup_and_pids_of_its_own_all_processes_end_with_a_kill(t: &Test) -> Result {
        if !t.is_ours() {
            // runc ends init only, with a warning.
            return Ok(());
        }
        let user = User::new(t)?;
        for verb in [&["kill", "KILL"][..], &["delete", "--force"]] {
            let bundle = user.bundle(t)?.without_namespace("pid");
            // /proc is the host's: it can't be mounted without PIDs of one's own.
            let container = bundle.sh("sleep 1000000 & echo $!; wait").start()?;
            let text = container.wait_for_output("\n")?;
            let orphan: i32 = text.trim().parse()?;
            ensure!(process::is_alive(orphan));
            match verb {
                ["kill", signal] => container.kill(signal)?.ok()?,
                _ => container.verb(verb[0], &verb[1..])?.ok()?,
            };
            until("the end of both", || {
                Ok((!process::is_alive(orphan)).then_some(()))
            })?;
        }
        Ok(())
    }
);

/// A subtree of the test's cgroup that is the user's, as systemd delegates one (cgroups(7), "Delegation").
struct Delegated {
    directory: PathBuf,
}

impl Delegated {
    fn new(t: &Test, user: &mut User) -> Result<Self> {
        t.needs_cgroup_v2()?;
        let parent = t.cgroup.directory("freezer")?;
        let directory = parent.join("delegated");
        let caller = directory.join("caller");
        fs::create_dir_all(&caller).with_context(|| caller.display().to_string())?;
        let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
        for cgroup in [&parent, &directory] {
            for controller in available.split_whitespace() {
                // One that can't be passed on is skipped by the test that needs it.
                let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            user.owns(&directory.join(file))?;
        }
        user.owns(&caller)?;
        user.start_in(t, caller);
        Ok(Self { directory })
    }

    /// The directory of a container, which is beside its creator's.
    fn of(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// Removes it, as nothing of the test's may be left.
    fn remove(self) -> Result {
        until("the end of all processes in the caller's cgroup", || {
            Ok(fs::remove_dir(self.directory.join("caller")).ok())
        })?;
        fs::remove_dir(&self.directory).context("something is left in the delegated cgroup")?;
        Ok(())
    }
}

test!(
    fn in_a_delegated_cgroup_limits_are_set_and_all_verbs_work(t: &Test) -> Result {
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        let container = user
            .bundle(t)?
            .set("/linux/resources/pids", json!({"limit": 50}))
            .set("/linux/resources/memory", json!({"limit": 100_000_000}))
            .sleeper()
            .create()?;
        let own = delegated.of(&container.id);
        let read = |file: &str| fs::read_to_string(own.join(file)).context(file.to_owned());
        ensure!(read("pids.max")?.trim() == "50" && read("memory.max")?.trim() == "99999744");
        container.start()?.ok()?;
        ensure!(read("cgroup.procs")?.trim() == container.pid()?.to_string());
        container.exec(&["cat", "/proc/self/cgroup"])?.prints("0::/")?;
        container.verb("pause", &[])?.ok()?;
        container.is("paused")?;
        container.verb("resume", &[])?.ok()?;
        container.verb("update", &["--pids-limit", "40"])?.ok()?;
        ensure!(read("pids.max")?.trim() == "40");
        container.verb("events", &["--stats"])?.mentions("\"limit\":40")?;
        container
            .verb("ps", &["--format", "json"])?
            .mentions(&container.pid()?.to_string())?;
        container.kill("KILL")?.ok()?;
        container.wait("stopped")?;
        container.delete()?.ok()?;
        ensure!(!own.exists(), "{} is left", own.display());
        leaves_nothing(t)?;
        delegated.remove()
    }
);

test!(
    fn a_delegated_cgroup_named_by_its_path_is_used(t: &Test) -> Result {
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        let path = format!("{}/delegated/a/b", t.cgroup.path);
        let container = user
            .bundle(t)?
            .set("/linux/cgroupsPath", json!(path))
            .sleeper()
            .start()?;
        let own = delegated.directory.join("a/b");
        ensure!(fs::read_to_string(own.join("cgroup.procs"))?.trim() == container.pid()?.to_string());
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(!own.exists());
        fs::remove_dir(delegated.directory.join("a"))?;
        delegated.remove()
    }
);

test!(
    fn a_cgroup_that_may_be_made_but_not_joined_counts_as_none(t: &Test) -> Result {
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        // Who moves a process needs the list of the common parent.
        std::os::unix::fs::chown(delegated.directory.join("cgroup.procs"), Some(0), Some(0))?;
        if t.is_ours() {
            let bundle = user.bundle(t)?.args(&["echo", "done"]);
            bundle.run()?.prints("done")?;
            let limited = user.bundle(t)?.set("/linux/resources/pids", json!({"limit": 10}));
            limited
                .run()?
                .fails_with(&["linux.resources.pids.limit", "can't move a process"])?;
        }
        let path = format!("{}/delegated/x", t.cgroup.path);
        let bundle = user.bundle(t)?.set("/linux/cgroupsPath", json!(path));
        bundle
            .run()?
            .fails_naming(&["unable to apply cgroup configuration", "can't move a process"])?;
        leaves_nothing(t)?;
        ensure!(!delegated.directory.join("x").exists());
        delegated.remove()
    }
);

/// Tries to make a cgroup in every directory of cgroups that the container sees.
const MAKE_CGROUPS: &str = "find /sys/fs/cgroup -name cgroup.procs 2>/dev/null | while read file; do \
    mkdir ${file%/*}/escaped 2>/dev/null && echo made ${file%/*}/escaped; \
    echo 0 2>/dev/null >$file && echo joined $file; done; echo tried";

test!(
    fn cve_2023_25809_a_rootless_container_cannot_write_to_its_users_cgroups(t: &Test) -> Result {
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        let bind = ["rbind", "nosuid", "noexec", "nodev", "ro"];
        let cgroup = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        // With the host's network /sys is a bind of the host's, whose cgroups are mounts of their own.
        let hosts_sys = || -> Result<_> {
            Ok(user
                .bundle(t)?
                .without_namespace("network")
                .edit(|spec| {
                    if let Some(mounts) = spec["mounts"].as_array_mut() {
                        mounts.retain(|mount| {
                            !mount["destination"]
                                .as_str()
                                .unwrap_or_default()
                                .starts_with("/sys")
                        });
                    }
                })
                .mount("/sys", "none", "/sys", &bind)
                .sh(MAKE_CGROUPS))
        };
        let with_mount = |namespace: bool| -> Result<_> {
            let bundle = hosts_sys()?.mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup);
            Ok(if namespace {
                bundle
            } else {
                bundle.without_namespace("cgroup")
            })
        };
        with_mount(true)?
            .run()?
            .prints("tried")
            .context("a cgroup namespace")?;
        with_mount(false)?
            .run()?
            .prints("tried")
            .context("the host's cgroup namespace")?;
        if t.is_ours() {
            hosts_sys()?.run()?.prints("tried").context("only /sys")?;
        }
        delegated.remove()
    }
);

test!(
    fn the_cgroup_that_a_container_without_one_sees_is_not_its_to_write(t: &Test) -> Result {
        if !t.is_ours() {
            return Ok(());
        }
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        std::os::unix::fs::chown(delegated.directory.join("cgroup.procs"), Some(0), Some(0))?;
        // The user's own cgroup, which the container is in, is writable to the user: a mount of it must not be.
        let bundle = user.bundle(t)?.mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "rw"],
        );
        bundle.sh(MAKE_CGROUPS).run()?.prints("tried")?;
        delegated.remove()
    }
);

test!(
    fn device_rules_are_left_out_in_a_delegated_cgroup(t: &Test) -> Result {
        let mut user = User::new(t)?;
        let delegated = Delegated::new(t, &mut user)?;
        let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}]);
        let bundle = user.bundle(t)?.set("/linux/resources/devices", rules);
        bundle
            .sh("echo x >/dev/null && echo written")
            .run()?
            .prints("written")?;
        ensure!(cgroup::is_unified());
        delegated.remove()
    }
);
