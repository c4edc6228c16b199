//! Less usual attributes of the process: scheduler, I/O priority, CPU affinity of exec, personality, keyring, AppArmor.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;

use crate::registry::Result;
use crate::sys;
use crate::test;
use crate::test::Test;

/// nice and scheduling policy (SCHED_BATCH is 3, SCHED_IDLE 5), fields 19 and 41 of proc_pid_stat(5).
const SCHEDULING: [&str; 5] = ["cut", "-d", " ", "-f19,41", "/proc/self/stat"];

test!(
    fn the_scheduler_is_the_configured_one(t: &Test) -> Result {
        // Nicer than whoever runs these tests may be: the other direction needs a capability.
        for (scheduler, expected) in [
            (json!({"policy": "SCHED_BATCH", "nice": 18}), "18 3"),
            (json!({"policy": "SCHED_OTHER", "nice": 19}), "19 0"),
        ] {
            let bundle = t.bundle().set("/process/scheduler", scheduler.clone());
            bundle
                .args(&SCHEDULING)
                .run()?
                .prints(expected)
                .with_context(|| scheduler.to_string())?;
        }
        let output = t
            .bundle()
            .set("/process/scheduler", json!({"policy": "SCHED_IDLE"}))
            .args(&SCHEDULING)
            .run()?
            .ok()?;
        ensure!(output.stdout.trim().ends_with(" 5"), "{output}");
        Ok(())
    }
);

test!(
    fn an_unknown_scheduling_policy_is_refused_by_name(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/scheduler", json!({"policy": "SCHED_LAZY"}));
        bundle.run()?.fails_naming(&["SCHED_LAZY"])?;
        Ok(())
    }
);

test!(
    fn the_io_priority_is_the_configured_one(t: &Test) -> Result {
        for (class, priority, expected) in [
            ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
            ("IOPRIO_CLASS_IDLE", 0, "idle"),
        ] {
            let bundle = t.bundle().set(
                "/process/ioPriority",
                json!({"class": class, "priority": priority}),
            );
            bundle.args(&["ionice"]).run()?.mentions(expected)?;
        }
        Ok(())
    }
);

test!(
    fn an_unknown_io_priority_class_is_refused_by_name(t: &Test) -> Result {
        let bundle = t.bundle().set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_LAZY", "priority": 1}),
        );
        bundle.run()?.fails_naming(&["IOPRIO_CLASS_LAZY"])?;
        Ok(())
    }
);

test!(
    fn exec_runs_on_the_cpus_of_its_affinity(t: &Test) -> Result {
        let container = t
            .bundle()
            .set("/process/execCPUAffinity", json!({"initial": "0", "final": "0"}))
            .sleeper()
            .start()?;
        container
            .exec(&["grep", "Cpus_allowed_list", "/proc/self/status"])?
            .prints("Cpus_allowed_list:\t0")?;
        Ok(())
    }
);

test!(
    fn the_personality_is_the_configured_one_in_run_and_exec(t: &Test) -> Result {
        // PER_LINUX32 is 8, personality(2); not every kernel lets uname(1) show it.
        let personality = ["cat", "/proc/self/personality"];
        let bundle = t.bundle().set("/linux/personality", json!({"domain": "LINUX32"}));
        bundle.args(&personality).run()?.prints("00000008")?;
        let bundle = t.bundle().set("/linux/personality", json!({"domain": "LINUX32"}));
        bundle.sleeper().start()?.exec(&personality)?.prints("00000008")?;
        let bundle = t.bundle().set("/linux/personality", json!({"domain": "LINUX"}));
        bundle.args(&personality).run()?.prints("00000000")?;
        Ok(())
    }
);

test!(
    fn a_container_has_a_session_keyring_of_its_own_unless_told_not_to(t: &Test) -> Result {
        let Some(own) = sys::session_keyring() else {
            return t.skip("no keyrings in this kernel");
        };
        let bundle = t.bundle().payload(&["keyring"]);
        let fresh = bundle.run()?.ok()?;
        ensure!(fresh.stdout.trim() != own.to_string(), "{fresh}");
        bundle
            .command("run", &["--no-new-keyring"])?
            .run()?
            .prints(&own.to_string())?;
        Ok(())
    }
);

/// Loads an AppArmor profile that denies writing one file; skips where there is no AppArmor.
fn load_profile(t: &Test) -> Result<String> {
    if !Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        t.skip("no AppArmor")?;
    }
    let name = format!("rtc-test-{}", t.unique);
    let rules = "file, network, capability, mount, umount, signal, ptrace, unix, deny /tmp/forbidden w,";
    let text = format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n");
    parser("--replace", &text)?;
    Ok(name)
}

fn parser(action: &str, text: &str) -> Result {
    let mut parser = Command::new("apparmor_parser");
    let mut child = parser
        .arg(action)
        .stdin(Stdio::piped())
        .spawn()
        .context("apparmor_parser")?;
    child.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "apparmor_parser {action}");
    Ok(())
}

test!(
    fn the_apparmor_profile_confines_run_and_exec(t: &Test) -> Result {
        let name = load_profile(t)?;
        let bundle =
            t.bundle()
                .set("/process/apparmorProfile", json!(name))
                .mount("/tmp", "tmpfs", "tmpfs", &[]);
        let container = bundle
            .sh("cat /proc/self/attr/current; echo >/tmp/forbidden || echo denied; sleep 1000000")
            .start()?;
        container.wait_for_output("denied")?;
        ensure!(
            container.stdout()?.starts_with(&format!("{name} (enforce)")),
            "{}",
            container.stdout()?
        );
        container
            .exec(&["cat", "/proc/self/attr/current"])?
            .mentions(&name)?;
        container.verb("delete", &["--force"])?.ok()?;
        parser("--remove", &format!("profile {name} {{}}\n"))
    }
);

test!(
    fn an_apparmor_profile_that_is_not_loaded_is_refused_by_name(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/process/apparmorProfile", json!("no-such-profile"));
        let output = bundle.run()?;
        // Where the kernel has no AppArmor the profile is refused as well, or there is nothing it could confine.
        if Path::new("/sys/kernel/security/apparmor/profiles").exists() || output.code != 0 {
            output.fails_naming(&["no-such-profile"])?;
        }
        Ok(())
    }
);

test!(
    fn a_pidfd_of_init_is_sent_over_the_pidfd_socket(t: &Test) -> Result {
        let path = t.path("pidfd");
        let listener = crate::terminal::listen(&path)?;
        let bundle = t.bundle().sleeper();
        t.delete_at_end(&bundle.id);
        let create = bundle
            .command("create", &["--pidfd-socket", &path.to_string_lossy()])?
            .spawn()?;
        let descriptors = crate::terminal::receive(&listener)?;
        create.wait()?.ok()?;
        let state: serde_json::Value = serde_json::from_str(&t.rtc(["state", &bundle.id])?.ok()?.stdout)?;
        is_pidfd_of(&descriptors, &state["pid"].to_string())
    }
);

/// What was sent is one pidfd, of this process.
fn is_pidfd_of(descriptors: &[OwnedFd], pid: &str) -> Result {
    ensure!(descriptors.len() == 1, "{} descriptors", descriptors.len());
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptors[0].as_raw_fd()))?;
    ensure!(info.contains(&format!("Pid:\t{pid}\n")), "{info} {pid}");
    Ok(())
}

test!(
    fn run_and_exec_send_a_pidfd_of_the_process_they_start(t: &Test) -> Result {
        let path = t.path("pidfd");
        let listener = crate::terminal::listen(&path)?;
        let pid_file = t.path("pid");
        let (socket, pid_path) = (path.to_string_lossy(), pid_file.to_string_lossy());
        let flags = ["--detach", "--pidfd-socket", &socket, "--pid-file", &pid_path];
        let bundle = t.bundle().sleeper();
        t.delete_at_end(&bundle.id);
        let run = bundle.command("run", &flags)?.spawn()?;
        let descriptors = crate::terminal::receive(&listener)?;
        run.wait()?.ok()?;
        is_pidfd_of(&descriptors, &fs::read_to_string(&pid_file)?)?;
        fs::remove_file(&pid_file)?;
        let exec = t.command(["exec"]).args(flags);
        let exec = exec.args([&bundle.id, "sleep", "1000000"]).spawn()?;
        let descriptors = crate::terminal::receive(&listener)?;
        exec.wait()?.ok()?;
        is_pidfd_of(&descriptors, &fs::read_to_string(&pid_file)?)
    }
);

test!(
    fn exec_takes_an_apparmor_profile_of_its_own(t: &Test) -> Result {
        let name = load_profile(t)?;
        let bundle = t.bundle().mount("/tmp", "tmpfs", "tmpfs", &[]).sleeper();
        let container = bundle.start()?;
        let script = "cat /proc/self/attr/current; echo >/tmp/forbidden || echo denied";
        let confined = container
            .exec_command(&["--apparmor", &name], &["sh", "-c", script])
            .run()?
            .ok()?;
        ensure!(
            confined.lines() == [&format!("{name} (enforce)"), "denied"],
            "{confined}"
        );
        container
            .exec(&["sh", "-c", "echo >/tmp/forbidden && echo written"])?
            .prints("written")?;
        container.verb("delete", &["--force"])?.ok()?;
        parser("--remove", &format!("profile {name} {{}}\n"))
    }
);

/// Numbers in a list of CPUs as the kernel writes it (`0-2,5`).
fn cpus(list: &str) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        found.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(found)
}

test!(
    fn a_caller_that_is_bound_to_one_cpu_does_not_bind_the_container(t: &Test) -> Result {
        let itself = Pid::from_raw(0);
        let allowed = sched_getaffinity(itself)?;
        let mut all = Vec::new();
        for cpu in 0..CpuSet::count() {
            all.extend(allowed.is_set(cpu)?.then_some(cpu));
        }
        if all.len() < 2 {
            t.skip("one CPU")?;
        }
        let mut one = CpuSet::new();
        one.set(all[0])?;
        sched_setaffinity(itself, &one)?;
        let list = ["sed", "-n", "s/^Cpus_allowed_list://p", "/proc/self/status"];
        let ran = t.bundle().args(&list).run()?.ok()?;
        let executed = t.bundle().sleeper().start()?.exec(&list)?.ok()?;
        for output in [ran, executed] {
            let found = cpus(&output.stdout)?;
            ensure!(all.iter().all(|cpu| found.contains(cpu)), "{all:?}: {output}");
        }
        Ok(())
    }
);
