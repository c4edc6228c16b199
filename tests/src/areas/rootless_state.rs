//! Whose state directories an ordinary user can use, and root of a user namespace as the caller (Podman's case).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::json;

use super::rootless::leaves_nothing;
use crate::registry::Result;
use crate::test;
use crate::test::{Rtc, Test};
use crate::user::User;

/// Whatever has been made there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

test!(
    fn the_default_root_is_in_the_users_runtime_directory(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user.bundle(t)?.sleeper();
        bundle.write()?;
        let runtime_dir = user.runtime_dir.to_string_lossy().into_owned();
        let bare =
            |args: &[&str]| -> Result<Rtc<'_>> { Ok(t.bare(args).env("XDG_RUNTIME_DIR", &runtime_dir)) };
        let directory = bundle.directory.to_string_lossy().into_owned();
        bare(&["run", "--detach", "--bundle", &directory, &bundle.id])?
            .run()?
            .ok()?;
        let made = entries(&user.runtime_dir);
        ensure!(made.len() == 1 && made[0].join(&bundle.id).is_dir(), "{made:?}");
        let mode = fs::metadata(&made[0])?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{mode:o}");
        bare(&["exec", &bundle.id, "id", "-u"])?.run()?.prints("0")?;
        bare(&["delete", "--force", &bundle.id])?.run()?.ok()?;
        ensure!(
            entries(&made[0]).iter().all(|path| path.ends_with(".cache")),
            "{:?}",
            entries(&made[0])
        );
        Ok(())
    }
);

test!(
    fn a_runtime_directory_of_another_user_is_refused(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user.bundle(t)?;
        bundle.write()?;
        let foreign = t.path("foreign");
        fs::create_dir(&foreign)?;
        let run = || -> Result<_> {
            let command = t
                .bare(["run", "--bundle"])
                .args([&bundle.directory])
                .args([&bundle.id]);
            command.env("XDG_RUNTIME_DIR", &foreign.to_string_lossy()).run()
        };
        for mode in [0o700, 0o755] {
            fs::set_permissions(&foreign, fs::Permissions::from_mode(mode))?;
            run()?.fails_naming(&["XDG_RUNTIME_DIR"])?;
            ensure!(entries(&foreign).is_empty(), "{:?}", entries(&foreign));
        }
        if !t.is_ours() {
            return Ok(());
        }
        // One that all can write to, where another user was first.
        fs::set_permissions(&foreign, fs::Permissions::from_mode(0o1777))?;
        let planted = foreign.join("rtc");
        fs::create_dir(&planted)?;
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o777))?;
        run()?.fails_with(&["XDG_RUNTIME_DIR", "is of user 0", &format!("user {}", user.id)])?;
        ensure!(entries(&planted).is_empty(), "{:?}", entries(&planted));
        // The user's own, which others can write to.
        user.owns(&planted)?;
        run()?.fails_with(&["mode 0777", "nobody else can write"])?;
        ensure!(entries(&planted).is_empty(), "{:?}", entries(&planted));
        fs::remove_dir(&planted)?;
        run()?.ok()?;
        Ok(())
    }
);

test!(
    fn without_a_runtime_directory_the_error_says_what_to_set(t: &Test) -> Result {
        if !t.is_ours() {
            return Ok(());
        }
        let user = User::new(t)?;
        let bundle = user.bundle(t)?;
        bundle.write()?;
        let command = t
            .bare(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        command
            .run()?
            .fails_with(&["/run/rtc", "XDG_RUNTIME_DIR", "--root"])?;
        Ok(())
    }
);

test!(
    fn a_container_of_another_user_cannot_be_touched(t: &Test) -> Result {
        // Of root, with the default permissions of its directory.
        let theirs = t.bundle().sleeper().start()?;
        let pid = theirs.pid()?;
        let root = t.path("user-root");
        fs::create_dir(&root)?;
        let user = User::new(t)?;
        user.owns(&root)?;
        chown(&t.root, Some(0), Some(0))?;
        let verbs: [&[&str]; 7] = [
            &["state"],
            &["start"],
            &["kill"],
            &["delete", "--force"],
            &["pause"],
            &["ps"],
            &["exec"],
        ];
        let tried = |root: &Path| -> Result {
            for verb in verbs {
                let command = t
                    .bare(["--root".as_ref(), root.as_os_str()])
                    .args(verb)
                    .args([&theirs.id]);
                let command = if verb[0] == "exec" {
                    command.args(["true"])
                } else {
                    command
                };
                let output = command.run()?;
                ensure!(output.code != 0, "{output}");
            }
            Ok(())
        };
        tried(&t.root)?;
        if t.is_ours() {
            // Where the user can read it: in a directory of its own, as another user could have put it there.
            fs::set_permissions(t.root.join(&theirs.id), fs::Permissions::from_mode(0o755))?;
            fs::rename(t.root.join(&theirs.id), root.join(&theirs.id))?;
            let found = tried(&root);
            let state = t
                .bare(["--root".as_ref(), root.as_os_str()])
                .args(["state", &theirs.id])
                .run()?;
            state.fails_with(&["its state is of user 0"])?;
            fs::rename(root.join(&theirs.id), t.root.join(&theirs.id))?;
            found?;
        }
        *t.user.borrow_mut() = None;
        theirs.is("running")?;
        ensure!(theirs.pid()? == pid);
        Ok(())
    }
);

/// The words that make the user root of a user namespace, with mounts of its own.
fn as_root_inside(user: &User, t: &Test) {
    let mut inside = user.clone();
    inside.is_root_inside = true;
    *t.user.borrow_mut() = Some(inside);
}

test!(
    fn root_of_a_user_namespace_runs_containers_without_one_of_their_own(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user
            .bundle(t)?
            .without_namespace("user")
            .unset("/linux/uidMappings")
            .unset("/linux/gidMappings")
            .sh("id -u; echo x >/dev/null && echo written; cat /proc/self/uid_map");
        as_root_inside(&user, t);
        let output = bundle.run()?.ok()?;
        let lines = output.lines();
        ensure!(lines[..2] == ["0", "written"], "{output}");
        let id = user.id.to_string();
        ensure!(
            lines[2].split_whitespace().eq(["0", id.as_str(), "1"]),
            "{output}"
        );
        leaves_nothing(t)
    }
);

test!(
    fn root_of_a_user_namespace_gets_no_limits_without_a_cgroup(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user
            .bundle(t)?
            .without_namespace("user")
            .unset("/linux/uidMappings")
            .unset("/linux/gidMappings")
            .set("/linux/resources/pids", json!({"limit": 10}));
        as_root_inside(&user, t);
        bundle.run()?.fails_naming(&["cannot set pids limit"])?;
        leaves_nothing(t)?;
        let bundle = bundle
            .unset("/linux/resources/pids")
            .set("/linux/cgroupsPath", json!("/nothing-of-this-name"));
        bundle.run()?.fails_naming(&["cgroup", "nothing-of-this-name"])?;
        leaves_nothing(t)
    }
);

test!(
    fn root_of_a_user_namespace_uses_its_own_runtime_directory(t: &Test) -> Result {
        let user = User::new(t)?;
        let bundle = user.bundle(t)?.sleeper();
        let bundle = bundle
            .without_namespace("user")
            .unset("/linux/uidMappings")
            .unset("/linux/gidMappings")
            .args(&["true"]);
        bundle.write()?;
        as_root_inside(&user, t);
        let command = t
            .bare(["run", "--bundle"])
            .args([&bundle.directory])
            .args([&bundle.id]);
        let command = command
            .env("USER", "tester")
            .env("XDG_RUNTIME_DIR", &user.runtime_dir.to_string_lossy());
        command.run()?.ok()?;
        ensure!(
            entries(&user.runtime_dir).len() == 1,
            "{:?}",
            entries(&user.runtime_dir)
        );
        Ok(())
    }
);
