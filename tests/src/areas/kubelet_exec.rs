//! Exec and attach through the kubelet's own API, by SPDY and by both protocols of WebSocket: what `kubectl exec`,
//! `attach` and `run -it` come to.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::cri::{names, only_ours};
use crate::kubelet::{Node, STAY, StaticPod, WAYS, Way, busybox, busybox_with, escaped, of_container, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

const OUTPUT: &str = "output=1&error=1";
const TERMINAL: &str = "input=1&output=1&tty=1";

fn stays(node: &Node<'_>) -> Result<StaticPod> {
    node.up("web", json!({"containers": [busybox("main", STAY)]}))
}

/// Waits until nothing in the container has this in its command line.
fn is_gone(node: &Node<'_>, pod: &StaticPod, text: &str) -> Result {
    let script = format!("ps | grep -v grep | grep -c '{text}'; true");
    until(&format!("the end of {text}"), || {
        Ok((node.exec(pod, "main", &script)? == "0").then_some(()))
    })
}

test!(
    fn a_command_runs_by_each_way_and_its_exit_status_comes_back(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (stays(node)?, node.api()?);
            for way in WAYS {
                let run = |script: &str| api.exec(way, &pod, "main", &["sh", "-c", script], OUTPUT)?.all();
                let said = run("echo out; echo err >&2; exit 7").context(format!("{way:?}"))?;
                ensure!(
                    said.stdout == "out\n" && said.stderr == "err\n",
                    "{way:?}: {said:?}"
                );
                said.exited(7)?;
                run("true")?.exited(0)?;
                // Words stay words: no shell of the node's sees them.
                let odd = ["printf", "%s|", "a b", "$HOME", "ü&command=c", "+%20"];
                let said = api.exec(way, &pod, "main", &odd, OUTPUT)?.all()?;
                ensure!(said.stdout == "a b|$HOME|ü&command=c|+%20|", "{way:?}: {said:?}");
                let only = api.exec(
                    way,
                    &pod,
                    "main",
                    &["sh", "-c", "echo out; echo err >&2"],
                    "output=1",
                )?;
                let said = only.all()?;
                ensure!(
                    said.stdout == "out\n" && said.stderr.is_empty(),
                    "{way:?}: {said:?}"
                );
            }
            // All at once, to its end, without streams.
            let path = format!(
                "{}?cmd={}",
                of_container("run", &pod, "main"),
                escaped("echo at once")
            );
            api.ask("POST", &path)?.is(200, &["at once"])
        })
    }
);

test!(
    fn much_goes_in_and_much_comes_out_whole(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (stays(node)?, node.api()?);
            let numbers: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
            for way in WAYS {
                // More than all pipes, frames and windows on its way hold.
                let said = api
                    .exec(way, &pod, "main", &["seq", "1", "1000000"], OUTPUT)?
                    .all()?;
                ensure!(said.stdout == numbers, "{way:?}: {} bytes", said.stdout.len());
                said.exited(0)?;
                // The older protocol of WebSocket knows no end of an input.
                let read = if way.ends_input() {
                    "cat"
                } else {
                    "head -c 6000000"
                };
                let command = ["sh", "-c", &format!("{read} | md5sum; echo done")];
                let mut session = api.exec(way, &pod, "main", &command, "input=1&output=1")?;
                for _ in 0..200 {
                    session.send(&[b'x'; 30_000])?;
                }
                if way.ends_input() {
                    session.end_input()?;
                }
                let said = session.all()?;
                let wanted = node.exec(&pod, "main", "head -c 6000000 /dev/zero | tr '\\0' x | md5sum")?;
                ensure!(said.stdout == format!("{wanted}\ndone\n"), "{way:?}: {said:?}");
                said.exited(0)?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_terminal_follows_the_size_of_its_client_s(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (stays(node)?, node.api()?);
            for way in WAYS {
                let mut session = api.exec(way, &pod, "main", &["sh"], TERMINAL)?;
                for (width, height) in [(91, 33), (123, 44)] {
                    session.resize(width, height)?;
                    let wait = format!(
                        "until stty size | grep '{height} {width}'; do sleep 0.1; done; echo as''ked\n"
                    );
                    session.send(wait.as_bytes())?;
                    session
                        .until("asked")
                        .with_context(|| format!("{way:?}: {width} columns"))?;
                }
                session.send(b"tty; echo err''or >&2; exit 4\n")?;
                let said = session.all()?;
                // A terminal has one output.
                names(&said.stdout, &["/dev/pts/", "error"])?;
                said.exited(4)?;
            }
            Ok(())
        })
    }
);

/// A line, and the container's answer.
fn echoes(way: Way, session: &mut crate::kubelet::Session, line: &str) -> Result {
    session.send(format!("{line}\n").as_bytes())?;
    session
        .until(&format!("got {line}"))
        .with_context(|| format!("{way:?}"))?;
    Ok(())
}

/// Says something of itself, too, by which a client knows that it hears it.
const TICKING: &str = "(while :; do echo tick; sleep 0.2; done) & while read line; do echo got $line; done";
const ECHO: &str = "while read line; do echo got $line; done; echo over";

test!(
    fn who_attaches_talks_to_the_container_and_may_leave_it(t: &Test) -> Result {
        with(t, |node| {
            let spec = json!({"containers": [
                busybox_with("main", TICKING, &json!({"stdin": true})),
                busybox_with("terminal", TICKING, &json!({"stdin": true, "tty": true})),
            ]});
            let (pod, api) = (node.up("attached", spec)?, node.api()?);
            for (number, way) in WAYS.into_iter().enumerate() {
                let mut session = api.attach(way, &pod, "main", "input=1&output=1&error=1")?;
                let mut second = api.attach(way, &pod, "main", "output=1")?;
                second.until("tick").context("who only listens")?;
                echoes(way, &mut session, &format!("line-{number}"))?;
                second
                    .until(&format!("got line-{number}"))
                    .context("who only listens")?;
                drop((session, second));
                // The size of a terminal is that of who is attached.
                let mut session = api.attach(way, &pod, "terminal", TERMINAL)?;
                echoes(way, &mut session, &format!("typed-{number}"))?;
            }
            let after = node.until_up("attached")?;
            for name in ["main", "terminal"] {
                ensure!(
                    after.restarts(name) == 0 && after.id(name)? == pod.id(name)?,
                    "{name}: {}",
                    after.0["status"]
                );
                let log = node.log_of(&after, name)?;
                names(&log, &["got ", "-0", "-1", "-2"])?;
            }
            Ok(())
        })
    }
);

test!(
    fn the_input_of_a_container_that_has_it_once_ends_with_its_client(t: &Test) -> Result {
        with(t, |node| {
            let api = node.api()?;
            for (number, way) in WAYS.into_iter().filter(|way| way.ends_input()).enumerate() {
                let name = format!("once{number}");
                let main = busybox_with("main", ECHO, &json!({"stdin": true, "stdinOnce": true}));
                let pod = node.up(&name, json!({"restartPolicy": "Never", "containers": [main]}))?;
                let mut session = api.attach(way, &pod, "main", "input=1&output=1&error=1")?;
                echoes(way, &mut session, "first")?;
                session.end_input()?;
                let said = session.all()?;
                ensure!(said.stdout.contains("over"), "{way:?}: {said:?}");
                let pod = node.until_pod(&name, "at its end", |pod| pod.phase() == "Succeeded")?;
                names(&node.log_of(&pod, "main")?, &["got first\nover\n"])?;
            }
            Ok(())
        })
    }
);

test!(
    fn what_is_not_there_is_named_and_what_can_not_be_is_refused(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (stays(node)?, node.api()?);
            for way in WAYS {
                let refused = |pod: &StaticPod, container: &str, options: &str, parts: &[&str]| -> Result {
                    let error = api.exec(way, pod, container, &["true"], options);
                    let Err(error) = error else {
                        anyhow::bail!("{way:?}: {parts:?} is not refused")
                    };
                    names(&format!("{error:#}"), parts)
                };
                refused(&pod, "none", OUTPUT, &["HTTP/1.1 500 "])?;
                let mut other = pod.clone();
                other.0["metadata"]["name"] = json!("none-node");
                refused(&other, "main", OUTPUT, &["HTTP/1.1 404 "])?;
                refused(&pod, "main", "", &["HTTP/1.1 400 "])?;
                // The server's own words reach the client, and its streams end.
                let said = api.exec(way, &pod, "main", &["/none"], OUTPUT)?.all()?;
                names(&said.error, &["/none"])?;
                ensure!(said.status()?["status"] == "Failure", "{way:?}: {said:?}");
            }
            let ask = |path: &str| api.ask("POST", path);
            let query = format!("?command=true&{OUTPUT}");
            ask(&(of_container("exec", &pod, "none") + &query))?
                .is(500, &["container not found (\"none\")"])?;
            ask(&(of_container("attach", &pod, "none") + &query))?
                .is(500, &["container none not found in pod"])?;
            ask(&("/exec/default/none-node/main".to_owned() + &query))?.is(404, &["pod does not exist"])?;
            ask(&(of_container("exec", &pod, "main") + "?command=true"))?
                .is(400, &["at least 1 of stdin, stdout, stderr"])?;
            // No upgrade: the kubelet's own answer.
            ask(&(of_container("exec", &pod, "main") + &query))?.is(500, &["Upgrade request required"])?;
            let run = format!("{}?cmd=/none", of_container("run", &pod, "main"));
            ask(&run)?.is(500, &["/none"])?;
            node.exec(&pod, "main", "true").map(drop)
        })
    }
);

test!(
    fn a_client_that_vanishes_takes_its_command_along_and_nothing_else(t: &Test) -> Result {
        with(t, |node| {
            only_ours(t)?;
            let (pod, api) = (stays(node)?, node.api()?);
            for way in WAYS {
                let mut lives = api.exec(way, &pod, "main", &["cat"], "input=1&output=1")?;
                let command = ["sh", "-c", "echo begun; trap '' TERM HUP INT PIPE; sleep 7777"];
                let mut vanishes = api.exec(way, &pod, "main", &command, "input=1&output=1")?;
                vanishes.until("begun")?;
                drop(vanishes);
                is_gone(node, &pod, "sleep 777[7]")?;
                lives.send(b"still there\n")?;
                lives.until("still there")?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_command_ends_with_its_pod_and_its_client_is_told(t: &Test) -> Result {
        with(t, |node| {
            let api = node.api()?;
            for (number, way) in WAYS.into_iter().enumerate() {
                let name = format!("ends{number}");
                let pod = node.up(&name, json!({"containers": [busybox("main", STAY)]}))?;
                let command = ["sh", "-c", "echo begun; exec sleep 7777"];
                let mut session = api.exec(way, &pod, "main", &command, OUTPUT)?;
                session.until("begun")?;
                node.withdraw(&name)?;
                let said = session.all()?;
                // Killed, like all in the container.
                said.exited(137).with_context(|| format!("{way:?}"))?;
                node.until_gone(&name)?;
            }
            Ok(())
        })
    }
);
