//! Logs through the kubelet's own API: what `kubectl logs` and its options come to. The kubelet reads the files that the
//! server writes.

use std::io::{BufRead as _, BufReader};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::kubelet::{
    Api, Node, STAY, Setup, StaticPod, busybox, names as files, of_container, patience, with,
};
use crate::registry::Result;
use crate::test;
use crate::wait::{until, within};

fn log(api: &Api, pod: &StaticPod, query: &str) -> Result<String> {
    let answer = api.get(&format!("{}?{query}", of_container("containerLogs", pod, "main")))?;
    answer.is(200, &[])?;
    Ok(answer.body)
}

/// Waits until the log has this line.
fn has_line(api: &Api, pod: &StaticPod, line: &str) -> Result {
    until(&format!("{line:?} in the log"), || {
        let text = log(api, pod, "")?;
        Ok(text.lines().any(|each| each == line).then_some(()))
    })
}

test!(
    fn a_log_is_read_whole_or_from_where_it_is_asked(t: &Test) -> Result {
        with(t, |node| {
            let api = node.api()?;
            let script = format!(
                "for n in 1 2 3; do echo old $n; done; echo trouble >&2; printf half; sleep 4; \
                 echo ' and half'; for n in 1 2 3; do echo new $n; done; {STAY}"
            );
            let pod = node.up("talks", json!({"containers": [busybox("main", &script)]}))?;
            has_line(&api, &pod, "new 3")?;
            let whole = log(&api, &pod, "")?;
            let lines: Vec<&str> = whole.lines().collect();
            ensure!(
                lines.len() == 8 && lines.contains(&"half and half") && lines.contains(&"trouble"),
                "{whole}"
            );
            for tail in 0..=9 {
                let text = log(&api, &pod, &format!("tailLines={tail}"))?;
                let wanted = &lines[lines.len() - tail.min(lines.len())..];
                ensure!(
                    text.lines().eq(wanted.iter().copied()),
                    "tailLines={tail}: {text:?}"
                );
            }
            ensure!(
                log(&api, &pod, "tailLines=2&limitBytes=5")? == "new 2",
                "limitBytes"
            );
            // Each line with its own time, by which the next question is put.
            let stamped = log(&api, &pod, "timestamps=true")?;
            let first = stamped
                .lines()
                .find(|line| line.ends_with(" new 1"))
                .context(stamped.clone())?;
            let (stamp, _) = first.split_once(' ').context("no time")?;
            ensure!(stamp.len() >= 30 && stamp.contains('T'), "{first}");
            let since = log(
                &api,
                &pod,
                &format!("sinceTime={}", crate::kubelet::escaped(stamp)),
            )?;
            ensure!(
                since == "new 1\nnew 2\nnew 3\n" || since == "half and half\nnew 1\nnew 2\nnew 3\n",
                "{since:?}"
            );
            until("the old lines to be old", || {
                let text = log(&api, &pod, "sinceSeconds=3")?;
                Ok((!text.contains("old")).then_some(()))
            })?;
            ensure!(log(&api, &pod, "sinceSeconds=10000")? == whole, "sinceSeconds");
            Ok(())
        })
    }
);

test!(
    fn the_log_of_the_attempt_before_is_there_until_the_next(t: &Test) -> Result {
        with(t, |node| {
            let api = node.api()?;
            let script =
                format!("n=$(cat /count/n || echo 0); echo $((n+1)) >/count/n; echo attempt $n; {STAY}");
            let mut main = busybox("main", &script);
            main["volumeMounts"] = json!([{"name": "count", "mountPath": "/count"}]);
            let spec = json!({"volumes": [{"name": "count", "emptyDir": {}}], "containers": [main]});
            let pod = node.up("again", spec)?;
            let path = of_container("containerLogs", &pod, "main");
            has_line(&api, &pod, "attempt 0")?;
            api.get(&format!("{path}?previous=true"))?
                .is(400, &["previous terminated container \"main\""])?;
            kill(Pid::from_raw(node.main_pid(&pod, "main")?), Signal::SIGKILL)?;
            let pod = node.until_pod("again", "again", |pod| pod.restarts("main") == 1 && pod.is_up())?;
            has_line(&api, &pod, "attempt 1")?;
            let before = log(&api, &pod, "previous=true")?;
            ensure!(before.lines().last() == Some("attempt 0"), "{before}");
            Ok(())
        })
    }
);

/// Reads lines that are numbers in their order, to the last.
fn follows(api: &Api, pod: &StaticPod, last: usize) -> Result<BufReader<std::net::TcpStream>> {
    let path = format!("{}?follow=true", of_container("containerLogs", pod, "main"));
    let mut reader = BufReader::new(api.send("GET", &path)?);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "no answer");
    }
    for number in 1..=last {
        line.clear();
        reader
            .read_line(&mut line)
            .with_context(|| format!("line {number}"))?;
        ensure!(
            line.trim_end() == format!("line {number}"),
            "line {number}: {line:?}"
        );
    }
    Ok(reader)
}

test!(
    fn who_follows_a_log_reads_each_line_over_its_rotations_and_its_end(t: &Test) -> Result {
        let setup = Setup {
            kubelet: "containerLogMaxSize: 20Ki\ncontainerLogMaxFiles: 5\ncontainerLogMonitorInterval: 3s\n"
                .into(),
            ..Setup::default()
        };
        setup.with(t, |node| {
            let api = node.api()?;
            let script = "n=0; while [ $n -lt 2500 ]; do n=$((n+1)); echo line $n; usleep 3000; done; \
                          until test -e /tmp/end; do sleep 0.1; done; echo bye";
            let pod = node.up(
                "talk",
                json!({"restartPolicy": "Never", "containers": [busybox("main", script)]}),
            )?;
            let mut reader = follows(&api, &pod, 2500)?;
            let path = node.log_path(&pod, "main", 0);
            let rotated = files(std::path::Path::new(&path).parent().context("directory")?);
            ensure!(rotated.len() >= 2, "never rotated: {rotated:?}");
            node.exec(&pod, "main", "touch /tmp/end")?;
            let mut rest = String::new();
            std::io::Read::read_to_string(&mut reader, &mut rest).context("the end of the log")?;
            ensure!(rest == "bye\n", "{rest:?}");
            Ok(())
        })
    }
);

/// How many descriptors of log files the kubelet has.
fn open_logs(node: &Node<'_>) -> Result<usize> {
    let directory = format!("/proc/{}/fd", node.kubelet_pid()?);
    let all = std::fs::read_dir(directory)?.flatten();
    Ok(all
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|target| target.starts_with("/var/log/pods"))
        .count())
}

test!(
    fn who_stops_to_follow_is_let_go_and_what_is_not_there_is_named(t: &Test) -> Result {
        with(t, |node| {
            let api = node.api()?;
            let script = format!("echo line 1; {STAY}");
            let spec = json!({"containers": [busybox("main", &script), {"name": "waits", "image": "127.0.0.1:5000/none:1"}]});
            node.run(&crate::kubelet::manifest("quiet", spec))?;
            let pod = node.until_pod("quiet", "partly up", |pod| {
                !pod.container("main")["state"]["running"].is_null()
            })?;
            let reader = follows(&api, &pod, 1)?;
            ensure!(open_logs(node)? >= 1, "nothing is followed");
            drop(reader);
            // The kubelet notices with the next look, a line or a second's time.
            within(patience(), "the kubelet to let the log go", || {
                Ok((open_logs(node)? == 0).then_some(()))
            })?;
            let ask = |path: &str| api.get(path);
            ask(&of_container("containerLogs", &pod, "none"))?
                .is(404, &["container \"none\" not found in pod \"quiet-node\""])?;
            ask("/containerLogs/default/none-node/main")?.is(404, &["none-node"])?;
            ask(&format!(
                "{}?tailLines=-1",
                of_container("containerLogs", &pod, "main")
            ))?
            .is(422, &["Invalid request"])?;
            node.until_waiting("quiet", "waits", &["ErrImagePull", "ImagePullBackOff"])?;
            ask(&of_container("containerLogs", &pod, "waits"))?.is(400, &["is waiting to start: ", "pull"])
        })
    }
);
