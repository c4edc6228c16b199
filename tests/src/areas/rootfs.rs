//! The root file system: read-only or not, masked and read-only paths, propagation, pivot_root and its substitute.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::mounts;
use crate::test;

test!(
    fn a_read_only_root_cannot_be_written_but_its_tmpfs_can(t: &Test) -> Result {
        let bundle = t.bundle().mount("/tmp", "tmpfs", "tmpfs", &[]);
        let rootfs = bundle.rootfs();
        let output = bundle
            .sh("touch /file || echo refused; touch /tmp/file && echo written")
            .run()?;
        let output = output.prints("refused\nwritten")?;
        ensure!(output.stderr.contains("Read-only file system"), "{output}");
        ensure!(!rootfs.join("file").exists());
        Ok(())
    }
);

test!(
    fn a_writable_root_can_be_written(t: &Test) -> Result {
        for bundle in [t.bundle().writable(), t.bundle().unset("/root/readonly")] {
            let bundle = bundle.sh("echo inside >/file");
            bundle.run()?.ok()?;
            ensure!(fs::read_to_string(bundle.rootfs().join("file"))? == "inside\n");
        }
        Ok(())
    }
);

test!(
    fn the_container_sees_its_rootfs_and_nothing_above_it(t: &Test) -> Result {
        let bundle = t.bundle().sh("ls -d /../bin /../../../bin; ls /");
        let expected: Vec<String> = {
            let mut names: Vec<String> = fs::read_dir(bundle.rootfs())?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<crate::registry::Result<_>>()?;
            names.sort();
            names
        };
        let output = bundle.run()?.ok()?;
        let mut seen: Vec<&str> = output.lines()[2..].to_vec();
        seen.sort_unstable();
        ensure!(seen == expected, "{output}");
        Ok(())
    }
);

test!(
    fn a_masked_file_reads_as_empty_and_a_masked_directory_is_empty(t: &Test) -> Result {
        let bundle = t.bundle().writable().set(
            "/linux/maskedPaths",
            json!(["/home/secret", "/home/secrets", "/no/such"]),
        );
        fs::write(bundle.rootfs().join("home/secret"), "secret")?;
        fs::create_dir(bundle.rootfs().join("home/secrets"))?;
        fs::write(bundle.rootfs().join("home/secrets/one"), "secret")?;
        let script = "cat /home/secret | wc -c; ls /home/secrets | wc -l; touch /home/secrets/x 2>/dev/null || echo refused";
        let secret = bundle.rootfs().join("home/secret");
        bundle.sh(script).run()?.prints("0\n0\nrefused")?;
        ensure!(fs::read_to_string(secret)? == "secret");
        Ok(())
    }
);

test!(
    fn a_masked_path_through_a_symlink_masks_its_target(t: &Test) -> Result {
        let bundle = t.bundle().set("/linux/maskedPaths", json!(["/home/link"]));
        fs::write(bundle.rootfs().join("home/secret"), "secret")?;
        symlink("/home/secret", bundle.rootfs().join("home/link"))?;
        let output = bundle.sh("cat /home/secret | wc -c").run()?;
        // Refusing is as good: what must not be is a container in which the file can be read.
        if output.code == 0 {
            output.prints("0")?;
        }
        Ok(())
    }
);

test!(
    fn the_default_masks_hide_what_the_kernel_shows_there(t: &Test) -> Result {
        let script = "for p in /proc/kcore /proc/keys /proc/timer_list; do [ ! -e $p ] || head -c 1 $p | wc -c; done; \
            for d in /proc/scsi /proc/acpi /sys/firmware; do [ ! -d $d ] || ls $d | wc -l; done";
        let output = t.bundle().sh(script).run()?.ok()?;
        ensure!(output.lines().iter().all(|&line| line == "0"), "{output}");
        Ok(())
    }
);

test!(
    fn a_read_only_path_can_be_read_and_not_written(t: &Test) -> Result {
        let bundle = t.bundle().writable().set(
            "/linux/readonlyPaths",
            json!(["/home/fixed", "/etc/group", "/no/such"]),
        );
        fs::create_dir(bundle.rootfs().join("home/fixed"))?;
        fs::write(bundle.rootfs().join("home/fixed/file"), "kept")?;
        let script = "cat /home/fixed/file; echo; echo x 2>/dev/null >/home/fixed/file || echo refused; \
            touch /home/fixed/new 2>/dev/null || echo refused; echo x 2>/dev/null >/etc/group || echo refused; echo x >/home/free && echo written";
        bundle
            .sh(script)
            .run()?
            .prints("kept\nrefused\nrefused\nrefused\nwritten")?;
        Ok(())
    }
);

test!(
    fn kernel_parameters_cannot_be_written_from_the_container(t: &Test) -> Result {
        let script = "echo x >/proc/sys/kernel/hostname; echo x >/proc/sys/vm/swappiness; echo x >/sys/kernel/uevent_seqnum; true";
        let output = t
            .bundle()
            .capabilities(&["CAP_SYS_ADMIN"])
            .sh(script)
            .run()?
            .ok()?;
        ensure!(
            output.stderr.matches("Read-only file system").count() == 3,
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn masked_and_read_only_paths_hold_with_a_read_only_root(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/linux/maskedPaths", json!(["/home"]))
            .set("/linux/readonlyPaths", json!(["/etc"]));
        fs::write(bundle.rootfs().join("home/file"), "x")?;
        bundle
            .sh("ls /home; touch /etc/x 2>/dev/null || echo refused")
            .run()?
            .prints("refused")?;
        Ok(())
    }
);

test!(
    fn the_root_is_private_where_so_configured(t: &Test) -> Result {
        for given in ["private", "rprivate"] {
            let bundle = t.bundle().set("/linux/rootfsPropagation", json!(given));
            let output = bundle
                .args(&["cat", "/proc/self/mountinfo"])
                .run()?
                .ok()
                .with_context(|| given)?;
            let shared = mounts::parse(&output.stdout)
                .into_iter()
                .find(|mount| !mount.propagation.is_empty());
            ensure!(shared.is_none(), "{given}: {shared:?}");
        }
        Ok(())
    }
);

test!(
    fn the_root_may_be_unbindable(t: &Test) -> Result {
        let bundle = t.bundle().set("/linux/rootfsPropagation", json!("unbindable"));
        let output = bundle.args(&["cat", "/proc/self/mountinfo"]).run()?.ok()?;
        let table = mounts::parse(&output.stdout);
        let root = table
            .iter()
            .find(|mount| mount.target == std::path::Path::new("/"))
            .context("no /")?;
        ensure!(root.propagation.contains("unbindable"), "{root:?}");
        Ok(())
    }
);

test!(
    fn without_pivot_root_the_container_still_sees_only_its_rootfs(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .sh("ls -d /../../bin; cat /etc/group | head -n 1; ls /work /boot 2>/dev/null; echo end");
        bundle
            .command("run", &["--no-pivot"])?
            .run()?
            .prints("/../../bin\nroot:x:0:\nend")?;
        Ok(())
    }
);

test!(
    fn the_rootfs_itself_is_unchanged_but_for_new_mount_points(t: &Test) -> Result {
        let bundle = t.bundle();
        bundle.run()?.ok()?;
        let left: Vec<_> = fs::read_dir(bundle.rootfs().join("dev"))?.collect();
        ensure!(left.is_empty(), "{left:?}");
        let left: Vec<_> = fs::read_dir(bundle.rootfs().join("proc"))?.collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
);

test!(
    fn one_rootfs_serves_two_containers_at_once(t: &Test) -> Result {
        let first = t.bundle().sleeper();
        let second = t.bundle().sleeper().set("/root/path", json!(first.rootfs()));
        let (first, second) = (first.start()?, second.start()?);
        first.exec(&["true"])?.ok()?;
        second.exec(&["true"])?.ok()?;
        first.verb("delete", &["--force"])?.ok()?;
        second.exec(&["true"])?.ok()?;
        Ok(())
    }
);

test!(
    fn an_overlay_among_the_mounts_shows_both_layers_and_keeps_what_is_written(t: &Test) -> Result {
        if !fs::read_to_string("/proc/filesystems")?.contains("\toverlay\n") {
            t.skip("no overlay")?;
        }
        let directory = t.path("layers");
        for name in ["lower", "upper", "work"] {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(directory.join("lower/below"), "below\n")?;
        fs::write(directory.join("upper/above"), "above\n")?;
        let option = |name: &str| format!("{name}dir={}", directory.join(name).display());
        let bundle = t.bundle().mount(
            "/tmp",
            "overlay",
            "overlay",
            &[&option("lower"), &option("upper"), &option("work")],
        );
        bundle
            .sh("cat /tmp/below /tmp/above; echo written >/tmp/new; rm /tmp/below")
            .run()?
            .prints("below\nabove")?;
        ensure!(fs::read_to_string(directory.join("upper/new"))? == "written\n");
        ensure!(fs::read_to_string(directory.join("lower/below"))? == "below\n");
        Ok(())
    }
);
