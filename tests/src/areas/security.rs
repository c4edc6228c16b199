//! One test per vulnerability that container runtimes have had (the mechanism, not somebody's exploit): what must not
//! happen is looked for; whether the container is refused or runs harmlessly is the runtime's choice.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Context, ensure};
use serde_json::json;

use super::namespaces::with_user_namespace;
use crate::bundle::Bundle;
use crate::host::{mounts, process};
use crate::registry::Result;
use crate::terminal::{Terminal, listen};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A file on the host whose content no container must be able to print.
fn secret(t: &Test) -> Result<(String, String)> {
    let path = t.path("secret");
    let content = format!("secret of {}", t.unique);
    fs::write(&path, &content)?;
    Ok((path.to_string_lossy().into_owned(), content))
}

/// Takes a mount out of the configuration.
pub(super) fn without_mount<'t>(bundle: Bundle<'t>, destination: &str) -> Bundle<'t> {
    bundle.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.retain(|mount| {
                let own = mount["destination"].as_str().unwrap_or_default();
                own != destination && !own.starts_with(&format!("{destination}/"))
            });
        }
    })
}

const ALL_POWERFUL: [&str; 6] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_CHOWN",
    "CAP_MKNOD",
];

test!(
    fn cve_2019_5736_the_runtimes_own_file_cannot_be_overwritten_from_a_container(t: &Test) -> Result {
        // A copy of the runtime, so that a success of the attack hurts nobody.
        let copy = t.path("bin");
        fs::create_dir(&copy)?;
        let copy = copy.join(t.rtc.file_name().context("name")?);
        fs::copy(&t.rtc, &copy)?;
        let before = fs::read(&copy)?;

        let bundle = t.bundle().writable().capabilities(&ALL_POWERFUL).sleeper();
        t.delete_at_end(&bundle.id);
        bundle.command("create", &[])?.program(&copy).run()?.ok()?;
        let state = t.rtc(["state", &bundle.id])?.ok()?;
        let init = serde_json::from_str::<serde_json::Value>(&state.stdout)?["pid"]
            .as_i64()
            .context("pid")?;
        // Takes hold of the waiting init's executable, waits until nobody runs it any more, and then writes.
        let script = "exec 3</proc/1/exe && echo held; : >/tmp/holding; while [ ! -e /tmp/go ]; do sleep 0.02; done; \
            echo overwritten 2>/dev/null >>/proc/self/fd/3; echo overwritten 2>/dev/null >>/proc/1/exe; : >/tmp/done";
        t.command(["exec", "--detach", &bundle.id, "sh", "-c", script])
            .program(&copy)
            .run()?
            .ok()?;
        let tmp = bundle.rootfs().join("tmp");
        until("the attacker to hold the file", || {
            Ok(tmp.join("holding").exists().then_some(()))
        })?;
        t.rtc(["start", &bundle.id])?.ok()?;
        until("the program to run", || {
            Ok(process::describe(i32::try_from(init)?)
                .contains("sleep")
                .then_some(()))
        })?;
        fs::write(tmp.join("go"), "")?;
        until("the attack", || Ok(tmp.join("done").exists().then_some(())))?;
        ensure!(
            fs::read(&copy)? == before,
            "the runtime's file was changed from inside a container"
        );
        Ok(())
    }
);

test!(
    fn cve_2019_5736_a_script_whose_interpreter_is_proc_self_exe_changes_nothing(t: &Test) -> Result {
        let copy = t.path("runtime");
        fs::copy(&t.rtc, &copy)?;
        let before = fs::read(&copy)?;
        let bundle = t.bundle().writable().args(&["/bin/evil"]);
        let evil = bundle.rootfs().join("bin/evil");
        fs::write(&evil, "#!/proc/self/exe\n")?;
        fs::set_permissions(&evil, fs::Permissions::from_mode(0o755))?;
        let output = bundle.command("run", &[])?.program(&copy).run()?;
        ensure!(output.code != 0, "{output}");
        ensure!(fs::read(&copy)? == before, "the runtime's file was changed");
        Ok(())
    }
);

test!(
    fn cve_2024_21626_no_working_directory_reaches_the_host_through_a_leaked_descriptor(t: &Test) -> Result {
        let (path, content) = secret(t)?;
        let script = format!("cat ../../../../../../../../../..{path}; cat .{path}");
        for descriptor in 3..12 {
            for cwd in [format!("/proc/self/fd/{descriptor}"), "/link".to_owned()] {
                let bundle = t.bundle().set("/process/cwd", json!(cwd)).sh(&script);
                symlink(
                    format!("/proc/self/fd/{descriptor}"),
                    bundle.rootfs().join("link"),
                )?;
                let output = bundle.command("run", &[])?.redirect("6</ 7</").run()?;
                ensure!(!output.stdout.contains(&content), "cwd {cwd}: {output}");
            }
        }
        Ok(())
    }
);

test!(
    fn cve_2024_21626_exec_neither(t: &Test) -> Result {
        let (path, content) = secret(t)?;
        let container = t.bundle().sleeper().start()?;
        let script = format!("cat ../../../../../../../../../..{path}; cat .{path}");
        for descriptor in 3..12 {
            let cwd = format!("/proc/self/fd/{descriptor}");
            let output = container
                .exec_command(&["--cwd", &cwd], &["sh", "-c", &script])
                .redirect("6</ 7</")
                .run()?;
            ensure!(!output.stdout.contains(&content), "{output}");
        }
        Ok(())
    }
);

test!(
    fn cve_2024_21626_no_directory_is_made_on_the_host_for_a_working_directory(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        // All that the runtime holds open itself: its state, cgroups, the bundle. From there up, and down again.
        for descriptor in 3..24 {
            for way in ["", "../../../../../../../../../.."] {
                let below = if way.is_empty() {
                    ""
                } else {
                    outside.to_str().context("path")?
                };
                let cwd = format!("/proc/self/fd/{descriptor}/{way}{below}/made/{descriptor}");
                let bundle = t.bundle().set("/process/cwd", json!(cwd));
                let output = bundle
                    .command("run", &[])?
                    .redirect(&format!("6<{}", outside.display()))
                    .run()?;
                ensure!(output.code != 0, "cwd {cwd}: {output}");
                let made: Vec<_> = fs::read_dir(&outside)?
                    .flatten()
                    .map(|entry| entry.path())
                    .collect();
                ensure!(made.is_empty(), "cwd {cwd}: made outside: {made:?}");
            }
        }
        Ok(())
    }
);

test!(
    fn cve_2024_5154_a_link_that_the_image_has_for_a_directory_leads_no_link_outside(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        let table = t.path("mtab");
        symlink("/proc/mounts", &table)?;
        let bundle = t.bundle().writable().mount(
            "/link/mtab",
            "bind",
            &table.to_string_lossy(),
            &["bind", "copy-symlink"],
        );
        symlink(&outside, bundle.rootfs().join("link"))?;
        bundle.run()?;
        let made: Vec<_> = fs::read_dir(&outside)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(made.is_empty(), "made outside: {made:?}");
        Ok(())
    }
);

test!(
    fn cve_2019_16884_a_volume_does_not_take_the_place_of_proc_or_of_a_part_of_it(t: &Test) -> Result {
        let volume = t.path("volume");
        fs::create_dir_all(volume.join("self/attr"))?;
        fs::write(volume.join("self/attr/exec"), "untouched")?;
        let source = volume.to_string_lossy();
        for destination in ["/proc", "/data", "/data/sys"] {
            let bundle = t.bundle().mount(destination, "bind", &source, &["bind"]);
            symlink("/proc", bundle.rootfs().join("data"))?;
            let output = bundle.sh("cat /proc/self/attr/exec").run()?;
            ensure!(
                output.code != 0 && !output.stdout.contains("untouched"),
                "{destination}: {output}"
            );
            ensure!(fs::read_to_string(volume.join("self/attr/exec"))? == "untouched");
        }
        Ok(())
    }
);

test!(
    fn cve_2023_28642_proc_as_a_symlink_into_a_volume_is_refused(t: &Test) -> Result {
        let volume = t.path("volume");
        fs::create_dir_all(volume.join("proc/self/attr"))?;
        fs::write(volume.join("proc/self/attr/exec"), "untouched")?;
        let bundle = t.bundle().edit(|spec| {
            let mount = json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["bind"]});
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.insert(0, mount);
            }
        });
        fs::remove_dir(bundle.rootfs().join("proc"))?;
        symlink("/vol/proc", bundle.rootfs().join("proc"))?;
        bundle.run()?.fails_naming(&["proc"])?;
        ensure!(fs::read_to_string(volume.join("proc/self/attr/exec"))? == "untouched");
        Ok(())
    }
);

test!(
    fn cve_2023_25809_control_groups_that_are_read_only_are_so_in_a_user_namespace(t: &Test) -> Result {
        // Without a cgroup namespace the kernel gives no new mount: the host's is bound, and has to be read-only as well.
        for own_namespace in [true, false] {
            let bundle = with_user_namespace(t)?.capabilities(&ALL_POWERFUL);
            let bundle = if own_namespace {
                bundle
            } else {
                bundle.without_namespace("cgroup")
            };
            let container = bundle.sleeper().start()?;
            let mounts = mounts::of(&container.pid()?.to_string())?;
            let writable: Vec<_> = mounts
                .iter()
                .filter(|mount| mount.kind.starts_with("cgroup") && !mount.has("ro"))
                .collect();
            ensure!(writable.is_empty(), "{writable:?}");
            let output = container.exec(&["sh", "-c", "mkdir /sys/fs/cgroup/made /sys/fs/cgroup/*/made"])?;
            ensure!(output.code != 0, "{output}");
        }
        Ok(())
    }
);

test!(
    fn cve_2025_31133_a_dev_null_of_the_images_making_does_not_unmask_or_redirect(t: &Test) -> Result {
        let bundle =
            without_mount(t.bundle().writable(), "/dev").set("/linux/maskedPaths", json!(["/etc/masked"]));
        fs::write(bundle.rootfs().join("etc/masked"), "should be hidden")?;
        fs::write(bundle.rootfs().join("etc/victim"), "victim")?;
        symlink("/etc/victim", bundle.rootfs().join("dev/null"))?;
        let victim = bundle.rootfs().join("etc/victim");
        let output = bundle
            .sh("cat /etc/masked; echo; [ -c /etc/masked ] && echo device")
            .run()?;
        let harmless =
            output.code != 0 || !(output.stdout.contains("hidden") || output.stdout.contains("victim"));
        ensure!(harmless, "{output}");
        ensure!(fs::read_to_string(victim)? == "victim");
        Ok(())
    }
);

test!(
    fn cve_2025_52565_a_dev_console_symlink_does_not_carry_the_terminal_elsewhere(t: &Test) -> Result {
        let socket = t.path("console");
        let listener = listen(&socket)?;
        // The image's own /dev, with a devpts in it: else there is no terminal to be carried anywhere.
        let bundle = t.bundle().writable().edit(|spec| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.retain(|mount| mount["destination"] != "/dev");
            }
        });
        let bundle = bundle.set("/process/terminal", json!(true));
        fs::write(bundle.rootfs().join("etc/victim"), "victim")?;
        symlink("/etc/victim", bundle.rootfs().join("dev/console"))?;
        let bundle = bundle.sh("stat -c 'type: %F' /etc/victim; sleep 1000000");
        let output = bundle
            .command(
                "run",
                &["--detach", "--console-socket", &socket.to_string_lossy()],
            )?
            .run()?;
        t.delete_at_end(&bundle.id);
        if output.code == 0 {
            let mut terminal = Terminal::receive(&listener)?;
            let text = terminal.wait_for("type: ")?;
            until("the whole line", || {
                Ok(terminal.wait_for("type: ")?.contains('e').then_some(()))
            })?;
            ensure!(!text.contains("character"), "{text}");
        }
        Ok(())
    }
);

test!(
    fn cve_2025_52881_writes_to_proc_are_not_redirected_to_a_file_of_the_images(t: &Test) -> Result {
        let bundle = without_mount(t.bundle().writable(), "/proc")
            .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        let fake = bundle.rootfs().join("proc/sys/net/ipv4");
        fs::create_dir_all(&fake)?;
        fs::write(fake.join("ip_forward"), "untouched")?;
        bundle.run()?;
        ensure!(
            fs::read_to_string(fake.join("ip_forward"))? == "untouched",
            "the parameter was written to the image's file"
        );
        Ok(())
    }
);

test!(
    fn cve_2025_52881_nothing_of_the_hosts_is_bound_over_parts_of_proc(t: &Test) -> Result {
        let directory = t.path("fake");
        fs::create_dir(&directory)?;
        let file = t.path("fake");
        fs::write(&file, "fake")?;
        for (destination, source) in [
            ("/proc/sys/kernel", &directory),
            ("/proc/1/attr", &directory),
            ("/proc/sysrq-trigger", &file),
            ("/proc/self/attr/exec", &file),
        ] {
            let bundle = t
                .bundle()
                .mount(destination, "bind", &source.to_string_lossy(), &["bind"]);
            bundle
                .run()?
                .fails_naming(&[destination])
                .with_context(|| destination)?;
        }
        Ok(())
    }
);

test!(
    fn cve_2026_41579_a_dev_that_is_a_symlink_does_not_write_outside(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        for (target, with_tmpfs) in [("", true), ("", false), ("/vol", true), ("/vol", false)] {
            let bundle = t.bundle().writable();
            let bundle = if with_tmpfs {
                bundle
            } else {
                without_mount(bundle, "/dev")
            };
            // A volume is where the image can reach the host.
            let source = outside.to_string_lossy();
            let bundle = bundle.mount("/vol", "bind", &source, &["bind"]);
            fs::remove_dir(bundle.rootfs().join("dev"))?;
            let target = if target.is_empty() { &source } else { target };
            symlink(target, bundle.rootfs().join("dev"))?;
            bundle.run()?;
            let made: Vec<_> = fs::read_dir(&outside)?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            ensure!(made.is_empty(), "made outside: {made:?}");
        }
        Ok(())
    }
);

test!(
    fn cve_2025_52565_a_terminal_is_never_made_in_the_devpts_of_the_host(t: &Test) -> Result {
        let socket = t.path("console");
        let _listener = listen(&socket)?;
        let bundle = without_mount(t.bundle().writable(), "/dev").set("/process/terminal", json!(true));
        symlink("/proc/self/fd/6", bundle.rootfs().join("dev/pts"))?;
        let bundle = bundle.sleeper();
        let output = bundle
            .command(
                "run",
                &["--detach", "--console-socket", &socket.to_string_lossy()],
            )?
            .redirect("6</dev/pts")
            .run();
        t.delete_at_end(&bundle.id);
        output
            .and_then(|output| output.fails_naming(&["/dev/pts"]))
            .map(drop)
    }
);

test!(
    fn cve_2025_54867_proc_or_sys_as_a_symlink_is_refused(t: &Test) -> Result {
        let outside = t.path("outside");
        fs::create_dir(&outside)?;
        for name in ["proc", "sys"] {
            let bundle = t.bundle();
            fs::remove_dir(bundle.rootfs().join(name))?;
            symlink(&outside, bundle.rootfs().join(name))?;
            bundle.run()?.fails_naming(&[name])?;
        }
        Ok(())
    }
);

test!(
    fn cve_2023_27561_proc_as_a_symlink_inside_the_rootfs_is_refused(t: &Test) -> Result {
        let bundle = t.bundle();
        fs::remove_dir(bundle.rootfs().join("proc"))?;
        fs::create_dir_all(bundle.rootfs().join("home/fake/proc"))?;
        symlink("/home/fake/proc", bundle.rootfs().join("proc"))?;
        bundle
            .run()?
            .fails_with(&["must be mounted on ordinary directory"])?;
        Ok(())
    }
);

test!(
    fn the_waiting_init_cannot_be_traced_from_a_container_in_its_pid_namespace(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        let script =
            "ls /proc/1/root/ 2>&1; readlink /proc/1/exe; readlink /proc/1/cwd; cat /proc/1/environ 2>&1";
        let output = container.exec(&["sh", "-c", script])?;
        let leaked =
            output.stdout.contains("RTC_TESTS") || output.stdout.contains(&*t.root.to_string_lossy());
        ensure!(!leaked, "{output}");
        Ok(())
    }
);

test!(
    fn a_created_container_sees_neither_command_line_nor_environment_of_the_caller(t: &Test) -> Result {
        const SECRET: &str = "secret-of-the-caller";
        for capabilities in [&["CAP_KILL"] as &[&str], &["CAP_SYS_PTRACE"]] {
            let bundle = t.bundle().sleeper().capabilities(capabilities);
            t.delete_at_end(&bundle.id);
            let create = bundle.command("create", &[])?.env("RTC_TESTS_SECRET", SECRET);
            create.run()?.ok()?;
            let script = "tr '\\0' ' ' </proc/1/cmdline; tr '\\0' ' ' </proc/1/environ";
            let output = t.rtc(["exec", &bundle.id, "sh", "-c", script])?;
            let (root, directory) = (t.root.to_string_lossy(), bundle.directory.to_string_lossy());
            for own in [SECRET, "RTC_TESTS", "--bundle", &bundle.id, &*root, &*directory] {
                ensure!(!output.stdout.contains(own), "{capabilities:?}: {own}: {output}");
            }
        }
        Ok(())
    }
);
