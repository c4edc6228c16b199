//! An ordinary user's containers in scopes of the user's own systemd (`--systemd-cgroup`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::test;
use crate::test::{Rtc, Test};
use crate::user::User;
use crate::wait::until;

/// The user's systemd, as a service of the machine's: what a login starts as `user@UID.service`.
struct Manager {
    unit: String,
    user: User,
}

impl Manager {
    fn start(t: &Test) -> Result<Self> {
        if !Path::new("/run/systemd/system").exists() {
            t.skip("systemd does not run")?;
        }
        t.needs_cgroup_v2()?;
        let mut user = User::new(t)?;
        let unit = format!("rtct{}.service", t.unique);
        // The cgroup is the user's, as `User=` would have made it; the user is known in a mount namespace only.
        let script = format!(
            "c=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir $c/session; \
             chown {0} $c $c/session $c/cgroup.procs $c/cgroup.subtree_control $c/cgroup.threads $c/session/cgroup.procs; \
             exec \"$@\"",
            user.id
        );
        let output = Command::new("systemd-run")
            .args([
                "--quiet",
                "--unit",
                &unit,
                "--slice=user.slice",
                "-p",
                "Delegate=yes",
            ])
            .args([
                "-p",
                "Type=notify",
                "-p",
                "NotifyAccess=all",
                "-p",
                "KillMode=control-group",
            ])
            .arg(format!("--setenv=XDG_RUNTIME_DIR={}", user.runtime_dir.display()))
            .args(["--setenv=HOME=/", "sh", "-c", &script, "sh"])
            .args(user.words())
            .args(["/usr/lib/systemd/systemd", "--user"])
            .output()?;
        ensure!(
            output.status.success(),
            "systemd --user: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // A session beside it, from which a process can be moved: their common parent is the user's.
        user.start_in(t, cgroup_of(&unit).join("session"));
        Ok(Self { unit, user })
    }

    fn property(&self, unit: &str, name: &str) -> Result<String> {
        let words = self.user.words();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["systemctl", "--user", "show", "--value", "--property", name, unit])
            .env("XDG_RUNTIME_DIR", &self.user.runtime_dir)
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "systemctl --user: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn bundle<'t>(&self, t: &'t Test, path: Option<&str>) -> Result<Bundle<'t>> {
        let bundle = self.user.bundle(t)?.sleeper();
        Ok(match path {
            Some(path) => bundle.set("/linux/cgroupsPath", json!(path)),
            None => bundle,
        })
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.unit]).status();
    }
}

fn cgroup_of(unit: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup/user.slice").join(unit)
}

/// The runtime with the driver, as in a login of the user.
fn driven<'t>(t: &'t Test, words: &[&str]) -> Rtc<'t> {
    let user = t.user.borrow().clone();
    let directory = user.map(|user| user.runtime_dir).unwrap_or_default();
    let command = t.command(["--systemd-cgroup"]).args(words);
    command.env("XDG_RUNTIME_DIR", &directory.to_string_lossy())
}

fn run(t: &Test, bundle: &Bundle<'_>) -> Result {
    bundle.write()?;
    t.delete_at_end(&bundle.id);
    let directory = bundle.directory.to_string_lossy().into_owned();
    driven(t, &["run", "--detach", "--bundle", &directory, &bundle.id])
        .run()?
        .ok()?;
    Ok(())
}

test!(
    fn a_users_container_is_in_a_scope_of_the_users_systemd(t: &Test) -> Result {
        let manager = Manager::start(t)?;
        let bundle = manager.bundle(t, None)?;
        let bundle = bundle.set("/linux/resources/pids", json!({"limit": 50}));
        let name = format!("rtc-{}.scope", bundle.id);
        run(t, &bundle)?;
        let directory = cgroup_of(&manager.unit).join("user.slice").join(&name);
        let read = |file: &str| fs::read_to_string(directory.join(file)).context(file.to_owned());
        ensure!(!read("cgroup.procs")?.is_empty());
        ensure!(read("pids.max")?.trim() == "50");
        ensure!(manager.property(&name, "ActiveState")? == "active");
        ensure!(manager.property(&name, "TasksMax")? == "50");
        let verb = |words: &[&str]| driven(t, words).args([&bundle.id]).run()?.ok();
        verb(&["update", "--pids-limit", "40"])?;
        ensure!(read("pids.max")?.trim() == "40");
        ensure!(manager.property(&name, "TasksMax")? == "40");
        verb(&["pause"])?;
        verb(&["resume"])?;
        driven(t, &["exec", &bundle.id, "cat", "/proc/self/cgroup"])
            .run()?
            .prints("0::/")?;
        verb(&["delete", "--force"])?;
        ensure!(!directory.exists());
        until("the unit to be gone", || {
            Ok((manager.property(&name, "LoadState")? == "not-found").then_some(()))
        })
    }
);

test!(
    fn a_users_slices_are_below_the_users_systemd(t: &Test) -> Result {
        let manager = Manager::start(t)?;
        let bundle = manager.bundle(t, Some("a-b.slice:p:name"))?;
        run(t, &bundle)?;
        let directory = cgroup_of(&manager.unit).join("a.slice/a-b.slice/p-name.scope");
        ensure!(!fs::read_to_string(directory.join("cgroup.procs"))?.is_empty());
        driven(t, &["delete", "--force", &bundle.id]).run()?.ok()?;
        ensure!(!directory.exists());
        Ok(())
    }
);

test!(
    fn without_a_systemd_of_the_user_it_is_told_where_it_was_looked_for(t: &Test) -> Result {
        if !Path::new("/run/systemd/system").exists() {
            t.skip("systemd does not run")?;
        }
        t.needs_cgroup_v2()?;
        let user = User::new(t)?;
        let bundle = user.bundle(t)?.sleeper();
        bundle.write()?;
        let directory = bundle.directory.to_string_lossy().into_owned();
        let output = driven(t, &["run", "--bundle", &directory, &bundle.id]).run()?;
        output.fails_with(&["no systemd of user", "XDG_RUNTIME_DIR"])?;
        Ok(())
    }
);
