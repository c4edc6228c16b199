//! Mounts: types, options, sources, destinations, propagation.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bundle::Bundle;
use crate::host::mounts::{self, Mount};
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// The mount table the container sees.
fn table(bundle: Bundle<'_>) -> Result<Vec<Mount>> {
    let output = bundle.args(&["cat", "/proc/self/mountinfo"]).run()?.ok()?;
    Ok(mounts::parse(&output.stdout))
}

/// The topmost mount at a mount point.
fn at<'m>(table: &'m [Mount], target: &str) -> Result<&'m Mount> {
    let found = table.iter().rev().find(|mount| mount.target == Path::new(target));
    found.with_context(|| format!("nothing is mounted at {target}: {table:?}"))
}

/// Gives this test a mount namespace of its own: what it mounts is seen by the runtime it starts and by nobody else.
fn own_mount_namespace() -> Result {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")
}

fn mount_tmpfs(at: &Path) -> Result {
    fs::create_dir_all(at)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| at.display().to_string())
}

/// A directory on the host with a file in it.
fn directory_with_file(t: &Test, content: &str) -> Result<PathBuf> {
    let directory = t.path("source");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), content)?;
    Ok(directory)
}

test!(
    fn the_default_mounts_are_there_with_their_types_and_options(t: &Test) -> Result {
        let table = table(t.bundle())?;
        for (target, kind, options) in [
            ("/proc", "proc", ""),
            ("/dev", "tmpfs", "nosuid"),
            ("/dev/pts", "devpts", "nosuid,noexec"),
            ("/dev/shm", "tmpfs", "nosuid,nodev,noexec"),
            ("/dev/mqueue", "mqueue", "nosuid,nodev,noexec"),
            ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ] {
            let mount = at(&table, target)?;
            ensure!(mount.kind == kind, "{mount:?}");
            ensure!(
                options
                    .split(',')
                    .all(|option| option.is_empty() || mount.has(option)),
                "{mount:?}"
            );
        }
        ensure!(
            at(&table, "/dev/pts")?.super_options.contains("ptmxmode=666"),
            "{:?}",
            at(&table, "/dev/pts")?
        );
        ensure!(
            at(&table, "/dev/shm")?.super_options.contains("size=65536k"),
            "{:?}",
            at(&table, "/dev/shm")?
        );
        Ok(())
    }
);

test!(
    fn nothing_of_the_hosts_mounts_is_left_in_the_container(t: &Test) -> Result {
        let bundle = t.bundle();
        let expected: Vec<String> = ["/", "/proc", "/dev", "/sys"]
            .iter()
            .map(|&path| path.to_owned())
            .collect();
        for mount in table(bundle)? {
            let target = mount.target.to_string_lossy().into_owned();
            let known = expected
                .iter()
                .any(|path| target == *path || (path != "/" && target.starts_with(&format!("{path}/"))));
            ensure!(known, "{mount:?}");
        }
        Ok(())
    }
);

test!(
    fn each_mount_option_has_its_effect(t: &Test) -> Result {
        for (given, expected) in [
            (
                vec!["nosuid", "nodev", "noexec"],
                vec!["nosuid", "nodev", "noexec"],
            ),
            (vec!["ro"], vec!["ro"]),
            (vec!["noatime"], vec!["noatime"]),
            (vec!["relatime"], vec!["relatime"]),
            (vec!["nodiratime"], vec!["nodiratime"]),
            (vec!["nosuid", "suid", "rw"], vec!["rw"]),
            (vec!["ro", "rw"], vec!["rw"]),
            (vec!["nodev", "dev", "noexec", "exec"], vec!["rw"]),
        ] {
            let table = table(t.bundle().mount("/tmp", "tmpfs", "tmpfs", &given))?;
            let mount = at(&table, "/tmp")?;
            ensure!(
                expected.iter().all(|option| mount.has(option)),
                "{given:?}: {mount:?}"
            );
            let unasked = ["nosuid", "nodev", "noexec", "ro", "noatime", "nodiratime"];
            let extra = unasked
                .iter()
                .find(|option| mount.has(option) && !expected.contains(option));
            ensure!(extra.is_none(), "{given:?}: {extra:?} in {mount:?}");
        }
        Ok(())
    }
);

test!(
    fn strictatime_and_sync_are_honoured(t: &Test) -> Result {
        let table = table(
            t.bundle()
                .mount("/tmp", "tmpfs", "tmpfs", &["strictatime", "sync"]),
        )?;
        let mount = at(&table, "/tmp")?;
        ensure!(!mount.has("relatime") && !mount.has("noatime"), "{mount:?}");
        ensure!(
            mount.super_options.split(',').any(|option| option == "sync"),
            "{mount:?}"
        );
        Ok(())
    }
);

test!(
    fn options_of_the_file_system_reach_it(t: &Test) -> Result {
        let bundle = t.bundle().mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            &["size=1m", "mode=0750", "nr_inodes=77", "uid=5"],
        );
        let output = bundle
            .sh("stat -c '%a %u' /tmp; grep ' /tmp ' /proc/mounts")
            .run()?
            .ok()?;
        ensure!(output.lines()[0] == "750 5", "{output}");
        ensure!(
            output.stdout.contains("size=1024k") && output.stdout.contains("nr_inodes=77"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn an_option_the_file_system_does_not_know_is_refused(t: &Test) -> Result {
        let bundle = t.bundle().mount("/tmp", "tmpfs", "tmpfs", &["no_such_option"]);
        bundle.run()?.fails_naming(&["/tmp", "no_such_option"])?;
        Ok(())
    }
);

test!(
    fn a_type_of_file_system_the_kernel_does_not_know_is_refused(t: &Test) -> Result {
        t.bundle()
            .mount("/tmp", "nosuchfs", "x", &[])
            .run()?
            .fails_naming(&["/tmp", "nosuchfs"])?;
        Ok(())
    }
);

test!(
    fn a_directory_is_bound_and_writable_unless_told_otherwise(t: &Test) -> Result {
        let source = directory_with_file(t, "from outside")?;
        let bundle = t
            .bundle()
            .mount("/tmp", "bind", &source.to_string_lossy(), &["bind"]);
        bundle
            .sh("cat /tmp/file; echo from inside >/tmp/new")
            .run()?
            .prints("from outside")?;
        ensure!(fs::read_to_string(source.join("new"))? == "from inside\n");
        let bundle = t
            .bundle()
            .mount("/tmp", "bind", &source.to_string_lossy(), &["bind", "ro"]);
        bundle
            .sh("cat /tmp/new; echo x >/tmp/file || echo refused")
            .run()?
            .prints("from inside\nrefused")?;
        ensure!(fs::read_to_string(source.join("file"))? == "from outside");
        Ok(())
    }
);

test!(
    fn a_bind_without_a_type_is_a_bind(t: &Test) -> Result {
        let source = directory_with_file(t, "bound")?;
        let mount = serde_json::json!({"destination": "/tmp", "source": source, "options": ["rbind", "ro"]});
        t.bundle()
            .push("/mounts", mount)
            .args(&["cat", "/tmp/file"])
            .run()?
            .prints("bound")?;
        Ok(())
    }
);

test!(
    fn a_single_file_is_bound_over_an_existing_or_missing_one(t: &Test) -> Result {
        let source = directory_with_file(t, "outer")?.join("file");
        let source = source.to_string_lossy();
        let bundle = t.bundle().mount("/etc/passwd", "bind", &source, &["bind", "ro"]);
        bundle.args(&["cat", "/etc/passwd"]).run()?.prints("outer")?;
        let bundle = t.bundle().mount("/made/on/the/way", "bind", &source, &["bind"]);
        bundle.args(&["cat", "/made/on/the/way"]).run()?.prints("outer")?;
        Ok(())
    }
);

test!(
    fn missing_destinations_are_made_as_directories(t: &Test) -> Result {
        let bundle = t.bundle().mount("/made/on/the/way", "tmpfs", "tmpfs", &[]);
        bundle
            .sh("touch /made/on/the/way/file && stat -c %a /made/on")
            .run()?
            .prints("755")?;
        Ok(())
    }
);

test!(
    fn a_bind_source_that_does_not_exist_is_refused(t: &Test) -> Result {
        let bundle = t.bundle().mount("/tmp", "bind", "/nonexistent/source", &["bind"]);
        bundle
            .run()?
            .fails_with(&["/nonexistent/source"])?
            .fails_naming(&["/tmp"])?;
        Ok(())
    }
);

test!(
    fn a_relative_bind_source_is_taken_from_the_bundle(t: &Test) -> Result {
        let bundle = t.bundle().mount("/tmp", "bind", "beside", &["bind"]);
        fs::create_dir(bundle.directory.join("beside"))?;
        fs::write(bundle.directory.join("beside/file"), "in the bundle")?;
        bundle
            .args(&["cat", "/tmp/file"])
            .run()?
            .prints("in the bundle")?;
        Ok(())
    }
);

test!(
    fn bind_takes_one_mount_and_rbind_those_below_it_too(t: &Test) -> Result {
        own_mount_namespace()?;
        let source = directory_with_file(t, "top")?;
        mount_tmpfs(&source.join("below"))?;
        fs::write(source.join("below/file"), "below")?;
        let source = source.to_string_lossy();
        t.bundle()
            .mount("/tmp", "bind", &source, &["rbind"])
            .args(&["cat", "/tmp/below/file"])
            .run()?
            .prints("below")?;
        t.bundle()
            .mount("/tmp", "bind", &source, &["bind"])
            .args(&["ls", "/tmp/below"])
            .run()?
            .prints("")?;
        Ok(())
    }
);

test!(
    fn a_bind_that_names_no_flags_keeps_those_of_its_source(t: &Test) -> Result {
        own_mount_namespace()?;
        let source = t.path("source");
        mount_tmpfs(&source)?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(None::<&str>, &source, None::<&str>, flags, None::<&str>)?;
        let table = table(
            t.bundle()
                .mount("/tmp", "bind", &source.to_string_lossy(), &["bind"]),
        )?;
        let bound = at(&table, "/tmp")?;
        ensure!(bound.has("nosuid") && bound.has("noexec"), "{bound:?}");
        Ok(())
    }
);

test!(
    fn a_later_mount_may_use_what_an_earlier_one_brought(t: &Test) -> Result {
        let source = directory_with_file(t, "inner")?;
        let bundle = t.bundle().mount("/tmp", "tmpfs", "tmpfs", &[]);
        let bundle = bundle.mount("/tmp/a/b", "bind", &source.to_string_lossy(), &["bind"]);
        bundle.args(&["cat", "/tmp/a/b/file"]).run()?.prints("inner")?;
        Ok(())
    }
);

test!(
    fn of_two_mounts_at_one_place_the_later_is_seen(t: &Test) -> Result {
        let (first, second) = (
            directory_with_file(t, "first")?,
            directory_with_file(t, "second")?,
        );
        let bundle = t
            .bundle()
            .mount("/tmp", "bind", &first.to_string_lossy(), &["bind"]);
        let bundle = bundle.mount("/tmp", "bind", &second.to_string_lossy(), &["bind"]);
        bundle.args(&["cat", "/tmp/file"]).run()?.prints("second")?;
        Ok(())
    }
);

test!(
    fn a_destination_with_symlinks_is_resolved_inside_the_rootfs(t: &Test) -> Result {
        let source = directory_with_file(t, "bound")?;
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        for (link, target) in [
            ("absolute", "/home"),
            ("relative", "../../../../home"),
            ("dangling", &*outside.to_string_lossy()),
        ] {
            let bundle = t.bundle().writable().mount(
                &format!("/{link}"),
                "bind",
                &source.to_string_lossy(),
                &["bind"],
            );
            symlink(target, bundle.rootfs().join(link))?;
            let place = if link == "dangling" { target } else { "/home" };
            bundle
                .sh(&format!("cat {place}/file"))
                .run()?
                .prints("bound")
                .with_context(|| link.to_owned())?;
            ensure!(
                !outside.join("file").exists(),
                "{link}: mounted outside the rootfs"
            );
        }
        Ok(())
    }
);

test!(
    fn a_destination_with_dot_dot_stays_inside_the_rootfs(t: &Test) -> Result {
        let source = directory_with_file(t, "bound")?;
        let bundle = t.bundle().mount(
            "/tmp/../../../../../../home/new",
            "bind",
            &source.to_string_lossy(),
            &["bind"],
        );
        bundle.args(&["cat", "/home/new/file"]).run()?.prints("bound")?;
        Ok(())
    }
);

test!(
    fn no_mount_is_shared_unless_asked_for(t: &Test) -> Result {
        let source = directory_with_file(t, "x")?;
        let table = table(
            t.bundle()
                .mount("/tmp", "bind", &source.to_string_lossy(), &["bind"]),
        )?;
        let shared = table.iter().find(|mount| mount.propagation.contains("shared"));
        ensure!(shared.is_none(), "{shared:?}");
        Ok(())
    }
);

test!(
    fn propagation_of_a_mount_is_the_configured_one(t: &Test) -> Result {
        own_mount_namespace()?;
        let source = t.path("source");
        mount_tmpfs(&source)?;
        mount(
            None::<&str>,
            &source,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        )?;
        for (option, expected) in [
            ("rshared", "shared:"),
            ("shared", "shared:"),
            ("rslave", "master:"),
            ("slave", "master:"),
            ("rprivate", ""),
            ("private", ""),
            ("unbindable", "unbindable"),
            ("runbindable", "unbindable"),
        ] {
            let bundle = t
                .bundle()
                .mount("/tmp", "bind", &source.to_string_lossy(), &["rbind", option]);
            let table = table(bundle).with_context(|| option)?;
            let mount = at(&table, "/tmp")?;
            let right = if expected.is_empty() {
                mount.propagation.is_empty()
            } else {
                mount.propagation.contains(expected)
            };
            ensure!(right, "{option}: {mount:?}");
        }
        Ok(())
    }
);

test!(
    fn a_later_mount_on_the_host_appears_in_a_slave_and_not_in_a_private_one(t: &Test) -> Result {
        own_mount_namespace()?;
        let source = t.path("source");
        mount_tmpfs(&source)?;
        mount(
            None::<&str>,
            &source,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        )?;
        fs::create_dir(source.join("later"))?;
        let start = |propagation| {
            let bundle = t
                .bundle()
                .mount("/tmp", "bind", &source.to_string_lossy(), &["rbind", propagation]);
            bundle
                .set("/linux/rootfsPropagation", serde_json::json!("rslave"))
                .sleeper()
                .start()
        };
        let (slave, private) = (start("rslave")?, start("rprivate")?);
        mount_tmpfs(&source.join("later"))?;
        fs::write(source.join("later/file"), "seen")?;
        until("the mount to appear", || {
            Ok((slave.exec(&["cat", "/tmp/later/file"])?.code == 0).then_some(()))
        })?;
        private.exec(&["ls", "/tmp/later"])?.prints("")?;
        Ok(())
    }
);

test!(
    fn recursive_read_only_reaches_the_mounts_below(t: &Test) -> Result {
        own_mount_namespace()?;
        let source = directory_with_file(t, "top")?;
        mount_tmpfs(&source.join("below"))?;
        let script = "touch /tmp/x 2>/dev/null || echo top refused; touch /tmp/below/x 2>/dev/null || echo below refused";
        let plain = t
            .bundle()
            .mount("/tmp", "bind", &source.to_string_lossy(), &["rbind", "ro"])
            .sh(script);
        plain.run()?.prints("top refused")?;
        let recursive = t
            .bundle()
            .mount("/tmp", "bind", &source.to_string_lossy(), &["rbind", "rro"])
            .sh(script);
        recursive.run()?.prints("top refused\nbelow refused")?;
        Ok(())
    }
);

test!(
    fn a_tmpfs_without_mode_takes_that_of_the_directory_below_it(t: &Test) -> Result {
        let bundle = t.bundle().mount("/home", "tmpfs", "tmpfs", &[]);
        fs::set_permissions(
            bundle.rootfs().join("home"),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )?;
        bundle.args(&["stat", "-c", "%a", "/home"]).run()?.prints("711")?;
        Ok(())
    }
);

test!(
    fn tmpcopyup_fills_a_tmpfs_with_what_it_covers(t: &Test) -> Result {
        let bundle = t.bundle().mount("/home", "tmpfs", "tmpfs", &["tmpcopyup"]);
        fs::write(bundle.rootfs().join("home/file"), "copied up")?;
        let bundle = bundle.sh("cat /home/file; echo >/home/new");
        bundle.run()?.prints("copied up")?;
        ensure!(
            !bundle.rootfs().join("home/new").exists(),
            "written through to the rootfs"
        );
        Ok(())
    }
);

test!(
    fn the_cgroup_mount_shows_the_containers_own_limits_read_only(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let bundle = t
            .bundle()
            .set("/linux/resources/pids", serde_json::json!({"limit": 321}));
        let script = "cd /sys/fs/cgroup; [ -e pids.max ] || cd pids; cat pids.max; mkdir new 2>/dev/null || echo refused";
        bundle.sh(script).run()?.prints("321\nrefused")?;
        Ok(())
    }
);

test!(
    fn the_cgroup_mount_without_a_cgroup_namespace_is_still_the_containers_own(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let bundle = t
            .bundle()
            .without_namespace("cgroup")
            .set("/linux/resources/pids", serde_json::json!({"limit": 321}));
        let path = t.cgroup_of(&bundle.id).path;
        // In v2 the mount is of the whole tree then, as in runc; in v1 of the container's own part.
        let script =
            format!("cd /sys/fs/cgroup; [ -e cgroup.controllers ] && cd ./{path} || cd pids; cat pids.max");
        bundle.sh(&script).run()?.prints("321")?;
        Ok(())
    }
);

test!(
    fn a_writable_cgroup_mount_lets_the_container_make_cgroups_and_delete_removes_them(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let bundle = t.bundle().edit(|spec| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.retain(|mount| mount["type"] != "cgroup");
            }
        });
        let bundle = bundle.mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["rw", "nosuid", "noexec", "nodev"],
        );
        let script = "cd /sys/fs/cgroup; [ -e cgroup.controllers ] || cd pids; mkdir -p a/b && echo made; sleep 1000000";
        let container = bundle.sh(script).start()?;
        container.wait_for_output("made")?;
        container.verb("delete", &["--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn fifos_and_sockets_can_be_bound(t: &Test) -> Result {
        let fifo = t.path("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        let socket = t.path("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
        let bundle = t
            .bundle()
            .mount("/tmp/fifo", "bind", &fifo.to_string_lossy(), &["bind"]);
        let bundle = bundle.mount("/tmp/socket", "bind", &socket.to_string_lossy(), &["bind"]);
        bundle
            .sh("test -p /tmp/fifo && test -S /tmp/socket && echo both")
            .run()?
            .prints("both")?;
        Ok(())
    }
);
