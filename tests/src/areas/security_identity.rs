//! Who a process is: vulnerabilities in how runtimes read users, groups and capabilities, one test for each.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::ensure;
use serde_json::json;

use crate::host::process;
use crate::test;

test!(
    fn cve_2026_30892_a_user_that_is_not_exactly_numbers_is_never_run_as_root(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        for user in [
            "1000x",
            "1000:",
            "1000:x",
            "x1000",
            " 1000",
            "1000 ",
            "+1000",
            "0x3e8",
            "1e3",
            "1000,5",
            "--1",
            "1000:1000:0",
        ] {
            let output = container.exec_command(&["--user", user], &["id", "-u"]).run()?;
            ensure!(
                output.code != 0 || output.stdout.trim() == "1000",
                "--user {user:?}: {output}"
            );
        }
        Ok(())
    }
);

test!(
    fn cve_2025_27612_exec_has_no_capability_that_init_has_not(t: &Test) -> Result {
        for uid in [0, 1000] {
            let bundle = t
                .bundle()
                .set("/process/user", json!({"uid": uid, "gid": uid}))
                .sleeper();
            let container = bundle.start()?;
            let pid = container.pid()?;
            let output = container.exec(&["cat", "/proc/self/status"])?.ok()?;
            for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                let init = u64::from_str_radix(&process::status_field(pid, name)?, 16)?;
                let exec = u64::from_str_radix(output.value_of(name)?, 16)?;
                ensure!(
                    exec & !init == 0,
                    "uid {uid}, {name}: init {init:x}, exec {exec:x}"
                );
            }
        }
        Ok(())
    }
);

test!(
    fn cve_2024_40635_a_uid_beyond_the_range_is_never_root(t: &Test) -> Result {
        for uid in [
            2_147_483_648_u64,
            4_294_967_295,
            4_294_967_296,
            4_294_967_297,
            u64::MAX,
        ] {
            let bundle = t.bundle().set("/process/user", json!({"uid": uid, "gid": 1000}));
            let output = bundle.args(&["cat", "/proc/self/status"]).run()?;
            if output.code == 0 {
                ensure!(
                    output.value_of("Uid")?.starts_with(&uid.to_string()),
                    "uid {uid}\n{output}"
                );
            }
        }
        Ok(())
    }
);

test!(
    fn cve_2022_29162_the_inheritable_set_is_empty_in_run_and_exec(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let empty = |mask: &str| mask.chars().all(|digit| digit == '0');
        ensure!(empty(&process::status_field(container.pid()?, "CapInh")?));
        for flags in [&[] as &[&str], &["--cap", "CAP_NET_RAW"], &["--user", "1000"]] {
            let output = container
                .exec_command(flags, &["cat", "/proc/self/status"])
                .run()?
                .ok()?;
            ensure!(
                empty(output.value_of("CapInh")?) && empty(output.value_of("CapAmb")?),
                "{output}"
            );
        }
        Ok(())
    }
);

test!(
    fn the_passwd_of_the_image_may_be_a_symlink_and_the_hosts_is_not_read(t: &Test) -> Result {
        let host = t.path("host");
        fs::create_dir(&host)?;
        let passwd = host.join("passwd");
        fs::write(&passwd, "root:x:0:0::/from-the-host:/bin/sh\n")?;
        // By its path, and by a descriptor that the caller left open.
        for target in [passwd, "/proc/self/fd/6/passwd".into()] {
            let bundle = t
                .bundle()
                .set("/process/env", json!(["PATH=/bin"]))
                .sh("echo $HOME");
            fs::remove_file(bundle.rootfs().join("etc/passwd"))?;
            symlink(&target, bundle.rootfs().join("etc/passwd"))?;
            let output = bundle
                .command("run", &[])?
                .redirect(&format!("6<{}", host.display()))
                .run()?;
            ensure!(!output.stdout.contains("from-the-host"), "{target:?}: {output}");
        }
        Ok(())
    }
);

test!(
    fn a_passwd_that_is_a_fifo_or_endless_does_not_hang_the_runtime(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/env", json!(["PATH=/bin"]))
            .sh("echo home is $HOME");
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd)?;
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644))?;
        let output = bundle.run()?;
        ensure!(
            output.code != 0 || output.stdout.contains("home is /"),
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn cve_2026_47262_a_passwd_that_is_too_large_costs_no_memory(t: &Test) -> Result {
        t.needs_controller("memory")?;
        // The runtime reads it inside of the container's cgroup, for HOME: all of it would be too much.
        let bundle = t
            .bundle()
            .set("/process/env", json!(["PATH=/bin"]))
            .set("/linux/resources/memory", json!({"limit": 64 << 20}))
            .sh("echo home is $HOME");
        let passwd = fs::File::create(bundle.rootfs().join("etc/passwd"))?;
        passwd.set_len(1 << 30)?;
        bundle.run()?.ok()?.prints("home is /")?;
        Ok(())
    }
);
