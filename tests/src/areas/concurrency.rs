//! Many containers at once, and a full disk.

use std::fs::{self, File};
use std::io::Write;

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::registry::Result;
use crate::test;

test!(
    fn twenty_containers_run_at_once(t: &Test) -> Result {
        let mut running = Vec::new();
        for number in 0..20 {
            let bundle = t.bundle().sh(&format!("echo number {number}"));
            running.push((bundle.command("run", &[])?.spawn()?, number));
        }
        for (run, number) in running {
            run.wait()?.prints(&format!("number {number}"))?;
        }
        Ok(())
    }
);

test!(
    fn ten_containers_are_created_started_listed_and_deleted_at_once(t: &Test) -> Result {
        let bundles: Vec<_> = (0..10).map(|_| t.bundle().sleeper()).collect();
        for verb in ["create", "start", "list", "kill", "delete"] {
            let calls: Result<Vec<_>> = bundles
                .iter()
                .map(|bundle| match verb {
                    "create" => {
                        t.delete_at_end(&bundle.id);
                        bundle.command("create", &[])?.spawn()
                    }
                    "list" => t.command(["list"]).spawn(),
                    "kill" => t.command(["kill", &bundle.id, "KILL"]).spawn(),
                    "delete" => t.command(["delete", "--force", &bundle.id]).spawn(),
                    verb => t.command([verb, &bundle.id]).spawn(),
                })
                .collect();
            for call in calls? {
                call.wait()?.ok().with_context(|| verb)?;
            }
        }
        t.rtc(["list", "-q"])?.prints("")?;
        Ok(())
    }
);

test!(
    fn list_while_containers_come_and_go_never_fails(t: &Test) -> Result {
        let bundle = t.bundle();
        let mut lists = Vec::new();
        for _ in 0..10 {
            let run = bundle.command("run", &[])?.spawn()?;
            lists.push(t.command(["list"]).spawn()?);
            lists.push(t.command(["list", "-f", "json"]).spawn()?);
            run.wait()?.ok()?;
        }
        for list in lists {
            list.wait()?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn a_full_disk_under_root_fails_the_create_and_leaves_nothing(t: &Test) -> Result {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        let root = t.path("small");
        fs::create_dir(&root)?;
        mount(
            Some("tmpfs"),
            &root,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )
        .context("small tmpfs")?;
        let filler = root.join(".filler");
        let mut file = File::create(&filler)?;
        while file.write_all(&[1; 4096]).is_ok() {}
        drop(file);

        let bundle = t.bundle().sleeper();
        bundle.write()?;
        let run = |verb| {
            t.bare(["--root"])
                .args([&root])
                .args([verb, "--bundle"])
                .args([&bundle.directory])
                .args([&bundle.id])
        };
        for verb in ["create", "run"] {
            run(verb).run()?.fails_naming(&["No space left on device"])?;
        }
        fs::remove_file(&filler)?;
        let left: Vec<_> = fs::read_dir(&root)?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "{left:?}");
        run("create").run()?.ok().context("after space was made")?;
        t.bare(["--root"])
            .args([&root])
            .args(["delete", "--force", &bundle.id])
            .run()?
            .ok()?;
        umount2(&root, MntFlags::MNT_DETACH)?;
        Ok(())
    }
);

test!(
    fn a_runtime_killed_in_the_middle_of_create_leaves_what_delete_removes(t: &Test) -> Result {
        for round in 0..12_u64 {
            let bundle = t.bundle().sleeper();
            let create = bundle.command("create", &[])?.spawn()?;
            let pid = nix::unistd::Pid::from_raw(create.pid());
            // Different moments: the sleep only spreads the kills, nothing depends on where they hit.
            std::thread::sleep(std::time::Duration::from_micros(round * 700));
            // Gone already is as good.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            create.wait()?;
            t.rtc(["delete", "--force", &bundle.id])?
                .ok()
                .with_context(|| format!("round {round}"))?;
            ensure!(
                !t.root.join(&bundle.id).exists(),
                "round {round}: the state stays"
            );
        }
        Ok(())
    }
);
