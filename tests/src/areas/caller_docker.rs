//! `docker run`, with the runtime under test as a runtime of daemon.json, as users configure it.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::callers::docker::{RUNTIME, with_configured, with_docker};
use crate::callers::{everyday, isolation, limits};
use crate::test;
use crate::wait::until;

test!(
    fn docker_runs_a_container_with_its_streams_and_status(t: &Test) -> Result {
        with_docker(t, |docker| {
            let engine = &docker.engine;
            everyday::streams_and_status(engine)?;
            let name = engine.sleeper(&["--runtime", RUNTIME])?;
            engine.wait_for(
                &name,
                "{{.HostConfig.Runtime}} {{.State.Status}}",
                "tested running",
            )?;
            let info = engine.call(&["info", "--format", "{{.DefaultRuntime}}"])?;
            info.prints(RUNTIME)?;
            engine.remove(&name)
        })
    }
);

test!(
    fn docker_says_126_and_127_for_what_does_not_start(t: &Test) -> Result {
        with_docker(t, |docker| everyday::programs_that_do_not_start(&docker.engine))
    }
);

test!(
    fn docker_gives_terminals_to_run_and_exec(t: &Test) -> Result {
        with_docker(t, |docker| everyday::terminals(&docker.engine))
    }
);

test!(
    fn docker_executes_in_a_container(t: &Test) -> Result {
        with_docker(t, |docker| everyday::execs(&docker.engine))
    }
);

test!(
    fn docker_has_logs_stops_and_kills(t: &Test) -> Result {
        with_docker(t, |docker| everyday::logs_and_signals(&docker.engine))
    }
);

test!(
    fn docker_restarts_by_policy(t: &Test) -> Result {
        with_docker(t, |docker| {
            everyday::restarts(&docker.engine)?;
            everyday::created_then_started(&docker.engine)
        })
    }
);

test!(
    fn docker_limits_and_updates_a_container(t: &Test) -> Result {
        with_docker(t, |docker| {
            limits::limits(&docker.engine)?;
            limits::too_many_processes(&docker.engine)
        })
    }
);

test!(
    fn docker_knows_a_container_killed_for_memory(t: &Test) -> Result {
        with_docker(t, |docker| limits::out_of_memory(&docker.engine))
    }
);

test!(
    fn docker_pauses_and_shows_statistics_and_processes(t: &Test) -> Result {
        with_docker(t, |docker| limits::pause_statistics_and_processes(&docker.engine))
    }
);

test!(
    fn docker_checks_the_health_of_a_container(t: &Test) -> Result {
        with_docker(t, |docker| {
            let engine = &docker.engine;
            let check = [
                "--health-cmd",
                "test -e /tmp/well",
                "--health-interval",
                "1s",
                "--health-retries",
                "1",
            ];
            let name = engine.sleeper(&check)?;
            engine.wait_for(&name, "{{.State.Health.Status}}", "unhealthy")?;
            engine.exec(&name, &["touch", "/tmp/well"])?.ok()?;
            engine.wait_for(&name, "{{.State.Health.Status}}", "healthy")?;
            engine.remove(&name)
        })
    }
);

test!(
    fn docker_sets_users_capabilities_and_filters(t: &Test) -> Result {
        with_docker(t, |docker| isolation::users_and_privileges(&docker.engine))
    }
);

test!(
    fn docker_mounts_volumes_and_devices(t: &Test) -> Result {
        with_docker(t, |docker| isolation::mounts_and_devices(&docker.engine))
    }
);

test!(
    fn docker_shares_namespaces_and_adds_an_init(t: &Test) -> Result {
        with_docker(t, |docker| isolation::shared_namespaces(&docker.engine))
    }
);

test!(
    fn docker_builds_an_image(t: &Test) -> Result {
        with_docker(t, |docker| everyday::builds(&docker.engine, &[]))
    }
);

test!(
    fn docker_builds_an_image_by_buildkit(t: &Test) -> Result {
        with_docker(t, |docker| {
            // Since 23 its client is a plug-in.
            if docker.major()? >= 23 {
                t.skip("no docker-buildx")?;
            }
            let client = docker.engine.with_variable("DOCKER_BUILDKIT", "1");
            everyday::builds(&client, &[])
        })
    }
);

test!(
    fn docker_runs_many_at_once_which_reach_each_other(t: &Test) -> Result {
        with_docker(t, |docker| {
            let engine = &docker.engine;
            everyday::many_at_once(engine)?;
            // The network comes by a prestart hook (`libnetwork-setkey`).
            let server = engine.start(&[], &["sh", "-c", "echo hello | nc -l -p 80"])?;
            let address = engine.inspect(&server, "{{.NetworkSettings.IPAddress}}")?;
            until("the server to answer", || {
                let answer = engine.sh(&[], &format!("nc -w 5 {address} 80 < /dev/null"))?;
                Ok((answer.stdout == "hello\n").then_some(()))
            })?;
            engine.remove(&server)
        })
    }
);

test!(
    fn docker_finds_its_containers_after_a_crash(t: &Test) -> Result {
        with_configured(t, &json!({"live-restore": true}), |docker| {
            let engine = &docker.engine;
            let name = engine.sleeper(&["--restart", "no"])?;
            let pid = engine.pid(&name)?;
            docker.kill()?;
            docker.start_daemon()?;
            engine.wait_for(&name, "{{.State.Status}}", "running")?;
            ensure!(engine.pid(&name)? == pid, "another process");
            engine.exec(&name, &["echo", "in"])?.prints("in")?;
            engine.call(&["stop", "--time", "50", &name])?.ok()?;
            engine
                .call(&["wait", &name])?
                .prints("0")
                .context("after the crash")?;
            engine.remove(&name)
        })
    }
);
