//! crictl, every subcommand, against rtc-cri and containerd: what each answers is compared field by field.
//!
//! ```text
//! crictl inspect -o json   ->  inspect running .status.state = CONTAINER_RUNNING
//!                              inspect running .status.image.image text         a line for each field; what differs from
//! crictl ps                ->  ps CONTAINER IMAGE CREATED STATE NAME ...        run to run is left out
//! crictl rm none           ->  rm of none: exit 1, NotFound
//! ```
//!
//! `tests/shapes/crictl.txt` has the lines of both servers. With `--cri-peer containerd` the same test shows that the
//! other half of that file is still true.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::cri::{BUSYBOX, Cri, with};
use crate::host::cgroup;
use crate::output::Output;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// Lines that begin with `-` are containerd's alone, with `+` rtc-cri's; a space: both.
const SHAPES: &str = include_str!("../../shapes/crictl.txt");

/// What was seen so far.
struct Session<'c, 't> {
    cri: &'c Cri<'t>,
    seen: BTreeSet<String>,
    /// Ids, which are no part of a shape.
    ids: Vec<String>,
}

impl Session<'_, '_> {
    /// The answer in JSON: its fields.
    fn json(&mut self, what: &str, args: &[&str]) -> Result<Value> {
        let output = self.cri.crictl(args)?.ok()?;
        let value: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        self.fields(what, "", &value);
        Ok(value)
    }

    fn fields(&mut self, what: &str, path: &str, value: &Value) {
        match value {
            Value::Object(map) if map.is_empty() => self.saw(format!("{what} {path} empty map")),
            Value::Object(map) => {
                for (key, value) in map {
                    let key = self.without_ids(key);
                    // What a server tells of itself is its own business.
                    if path == ".info" || path == ".config" || key == "config" {
                        self.saw(format!("{what} {path}.{key}"));
                    } else {
                        self.fields(what, &format!("{path}.{key}"), value);
                    }
                }
            }
            Value::Array(list) if list.is_empty() => self.saw(format!("{what} {path} empty list")),
            Value::Array(list) => {
                for value in list {
                    self.fields(what, &format!("{path}[]"), value);
                }
            }
            Value::String(text) => self.saw(format!("{what} {path} {}", kind(text))),
            Value::Null => self.saw(format!("{what} {path} null")),
            Value::Bool(value) => self.saw(format!("{what} {path} = {value}")),
            Value::Number(_) => self.saw(format!("{what} {path} number")),
        }
    }

    /// The heads of a table's columns, and the words of a row that are states.
    fn table(&mut self, what: &str, args: &[&str]) -> Result {
        let output = self.cri.crictl(args)?.ok()?;
        let lines = output.lines();
        let head = lines.first().context("no table")?;
        let columns: Vec<_> = head.split_whitespace().collect();
        self.saw(format!("{what}: {}", columns.join(" ")));
        for state in ["Created", "Running", "Exited", "Unknown", "Ready", "NotReady"] {
            if lines
                .iter()
                .skip(1)
                .any(|line| line.split_whitespace().any(|word| word == state))
            {
                self.saw(format!("{what}: a row is {state}"));
            }
        }
        Ok(())
    }

    /// How it fails: the exit status and gRPC's code.
    fn fails(&mut self, what: &str, args: &[&str]) -> Result {
        let output = self.cri.crictl(args)?;
        let codes = output.stderr.split("code = ").skip(1);
        let codes = codes.filter_map(|rest| rest.split_whitespace().next());
        let codes: BTreeSet<_> = codes.collect();
        let codes: Vec<_> = codes.into_iter().collect();
        self.saw(format!("{what}: exit {} {}", output.code, codes.join(" ")));
        Ok(())
    }

    /// What it prints is what matters, and is compared itself.
    fn says(&mut self, what: &str, args: &[&str]) -> Result<String> {
        let output = self.cri.crictl(args)?.ok()?;
        let text = output.stdout.trim().to_owned();
        let line = self.without_ids(text.lines().next().unwrap_or_default());
        self.saw(format!("{what}: {line}"));
        Ok(text)
    }

    /// The id that it prints.
    fn id(&mut self, args: &[&str]) -> Result<String> {
        let id = self.cri.crictl(args)?.ok()?.stdout.trim().to_owned();
        ensure!(id.len() == 64, "not an id: {id:?}");
        self.ids.push(id.clone());
        Ok(id)
    }

    fn saw(&mut self, line: String) {
        self.seen.insert(line.trim_end().to_owned());
    }

    fn without_ids(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for id in &self.ids {
            text = text.replace(id, "ID").replace(&id[..13], "ID");
        }
        text
    }

    /// Nothing but what the file says.
    fn end(self) -> Result {
        let ours = self.cri.is_ours();
        // Statistics of cgroup v2 have other fields; the file is of a hybrid machine.
        let unified = cgroup::is_unified();
        let counts = |line: &str| {
            let of_statistics = ["stats ", "statsp ", "metricsp "]
                .iter()
                .any(|what| line.starts_with(what));
            // A device's numbers are there where a container has used it, which the page cache may spare.
            !(unified && of_statistics || line.ends_with(".labelValues[] digits"))
        };
        let mark = if ours { '+' } else { '-' };
        let expected: BTreeSet<String> = SHAPES
            .lines()
            .filter(|line| line.starts_with([' ', mark]))
            .filter_map(|line| Some(line.get(2..)?.split("  #").next()?.trim_end().to_owned()))
            .filter(|line| counts(line))
            .collect();
        let seen: BTreeSet<String> = self.seen.into_iter().filter(|line| counts(line)).collect();
        let more = seen.difference(&expected).map(|line| format!("{mark} {line}"));
        let less = expected.difference(&seen).map(|line| format!("missing: {line}"));
        let all: Vec<_> = more.chain(less).collect();
        if !all.is_empty() {
            bail!("tests/shapes/crictl.txt and what was seen:\n{}", all.join("\n"));
        }
        Ok(())
    }
}

/// Constants are compared, everything else is a kind.
fn kind(text: &str) -> String {
    let constant = text.len() > 2 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    if constant {
        format!("= {text}")
    } else if text.is_empty() {
        "empty text".into()
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        "digits".into()
    } else if text.len() > 18 && text.starts_with("20") && text.as_bytes()[10] == b'T' {
        "time".into()
    } else if text.starts_with("sha256:") {
        "digest".into()
    } else {
        "text".into()
    }
}

/// Files as a person writes them: a pod's, and a container's that runs this script.
fn files(cri: &Cri<'_>, script: &str) -> Result<[String; 2]> {
    let logs = cri.t.path("logs");
    fs::create_dir(&logs)?;
    let pod = json!({
        "metadata": {"name": "web", "namespace": "tests", "uid": "uid-of-web", "attempt": 1},
        "hostname": "web", "log_directory": logs,
        "labels": {"app": "web"}, "annotations": {"note": "x"},
        "dns_config": {"servers": ["192.0.2.53"]},
        "linux": {"cgroup_parent": cri.t.cgroup.path},
    });
    let container = json!({
        "metadata": {"name": "web", "attempt": 2},
        "image": {"image": BUSYBOX},
        "command": ["sh", "-c"], "args": [script],
        "envs": [{"key": "A", "value": "b"}],
        "labels": {"tier": "front"}, "annotations": {"more": "y"},
        "mounts": [{"host_path": "/tmp", "container_path": "/mnt", "readonly": true}],
        "log_path": "web.log",
        "linux": {"resources": {"memory_limit_in_bytes": 67_108_864, "cpu_shares": 256}},
    });
    let mut paths = Vec::new();
    for value in [pod, container] {
        let path = cri.t.path("config.json");
        fs::write(&path, value.to_string())?;
        paths.push(path.display().to_string());
    }
    Ok([paths[0].clone(), paths[1].clone()])
}

fn server(session: &mut Session<'_, '_>) -> Result {
    let version = session.cri.crictl(&["version"])?.ok()?;
    for line in version.lines() {
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        let value = if key == "RuntimeApiVersion" { value } else { "" };
        session.saw(format!("version {key}:{value}"));
    }
    session.json("info", &["info"])?;
    session.says("runtime-config", &["runtime-config"])?;
    session.json("metricdescs", &["metricdescs", "-o", "json"])?;
    session.says(
        "update-runtime-config",
        &["update-runtime-config", "--pod-cidr", "10.244.0.0/24"],
    )?;
    // crictl's own: they ask no server.
    session.cri.crictl(&["completion", "bash"])?.mentions("crictl")?;
    let config = session.cri.t.path("crictl.yaml").display().to_string();
    fs::write(&config, "")?;
    session
        .cri
        .crictl(&["--config", &config, "config", "--set", "timeout=7"])?
        .ok()?;
    session
        .cri
        .crictl(&["--config", &config, "config", "--get", "timeout"])?
        .prints("7")?;
    Ok(())
}

fn images(session: &mut Session<'_, '_>) -> Result {
    session.cri.start_registry()?;
    session.says("pull", &["pull", BUSYBOX])?;
    session.table("images", &["images"])?;
    session.table("images --digests", &["images", "--digests", "--pinned"])?;
    session.json("images", &["images", "-o", "json", BUSYBOX])?;
    session.json("inspecti", &["inspecti", BUSYBOX])?;
    session.table("inspecti table", &["inspecti", "-o", "table", BUSYBOX])?;
    session.json("imagefsinfo", &["imagefsinfo"])?;
    for (what, args) in [
        ("pull of none", ["pull", "registry.k8s.io/no/such:image"]),
        ("pull of no name", ["pull", "UPPER/x:y:z"]),
        ("inspecti of none", ["inspecti", "registry.k8s.io/no/such:image"]),
        ("rmi of none", ["rmi", "registry.k8s.io/no/such:image"]),
    ] {
        session.fails(what, &args)?;
    }
    Ok(())
}

/// From `runp` to `start`; the ids of the pod and the container.
fn made(session: &mut Session<'_, '_>) -> Result<(String, String)> {
    let [pod_file, container_file] = files(
        session.cri,
        "echo out; echo err >&2; trap 'exit 3' TERM; sleep 1000 & wait",
    )?;
    let pod = session.id(&["runp", &pod_file])?;
    session.fails("runp again", &["runp", &pod_file])?;
    session.table("pods", &["pods"])?;
    session.json("pods", &["pods", "-o", "json"])?;
    session.json("inspectp", &["inspectp", &pod])?;
    let container = session.id(&["create", "--no-pull", &pod, &container_file, &pod_file])?;
    session.fails(
        "create again",
        &["create", "--no-pull", &pod, &container_file, &pod_file],
    )?;
    session.table("ps created", &["ps", "-a"])?;
    session.json("inspect created", &["inspect", &container])?;
    session.fails("exec in a created one", &["exec", "-s", &container, "true"])?;
    session.says("start", &["start", &container])?;
    session.fails("start again", &["start", &container])?;
    Ok((pod, container))
}

fn running(session: &mut Session<'_, '_>, pod: &str, container: &str) -> Result {
    session.table("ps running", &["ps"])?;
    session.json("ps", &["ps", "-o", "json"])?;
    session.json("inspect running", &["inspect", container])?;
    until("the log", || {
        let logs = session.cri.crictl(&["logs", container])?.ok()?;
        Ok((logs.stdout.contains("out") && logs.stderr.contains("err")).then_some(()))
    })?;
    session.says("logs --stream stdout", &["logs", "--stream", "stdout", container])?;
    session.says("logs --reopen", &["logs", "--reopen", "--tail", "0", container])?;
    session.says(
        "exec --sync",
        &["exec", "--sync", container, "sh", "-c", "echo $A $(hostname)"],
    )?;
    session.fails(
        "exec --sync that fails",
        &["exec", "--sync", container, "sh", "-c", "exit 7"],
    )?;
    session.fails("exec --sync of none", &["exec", "--sync", container, "/none"])?;
    session.fails(
        "exec --sync too long",
        &["exec", "--sync", "--timeout", "1", container, "sleep", "100"],
    )?;
    session.table("stats", &["stats"])?;
    session.json("stats", &["stats", "-o", "json"])?;
    session.table("statsp", &["statsp"])?;
    session.json("statsp", &["statsp", "-o", "json"])?;
    session.json("metricsp", &["metricsp", "-o", "json"])?;
    session.says(
        "update",
        &[
            "update",
            "--memory",
            "134217728",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
            container,
        ],
    )?;
    session.json("inspect updated", &["inspect", container])?;
    session.fails("rm of a running one", &["rm", container])?;
    session.fails(
        "checkpoint",
        &[
            "checkpoint",
            "--export",
            &session.cri.t.path("x.tar").display().to_string(),
            container,
        ],
    )?;
    session.json("inspectp running", &["inspectp", pod]).map(drop)
}

fn ended(session: &mut Session<'_, '_>, pod: &str, container: &str) -> Result {
    session.says("stop", &["stop", "--timeout", "5", container])?;
    session.says("stop again", &["stop", container])?;
    session.table("ps exited", &["ps", "-a"])?;
    session.json("inspect exited", &["inspect", container])?;
    session.fails("start of an exited one", &["start", container])?;
    session.fails("exec in an exited one", &["exec", "-s", container, "true"])?;
    session.fails(
        "update of an exited one",
        &["update", "--memory", "134217728", container],
    )?;
    session.says("rm", &["rm", container])?;
    session.says("stopp", &["stopp", pod])?;
    session.says("stopp again", &["stopp", pod])?;
    session.table("pods stopped", &["pods"])?;
    session.json("inspectp stopped", &["inspectp", pod])?;
    session.says("rmp", &["rmp", pod])?;
    for (what, verb) in [
        ("inspect of none", "inspect"),
        ("inspectp of none", "inspectp"),
        ("start of none", "start"),
        ("stop of none", "stop"),
        ("rm of none", "rm"),
        ("stopp of none", "stopp"),
        ("rmp of none", "rmp"),
        ("logs of none", "logs"),
        ("update of none", "update"),
    ] {
        session.fails(what, &[verb, "0123456789abc"])?;
    }
    session.fails("exec in none", &["exec", "-s", "0123456789abc", "true"])?;
    session.says("rmi", &["rmi", BUSYBOX]).map(drop)
}

test!(
    fn every_subcommand_answers_as_containerd_does_but_for_what_is_listed(t: &Test) -> Result {
        with(t, |cri| {
            let mut session = Session {
                cri,
                seen: BTreeSet::new(),
                ids: Vec::new(),
            };
            server(&mut session)?;
            images(&mut session)?;
            let (pod, container) = made(&mut session)?;
            running(&mut session, &pod, &container)?;
            ended(&mut session, &pod, &container)?;
            session.end()
        })
    }
);

/// Lines of `crictl events`, until there are so many.
fn events(cri: &Cri<'_>, work: impl FnOnce() -> Result) -> Result<Vec<Value>> {
    let endpoint = format!("unix://{}", cri.socket().display());
    let out = cri.t.path("events");
    let redirect = format!(">{}", out.display());
    let command = cri
        .t
        .bare(["--runtime-endpoint", &endpoint, "events", "-o", "json"]);
    let running = command
        .program(cri.peer_file("cri-tools/bin/crictl"))
        .redirect(&redirect)
        .spawn()?;
    // It says nothing when it is there: the first event that it shows does.
    std::thread::sleep(std::time::Duration::from_millis(500));
    work()?;
    let read = || -> Result<Vec<Value>> {
        let text = fs::read_to_string(&out)?;
        let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        Ok(values.map_while(std::result::Result::ok).collect())
    };
    until("the last event", || {
        let deleted = |event: &Value| event["containerEventType"] == "CONTAINER_DELETED_EVENT";
        let all = read()?;
        Ok((all.iter().filter(|event| deleted(event)).count() >= 2).then_some(()))
    })?;
    running.kill()?;
    read()
}

test!(
    fn events_are_shown_in_their_order(t: &Test) -> Result {
        with(t, |cri| {
            cri.busybox()?;
            let [pod_file, container_file] = files(cri, "true")?;
            let said =
                |args: &[&str]| -> Result<String> { Ok(cri.crictl(args)?.ok()?.stdout.trim().to_owned()) };
            let seen = events(cri, || {
                let container = said(&["run", "--no-pull", &container_file, &pod_file])?;
                until("the container to end", || {
                    let ended: Output = cri.crictl(&["ps", "-a", "--state", "Exited", "-q"])?;
                    Ok((!ended.ok()?.stdout.is_empty()).then_some(()))
                })?;
                said(&["rm", &container])?;
                said(&["rmp", "--all", "--force"]).map(drop)
            })?;
            let of = |event: &Value| {
                event["containerEventType"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let kinds: Vec<String> = seen.iter().map(of).collect();
            let expected = [
                "CONTAINER_CREATED_EVENT",
                "CONTAINER_STARTED_EVENT",
                "CONTAINER_CREATED_EVENT",
                "CONTAINER_STARTED_EVENT",
                "CONTAINER_STOPPED_EVENT",
                "CONTAINER_DELETED_EVENT",
                "CONTAINER_STOPPED_EVENT",
                "CONTAINER_DELETED_EVENT",
            ];
            ensure!(kinds == expected, "{kinds:?}");
            let status = |at: usize| seen[at]["podSandboxStatus"]["state"].clone();
            ensure!(status(1) == "SANDBOX_READY", "{:?}", seen[1]);
            let containers = seen[4]["containersStatuses"].as_array().context("no statuses")?;
            ensure!(containers[0]["state"] == "CONTAINER_EXITED", "{containers:?}");
            Ok(())
        })
    }
);
