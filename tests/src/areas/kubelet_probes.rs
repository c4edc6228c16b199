//! Probes of each kind, as each of the three: what they find decides what the kubelet does.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::kubelet::{Node, STAY, busybox_with, manifest, with};
use crate::registry::Result;
use crate::test;

/// Looks often, and takes the first answer.
fn probe(how: &Value) -> Value {
    let mut probe = json!({"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20});
    for (key, value) in how.as_object().into_iter().flatten() {
        probe[key] = value.clone();
    }
    probe
}

/// A web server of the files in /www.
const WEB: &str = "mkdir /www; trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait";

fn ready(node: &Node<'_>, name: &str, wanted: bool) -> Result<crate::kubelet::StaticPod> {
    node.until_pod(name, if wanted { "ready" } else { "not ready" }, |pod| {
        let status = pod.container("main");
        status["ready"] == wanted && !status["state"]["running"].is_null()
    })
}

test!(
    fn a_web_server_is_ready_while_its_pages_are_there_and_is_restarted_when_it_is_not_alive(
        t: &Test,
    ) -> Result {
        with(t, |node| {
            let http = |path: &str| probe(&json!({"httpGet": {"path": path, "port": "web"}}));
            let mut startup = http("/started");
            startup["failureThreshold"] = json!(100);
            let main = busybox_with(
                "main",
                WEB,
                &json!({
                    "ports": [{"name": "web", "containerPort": 8080}],
                    "startupProbe": startup, "livenessProbe": http("/alive"), "readinessProbe": http("/ready"),
                }),
            );
            node.run(&manifest("web", json!({"containers": [main]})))?;
            let pod = node.until_pod("web", "running", |pod| {
                !pod.container("main")["state"]["running"].is_null()
            })?;
            ensure!(pod.container("main")["started"] == false, "{}", pod.0["status"]);
            // Neither liveness nor readiness counts before the start.
            node.exec(&pod, "main", "touch /www/alive; touch /www/started")?;
            let pod = node.until_pod("web", "started", |pod| pod.container("main")["started"] == true)?;
            ensure!(pod.restarts("main") == 0, "{}", pod.0["status"]);
            node.exec(&pod, "main", "touch /www/ready")?;
            let pod = ready(node, "web", true)?;
            node.exec(&pod, "main", "rm /www/ready")?;
            let pod = ready(node, "web", false)?;
            ensure!(pod.restarts("main") == 0, "{}", pod.0["status"]);
            node.exec(&pod, "main", "rm /www/alive")?;
            let pod = node.until_pod("web", "restarted", |pod| {
                pod.restarts("main") == 1 && !pod.container("main")["state"]["running"].is_null()
            })?;
            // The files went with the container.
            ensure!(node.exec(&pod, "main", "ls /www")?.is_empty());
            Ok(())
        })
    }
);

test!(
    fn probes_by_commands_and_connections_find_what_is_there(t: &Test) -> Result {
        with(t, |node| {
            let main = busybox_with(
                "main",
                STAY,
                &json!({
                    "startupProbe": probe(&json!({"exec": {"command": ["test", "!", "-e", "/sick"]}})),
                    "livenessProbe": probe(&json!({"exec": {"command": ["test", "!", "-e", "/sick"]}})),
                    "readinessProbe": probe(&json!({"tcpSocket": {"port": 8080}})),
                }),
            );
            node.run(&manifest("commands", json!({"containers": [main]})))?;
            let pod = ready(node, "commands", false)?;
            node.exec(&pod, "main", "mkdir /www; httpd -p 8080 -h /www")?;
            let pod = ready(node, "commands", true)?;
            node.exec(&pod, "main", "touch /sick")?;
            let pod = node.until_pod("commands", "restarted", |pod| pod.restarts("main") == 1)?;
            let ended = &pod.container("main")["lastState"]["terminated"];
            ensure!(ended["exitCode"] == 0, "{ended}");
            Ok(())
        })
    }
);

test!(
    fn a_probe_that_takes_too_long_is_a_failure_and_leaves_nothing_running(t: &Test) -> Result {
        with(t, |node| {
            let main = busybox_with(
                "main",
                STAY,
                &json!({"readinessProbe": {
                    "exec": {"command": ["sh", "-c", "echo x >>/tries; sleep 987"]},
                    "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1,
                }}),
            );
            node.run(&manifest("slow", json!({"containers": [main]})))?;
            let pod = ready(node, "slow", false)?;
            crate::wait::until("three tries", || {
                let tries = node.exec(&pod, "main", "cat /tries; true")?;
                Ok((tries.lines().count() >= 3).then_some(()))
            })?;
            let sleeping = node.exec(&pod, "main", "ps | grep -c '[s]leep 987'; true")?;
            ensure!(sleeping.parse::<u32>()? <= 2, "{sleeping} probes still run");
            Ok(())
        })
    }
);

test!(
    fn a_probe_by_grpc_asks_the_health_of_a_service(t: &Test) -> Result {
        with(t, |node| {
            let program = t.path("rtc-tests");
            t.link_shared("rtc-tests", &program)?;
            let main = busybox_with(
                "main",
                "exec /rtc-tests payload health 5000 /sick",
                &json!({
                    "volumeMounts": [{"name": "program", "mountPath": "/rtc-tests"}],
                    "readinessProbe": probe(&json!({"grpc": {"port": 5000, "service": "readiness"}})),
                }),
            );
            let spec = json!({
                "volumes": [{"name": "program", "hostPath": {"path": program, "type": "File"}}],
                "containers": [main],
            });
            let pod = node.up("grpc", spec)?;
            node.exec(&pod, "main", "touch /sick")?;
            ready(node, "grpc", false)?;
            node.exec(&pod, "main", "rm /sick")?;
            ready(node, "grpc", true)?;
            Ok(())
        })
    }
);
