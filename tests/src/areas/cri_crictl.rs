//! crictl against a CRI server, as a person uses it.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cri::{BUSYBOX, Cri, only_ours, with};
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// The answer in JSON.
fn json_of(output: Output) -> Result<Value> {
    let output = output.ok()?;
    serde_json::from_str(&output.stdout).with_context(|| output.to_string())
}

/// Files as a person writes them: a pod's, and a container's that runs this script.
fn files(cri: &Cri<'_>, script: &str) -> Result<[String; 2]> {
    let logs = cri.t.path("logs");
    fs::create_dir(&logs)?;
    let pod = json!({
        "metadata": {"name": "web", "namespace": "tests", "uid": cri.t.unique, "attempt": 0},
        "hostname": "web",
        "log_directory": logs,
        "labels": {"app": "web"},
        "linux": {"cgroup_parent": cri.t.cgroup.path},
    });
    let container = json!({
        "metadata": {"name": "web"},
        "image": {"image": BUSYBOX},
        "command": ["sh", "-c", script],
        "log_path": "web.log",
        "linux": {},
    });
    let mut paths = Vec::new();
    for value in [pod, container] {
        let path = cri.t.path("config.json");
        fs::write(&path, value.to_string())?;
        paths.push(path.display().to_string());
    }
    Ok([paths[0].clone(), paths[1].clone()])
}

/// `crictl` with these words: what it printed, without white space at the ends.
fn said(cri: &Cri<'_>, args: &[&str]) -> Result<String> {
    Ok(cri.crictl(args)?.ok()?.stdout.trim().to_owned())
}

test!(
    fn a_person_runs_looks_into_and_removes_a_pod_with_crictl(t: &Test) -> Result {
        with(t, |cri| {
            cri.start_registry()?;
            cri.crictl(&["pull", BUSYBOX])?.mentions("up to date")?;
            let [pod_file, container_file] = files(cri, "echo hello; sleep 1000")?;
            let pod = said(cri, &["runp", &pod_file])?;
            cri.crictl(&["pods", "--quiet", "--no-trunc"])?.prints(&pod)?;
            let container = said(cri, &["create", "--no-pull", &pod, &container_file, &pod_file])?;
            cri.crictl(&["ps", "--all"])?.mentions("Created")?;
            said(cri, &["start", &container])?;
            cri.crictl(&["ps"])?.mentions("Running")?;
            // The first digits are enough for a person.
            cri.crictl(&["exec", "--sync", &container[..13], "echo", "in"])?
                .prints("in")?;
            until("the log", || {
                Ok(said(cri, &["logs", &container])?.contains("hello").then_some(()))
            })?;
            let inspect = json_of(cri.crictl(&["inspect", &container])?)?;
            ensure!(inspect["status"]["state"] == "CONTAINER_RUNNING", "{inspect}");
            ensure!(
                inspect["info"]["pid"].as_i64().is_some_and(|pid| pid > 1),
                "{inspect}"
            );
            let inspect = json_of(cri.crictl(&["inspectp", &pod])?)?;
            ensure!(
                inspect["status"]["network"]["ip"]
                    .as_str()
                    .is_some_and(|ip| ip.starts_with("10.88.")),
                "{inspect}"
            );
            let stats = json_of(cri.crictl(&["stats", "--output", "json", "--id", &container])?)?;
            ensure!(
                stats["stats"][0]["attributes"]["id"] == container.as_str(),
                "{stats}"
            );
            cri.crictl(&["statsp", "--output", "json"])?.mentions(&pod)?;
            said(cri, &["stop", "--timeout", "1", &container])?;
            cri.crictl(&["ps", "--all"])?.mentions("Exited")?;
            said(cri, &["rm", &container])?;
            said(cri, &["stopp", &pod])?;
            cri.crictl(&["pods"])?.mentions("NotReady")?;
            said(cri, &["rmp", &pod])?;
            cri.crictl(&["pods", "--quiet"])?.prints("")?;
            Ok(())
        })
    }
);

test!(
    fn a_person_removes_a_running_pod_by_force(t: &Test) -> Result {
        with(t, |cri| {
            cri.busybox()?;
            let [pod_file, container_file] = files(cri, "sleep 1000")?;
            let container = said(cri, &["run", "--no-pull", &container_file, &pod_file])?;
            cri.crictl(&["exec", "--sync", &container, "hostname"])?
                .prints("web")?;
            said(cri, &["rmp", "--all", "--force"])?;
            cri.crictl(&["ps", "--all", "--quiet"])?.prints("")?;
            Ok(())
        })
    }
);

test!(
    fn a_person_lists_and_removes_images_with_crictl(t: &Test) -> Result {
        with(t, |cri| {
            cri.start_registry()?;
            said(cri, &["pull", BUSYBOX])?;
            cri.crictl(&["images"])?.mentions("e2e-test-images/busybox")?;
            let inspect = json_of(cri.crictl(&["inspecti", BUSYBOX])?)?;
            ensure!(inspect["status"]["repoTags"][0] == BUSYBOX, "{inspect}");
            let info = json_of(cri.crictl(&["imagefsinfo"])?)?;
            ensure!(
                info["status"]["imageFilesystems"][0]["usedBytes"]["value"] != "0",
                "{info}"
            );
            said(cri, &["rmi", BUSYBOX])?;
            let images = cri.crictl(&["images"])?.ok()?;
            ensure!(!images.stdout.contains("e2e-test-images/busybox"), "{images}");
            cri.crictl(&["pull", "registry.k8s.io/no/such:image"])?
                .fails_with(&["no/such:image"])?;
            Ok(())
        })
    }
);

test!(
    fn a_person_asks_how_the_server_is(t: &Test) -> Result {
        with(t, |cri| {
            cri.crictl(&["version"])?.mentions("RuntimeApiVersion:  v1")?;
            let info = json_of(cri.crictl(&["info"])?)?;
            let conditions = info["status"]["conditions"].as_array().context("no conditions")?;
            let ready = |name: &str| {
                conditions
                    .iter()
                    .any(|found| found["type"] == name && found["status"] == true)
            };
            ensure!(ready("RuntimeReady") && ready("NetworkReady"), "{info}");
            cri.crictl(&["runtime-config"])?.mentions("CGROUPFS")?;
            Ok(())
        })
    }
);

test!(
    fn what_a_person_gets_wrong_is_said(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.crictl(&["inspect", "abcdef"])?.fails_with(&["abcdef"])?;
            cri.crictl(&["start", "abcdef"])?
                .fails_with(&["abcdef", "not found"])?;
            let [pod_file, _] = files(cri, "true")?;
            cri.crictl(&["runp", "--runtime", "kata", &pod_file])?
                .fails_with(&["kata"])?;
            Ok(())
        })
    }
);
