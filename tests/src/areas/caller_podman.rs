//! `podman run`, with the runtime under test as a runtime of containers.conf; and what Podman alone has: pods, conmon.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::callers::podman::{TEMPORARY, with_podman};
use crate::callers::{everyday, isolation, limits};
use crate::host::process;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

test!(
    fn podman_runs_a_container_with_its_streams_and_status(t: &Test) -> Result {
        with_podman(t, |podman| {
            let engine = &podman.engine;
            everyday::streams_and_status(engine)?;
            // As README says it: by its path, with no configuration.
            let path = t.rtc.display().to_string();
            let by_path = engine
                .command(["--runtime", &path, "run", "--rm"])
                .args(podman.creating());
            by_path
                .args(["busybox", "echo", "by path"])
                .run()?
                .prints("by path")?;
            let missing = engine
                .command(["--runtime", &path, "run", "--rm"])
                .args(podman.creating());
            missing.args(["busybox", "nosuch"]).run()?.code(127)?;
            let info = engine.call(&[
                "info",
                "--format",
                "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}",
            ])?;
            info.prints(&format!("tested {path}"))?;
            Ok(())
        })
    }
);

test!(
    fn podman_says_126_and_127_for_what_does_not_start(t: &Test) -> Result {
        with_podman(t, |podman| everyday::programs_that_do_not_start(&podman.engine))
    }
);

test!(
    fn podman_gives_terminals_to_run_and_exec(t: &Test) -> Result {
        with_podman(t, |podman| everyday::terminals(&podman.engine))
    }
);

test!(
    fn podman_executes_in_a_container(t: &Test) -> Result {
        with_podman(t, |podman| everyday::execs(&podman.engine))
    }
);

test!(
    fn podman_has_logs_stops_and_kills(t: &Test) -> Result {
        with_podman(t, |podman| everyday::logs_and_signals(&podman.engine))
    }
);

test!(
    fn podman_restarts_by_policy(t: &Test) -> Result {
        with_podman(t, |podman| {
            everyday::restarts(&podman.engine)?;
            everyday::created_then_started(&podman.engine)
        })
    }
);

test!(
    fn podman_limits_and_updates_a_container(t: &Test) -> Result {
        with_podman(t, |podman| {
            limits::limits(&podman.engine)?;
            limits::too_many_processes(&podman.engine)
        })
    }
);

test!(
    fn podman_knows_a_container_killed_for_memory(t: &Test) -> Result {
        with_podman(t, |podman| limits::out_of_memory(&podman.engine))
    }
);

test!(
    fn podman_pauses_and_shows_statistics_and_processes(t: &Test) -> Result {
        with_podman(t, |podman| limits::pause_statistics_and_processes(&podman.engine))
    }
);

test!(
    fn podman_checks_the_health_of_a_container(t: &Test) -> Result {
        with_podman(t, |podman| {
            let engine = &podman.engine;
            // Without a timer of systemd's: asked for.
            let check = [
                "--health-cmd",
                "test -e /tmp/well",
                "--health-interval",
                "disable",
                "--health-retries",
                "1",
            ];
            let name = engine.sleeper(&check)?;
            engine.call(&["healthcheck", "run", &name])?.code(1)?;
            engine.exec(&name, &["touch", "/tmp/well"])?.ok()?;
            engine.call(&["healthcheck", "run", &name])?.ok()?;
            engine.remove(&name)
        })
    }
);

test!(
    fn podman_sets_users_capabilities_and_filters(t: &Test) -> Result {
        with_podman(t, |podman| isolation::users_and_privileges(&podman.engine))
    }
);

test!(
    fn podman_mounts_volumes_and_devices(t: &Test) -> Result {
        with_podman(t, |podman| isolation::mounts_and_devices(&podman.engine))
    }
);

test!(
    fn podman_shares_namespaces_and_adds_an_init(t: &Test) -> Result {
        with_podman(t, |podman| isolation::shared_namespaces(&podman.engine))
    }
);

test!(
    fn podman_builds_an_image(t: &Test) -> Result {
        with_podman(t, |podman| {
            let parent = t.cgroup.path.clone();
            everyday::builds(
                &podman.engine,
                &[
                    "--network",
                    "none",
                    "--isolation",
                    "oci",
                    "--cgroup-parent",
                    &parent,
                ],
            )
        })
    }
);

test!(
    fn podman_runs_many_at_once(t: &Test) -> Result {
        with_podman(t, |podman| everyday::many_at_once(&podman.engine))
    }
);

test!(
    fn conmon_keeps_pids_and_the_exit_code_in_files(t: &Test) -> Result {
        with_podman(t, |podman| {
            let engine = &podman.engine;
            let (pid, monitor, id) = (t.path("pid"), t.path("conmon.pid"), t.path("id"));
            let [pid_file, monitor_file, id_file] =
                [&pid, &monitor, &id].map(|path| path.display().to_string());
            let files = [
                "--pidfile",
                &pid_file,
                "--conmon-pidfile",
                &monitor_file,
                "--cidfile",
                &id_file,
            ];
            let name = engine.sleeper(&files)?;
            let number = |path| -> Result<i32> { Ok(fs::read_to_string(path)?.trim().parse()?) };
            ensure!(number(&pid)? == engine.pid(&name)?, "pid file");
            let conmon = number(&monitor)?;
            ensure!(fs::read_to_string(format!("/proc/{conmon}/comm"))?.trim() == "conmon");
            let full = fs::read_to_string(&id)?;
            ensure!(engine.inspect(&name, "{{.Id}}")? == full, "id file");
            // The exit directory is read, and emptied, by the clean-up that conmon calls.
            engine.exec(&name, &["sh", "-c", "kill -TERM 1"])?.ok()?;
            engine.wait_for(&name, "{{.State.Status}} {{.State.ExitCode}}", "exited 0")?;
            until("conmon to end", || Ok((!process::is_alive(conmon)).then_some(())))?;
            ensure!(
                Path::new(TEMPORARY).join("exits").is_dir(),
                "no directory of exits"
            );
            engine.remove(&name)
        })
    }
);

test!(
    fn a_container_killed_behind_podmans_back_is_found_ended(t: &Test) -> Result {
        with_podman(t, |podman| {
            let engine = &podman.engine;
            let name = engine.sleeper(&[])?;
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(engine.pid(&name)?),
                nix::sys::signal::Signal::SIGKILL,
            )?;
            engine.wait_for(&name, "{{.State.Status}} {{.State.ExitCode}}", "exited 137")?;
            engine.call(&["start", &name])?.ok()?;
            engine.exec(&name, &["true"])?.ok()?;
            engine.remove(&name)
        })
    }
);

test!(
    fn a_podman_pod_shares_namespaces_and_ends_as_one(t: &Test) -> Result {
        with_podman(t, |podman| {
            let engine = &podman.engine;
            let pod = t.id();
            let create = [
                "pod",
                "create",
                "--name",
                &pod,
                "--network",
                "none",
                "--hostname",
                "the-pod",
                "--share",
                "net,ipc,uts,pid",
            ];
            engine.command(create).args(podman.creating()).run()?.ok()?;
            let name = t.id();
            engine
                .call(&[
                    "run", "--detach", "--pod", &pod, "--name", &name, "busybox", "sleep", "1000",
                ])?
                .ok()?;
            let other = engine
                .call(&[
                    "run",
                    "--rm",
                    "--pod",
                    &pod,
                    "busybox",
                    "sh",
                    "-c",
                    "hostname; ps",
                ])?
                .ok()?;
            ensure!(
                other.stdout.starts_with("the-pod\n") && other.stdout.contains("sleep 1000"),
                "{other}"
            );
            engine.call(&["pod", "top", &pod])?.mentions("sleep 1000")?;
            engine.call(&["pod", "pause", &pod])?.ok()?;
            engine.wait_for(&name, "{{.State.Status}}", "paused")?;
            engine.call(&["pod", "unpause", &pod])?.ok()?;
            engine.call(&["pod", "stop", "--time", "1", &pod])?.ok()?;
            engine.wait_for(&name, "{{.State.Status}}", "exited")?;
            engine.call(&["pod", "start", &pod])?.ok()?;
            engine.exec(&name, &["hostname"])?.prints("the-pod")?;
            engine
                .call(&["pod", "rm", "--force", "--time", "0", &pod])?
                .ok()?;
            engine.call(&["pod", "ps", "--quiet"])?.prints("")?;
            Ok(())
        })
    }
);
