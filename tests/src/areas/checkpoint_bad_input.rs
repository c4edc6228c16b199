//! `checkpoint` and `restore` that can't be: refused by name, and nothing is left. None of these needs a CRIU that works.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::ensure;

use crate::registry::Result;
use crate::test;
use crate::test::Test;

/// A program that says it is CRIU but answers nothing.
fn mute_criu(t: &Test) -> Result<String> {
    let directory = t.path("bin");
    fs::create_dir(&directory)?;
    symlink("/bin/true", directory.join("criu"))?;
    Ok(directory.display().to_string())
}

test!(
    fn a_machine_without_criu_is_told_what_to_install(t: &Test) -> Result {
        if ["/usr/sbin/criu", "/usr/bin/criu", "/usr/local/sbin/criu"]
            .iter()
            .any(|path| fs::exists(path).unwrap_or(false))
        {
            t.skip("CRIU is installed")?;
        }
        let container = t.bundle().sleeper().start()?;
        let image = t.path("image");
        let checkpoint = t
            .command(["checkpoint", "--image-path"])
            .args([&image])
            .args([&container.id]);
        checkpoint
            .env("PATH", "/nonexistent")
            .run()?
            .fails_naming(&["criu is not installed", "https://criu.org"])?;
        container.is("running")?;
        ensure!(!image.exists(), "an image was begun");
        Ok(())
    }
);

test!(
    fn a_criu_that_does_not_answer_is_an_error(t: &Test) -> Result {
        let path = mute_criu(t)?;
        let container = t.bundle().sleeper().start()?;
        let checkpoint = t.command(["checkpoint", &container.id]).env("PATH", &path);
        checkpoint
            .run()?
            .fails_naming(&["criu", "ended without an answer"])?;
        container.is("running")
    }
);

test!(
    fn only_a_running_container_is_checkpointed(t: &Test) -> Result {
        let container = t.bundle().args(&["true"]).create()?;
        container
            .verb("checkpoint", &[])?
            .fails_with(&["cannot be checkpointed in created state"])?;
        container.start()?.ok()?;
        container.wait("stopped")?;
        container
            .verb("checkpoint", &[])?
            .fails_with(&["cannot be checkpointed in stopped state"])?;
        t.rtc(["checkpoint", "nobody"])?.fails_with(&["does not exist"])?;
        Ok(())
    }
);

test!(
    fn bad_flags_are_named_with_their_value(t: &Test) -> Result {
        for (flags, texts) in [
            (
                &["--manage-cgroups-mode", "props"][..],
                &["--manage-cgroups-mode", "props"][..],
            ),
            (&["--empty-ns", "mount"], &["--empty-ns", "mount"]),
            (
                &["--page-server", "here"],
                &["--page-server", "here", "ADDRESS:PORT"],
            ),
            (&["--status-fd", "x"], &["--status-fd", "x"]),
            (&["--nope"], &["--nope"]),
        ] {
            let command = t.command(["checkpoint"]).args(flags).args(["some"]);
            command.run()?.fails_naming(texts)?;
        }
        for (flags, texts) in [
            (
                &["--manage-cgroups-mode", "props"][..],
                &["--manage-cgroups-mode", "props"][..],
            ),
            (&["--pre-dump"], &["--pre-dump"]),
        ] {
            let bundle = t.bundle().sleeper();
            bundle.command("restore", flags)?.run()?.fails_naming(texts)?;
        }
        Ok(())
    }
);

test!(
    fn a_status_descriptor_must_be_open_for_writing(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let checkpoint = |number: &str| t.command(["checkpoint", "--status-fd", number, &container.id]);
        checkpoint("77").run()?.fails_naming(&["--status-fd", "77"])?;
        checkpoint("5")
            .redirect("5</dev/null")
            .run()?
            .fails_naming(&["--status-fd", "5", "writing"])?;
        container.is("running")
    }
);

test!(
    fn a_restore_without_an_image_leaves_nothing(t: &Test) -> Result {
        let empty = t.path("empty");
        fs::create_dir(&empty)?;
        for (path, text) in [
            ("/nonexistent/image", "/nonexistent/image"),
            (&empty.to_string_lossy(), "inventory.img"),
        ] {
            let bundle = t.bundle().sleeper();
            let restore = bundle.command("restore", &["--detach", "--image-path", path])?;
            restore.run()?.fails_naming(&["--image-path", text])?;
            ensure!(!t.root.join(&bundle.id).exists(), "a state is left");
        }
        Ok(())
    }
);

test!(
    fn an_image_that_every_user_may_write_is_refused(t: &Test) -> Result {
        let image = t.path("image");
        fs::create_dir(&image)?;
        fs::set_permissions(&image, fs::Permissions::from_mode(0o777))?;
        fs::write(image.join("inventory.img"), "")?;
        let bundle = t.bundle().sleeper();
        let restore = bundle.command("restore", &["--detach", "--image-path", &image.to_string_lossy()])?;
        restore
            .run()?
            .fails_naming(&["--image-path", "every user may write"])?;
        Ok(())
    }
);

test!(
    fn cve_2026_53489_nothing_of_an_image_is_read_through_a_link(t: &Test) -> Result {
        let image = t.path("image");
        fs::create_dir(&image)?;
        fs::write(image.join("inventory.img"), "")?;
        symlink("/etc/passwd", image.join("descriptors.json"))?;
        let bundle = t.bundle().sleeper();
        let restore = bundle.command("restore", &["--detach", "--image-path", &image.to_string_lossy()])?;
        let output = restore.run()?.fails_naming(&["descriptors.json"])?;
        ensure!(!output.stderr.contains("root:"), "{output}");
        Ok(())
    }
);

test!(
    fn an_lsm_profile_names_its_module(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        let restore = bundle.command("restore", &["--detach", "--lsm-profile", "unconfined"])?;
        restore
            .run()?
            .fails_naming(&["--lsm-profile", "unconfined", "apparmor:NAME"])?;
        Ok(())
    }
);
